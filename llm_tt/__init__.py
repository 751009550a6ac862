"""llm-tt: how information flows through a transformer language model for one prediction. The names below are the public ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_tt.analysis.comparing import compare
    from llm_tt.analysis.comparison import Comparison
    from llm_tt.analysis.errors import CellExplanation, explain_errors
    from llm_tt.analysis.evaluation import compare_evaluations, evaluate
    from llm_tt.analysis.evaluation_report import EvaluationComparison, EvaluationReport
    from llm_tt.analysis.rows import DataSet, Template, few_shot, read_data
    from llm_tt.analysis.saliency import saliency
    from llm_tt.analysis.saliency_report import Saliency
    from llm_tt.analysis.scoring import Reasoning, Scoring, parse_labels
    from llm_tt.analysis.strategies import Strategy, compare_strategies, examples_per_label, rows_numbered, strategies_named
    from llm_tt.analysis.strategy_report import StrategyComparison, compare_reports
    from llm_tt.analysis.tuning import tuning_report
    from llm_tt.analysis.tuning_report import TuningReport
    from llm_tt.config import AppConfig, ModelSpec, load_config
    from llm_tt.errors import LlmTtError
    from llm_tt.flow.contributions import (
        attention_contributions,
        ffn_contributions,
        neuron_contributions,
        neuron_direction,
        neuron_shares,
        neurons_at,
    )
    from llm_tt.flow.graph import FlowGraph
    from llm_tt.flow.head_roles import HeadRoles, head_roles
    from llm_tt.flow.heads import attention_map, contribution_map, head_outputs, head_shares
    from llm_tt.flow.propagation import flow_over_sources, propagate
    from llm_tt.flow.routes import extract_routes, extract_routes_by_mass, extract_routes_to_span
    from llm_tt.lens.direct_effects import DirectEffects
    from llm_tt.lens.effects import direct_effects, neuron_effects
    from llm_tt.lens.grid import lens_grid, token_trajectories
    from llm_tt.lens.layer_tables import LensGrid, Trajectories
    from llm_tt.models import load_model
    from llm_tt.models.continuation import Continuation, GeneratedToken, Sampling
    from llm_tt.models.estimates import TraceEstimate
    from llm_tt.models.generation import generate, generate_batch
    from llm_tt.models.identities import reconstruction_errors
    from llm_tt.models.pace import estimate_trace
    from llm_tt.models.transparent_llm import ModelInfo, Trace, TransparentLlm
    from llm_tt.text import ChatMessage, Prompt

__version__ = "0.1.0"

# Imported on first use, so that `import llm_tt` costs nothing: torch alone takes seconds.
_HOME = {
    "AppConfig": "llm_tt.config",
    "CellExplanation": "llm_tt.analysis.errors",
    "ChatMessage": "llm_tt.text",
    "Comparison": "llm_tt.analysis.comparison",
    "Continuation": "llm_tt.models.continuation",
    "DataSet": "llm_tt.analysis.rows",
    "DirectEffects": "llm_tt.lens.direct_effects",
    "EvaluationComparison": "llm_tt.analysis.evaluation_report",
    "EvaluationReport": "llm_tt.analysis.evaluation_report",
    "FlowGraph": "llm_tt.flow.graph",
    "GeneratedToken": "llm_tt.models.continuation",
    "HeadRoles": "llm_tt.flow.head_roles",
    "LensGrid": "llm_tt.lens.layer_tables",
    "LlmTtError": "llm_tt.errors",
    "ModelInfo": "llm_tt.models.transparent_llm",
    "ModelSpec": "llm_tt.config",
    "Prompt": "llm_tt.text",
    "Reasoning": "llm_tt.analysis.scoring",
    "Saliency": "llm_tt.analysis.saliency_report",
    "Sampling": "llm_tt.models.continuation",
    "Scoring": "llm_tt.analysis.scoring",
    "Strategy": "llm_tt.analysis.strategies",
    "StrategyComparison": "llm_tt.analysis.strategy_report",
    "Template": "llm_tt.analysis.rows",
    "Trace": "llm_tt.models.transparent_llm",
    "TraceEstimate": "llm_tt.models.estimates",
    "Trajectories": "llm_tt.lens.layer_tables",
    "TransparentLlm": "llm_tt.models.transparent_llm",
    "TuningReport": "llm_tt.analysis.tuning_report",
    "attention_contributions": "llm_tt.flow.contributions",
    "attention_map": "llm_tt.flow.heads",
    "compare": "llm_tt.analysis.comparing",
    "compare_evaluations": "llm_tt.analysis.evaluation",
    "compare_reports": "llm_tt.analysis.strategy_report",
    "compare_strategies": "llm_tt.analysis.strategies",
    "contribution_map": "llm_tt.flow.heads",
    "direct_effects": "llm_tt.lens.effects",
    "estimate_trace": "llm_tt.models.pace",
    "evaluate": "llm_tt.analysis.evaluation",
    "examples_per_label": "llm_tt.analysis.strategies",
    "explain_errors": "llm_tt.analysis.errors",
    "extract_routes": "llm_tt.flow.routes",
    "extract_routes_by_mass": "llm_tt.flow.routes",
    "extract_routes_to_span": "llm_tt.flow.routes",
    "few_shot": "llm_tt.analysis.rows",
    "ffn_contributions": "llm_tt.flow.contributions",
    "flow_over_sources": "llm_tt.flow.propagation",
    "generate": "llm_tt.models.generation",
    "generate_batch": "llm_tt.models.generation",
    "head_outputs": "llm_tt.flow.heads",
    "head_roles": "llm_tt.flow.head_roles",
    "head_shares": "llm_tt.flow.heads",
    "lens_grid": "llm_tt.lens.grid",
    "load_config": "llm_tt.config",
    "load_model": "llm_tt.models",
    "neuron_contributions": "llm_tt.flow.contributions",
    "neuron_direction": "llm_tt.flow.contributions",
    "neuron_effects": "llm_tt.lens.effects",
    "neuron_shares": "llm_tt.flow.contributions",
    "neurons_at": "llm_tt.flow.contributions",
    "parse_labels": "llm_tt.analysis.scoring",
    "propagate": "llm_tt.flow.propagation",
    "read_data": "llm_tt.analysis.rows",
    "reconstruction_errors": "llm_tt.models.identities",
    "rows_numbered": "llm_tt.analysis.strategies",
    "saliency": "llm_tt.analysis.saliency",
    "strategies_named": "llm_tt.analysis.strategies",
    "token_trajectories": "llm_tt.lens.grid",
    "tuning_report": "llm_tt.analysis.tuning",
}

__all__ = [
    "AppConfig",
    "CellExplanation",
    "ChatMessage",
    "Comparison",
    "Continuation",
    "DataSet",
    "DirectEffects",
    "EvaluationComparison",
    "EvaluationReport",
    "FlowGraph",
    "GeneratedToken",
    "HeadRoles",
    "LensGrid",
    "LlmTtError",
    "ModelInfo",
    "ModelSpec",
    "Prompt",
    "Reasoning",
    "Saliency",
    "Sampling",
    "Scoring",
    "Strategy",
    "StrategyComparison",
    "Template",
    "Trace",
    "TraceEstimate",
    "Trajectories",
    "TransparentLlm",
    "TuningReport",
    "attention_contributions",
    "attention_map",
    "compare",
    "compare_evaluations",
    "compare_reports",
    "compare_strategies",
    "contribution_map",
    "direct_effects",
    "estimate_trace",
    "evaluate",
    "examples_per_label",
    "explain_errors",
    "extract_routes",
    "extract_routes_by_mass",
    "extract_routes_to_span",
    "few_shot",
    "ffn_contributions",
    "flow_over_sources",
    "generate",
    "generate_batch",
    "head_outputs",
    "head_roles",
    "head_shares",
    "lens_grid",
    "load_config",
    "load_model",
    "neuron_contributions",
    "neuron_direction",
    "neuron_effects",
    "neuron_shares",
    "neurons_at",
    "parse_labels",
    "propagate",
    "read_data",
    "reconstruction_errors",
    "rows_numbered",
    "saliency",
    "strategies_named",
    "token_trajectories",
    "tuning_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llm_tt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
