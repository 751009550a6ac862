"""The engine in this process: keeps models and recent traces within a budget, answers questions from any thread.

Importing this module is cheap; the model libraries are imported when the first model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from llm_tt.config import AppConfig, ModelSpec
from llm_tt.engine import inspection, keeper
from llm_tt.engine.cache import Cache
from llm_tt.engine.evaluating import Evaluations
from llm_tt.engine.generated import Generated
from llm_tt.engine.jobs import JobQueue, JobStatus, Line
from llm_tt.engine.keeper import Loaded, ModelKeeper
from llm_tt.engine.messages import (
    AddedModel,
    AddModel,
    Answer,
    CacheUse,
    CheckTrace,
    CompareTraces,
    Continue,
    DataPreview,
    EdgeReport,
    EstimateTrace,
    Evaluate,
    Evaluation,
    ExplainErrors,
    ExplainLogit,
    ExplainPrediction,
    Explanation,
    HeadReport,
    HeadsReport,
    InspectEdge,
    InspectHead,
    InspectHeads,
    InspectNeuron,
    InspectNeurons,
    InspectNode,
    LensGridOf,
    ListLoaded,
    LoadedModel,
    LoadModel,
    LookAt,
    MeasureTuning,
    MemoryReport,
    ModelFacts,
    ModelKey,
    NeuronReport,
    NeuronsReport,
    NodeReport,
    PreviewData,
    PreviewPrompt,
    PromptPreview,
    Question,
    ReadContinuation,
    ReadHeads,
    ReadRow,
    RowPrompt,
    SaliencyOf,
    TraceCheck,
    TraceKey,
    TrajectoriesOf,
)
from llm_tt.errors import PromptError
from llm_tt.lens.direct_effects import DirectEffects
from llm_tt.lens.layer_tables import LensGrid, Trajectories
from llm_tt.models import places
from llm_tt.models.continuation import Continuation, GeneratedToken
from llm_tt.models.estimates import Pace, TraceEstimate
from llm_tt.models.places import Place
from llm_tt.progress import Cancelled, Progress, silent, within

if TYPE_CHECKING:
    from llm_tt.analysis.comparison import Comparison
    from llm_tt.analysis.errors import CellExplanation
    from llm_tt.analysis.saliency_report import Saliency
    from llm_tt.analysis.tuning_report import TuningReport
    from llm_tt.flow.head_roles import HeadRoles
    from llm_tt.models.transparent_llm import Trace

_LOADING, _TRACING = 0.7, 0.95
"""Fractions of an explanation's progress at which the model is loaded, and traced, when nothing is cached"""


_ABOUT_ONE_PART = (InspectHead, ReadHeads, CheckTrace, LensGridOf, TrajectoriesOf, PreviewData, PreviewPrompt, EstimateTrace)
"""What a click on a page that is there asks: it waits for no other prompt"""
_ABOUT_MANY_PROMPTS = (Evaluate, ExplainErrors)
"""What takes minutes: one of them at a time, and nothing else waits for it"""

_MAX_TUNINGS = 16
"""Tuning reports to keep: small, but minutes of reading for a large model"""
_MAX_READINGS = 64
"""Head roles, and as many checks of traces, to keep: small, but they read all attention of a prompt"""

_LENS_BUDGET = 64 * 2**20
"""Bytes of grids and trajectories to keep: each reads the whole unembedding once for every layer"""


LONG_PROMPT = 512
"""Tokens from which on what a trace will cost is known before it is made"""

_SALIENCY_BUDGET = 8 * 2**20
"""Bytes of saliency to keep: small, but hundreds of runs of the model"""

_COMPARISON_BUDGET = 64 * 2**20
"""Bytes of comparisons to keep: each reads the edges of two graphs in two traces"""

_BOTH_TRACED = 0.8
"""Fraction of a comparison's progress at which there are both traces"""


