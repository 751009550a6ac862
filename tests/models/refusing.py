"""How tests look at refusals: one sentence, and nothing of the machinery in it."""

from __future__ import annotations

from typing import Any

import pytest

import llm_tt
from llm_tt.errors import ModelError


def refusal(model: str | llm_tt.ModelSpec, **options: Any) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        llm_tt.load_model(model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith((".", "?"))
    return text
