"""What can be asked of an engine, and what it answers: frozen values of text, numbers and numpy arrays, fit to cross a network.

A question names its model and prompt in full, so that any engine can answer it, whatever it remembers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_tt.analysis.comparison import Comparison
from llm_tt.analysis.errors import CellExplanation
from llm_tt.analysis.evaluation_report import EvaluationReport
from llm_tt.analysis.rows import Problem, Template
from llm_tt.analysis.saliency_report import METHODS, Method, Saliency, Unit
from llm_tt.analysis.scoring import Scoring
from llm_tt.analysis.strategy_report import StrategyComparison
from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.config import ModelSpec
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKey, FlowGraph
from llm_tt.flow.head_roles import HeadRoles
from llm_tt.flow.shares import HeadShare, NeuronShare
from llm_tt.lens.direct_effects import DirectEffects, LogitQuestion, Token
from llm_tt.lens.layer_tables import LensGrid, Points, Trajectories
from llm_tt.lens.token_table import TokenTable
from llm_tt.models.continuation import Continuation
from llm_tt.models.estimates import TraceEstimate
from llm_tt.models.info import LayerErrors, ModelInfo
from llm_tt.models.places import Place
from llm_tt.text import ChatMessage, Prompt

NeuronOrder = Literal["contribution", "effect"]


@dataclass(frozen=True)
class ModelKey:
    """A model of the configuration, as it is to be loaded. "auto" leaves a choice to the configuration."""

    name: str
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class TraceKey:
    """One prompt on one model."""

    model: ModelKey
    prompt: str | tuple[ChatMessage, ...]
    """plain text, or a conversation for the model's chat template"""
    continuation: tuple[int, ...] = ()
    """ids of tokens that the model put out after the prompt, used exactly as they are"""


@dataclass(frozen=True)
class LoadModel:
    """Load a model, prove that its parts add up, and tell its facts."""

    model: ModelKey


@dataclass(frozen=True)
class ExplainPrediction:
    """Routes to one target or to a span, with what the model predicts at the target. Positions may be negative, as in Python."""

    trace: TraceKey
    target: int = -1
    threshold: float = DEFAULT_THRESHOLD
    renormalize: bool = True
    n_predictions: int = 10
    mass: float | None = None
    """keep the smallest graph that carries this share of the flow; `threshold` then does nothing"""
    first: int | None = None
    """explain every position from this one to the target at once, as those that predicted an answer; None: the target alone"""


@dataclass(frozen=True)
class Continue:
    """What the model puts out after a prompt, and after a continuation it has already. Numbers as in `llm_tt.models.continuation.Sampling`."""

    trace: TraceKey
    n_tokens: int = 20
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class ReadContinuation:
    """What `Continue` tells, of a continuation that is known: the one of the trace."""

    trace: TraceKey


@dataclass(frozen=True)
class InspectNode:
    """What a point of the residual stream, an FFN block or a token embedding says. `node` as in `llm_tt.flow.graph`."""

    trace: TraceKey
    node: str
    n_top: int = 30
    n_effects: int = 15
    normalize: bool = True
    logit: LogitQuestion | None = None
    """also tell the node's direct effect on this"""


@dataclass(frozen=True)
class InspectEdge:
    """What flows from one node to the next, before any threshold. `key` is "attention", "residual" or "ffn"."""

    trace: TraceKey
    source: str
    destination: str
    key: EdgeKey
    logit: LogitQuestion | None = None
    """also tell the edge's direct effect on this"""


@dataclass(frozen=True)
class ExplainLogit:
    """What each part adds to the logit of a token after the target (None: of the model's first choice), or to how far it is above another's."""

    trace: TraceKey
    target: int = -1
    token: Token | None = None
    contrast: Token | None = None

    @property
    def logit(self) -> LogitQuestion:
        return LogitQuestion(self.target, self.token, self.contrast)


@dataclass(frozen=True)
class ReadHeads:
    """How far each head behaves as a previous-token, first-token, same-token or induction head on one prompt."""

    trace: TraceKey


@dataclass(frozen=True)
class CheckTrace:
    """How well the parts of each layer add up in this very trace."""

    trace: TraceKey
    n_positions: int = 64


@dataclass(frozen=True)
class InspectHeads:
    """What every head of a layer contributes at a token, from all sources together."""

    trace: TraceKey
    layer: int
    position: int


