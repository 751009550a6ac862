"""The engine in this process: loads each model once, keeps recent traces within a budget, answers questions from any thread.

Importing this module is cheap; the model libraries are imported when the first model is loaded.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from llm_tt.config import AppConfig, ModelSpec
from llm_tt.engine.jobs import JobQueue, JobStatus
from llm_tt.engine.messages import (
    Answer,
    EdgeReport,
    ExplainPrediction,
    Explanation,
    InspectEdge,
    InspectNode,
    LoadModel,
    MeasureTuning,
    ModelFacts,
    ModelKey,
    NodeReport,
    Question,
    TraceKey,
)
from llm_tt.errors import ModelError, PromptError, RequestError
from llm_tt.flow.graph import Node, entering
from llm_tt.progress import Progress, silent
from llm_tt.text import ChatMessage

if TYPE_CHECKING:
    from llm_tt.analysis.tuning_report import TuningReport
    from llm_tt.models.transparent_llm import Trace, TransparentLlm

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_LOADING, _TRACING = 0.7, 0.95
"""Fractions of an explanation's progress at which the model is loaded, and traced, when nothing is cached"""


_MAX_TUNINGS = 16
"""Tuning reports to keep: small, but minutes of reading for a large model"""


@dataclass(frozen=True, eq=False)
class _Loaded:
    model: TransparentLlm
    facts: ModelFacts


@dataclass(frozen=True, eq=False)
class _Traced:
    trace: Trace
    facts: ModelFacts
    seconds: float


class _Cache(Generic[_Key, _Value]):
    """Values by key, each made once even when several threads want it; the least recently used go when the budget is exceeded."""

    def __init__(self, budget: int, cost: Callable[[_Value], int]) -> None:
        self._budget = budget
        self._cost = cost
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._making: dict[_Key, tuple[threading.Lock, int]] = {}
        """A lock for each key that is being made, and how many threads want it"""

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        with self._lock:
            making, wanted = self._making.get(key, (threading.Lock(), 0))
            self._making[key] = making, wanted + 1
        try:
            with making:
                with self._lock:
                    if key in self._values:
                        self._values.move_to_end(key)
                        return self._values[key]
                value = make()
                with self._lock:
                    self._values[key] = value
                    while len(self._values) > 1 and sum(map(self._cost, self._values.values())) > self._budget:
                        self._values.popitem(last=False)
                return value
        finally:
            with self._lock:
                making, wanted = self._making.pop(key)
                if wanted > 1:
                    self._making[key] = making, wanted - 1

    def discard(self, unwanted: Callable[[_Key], bool]) -> None:
        with self._lock:
            for key in [key for key in self._values if unwanted(key)]:
                del self._values[key]

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._values


