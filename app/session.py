"""What lasts longer than one run of the script: the engine shared by all users, and one user's question and choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import streamlit as st

from llm_tt.analysis.comparison import Comparison
from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.saliency_report import Saliency
from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.config import AppConfig, load_config
from llm_tt.engine.local import LocalEngine
from llm_tt.engine.messages import (
    AddedModel,
    AddModel,
    CheckTrace,
    CompareTraces,
    Continue,
    DataPreview,
    EstimateTrace,
    Evaluate,
    Evaluation,
    ExplainErrors,
    ExplainPrediction,
    Explanation,
    HeadReport,
    InspectHead,
    LensGridOf,
    MeasureTuning,
    ModelKey,
    PreviewData,
    PreviewPrompt,
    PromptPreview,
    ReadContinuation,
    ReadHeads,
    SaliencyOf,
    TraceCheck,
    TraceKey,
    TrajectoriesOf,
)
from llm_tt.errors import ConfigError, LlmTtError
from llm_tt.flow.head_roles import HeadRoles
from llm_tt.lens.layer_tables import LensGrid, Trajectories
from llm_tt.models.continuation import Continuation
from llm_tt.models.estimates import TraceEstimate

_PATIENCE = 0.5
"""Seconds that a run of the script waits for an answer before it shows progress instead"""


@dataclass(frozen=True, eq=False)
class Service:
    """A configuration and the engine that serves it."""

    file: Path
    config: AppConfig
    engine: LocalEngine


def service(file: Path) -> Service:
    """The service of a configuration file, shared by all users until the file changes.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(
            f'Configuration file "{file}" does not exist. Start with: streamlit run app/main.py -- config/local.json'
        ) from error
    return _service(str(file), changed)


@st.cache_resource(show_spinner=False, max_entries=1, on_release=lambda released: released.engine.close())
def _service(file: str, changed: int) -> Service:
    config = load_config(file)
    last = _last_engine()
    # What users have added outlives an edit of the file, which may be the very line that one of them was told to write.
    engine = LocalEngine(config, added=last.engine.added_models() if last.engine and last.file == file else ())
    last.file, last.engine = file, engine
    return Service(Path(file), config, engine)


@dataclass
class _LastEngine:
    file: str = ""
    engine: LocalEngine | None = None


@st.cache_resource(show_spinner=False)
def _last_engine() -> _LastEngine:
    return _LastEngine()


Phase = Literal["answered", "working", "failed", "cancelled"]
_Q = TypeVar(
    "_Q",
    ExplainPrediction,
    Continue | ReadContinuation,
    AddModel,
    MeasureTuning,
    LensGridOf,
    TrajectoriesOf,
    InspectHead,
    ReadHeads,
    CheckTrace,
    SaliencyOf,
    PreviewData,
    PreviewPrompt,
    Evaluate,
    ExplainErrors,
    CompareTraces,
    EstimateTrace,
)
_A = TypeVar("_A")


@dataclass
class Conversation(Generic[_Q, _A]):
    """One user's current question to the engine: at most one job at a time; a new question cancels the one before."""

    question: _Q | None = None
    job: str | None = None
    phase: Phase = "answered"
    message: str = ""
    answer: _A | None = None

    def ask(self, engine: LocalEngine, question: _Q) -> None:
        """Make this the current question; does nothing if it already is."""
        if question == self.question:
            return
        if self.job is not None:
            engine.cancel(self.job)
        self.question, self.phase, self.message = question, "working", ""
        try:
            self.job = engine.submit(question)
        except LlmTtError as error:
            self._end("failed", str(error))
        self.look(engine, _PATIENCE)

    def look(self, engine: LocalEngine, patience: float = 0.0) -> None:
        """Take the answer if it has come, or comes within `patience` seconds."""
        if self.job is None:
            return
        try:
            status = engine.wait(self.job, patience)
            if status.state == "done":
                self.answer = engine.collect(self.job)
                self._end("answered")
            elif status.state == "cancelled":
                self._end("cancelled", status.message)
            elif status.state == "failed":
                self._end("failed", status.message)
        except LlmTtError as error:
            # The job belonged to an engine that has gone, with the configuration it served.
            self._end("failed", str(error))

    def _end(self, phase: Phase, message: str = "") -> None:
        self.phase, self.message, self.job = phase, message, None

    def again(self) -> None:
        """Forget the question, so that the next `ask` repeats it."""
        self.question = None


@dataclass
class Adding:
    """One user's model that is being added: what was typed, and the question about it."""

    typed: dict[str, str] = field(default_factory=dict)
    conversation: Conversation[AddModel, AddedModel] = field(default_factory=lambda: Conversation[AddModel, AddedModel]())


ContinuingConversation = Conversation[Continue | ReadContinuation, Continuation]


@dataclass
class Continuing:
    """One user's continuation: of which prompt on which model, and the question for it."""

    key: TraceKey | None = None
    conversation: ContinuingConversation = field(default_factory=lambda: ContinuingConversation())
    seen: Continuation | None = None
    """the answer that the page already shows"""
    before: Continuation | None = None
    """what the tokens that are being generated will be joined to"""

    def drop(self, engine: LocalEngine) -> None:
        if self.conversation.job is not None:
            engine.cancel(self.conversation.job)
        self.conversation, self.seen, self.before = ContinuingConversation(), None, None