@dataclass(frozen=True)
class InspectHead:
    """Where a head looks, and what it writes at a token.

    `head` None: all heads of the layer, their mean attention, the sum of the rest. `source`: only what comes from that token, or None for all."""

    trace: TraceKey
    layer: int
    head: int | None
    position: int
    source: int | None = None
    n_effects: int = 15
    normalize: bool = True


@dataclass(frozen=True)
class InspectNeurons:
    """The neurons of an FFN that contribute most at a token, or those with the strongest direct effects, whatever their sign."""

    trace: TraceKey
    layer: int
    position: int
    k: int = 20
    logit: LogitQuestion | None = None
    """also tell their direct effects on this; needed for the order by effect"""
    by: NeuronOrder = "contribution"


@dataclass(frozen=True)
class InspectNeuron:
    """What a neuron writes at a token."""

    trace: TraceKey
    layer: int
    position: int
    neuron: int
    n_effects: int = 15
    normalize: bool = True
    logit: LogitQuestion | None = None
    """also tell the neuron's direct effect on this"""


@dataclass(frozen=True)
class LensGridOf:
    """What every point of the residual stream says at every token. `token` is an id or a text, as in `llm_tt.lens.named_tokens`."""

    trace: TraceKey
    points: Points = "post"
    token: int | str | None = None
    normalize: bool = True


@dataclass(frozen=True)
class TrajectoriesOf:
    """Chosen tokens at every point of one position's residual stream; the model's first `n_predictions` there come before them."""

    trace: TraceKey
    position: int = -1
    tokens: tuple[int | str, ...] = ()
    n_predictions: int = 5
    points: Points = "both"
    normalize: bool = True


@dataclass(frozen=True)
class SaliencyOf:
    """What several methods say a prediction goes by, as `llm_tt.saliency` tells it: `token` None is the model's first choice after the target."""

    trace: TraceKey
    target: int = -1
    token: Token | None = None
    contrast: Token | None = None
    methods: tuple[Method, ...] = METHODS
    unit: Unit = "token"
    n_samples: int = 256
    n_steps: int = 256
    n_removed: int = 10
    seed: int = 0
    threshold: float = DEFAULT_THRESHOLD
    mass: float | None = None
    """of the routes whose flow is scored, as in `ExplainPrediction`"""
    renormalize: bool = True


@dataclass(frozen=True)
class CompareTraces:
    """What differs from one trace to another, as `llm_tt.compare` tells it: one prompt on two models, or two prompts on one."""

    first: TraceKey
    second: TraceKey
    target: int = -1
    other_target: int | None = None
    """in the second; None for the partner of `target`"""
    token: Token | None = None
    contrast: Token | None = None
    threshold: float = DEFAULT_THRESHOLD
    mass: float | None = None
    """of the routes in both, as in `ExplainPrediction`"""
    renormalize: bool = False
    n_predictions: int = 10

    @property
    def trace(self) -> tuple[TraceKey, TraceKey]:
        """What is compared."""
        return self.first, self.second


@dataclass(frozen=True)
class MeasureTuning:
    """What an adapter, or a tuned checkpoint whose configuration names its base, changes in the weights. Loads no model."""

    model: ModelKey


@dataclass(frozen=True)
class DataSource:
    """Rows: a data set of the server by its name, a file or folder of its machine as it was typed, or the content of a file that a user brought."""

    kind: Literal["set", "path", "upload"]
    name: str
    content: bytes = field(default=b"", repr=False)
    """of an upload"""
    limit: int | None = None
    """read no more rows than this"""


@dataclass(frozen=True)
class PreviewData:
    """What columns and rows a data set has."""

    source: DataSource
    n_rows: int = 50


@dataclass(frozen=True)
class ReadRow:
    """One row, and the prompt that a template makes of it, before any model has seen it."""

    source: DataSource
    template: Template
    number: int


@dataclass(frozen=True)
class PreviewPrompt:
    """What a model receives for a row (None: the first that can be used), and which tokens of the labels are scored."""

    model: ModelKey
    source: DataSource
    template: Template
    scoring: Scoring
    number: int | None = None


@dataclass(frozen=True)
class Evaluate:
    """How often models are right on the rows of a data set, each asked in one way or in several (`llm_tt.analysis.strategies`).

    What is answered is kept on disk: asked again, it goes on."""

    models: tuple[ModelKey, ...]
    source: DataSource
    template: Template
    scoring: Scoring
    strategies: tuple[str, ...] = ("zero-shot",)
    shots: int = 1
    """few-shot: rows of each label, drawn from these very rows and then not evaluated"""
    shot_rows: tuple[int, ...] = ()
    """few-shot: the numbers of the rows to take instead"""
    slices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class ExplainErrors:
    """Why rows of one cell of the confusion matrix are there, in one side of an evaluation; it is evaluated first if it was not."""

    evaluate: Evaluate
    side: int
    truth: str
    predicted: str
    most: int = 32


