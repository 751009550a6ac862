"""What can be asked of an engine, and what it answers: frozen values of text, numbers and numpy arrays, fit to cross a network.

A question names its model and prompt in full, so that any engine can answer it, whatever it remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_tt.analysis.tuning_report import TuningReport
from llm_tt.config import ModelSpec
from llm_tt.flow.graph import DEFAULT_THRESHOLD, EdgeKey, FlowGraph
from llm_tt.lens.layer_tables import LensGrid, Points, Trajectories
from llm_tt.lens.token_table import TokenTable
from llm_tt.models.info import ModelInfo
from llm_tt.models.places import Place
from llm_tt.text import ChatMessage, Prompt


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


@dataclass(frozen=True)
class LoadModel:
    """Load a model, prove that its parts add up, and tell its facts."""

    model: ModelKey


@dataclass(frozen=True)
class ExplainPrediction:
    """Routes to one target, with what the model predicts there. `target` may be negative, as in Python."""

    trace: TraceKey
    target: int = -1
    threshold: float = DEFAULT_THRESHOLD
    renormalize: bool = True
    n_predictions: int = 10


@dataclass(frozen=True)
class InspectNode:
    """What a point of the residual stream, an FFN block or a token embedding says. `node` as in `llm_tt.flow.graph`."""

    trace: TraceKey
    node: str
    n_top: int = 30
    n_effects: int = 15
    normalize: bool = True


@dataclass(frozen=True)
class InspectEdge:
    """What flows from one node to the next, before any threshold. `key` is "attention", "residual" or "ffn"."""

    trace: TraceKey
    source: str
    destination: str
    key: EdgeKey


@dataclass(frozen=True)
class LensGridOf:
    """What every point of the residual stream says at every token. `token` is an id or an exact text, as in `llm_tt.lens.grid`."""

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
class MeasureTuning:
    """What an adapter, or a tuned checkpoint whose configuration names its base, changes in the weights. Loads no model."""

    model: ModelKey


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
class ListLoaded:
    """Which models are in memory, and how much of it there is."""


Question = (
    LoadModel | ExplainPrediction | InspectNode | InspectEdge | LensGridOf | TrajectoriesOf | MeasureTuning | LookAt | AddModel | ListLoaded
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


@dataclass(frozen=True, eq=False)
class AddedModel:
    """The answer to `AddModel`."""

    spec: ModelSpec
    """as it was understood: folders found, a name given"""
    facts: ModelFacts
    config_lines: str
    """what to write into the configuration file, so that the model stays"""


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
class MemoryReport:
    """The answer to `ListLoaded`."""

    models: tuple[LoadedModel, ...]
    """the latest used first"""
    max_models: int
    memory: tuple[DeviceMemory, ...]


Answer = ModelFacts | Explanation | NodeReport | EdgeReport | LensGrid | Trajectories | TuningReport | Place | AddedModel | MemoryReport