Measuring = Conversation[MeasureTuning, TuningReport]


def tuning(anew: bool = False, engine: LocalEngine | None = None) -> Measuring:
    """One user's question about what a tuning changed; `anew` gives the last one up."""
    if anew:
        last: Measuring | None = st.session_state.pop("tuning", None)
        if last is not None and last.job is not None and engine is not None:
            engine.cancel(last.job)
    return _state("tuning", lambda: Measuring())


def conversation() -> Conversation[ExplainPrediction, Explanation]:
    return _state("conversation", lambda: Conversation[ExplainPrediction, Explanation]())


def lens_grid() -> Conversation[LensGridOf, LensGrid]:
    return _state("lens_grid", lambda: Conversation[LensGridOf, LensGrid]())


def head_report() -> Conversation[InspectHead, HeadReport]:
    return _state("head_report", lambda: Conversation[InspectHead, HeadReport]())


def head_roles() -> Conversation[ReadHeads, HeadRoles]:
    return _state("head_roles", lambda: Conversation[ReadHeads, HeadRoles]())


def trace_check() -> Conversation[CheckTrace, TraceCheck]:
    return _state("trace_check_asked", lambda: Conversation[CheckTrace, TraceCheck]())


def trace_estimate() -> Conversation[EstimateTrace, TraceEstimate]:
    return _state("trace_estimate", lambda: Conversation[EstimateTrace, TraceEstimate]())


def trajectories() -> Conversation[TrajectoriesOf, Trajectories]:
    return _state("trajectories", lambda: Conversation[TrajectoriesOf, Trajectories]())


def saliency() -> Conversation[SaliencyOf, Saliency]:
    return _state("saliency", lambda: Conversation[SaliencyOf, Saliency]())


def data_preview() -> Conversation[PreviewData, DataPreview]:
    return _state("data_preview", lambda: Conversation[PreviewData, DataPreview]())


def prompt_preview() -> Conversation[PreviewPrompt, PromptPreview]:
    return _state("prompt_preview", lambda: Conversation[PreviewPrompt, PromptPreview]())


def evaluating() -> Conversation[Evaluate, Evaluation]:
    return _state("evaluating", lambda: Conversation[Evaluate, Evaluation]())


def explaining_errors() -> Conversation[ExplainErrors, CellExplanation]:
    return _state("explaining_errors", lambda: Conversation[ExplainErrors, CellExplanation]())


def comparison() -> Conversation[CompareTraces, Comparison]:
    return _state("comparison", lambda: Conversation[CompareTraces, Comparison]())


def compared_heads() -> tuple[Conversation[InspectHead, HeadReport], Conversation[InspectHead, HeadReport]]:
    """A head in each side of a comparison."""
    return _state("compared_heads", lambda: (Conversation[InspectHead, HeadReport](), Conversation[InspectHead, HeadReport]()))


def compared_answers() -> tuple[ContinuingConversation, ContinuingConversation]:
    """What each side of a comparison generates."""
    return _state("compared_answers", lambda: (ContinuingConversation(), ContinuingConversation()))


def continuing() -> Continuing:
    return _state("continuing", Continuing)


def adding() -> Adding:
    return _state("adding", Adding)


Dialog = Literal["adding", "memory", "tuning", "maps", "honesty"]


def open_dialog(name: Dialog) -> None:
    st.session_state.dialog = name


def close_dialog() -> None:
    st.session_state.pop("dialog", None)


def dialog() -> Dialog | None:
    """The dialog that is open. Kept here, so that a run of the whole script leaves it open."""
    return st.session_state.get("dialog")


def choose_model(name: str) -> None:
    """Select a model of the menu in the next run of the script."""
    st.session_state.chosen_model = name


def has_chat_template(service: Service, model: ModelKey) -> bool:
    """Whether a model has a chat template, known once it was loaded; kept, so that dropping the model does not turn a chat into a text."""
    known: dict[ModelKey, bool] = _state("chat_templates", dict)
    facts = service.engine.facts_if_loaded(model)
    if facts is not None:
        known[model] = facts.info.tokenizer is not None and facts.info.tokenizer.chat_template is not None
        st.session_state.pop("chat_expected", None)
    return known.get(model, "chat_expected" in st.session_state)


def expect_chat_template() -> None:
    """Take the next model for one with a chat template until it is loaded: a conversation came with a link."""
    st.session_state.chat_expected = True


def hold(key: str, default: Any) -> None:
    """Let a widget keep its value through runs in which it is not drawn, as while another page is shown: Streamlit forgets it.

    Call it right before the widget is drawn, and give the widget no value of its own: what is set in a run that does not draw it comes back later.
    """
    value = held(key, default)
    if key not in st.session_state:
        st.session_state[key] = value


def held(key: str, default: Any) -> Any:
    """What a widget holds, drawn or not."""
    kept: dict[str, Any] = _state("held", dict)
    if key in st.session_state:
        kept[key] = st.session_state[key]
    return kept.setdefault(key, default)


def put(key: str, value: Any) -> None:
    """Let a widget hold this when it is drawn next. In a callback, or before it is drawn."""
    _state("held", dict)[key] = value
    st.session_state.pop(key, None)


def _state(name: str, make: Callable[[], _A]) -> _A:
    if name not in st.session_state:
        st.session_state[name] = make()
    return st.session_state[name]