@dataclass(frozen=True)
class LookAt:
    """What a typed folder or hub name leads to, before anything is loaded."""

    typed: str


@dataclass(frozen=True)
class AddModel:
    """Load a model that is not configured, prove that its parts add up, and put it on the menu of everyone.

    Paths are as the user typed them; an empty name asks for one made of the path."""

    spec: ModelSpec


@dataclass(frozen=True)
class EstimateTrace:
    """What tracing a prompt will cost in memory and time, before it is traced."""

    trace: TraceKey


@dataclass(frozen=True)
class ListLoaded:
    """Which models are in memory, and how much of it there is."""


Question = (
    LoadModel
    | ExplainPrediction
    | Continue
    | ReadContinuation
    | InspectNode
    | InspectEdge
    | ReadHeads
    | CheckTrace
    | MeasureTuning
    | LookAt
    | AddModel
    | ListLoaded
    | EstimateTrace
    | InspectHeads
    | InspectHead
    | InspectNeurons
    | InspectNeuron
    | ExplainLogit
    | LensGridOf
    | TrajectoriesOf
    | SaliencyOf
    | PreviewData
    | ReadRow
    | PreviewPrompt
    | Evaluate
    | ExplainErrors
    | CompareTraces
)


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """A loaded model and how well its parts add up."""

    info: ModelInfo
    worst_identity_error: float
    tolerance: float
    load_seconds: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer to `ExplainPrediction`."""

    trace: TraceKey
    prompt: Prompt
    """what the model received"""
    facts: ModelFacts
    graph: FlowGraph
    predictions: TokenTable
    trace_seconds: float
    """of the forward pass, when it ran"""
    routes_seconds: float
    trace_bytes: int
    sources: npt.NDArray[np.float64]
    """[T]: how much of the flow of the graph ends in each token (`llm_tt.flow_over_sources`)"""
    dropped: float
    """the share of the flow that edges carry which are not in the graph, nothing renormalised"""
    head_flow: npt.NDArray[np.float64]
    """[L, H]: the flow of the graph through each head"""
    following: TokenTable | None
    """the one token that really follows the target, as the model predicted it there; None for the last"""
    propagation_seconds: float = 0.0
    predictions_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class NodeReport:
    """The answer to `InspectNode`."""

    node: str
    token_text: str
    top: TokenTable | None
    """None for an FFN block, which is a part of a representation and none itself"""
    block: Literal["attention", "FFN"] | None
    """the block whose output the effects below are; None for a token embedding"""
    promoted: TokenTable | None
    suppressed: TokenTable | None
    effect: float | None = None
    """direct effect of the block's output, or of the token embedding, on the logit asked about; None without such a question, and for nodes
    of other positions than its target, which have none"""


@dataclass(frozen=True, eq=False)
class EdgeReport:
    """The answer to `InspectEdge`."""

    source: str
    destination: str
    key: EdgeKey
    contribution: float
    """of the whole edge, neither cut nor renormalised"""
    heads: tuple[tuple[int, float], ...]
    """(head, contribution) by falling contribution; attention edges only"""
    effect: float | None = None
    """direct effect of the whole edge on the logit asked about; None without such a question, and for edges into other positions than its
    target, which have none"""
    head_effects: tuple[float, ...] | None = None
    """the same of each of `heads`"""


@dataclass(frozen=True)
class TraceCheck:
    """The answer to `CheckTrace`."""

    layers: tuple[LayerErrors, ...]
    n_positions: int
    """tokens that were looked at, spread evenly over the prompt"""
    n_tokens: int
    tolerance: float
    """what the check at load allows in this precision"""


@dataclass(frozen=True)
class HeadsReport:
    """The answer to `InspectHeads`."""

    layer: int
    position: int
    heads: tuple[HeadShare, ...]
    """by falling contribution"""


@dataclass(frozen=True, eq=False)
class HeadReport:
    """The answer to `InspectHead`. Maps have a row for each target token and a column for each source token of their windows."""

    layer: int
    head: int | None
    position: int
    source: int | None
    rows: tuple[int, int]
    """[start, stop): the target tokens of the maps; of a long prompt those around the position"""
    columns: tuple[int, int]
    attention: npt.NDArray[np.float32]
    contributions: npt.NDArray[np.float32]
    contribution: float
    """of what is looked at, to the node after attention"""
    promoted: TokenTable
    """by what the head writes at the position, from the source or from all tokens"""
    suppressed: TokenTable


@dataclass(frozen=True)
class NeuronsReport:
    """The answer to `InspectNeurons`."""

    layer: int
    position: int
    neurons: tuple[NeuronShare, ...]
    """by falling contribution, or by the size of their effect"""
    n_neurons: int
    n_active: int
    """whose activation is not 0"""
    total: float
    """contribution of all neurons together"""
    effects: tuple[float, ...] | None = None
    """direct effects of `neurons` on the logit asked about; None without such a question, and for other positions than its target, where there
    are none"""
    total_effect: float | None = None
    """the same of all neurons together: that of the block but for its output bias"""


@dataclass(frozen=True, eq=False)
class NeuronReport:
    """The answer to `InspectNeuron`."""

    share: NeuronShare
    position: int
    promoted: TokenTable
    """by activation times output: what the neuron adds at this token"""
    suppressed: TokenTable
    direction_promoted: TokenTable
    """by the output alone, as for an activation of 1"""
    direction_suppressed: TokenTable
    effect: float | None = None
    """direct effect on the logit asked about, as in `NeuronsReport`"""


@dataclass(frozen=True, eq=False)
class AddedModel:
    """The answer to `AddModel`."""

    spec: ModelSpec
    """as it was understood: folders found, a name given"""
    facts: ModelFacts
    config_lines: str
    """what to write into the configuration file, so that the model stays"""


@dataclass(frozen=True)
class Column:
    """A column of a data set."""

    name: str
    n_filled: int
    """rows that have a value"""
    values: tuple[str, ...]
    """all there are, the most frequent first; empty where there are more than 20"""


@dataclass(frozen=True)
class DataPreview:
    """The answer to `PreviewData`."""

    name: str
    n_rows: int
    columns: tuple[Column, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """the first ones: number, and a text for each column"""
    problems: tuple[Problem, ...]
    """rows that could not be read"""


@dataclass(frozen=True)
class RowPrompt:
    """The answer to `ReadRow`."""

    number: int
    values: tuple[tuple[str, str], ...]
    """column and its text"""
    prompt: str | tuple[ChatMessage, ...]


@dataclass(frozen=True)
class PromptPreview:
    """The answer to `PreviewPrompt`."""

    number: int
    text: str
    """as the model receives it, special tokens spelled out"""
    n_tokens: int
    truth: str
    responses: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    """what is scored: an answer, and for each of its spellings the texts of its tokens; empty for generation"""


@dataclass(frozen=True)
class Side:
    """One of what an evaluation compares: a model asked in one way."""

    name: str
    model: ModelKey
    template: Template
    scoring: Scoring


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answer to `Evaluate`."""

    question: Evaluate
    sides: tuple[Side, ...]
    """all ways of the first model, then those of the next"""
    reports: tuple[EvaluationReport, ...]
    """one a side"""
    comparison: StrategyComparison | None
    """None of one side"""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(side.name for side in self.sides)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory."""

    key: ModelKey
    facts: ModelFacts
    weight_bytes: int
    n_traces: int
    trace_bytes: int
    """of its traces and their contributions"""
    n_questions: int
    """being answered with it now"""


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of the host ("cpu") or of a GPU; free is what can be given without swapping."""

    device: str
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class CacheUse:
    """How much what the engine keeps of earlier answers has saved, since it was started."""

    name: str
    n_kept: int
    n_found: int
    n_made: int


@dataclass(frozen=True)
class MemoryReport:
    """The answer to `ListLoaded`."""

    models: tuple[LoadedModel, ...]
    """the latest used first"""
    max_models: int
    memory: tuple[DeviceMemory, ...]
    process_bytes: int
    """of the host's memory, by the process that answers"""
    caches: tuple[CacheUse, ...]


Answer = (
    ModelFacts
    | Explanation
    | Continuation
    | NodeReport
    | EdgeReport
    | HeadRoles
    | TraceCheck
    | TuningReport
    | Place
    | AddedModel
    | MemoryReport
    | HeadsReport
    | HeadReport
    | NeuronsReport
    | NeuronReport
    | DirectEffects
    | LensGrid
    | Trajectories
    | Saliency
    | DataPreview
    | RowPrompt
    | PromptPreview
    | Evaluation
    | CellExplanation
    | Comparison
    | TraceEstimate
)
