"""An app under test is run again and again, as the page's own polling does, until nothing is worked on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from streamlit.testing.v1 import AppTest

_CONVERSATIONS = (
    *("conversation", "lens_grid", "trajectories", "saliency"),
    *("comparison", "compared_answers", "compared_heads", "tuning"),
    *("data_preview", "prompt_preview", "evaluating", "explaining_errors"),
)
"""Their names in the session's state"""


def answered(at: AppTest) -> AppTest:
    """Run until no question of the session waits for its answer; whoever asks has seen the answer in the last run."""
    for _ in range(600):
        at.run()
        assert not at.exception, at.exception[0].value
        if all(conversation.phase != "working" for conversation in _conversations(at)):
            return at
        time.sleep(0.1)
    raise AssertionError("a question was never answered")


def _conversations(at: AppTest) -> Iterator[Any]:
    for name in _CONVERSATIONS:
        if name in at.session_state:
            found = at.session_state[name]
            yield from found if isinstance(found, tuple) else (found,)