@dataclass(frozen=True, eq=False)
class _Traced:
    trace: Trace
    loaded: Loaded
    seconds: float


@dataclass
class _KnownPace:
    """Of a model on this machine; better known with every trace."""

    pace: Pace


@dataclass(frozen=True, eq=False)
class _Read:
    answer: LensGrid | Trajectories
    loaded: Loaded


@dataclass(frozen=True, eq=False)
class _Compared:
    answer: Comparison
    loaded: tuple[Loaded, Loaded]


class LocalEngine:
    """Answers questions about the models of a configuration.

    Args:
        trace_budget: bytes of traces and contributions to keep.
        max_models: models to keep loaded; the least recently used one is dropped before another is loaded.
        added: models that users had added to the engine before this one.
    """

    def __init__(
        self,
        config: AppConfig,
        trace_budget: int = 2 * 2**30,
        max_models: int = 2,
        n_workers: int = 2,
        added: Iterable[ModelSpec] = (),
    ) -> None:
        self._config = config
        self._max_models = max_models
        self._models = ModelKeeper(config, max_models, added, self._forget_orphans)
        self._traces: Cache[tuple[ModelSpec, Any, tuple[int, ...]], _Traced] = Cache(trace_budget, _trace_bytes)
        self._readings: Cache[tuple[ModelSpec, LensGridOf | TrajectoriesOf], _Read] = Cache(_LENS_BUDGET, lambda read: read.answer.nbytes)
        self._saliency: Cache[tuple[ModelSpec, SaliencyOf], Saliency] = Cache(_SALIENCY_BUDGET, lambda answer: answer.nbytes)
        self._comparisons: Cache[tuple[ModelSpec, ModelSpec, CompareTraces], _Compared] = Cache(
            _COMPARISON_BUDGET, lambda compared: compared.answer.nbytes
        )
        self._tunings: Cache[ModelSpec, TuningReport] = Cache(_MAX_TUNINGS, lambda report: 1)
        self._roles: Cache[tuple[ModelSpec, Any, tuple[int, ...]], HeadRoles] = Cache(_MAX_READINGS, lambda roles: 1)
        self._checks: Cache[tuple[ModelSpec, Any, tuple[int, ...], int], TraceCheck] = Cache(_MAX_READINGS, lambda check: 1)
        self._paces: Cache[ModelSpec, _KnownPace] = Cache(_MAX_READINGS, lambda pace: 1)
        self._generated: Generated[tuple[ModelSpec, Any]] = Generated()
        self._evaluations = Evaluations(config, self._models)
        self._jobs = JobQueue(n_workers)

    # --- questions

    @overload
    def answer(self, question: LoadModel, progress: Progress = silent) -> ModelFacts: ...
    @overload
    def answer(self, question: ExplainPrediction, progress: Progress = silent) -> Explanation: ...
    @overload
    def answer(self, question: Continue, progress: Progress = silent, so_far: Callable[[Continuation], None] = ...) -> Continuation: ...
    @overload
    def answer(self, question: ReadContinuation, progress: Progress = silent) -> Continuation: ...
    @overload
    def answer(self, question: InspectNode, progress: Progress = silent) -> NodeReport: ...
    @overload
    def answer(self, question: InspectEdge, progress: Progress = silent) -> EdgeReport: ...
    @overload
    def answer(self, question: ReadHeads, progress: Progress = silent) -> HeadRoles: ...
    @overload
    def answer(self, question: CheckTrace, progress: Progress = silent) -> TraceCheck: ...
    @overload
    def answer(self, question: InspectHeads, progress: Progress = silent) -> HeadsReport: ...
    @overload
    def answer(self, question: InspectHead, progress: Progress = silent) -> HeadReport: ...
    @overload
    def answer(self, question: InspectNeurons, progress: Progress = silent) -> NeuronsReport: ...
    @overload
    def answer(self, question: InspectNeuron, progress: Progress = silent) -> NeuronReport: ...
    @overload
    def answer(self, question: ExplainLogit, progress: Progress = silent) -> DirectEffects: ...
    @overload
    def answer(self, question: LensGridOf, progress: Progress = silent) -> LensGrid: ...
    @overload
    def answer(self, question: TrajectoriesOf, progress: Progress = silent) -> Trajectories: ...
    @overload
    def answer(self, question: SaliencyOf, progress: Progress = silent) -> Saliency: ...
    @overload
    def answer(self, question: CompareTraces, progress: Progress = silent) -> Comparison: ...
    @overload
    def answer(self, question: MeasureTuning, progress: Progress = silent) -> TuningReport: ...
    @overload
    def answer(self, question: LookAt, progress: Progress = silent) -> Place: ...
    @overload
    def answer(self, question: AddModel, progress: Progress = silent) -> AddedModel: ...
    @overload
    def answer(self, question: EstimateTrace, progress: Progress = silent) -> TraceEstimate: ...
    @overload
    def answer(self, question: ListLoaded, progress: Progress = silent) -> MemoryReport: ...
    @overload
    def answer(self, question: PreviewData, progress: Progress = silent) -> DataPreview: ...
    @overload
    def answer(self, question: ReadRow, progress: Progress = silent) -> RowPrompt: ...
    @overload
    def answer(self, question: PreviewPrompt, progress: Progress = silent) -> PromptPreview: ...
    @overload
    def answer(self, question: Evaluate, progress: Progress = silent) -> Evaluation: ...
    @overload
    def answer(self, question: ExplainErrors, progress: Progress = silent) -> CellExplanation: ...

    def answer(self, question: Question, progress: Progress = silent, so_far: Callable[[Continuation], None] = lambda part: None) -> Answer:
        """Answer now, in this thread. `progress` may raise to cancel. `so_far` is told each part of an answer that comes in parts.

        Raises:
            LlmTtError: the sentence to show.
        """
        match question:
            case LookAt():
                self._models.require_adding()
                return places.look(question.typed)
            case AddModel():
                spec, loaded = self._models.add(question.spec, progress)
                return AddedModel(spec, loaded.facts, self._config.lines_with(spec))
            case ListLoaded():
                return self._memory_report()
            case MeasureTuning():
                return self._tuning(question.model, progress)
            case PreviewData():
                return self._evaluations.preview(question, progress)
            case ReadRow():
                return self._evaluations.read_row(question, progress)
            case PreviewPrompt():
                return self._evaluations.preview_prompt(question, progress)
            case Evaluate():
                return self._evaluations.evaluate(question, progress)
            case ExplainErrors():
                return self._evaluations.explain(question, progress)
            case CompareTraces():
                return self._compare(question, progress)
            case LoadModel():
                with self._models.using(self._models.spec(question.model)):
                    return self._models.load(question.model, progress).facts
        with self._models.using(self._models.spec(question.trace.model)):
            match question:
                case ExplainPrediction():
                    return self._explain(question, progress)
                case Continue():
                    return self._continue(question, progress, so_far)
                case EstimateTrace():
                    return self._estimate(question.trace, progress)
                case ReadContinuation():
                    return inspection.read_continuation(self._traced(question.trace, progress).trace)
                case InspectNode():
                    return inspection.inspect_node(question, self._traced(question.trace, progress).trace)
                case InspectEdge():
                    return inspection.inspect_edge(question, self._traced(question.trace, progress).trace)
                case ReadHeads():
                    return self._read_heads(question, progress)
                case CheckTrace():
                    return self._check_trace(question, progress)
                case InspectHeads():
                    return inspection.inspect_heads(question, self._traced(question.trace, progress).trace)
                case InspectHead():
                    traced = self._traced(question.trace, within(progress, 0.0, _TRACING))
                    return inspection.inspect_head(question, traced.trace, within(progress, _TRACING, 1.0))
                case InspectNeurons():
                    return inspection.inspect_neurons(question, self._traced(question.trace, progress).trace)
                case InspectNeuron():
                    return inspection.inspect_neuron(question, self._traced(question.trace, progress).trace)
                case ExplainLogit():
                    return inspection.explain_logit(self._traced(question.trace, progress).trace, question.logit)
                case LensGridOf() | TrajectoriesOf():
                    return self._read(question, progress)
                case SaliencyOf():
                    return self._saliency_of(question, progress)

    def submit(self, question: Question) -> str:
        """Answer in the background; the id of the job."""
        # The overloads of `answer` take one kind of question each.
        ask: Any = self.answer
        line: Line = "usual"
        if isinstance(question, _ABOUT_ONE_PART):
            line = "quick"
        elif isinstance(question, _ABOUT_MANY_PROMPTS):
            line = "bulk"
        return self._jobs.submit(lambda report: ask(question, report, report.so_far), line)

    def status(self, job_id: str) -> JobStatus:
        return self._jobs.status(job_id)

    def wait(self, job_id: str, timeout: float | None = None) -> JobStatus:
        return self._jobs.wait(job_id, timeout)

    def cancel(self, job_id: str) -> None:
        self._jobs.cancel(job_id)

    def collect(self, job_id: str) -> Any:
        return self._jobs.collect(job_id)

    def close(self) -> None:
        self._jobs.close()

    # --- prompts and data sets

    def is_prepared(self, contents: Iterable[str]) -> bool:
        """Whether these texts are among the prompts and data sets of the server, which any of its users may see.

        Raises:
            ConfigError: the prompt file cannot be read.
        """
        asked = set(contents) - set(self._config.prompts())
        return not asked or asked <= self._evaluations.texts()

    def data_sets(self) -> tuple[str, ...]:
        """The menu: the shipped data sets, then the configured ones."""
        return self._evaluations.names()

    # --- models

    def model_names(self) -> tuple[str, ...]:
        """The menu: the configured models, then those that users added."""
        return self._models.names()

    def added_models(self) -> tuple[ModelSpec, ...]:
        return self._models.added()

    def is_loaded(self, model: ModelKey) -> bool:
        return self._models.is_loaded(model)

    def facts_if_loaded(self, model: ModelKey) -> ModelFacts | None:
        """What `LoadModel` answers, if that takes no time."""
        return self._models.facts(model)

    def is_tuned(self, model: ModelKey) -> bool:
        """Whether `MeasureTuning` has something to compare: the model has an adapter, or names the base it was tuned from."""
        facts, spec = self._models.facts(model), self._models.spec(model)
        return spec.adapter is not None or spec.base is not None or (facts is not None and facts.info.adapter is not None)

    def unload(self, model: ModelKey) -> None:
        """Drop a model and its traces; what is being answered with it ends as it would, and the memory is freed after.

        It is loaded again when somebody asks about it."""
        self._models.unload(model)

    def forget(self, name: str) -> None:
        """Take a model that was added off the menu of everyone, and unload it."""
        self._models.forget(name)

    def devices(self) -> list[str]:
        """What a model can be asked to run on; asking does not import torch, so the list grows once a model is loaded."""
        return keeper.devices()

    def _memory_report(self) -> MemoryReport:
        traces = self._traces.items()
        models: list[LoadedModel] = []
        for loaded, n_questions in self._models.loaded():
            sizes = [_trace_bytes(traced) for _, traced in traces if traced.loaded is loaded]
            models.append(LoadedModel(loaded.key, loaded.facts, loaded.weight_bytes, len(sizes), sum(sizes), n_questions))
        caches = {
            "traces": self._traces,
            "grids and trajectories": self._readings,
            "head roles": self._roles,
            "saliency": self._saliency,
            "comparisons": self._comparisons,
            "checks of traces": self._checks,
            "tuning reports": self._tunings,
            **self._evaluations.caches(),
        }
        uses = tuple(CacheUse(name, *cache.counts()) for name, cache in caches.items())
        return MemoryReport(tuple(models), self._max_models, keeper.memory(), keeper.process_bytes(), uses)

    # --- traces

    def _forget_orphans(self) -> None:
        """Traces hold on to their model: those of a model that was dropped must not keep it in memory."""
        self._traces.discard(lambda key, traced: not self._models.holds(traced.loaded))
        self._readings.discard(lambda key, read: not self._models.holds(read.loaded))
        self._comparisons.discard(lambda key, compared: not all(map(self._models.holds, compared.loaded)))

    def _tuning(self, key: ModelKey, progress: Progress) -> TuningReport:
        # Weights are compared as they are stored: on which device and in which precision the model runs makes no difference.
        spec = self._models.spec(ModelKey(key.name))

        def measure(progress: Progress) -> TuningReport:
            from llm_tt.analysis.tuning import tuning_report

            return tuning_report(spec, progress=progress)

        return self._tunings.get(spec, measure, progress)

    def _require_allowed(self, key: TraceKey) -> None:
        """What the configuration says about prompts holds for every way in, not only for the page's text box.

        Of a conversation the contents count, all of them together; a prepared prompt may be one of them. Where prompts are restricted, a
        continuation must have been generated here: token ids could be any text.
        """
        prompt = key.prompt
        contents = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
        limit, demo_mode, length = self._config.max_user_string_length, self._config.demo_mode, sum(map(len, contents))
        if (demo_mode or (limit is not None and length > limit)) and not self.is_prepared(contents):
            if demo_mode:
                raise PromptError("This server shows prepared prompts only. Choose one of its examples.")
            raise PromptError(f"The prompt has {length} characters, but this server allows {limit}. Shorten it.")
        is_restricted = demo_mode or limit is not None
        if is_restricted and key.continuation and not self._generated.knows(self._continued(key), key.continuation):
            raise PromptError(
                f"This server knows no continuation of this prompt that begins with these {len(key.continuation)} tokens. Generate it here."
            )

    def _continued(self, key: TraceKey) -> tuple[ModelSpec, Any]:
        return self._models.spec(key.model), key.prompt

    def _continue(self, question: Continue, progress: Progress, so_far: Callable[[Continuation], None]) -> Continuation:
        key, n_tokens = question.trace, question.n_tokens
        self._require_allowed(key)
        loaded = self._models.load(key.model, within(progress, 0.0, _LOADING))

        from llm_tt.models.generation import generate

        start = loaded.model.prompt(key.prompt, key.continuation).n_tokens
        following = within(progress, _LOADING, 1.0)
        following(f"Reading {start} tokens", 0.0)
        tokens: list[GeneratedToken] = []
        cancelled = False
        try:
            for token in generate(
                loaded.model,
                key.prompt,
                n_tokens,
                temperature=question.temperature,
                top_k=question.top_k,
                top_p=question.top_p,
                seed=question.seed,
                continuation=key.continuation,
            ):
                tokens.append(token)
                so_far(Continuation.of(start, tokens))
                following(f"Token {len(tokens)} of {n_tokens}", len(tokens) / n_tokens)
        except Cancelled:
            # What has come is an answer.
            cancelled = True
        answer = Continuation.of(start, tokens, cancelled)
        self._generated.remember(self._continued(key), key.continuation + answer.token_ids)
        return answer

    def _traced(self, key: TraceKey, progress: Progress) -> _Traced:
        self._require_allowed(key)
        loaded = self._models.load(key.model, within(progress, 0.0, _LOADING))

        def trace(progress: Progress) -> _Traced:
            pace: _KnownPace | None = None
            if loaded.model.prompt(key.prompt, key.continuation).n_tokens >= LONG_PROMPT:
                # Before the model is busy with it: whoever waits for the trace asks what it will cost.
                pace = self._pace(loaded, within(progress, 0.0, 0.1))
            started = time.monotonic()
            result = loaded.model.trace(key.prompt, progress, key.continuation)
            seconds = time.monotonic() - started
            if pace is not None:
                pace.pace = pace.pace.after(result.n_tokens, seconds)
            return _Traced(result, loaded, seconds)

        traced = self._traces.get((self._models.spec(key.model), key.prompt, key.continuation), trace, within(progress, _LOADING, _TRACING))
        # The model may have been dropped meanwhile; those who did so did not see this trace.
        if not self._models.holds(traced.loaded):
            self._forget_orphans()
        return traced

    def _pace(self, loaded: Loaded, progress: Progress) -> _KnownPace:
        def measure(progress: Progress) -> _KnownPace:
            from llm_tt.models.pace import measured_pace

            return _KnownPace(measured_pace(loaded.model, progress))

        return self._paces.get(self._models.spec(loaded.key), measure, progress)

    def _estimate(self, key: TraceKey, progress: Progress) -> TraceEstimate:
        self._require_allowed(key)
        loaded = self._models.load(key.model, within(progress, 0.0, _LOADING))
        n_tokens = loaded.model.prompt(key.prompt, key.continuation).n_tokens
        pace = self._pace(loaded, within(progress, _LOADING, 1.0)).pace

        from llm_tt.models.pace import estimate_trace

        return estimate_trace(loaded.model, n_tokens, pace)

    # --- answers

    def _explain(self, question: ExplainPrediction, progress: Progress) -> Explanation:
        traced = self._traced(question.trace, progress)

        from llm_tt.flow.propagation import propagate
        from llm_tt.flow.routes import extract_routes_by_mass, extract_routes_to_span, span
        from llm_tt.lens.vocabulary import following_token, predictions

        started = time.monotonic()
        following = within(progress, _TRACING, 1.0)
        targets = span(traced.trace, question.target if question.first is None else question.first, question.target)
        if question.mass is None:
            graph = extract_routes_to_span(traced.trace, targets, question.threshold, question.renormalize, following)
        else:
            graph = extract_routes_by_mass(traced.trace, targets, question.mass, question.renormalize, following)
        routed = time.monotonic()
        flow = propagate(graph)
        propagated = time.monotonic()
        best = predictions(traced.trace, question.target, question.n_predictions)
        assert graph.carried is not None
        return Explanation(
            trace=question.trace,
            prompt=traced.trace.prompt,
            facts=traced.loaded.facts,
            graph=graph,
            predictions=best,
            trace_seconds=traced.seconds,
            routes_seconds=routed - started,
            trace_bytes=traced.trace.nbytes,
            sources=flow.sources,
            dropped=max(0.0, 1 - graph.carried),
            head_flow=flow.by_head(traced.trace.model.info.n_heads),
            following=following_token(traced.trace, graph.target),
            propagation_seconds=propagated - routed,
            predictions_seconds=time.monotonic() - propagated,
        )

    def _read_heads(self, question: ReadHeads, progress: Progress) -> HeadRoles:
        from llm_tt.flow.head_roles import head_roles

        key = question.trace
        self._require_allowed(key)
        return self._roles.get(
            (self._models.spec(key.model), key.prompt, key.continuation),
            lambda progress: head_roles(self._traced(key, within(progress, 0.0, _TRACING)).trace, within(progress, _TRACING, 1.0)),
            progress,
        )

    def _check_trace(self, question: CheckTrace, progress: Progress) -> TraceCheck:
        key = question.trace
        self._require_allowed(key)

        def check(progress: Progress) -> TraceCheck:
            from llm_tt.models.identities import reconstruction_errors, sampled

            traced = self._traced(key, within(progress, 0.0, _TRACING))
            n_tokens = traced.trace.n_tokens
            layers = reconstruction_errors(traced.trace, question.n_positions, within(progress, _TRACING, 1.0))
            return TraceCheck(layers, len(sampled(n_tokens, question.n_positions)), n_tokens, traced.loaded.facts.tolerance)

        return self._checks.get((self._models.spec(key.model), key.prompt, key.continuation, question.n_positions), check, progress)

    def _read(self, question: LensGridOf | TrajectoriesOf, progress: Progress) -> LensGrid | Trajectories:
        self._require_allowed(question.trace)

        def read(progress: Progress) -> _Read:
            from llm_tt.lens.grid import lens_grid, token_trajectories
            from llm_tt.lens.vocabulary import predictions

            started = 0.0

            def tracing(stage: str, fraction: float) -> None:
                nonlocal started
                started = fraction / 2
                progress(stage, started)

            # Half of the bar is for what has to be done again, model and trace; mostly nothing has.
            traced = self._traced(question.trace, tracing)
            rest, trace = within(progress, started, 1.0), traced.trace
            if isinstance(question, LensGridOf):
                return _Read(lens_grid(trace, question.points, question.token, question.normalize, rest), traced.loaded)
            best = predictions(trace, question.position, question.n_predictions).token_ids.tolist()
            tokens = [*best, *question.tokens]
            answer = token_trajectories(trace, question.position, tokens, question.points, question.normalize, rest)
            return _Read(answer, traced.loaded)

        found = self._readings.get((self._models.spec(question.trace.model), question), read, progress)
        if not self._models.holds(found.loaded):
            self._forget_orphans()
        return found.answer

    def _saliency_of(self, question: SaliencyOf, progress: Progress) -> Saliency:
        self._require_allowed(question.trace)

        def measure(progress: Progress) -> Saliency:
            from llm_tt.analysis.saliency import saliency

            started = 0.0

            def tracing(stage: str, fraction: float) -> None:
                nonlocal started
                started = fraction / 4
                progress(stage, started)

            traced = self._traced(question.trace, tracing)
            return saliency(
                traced.trace,
                question.target,
                question.token,
                question.contrast,
                question.methods,
                question.unit,
                n_samples=question.n_samples,
                n_steps=question.n_steps,
                n_removed=question.n_removed,
                seed=question.seed,
                threshold=question.threshold,
                mass=question.mass,
                renormalize=question.renormalize,
                progress=within(progress, started, 1.0),
            )

        return self._saliency.get((self._models.spec(question.trace.model), question), measure, progress)

    def _compare(self, question: CompareTraces, progress: Progress) -> Comparison:
        specs = [self._models.spec(key.model) for key in question.trace]
        for key in question.trace:
            self._require_allowed(key)

        def measure(progress: Progress) -> _Compared:
            from llm_tt.analysis.comparing import compare

            started = 0.0

            def tracing(stage: str, fraction: float) -> None:
                nonlocal started
                started = fraction * _BOTH_TRACED
                progress(stage, started)

            first = self._traced(question.first, within(tracing, 0.0, 0.5))
            second = self._traced(question.second, within(tracing, 0.5, 1.0))
            answer = compare(
                first.trace,
                second.trace,
                question.target,
                question.other_target,
                question.token,
                question.contrast,
                question.threshold,
                question.mass,
                question.renormalize,
                question.n_predictions,
                within(progress, started, 1.0),
            )
            return _Compared(answer, (first.loaded, second.loaded))

        # Both at once: neither makes room for the other.
        with self._models.using(specs[0]), self._models.using(specs[1]):
            compared = self._comparisons.get((specs[0], specs[1], question), measure, progress)
        if not all(map(self._models.holds, compared.loaded)):
            self._forget_orphans()
        return compared.answer


def _trace_bytes(traced: _Traced) -> int:
    from llm_tt.flow.contributions import table_of
    from llm_tt.lens.effects import kept_bytes

    return traced.trace.nbytes + table_of(traced.trace).nbytes + kept_bytes(traced.trace)