class LocalEngine:
    """Answers questions about the models of a configuration.

    Args:
        trace_budget: bytes of traces and contributions to keep.
        max_models: models to keep loaded; the least recently used one is dropped for another.
    """

    def __init__(self, config: AppConfig, trace_budget: int = 2 * 2**30, max_models: int = 2, n_workers: int = 2) -> None:
        self._config = config
        self._models: _Cache[ModelKey, _Loaded] = _Cache(max_models, lambda loaded: 1)
        self._traces: _Cache[TraceKey, _Traced] = _Cache(trace_budget, _trace_bytes)
        self._tunings: _Cache[ModelKey, TuningReport] = _Cache(_MAX_TUNINGS, lambda report: 1)
        self._jobs = JobQueue(n_workers)

    # --- questions

    @overload
    def answer(self, question: LoadModel, progress: Progress = silent) -> ModelFacts: ...
    @overload
    def answer(self, question: ExplainPrediction, progress: Progress = silent) -> Explanation: ...
    @overload
    def answer(self, question: InspectNode, progress: Progress = silent) -> NodeReport: ...
    @overload
    def answer(self, question: InspectEdge, progress: Progress = silent) -> EdgeReport: ...
    @overload
    def answer(self, question: MeasureTuning, progress: Progress = silent) -> TuningReport: ...

    def answer(self, question: Question, progress: Progress = silent) -> Answer:
        """Answer now, in this thread. `progress` may raise to cancel.

        Raises:
            LlmTtError: the sentence to show.
        """
        match question:
            case LoadModel():
                return self._loaded(question.model, progress).facts
            case ExplainPrediction():
                return self._explain(question, progress)
            case InspectNode():
                return _inspect_node(question, self._traced(question.trace, progress).trace)
            case InspectEdge():
                return _inspect_edge(question, self._traced(question.trace, progress).trace)
            case MeasureTuning():
                return self._tuning(question.model, progress)

    def submit(self, question: Question) -> str:
        """Answer in the background; the id of the job."""
        # The overloads of `answer` take one kind of question each.
        ask: Callable[[Any, Progress], Answer] = self.answer
        return self._jobs.submit(lambda progress: ask(question, progress))

    def status(self, job_id: str) -> JobStatus:
        return self._jobs.status(job_id)

    def wait(self, job_id: str, timeout: float | None = None) -> JobStatus:
        return self._jobs.wait(job_id, timeout)

    def cancel(self, job_id: str) -> None:
        self._jobs.cancel(job_id)

    def collect(self, job_id: str) -> Any:
        return self._jobs.collect(job_id)

    def is_loaded(self, model: ModelKey) -> bool:
        return model in self._models

    def devices(self) -> list[str]:
        """What a model can be asked to run on; asking does not import torch, so the list grows once a model is loaded."""
        torch = sys.modules.get("torch")
        found = ["auto", "cpu"]
        if torch is not None and torch.cuda.is_available():
            found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if torch is not None and torch.backends.mps.is_available():
            found.append("mps")
        return found

    def close(self) -> None:
        self._jobs.close()

    # --- models and traces

    def _spec(self, key: ModelKey) -> ModelSpec:
        spec = self._config.models.get(key.name)
        if spec is None:
            if self._config.demo_mode:
                raise ModelError(f'Model "{key.name}" is not offered here. Choose one of: {", ".join(self._config.models)}.')
            spec = ModelSpec.named(key.name)
        return spec.changed(device=None if key.device == "auto" else key.device, dtype=None if key.dtype == "auto" else key.dtype)

    def _loaded(self, key: ModelKey, progress: Progress) -> _Loaded:
        def load() -> _Loaded:
            progress("Importing the model libraries", 0.0)
            _import_libraries()
            from llm_tt.models import identities, load_unchecked

            started = time.monotonic()
            model = load_unchecked(self._spec(key), progress=progress)
            progress(f"Checking that the parts of {key.name} add up", 0.95)
            report = identities.require(model)
            facts = ModelFacts(model.info, report.worst, report.tolerance, time.monotonic() - started)
            return _Loaded(model, facts)

        loaded = self._models.get(key, load)
        # Traces hold on to their model: those of a model that was dropped must not keep it in memory.
        self._traces.discard(lambda trace: trace.model not in self._models)
        return loaded

    def _tuning(self, key: ModelKey, progress: Progress) -> TuningReport:
        # Weights are compared as they are stored: on which device and in which precision the model runs makes no difference.
        key = ModelKey(key.name)

        def measure() -> TuningReport:
            from llm_tt.analysis.tuning import tuning_report

            return tuning_report(self._spec(key), progress=progress)

        return self._tunings.get(key, measure)

    def _require_allowed(self, prompt: str | tuple[ChatMessage, ...]) -> None:
        """What the configuration says about prompts holds for every way in, not only for the page's text box.

        Of a conversation the contents count, all of them together; a prepared prompt may be one of them.
        """
        contents = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
        limit, demo_mode, length = self._config.max_user_string_length, self._config.demo_mode, sum(map(len, contents))
        if (demo_mode or (limit is not None and length > limit)) and not set(contents) <= set(self._config.prompts()):
            if demo_mode:
                raise PromptError("This server shows prepared prompts only. Choose one of its examples.")
            raise PromptError(f"The prompt has {length} characters, but this server allows {limit}. Shorten it.")

    def _traced(self, key: TraceKey, progress: Progress) -> _Traced:
        self._require_allowed(key.prompt)
        loaded = self._loaded(key.model, _part(progress, 0.0, _LOADING))

        def trace() -> _Traced:
            started = time.monotonic()
            result = loaded.model.trace(key.prompt, _part(progress, _LOADING, _TRACING))
            return _Traced(result, loaded.facts, time.monotonic() - started)

        return self._traces.get(key, trace)

    # --- answers

    def _explain(self, question: ExplainPrediction, progress: Progress) -> Explanation:
        traced = self._traced(question.trace, progress)

        from llm_tt.flow.routes import extract_routes
        from llm_tt.lens.vocabulary import predictions

        started = time.monotonic()
        graph = extract_routes(traced.trace, question.target, question.threshold, question.renormalize, _part(progress, _TRACING, 1.0))
        return Explanation(
            trace=question.trace,
            prompt=traced.trace.prompt,
            facts=traced.facts,
            graph=graph,
            predictions=predictions(traced.trace, question.target, question.n_predictions),
            trace_seconds=traced.seconds,
            routes_seconds=time.monotonic() - started,
            trace_bytes=traced.trace.nbytes,
        )


