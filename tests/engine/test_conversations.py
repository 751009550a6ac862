"""Conversations through the engine: what the model received is told, and the rules for prompts hold for their contents."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML

from llm_tt.config import AppConfig, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import ExplainPrediction, InspectNode, ModelKey, TraceKey
from llm_tt.errors import PromptError
from llm_tt.text import ChatMessage

PREPARED = "Mary the store"


@pytest.fixture(scope="module")
def served(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AppConfig:
    folder = tmp_path_factory.mktemp("served")
    (folder / "chat.jinja").write_text(CHATML.jinja)
    (folder / "prompts.txt").write_text(PREPARED + "\n")
    model = {"path": str(checkpoint("gpt2")), "chat_template": "chat.jinja"}
    config = {"models": {"mine": model}, "preloaded_dataset_filename": "prompts.txt"}
    (folder / "config.json").write_text(json.dumps(config))
    return load_config(folder / "config.json")


def conversation(*contents: str) -> TraceKey:
    """System, then user."""
    roles = ("system", "user") if len(contents) == 2 else ("user",)
    return TraceKey(ModelKey("mine"), tuple(ChatMessage(role, text) for role, text in zip(roles, contents, strict=True)))  # type: ignore[arg-type]


@pytest.fixture
def serve(served: AppConfig, make_engine: Callable[..., LocalEngine]) -> Callable[..., LocalEngine]:
    def serve(**changes: Any) -> LocalEngine:
        return make_engine(served.model_copy(update=changes))

    return serve


def test_an_explanation_has_what_the_model_received(serve: Callable[..., LocalEngine], runs: list) -> None:
    engine = serve()
    trace = conversation("Mary.", "the")
    answer = engine.answer(ExplainPrediction(trace))
    assert answer.prompt.text == "<|im_start|>system\nMary.<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert answer.graph.token_ids == answer.prompt.token_ids == runs[0]
    roles = {
        role: "".join(t for t, r in zip(answer.prompt.token_texts, answer.prompt.roles, strict=True) if r == role)
        for role in ("system", "user")
    }
    assert roles == {"system": "Mary.", "user": "the"}
    assert pickle.loads(pickle.dumps(answer)).prompt == answer.prompt

    engine.answer(InspectNode(trace, "I0_0"))
    engine.answer(ExplainPrediction(dataclasses.replace(trace, prompt=tuple(trace.prompt))))
    assert len(runs) == 1, "the trace is kept"
    engine.answer(ExplainPrediction(conversation("Mary.", "store")))
    assert len(runs) == 2


def test_an_explanation_of_a_text_has_its_prompt_too(serve: Callable[..., LocalEngine]) -> None:
    answer = serve().answer(ExplainPrediction(TraceKey(ModelKey("mine"), "the é")))
    assert answer.prompt.text == "the é"
    assert answer.prompt.offsets == ((0, 3), (3, 4), (4, 5), (4, 5))


def test_the_characters_of_all_messages_count(serve: Callable[..., LocalEngine]) -> None:
    engine = serve(max_user_string_length=10)
    assert engine.answer(ExplainPrediction(conversation("12345", "67890"))).prompt.n_tokens > 10
    with pytest.raises(PromptError, match=r"The prompt has 11 characters, but this server allows 10\. Shorten it\."):
        engine.answer(ExplainPrediction(conversation("12345", "678901")))
    assert engine.answer(ExplainPrediction(conversation(PREPARED))).prompt.n_tokens > 10


def test_demo_mode_lets_prepared_prompts_be_turns(serve: Callable[..., LocalEngine]) -> None:
    engine = serve(demo_mode=True)
    assert PREPARED in (engine.answer(ExplainPrediction(conversation(PREPARED))).prompt.text or "")
    for trace in (conversation("Say no.", PREPARED), conversation("the"), conversation("")):
        with pytest.raises(PromptError, match="This server shows prepared prompts only"):
            engine.answer(ExplainPrediction(trace))
