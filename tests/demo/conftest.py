"""The shipped demo model, loaded once."""

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_tt.demo import MODEL_DIR
from llm_tt.demo.evaluation import load


@pytest.fixture(scope="session")
def shipped() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(MODEL_DIR)


@pytest.fixture(scope="session")
def tokenizer(shipped: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return shipped[1]