@cache
def _import_libraries() -> None:
    """Import what loading a model needs, once, and tell the garbage collector that it stays.

    Streamlit collects garbage after every run of the script; with these libraries' objects to look through that stops the process for a third of
    a second each time.
    """
    from transformer_lens.model_bridge import TransformerBridge  # noqa: F401

    import llm_tt.models.bridge  # noqa: F401

    gc.collect()
    gc.freeze()


def _trace_bytes(traced: _Traced) -> int:
    from llm_tt.flow.contributions import table_of

    return traced.trace.nbytes + table_of(traced.trace).nbytes


def _part(progress: Progress, low: float, high: float) -> Progress:
    """A progress callback for one part of a longer computation."""
    return lambda stage, fraction: progress(stage, low + (high - low) * fraction)


def _checked(name: str, trace: Trace) -> Node:
    node = Node.parse(name)
    trace.layer(node.layer)
    trace.position(node.position)
    return node


def _inspect_node(question: InspectNode, trace: Trace) -> NodeReport:
    from llm_tt.lens.vocabulary import promoted_and_suppressed, top_tokens

    node = _checked(question.node, trace)
    layer, position, model = node.layer, node.position, trace.model
    text = trace.token_texts[position]
    before = trace.resid_pre(layer)[position]
    if node.kind == "X":
        top = top_tokens(model, before, question.n_top, normalize=question.normalize)
        return NodeReport(question.node, text, top, None, None, None)
    block = trace.blocks[layer]
    if node.kind == "A":
        kind, part, whole = "attention", block.attn_out[position], block.resid_mid[position]
    else:
        kind, part, before, whole = "FFN", block.ffn_out[position], block.resid_mid[position], block.resid_post[position]
    promoted, suppressed = promoted_and_suppressed(model, part, whole, question.n_effects, question.normalize)
    top = None if node.kind == "M" else top_tokens(model, whole, question.n_top, before, question.normalize)
    return NodeReport(question.node, text, top, kind, promoted, suppressed)


def _inspect_edge(question: InspectEdge, trace: Trace) -> EdgeReport:
    from llm_tt.flow.contributions import attention_contributions, ffn_contributions

    source, destination = _checked(question.source, trace), _checked(question.destination, trace)
    layer, position = destination.layer, destination.position
    heads: tuple[tuple[int, float], ...] = ()
    ends = (source.kind, destination.kind)
    same_place = (source.layer, source.position) == (layer, position)
    if (
        question.key == "attention"
        and destination.kind == "A"
        and source == entering(layer, source.position)
        and source.position <= position
    ):
        by_head = attention_contributions(trace, layer, [position]).edges[0, source.position]
        order = by_head.argsort(descending=True, stable=True).tolist()
        heads = tuple((head, float(by_head[head])) for head in order)
        contribution = float(by_head.sum())
    elif question.key == "residual" and destination.kind == "A" and source == entering(layer, position):
        contribution = float(attention_contributions(trace, layer, [position]).residual[0])
    elif question.key == "residual" and ends == ("A", "I") and same_place:
        contribution = float(ffn_contributions(trace, layer, [position]).residual[0])
    elif question.key == "ffn" and ends in (("A", "M"), ("M", "I")) and same_place:
        contribution = float(ffn_contributions(trace, layer, [position]).ffn[0])
    else:
        raise RequestError(f'There is no {question.key} edge from "{question.source}" to "{question.destination}" in a transformer.')
    return EdgeReport(question.source, question.destination, question.key, contribution, heads)
