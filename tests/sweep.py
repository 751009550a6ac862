"""The wide net: every tiny checkpoint of `families`, loaded as a user loads it and measured; `docs/families.md` is what this prints.

python tests/sweep.py            writes docs/families.md
python tests/sweep.py NAME ...   prints what these checkpoints measure
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from families import CHECKPOINTS, FAMILIES, HYBRIDS, NORMALISED_STREAMS, VARIANTS, save_family, token_ids
from plain_runs import load_plain
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from unsupported import NOT_BUILT

import llm_tt
from llm_tt.errors import ModelError
from llm_tt.models import identities

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
LENGTHS = (1, 2, 20)
"""The last is longer than the windows of `families`"""
SWEPT = {**FAMILIES, **VARIANTS, **HYBRIDS, **NORMALISED_STREAMS}


@dataclass(frozen=True)
class Measured:
    """What one checkpoint showed."""

    name: str
    model_type: str
    works: bool
    reason: str = ""
    """why it was refused"""
    identities: float = 0.0
    """worst relative error, float32"""
    logits: float = 0.0
    """largest absolute difference from the logits of plain Transformers, at all lengths"""
    attention: str = ""
    neurons: str = ""
    not_shown: tuple[str, ...] = ()
    future: float = 0.0
    """largest attention to a future token"""
    row_sums: tuple[float, float] = (1.0, 1.0)
    """smallest and largest sum of a row of attention"""
    shares: float = 0.0
    """how far the contributions of a node are from summing to 1"""
    dtypes: frozenset[torch.dtype] = frozenset()
    """of everything that a trace and its contributions hold"""


def measure(name: str, folder: Path) -> Measured:
    """Load the checkpoint of that name from its folder and measure all that the page tells."""
    model_type = CHECKPOINTS[name]().model_type
    try:
        llm = llm_tt.load_model(str(folder))
    except ModelError as error:
        return Measured(name, model_type, works=False, reason=str(error).replace(str(folder), "This model"))
    plain = load_plain(folder)
    traces = [llm.trace(token_ids(n_tokens)) for n_tokens in LENGTHS]
    rows = [block.pattern.rows(range(trace.n_tokens)) for trace in traces for block in trace.blocks]
    contributions = [_contributions(trace, layer) for trace in traces for layer in range(trace.n_layers)]
    shown = {shape.n_neurons > 0 for shape in llm.info.ffn}
    return Measured(
        name,
        model_type,
        works=True,
        identities=identities.check(llm).worst,
        logits=max(_logits_off(trace, plain) for trace in traces),
        attention=llm.info.attention,
        neurons={frozenset({True}): "yes", frozenset({False}): "no"}.get(frozenset(shown), "in some layers"),
        not_shown=llm.info.not_shown,
        future=max(float(row.triu(1).abs().max()) for row in rows),
        row_sums=(min(float(row.sum(-1).min()) for row in rows), max(float(row.sum(-1).max()) for row in rows)),
        shares=max(float((total - 1).abs().max()) for total, _ in contributions),
        dtypes=frozenset(tensor.dtype for trace in traces for tensor in _held(trace)) | {dtype for _, dtype in contributions},
    )


def _logits_off(trace: llm_tt.Trace, plain: Callable) -> float:
    with torch.inference_mode():
        expected = plain(torch.tensor([list(trace.token_ids)]), use_cache=False).logits[0]
    return max(float((trace.logits(position) - expected[position]).abs().max()) for position in range(trace.n_tokens))


def _contributions(trace: llm_tt.Trace, layer: int) -> tuple[Tensor, torch.dtype]:
    attention, ffn = llm_tt.attention_contributions(trace, layer), llm_tt.ffn_contributions(trace, layer)
    return torch.cat([attention.edges.sum((1, 2)) + attention.residual, ffn.ffn + ffn.residual]), attention.edges.dtype


def _held(trace: llm_tt.Trace) -> Iterable[Tensor]:
    yield trace.embedding
    for block in trace.blocks:
        yield from (value for value in vars(block).values() if isinstance(value, Tensor))
        yield from (value for value in vars(block.pattern).values() if isinstance(value, Tensor) and value.is_floating_point())


def measure_all(names: Iterable[str] = SWEPT) -> dict[str, Measured]:
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, save_family(name, Path(folder)))
        print(_verdict(found[name]), file=sys.stderr)
    return found


def _verdict(one: Measured) -> str:
    if not one.works:
        return f"{one.name}: refused. {one.reason}"
    return f"{one.name}: works, identities {one.identities:.1e}, logits {one.logits:.1e}, {one.attention}, neurons {one.neurons}"


# --- the page

_HEAD = """# Model families

Generated by `make families`; the tests check that it is not stale. Each row is a tiny checkpoint with random weights (`tests/families.py`), loaded
as a user loads one, of {architectures} architectures of TransformerLens {version}. {n_works} model types are decomposed exactly.

- *Identities*: the worst relative error, over all layers, of what the parts of a block and its biases add up to, in float32. Above 1e-4 a model is
  refused.
- *Logits*: the largest difference from the logits that plain Transformers computes, at every position of prompts of 1, 2 and 20 tokens.
- *Attention*: fused, so that memory grows with the length of the prompt, or eager, so that it grows with its square.
- *Neurons*: whether single neurons of the FFN are shown; in a mixture of experts those of the experts that a token was sent to.

A checkpoint of any family is checked again when it is loaded: what is said here holds for the settings tried here.
"""


def page(found: dict[str, Measured]) -> str:
    """The text of docs/families.md."""
    from importlib.metadata import version

    families, variants = ([found[name] for name in names] for names in (FAMILIES, VARIANTS))
    works = [one for one in families if one.works]
    refused = [one for one in found.values() if not one.works]
    return "\n".join(
        [
            _HEAD.format(
                architectures=len({MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[one.model_type] for one in found.values()}),
                version=version("transformer-lens"),
                n_works=len({one.model_type for one in works}),
            ),
            "## Shown\n",
            *_table("Model type", [(one.model_type if one.name != "llama_plain" else "llama, no biases", one) for one in works]),
            "",
            "## Settings that change how blocks are taken apart\n",
            *_table("Setting", [(f"{one.name} ({one.model_type})", one) for one in variants if one.works]),
            "",
            "## Refused\n",
            "| Checkpoint | Model type | Reason |",
            "|---|---|---|",
            *(f"| {one.name} | {one.model_type} | {_cell(one.reason)} |" for one in refused),
            "",
            "## Not tried\n",
            "Architectures of language models that TransformerLens names and no tiny checkpoint of can be made here.\n",
            "| Architecture | Why |",
            "|---|---|",
            *(f"| {name} | {_cell(why)} |" for name, why in NOT_BUILT.items()),
            "",
        ]
    )


def _table(title: str, rows: list[tuple[str, Measured]]) -> list[str]:
    return [
        f"| {title} | Verdict | Identities | Logits | Attention | Neurons | Not shown |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {title} | works | {one.identities:.0e} | {one.logits:.0e} | {one.attention} | {one.neurons} | {_cell(' '.join(one.not_shown))} |"
            for title, one in rows
        ),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if names := sys.argv[1:]:
        measure_all(names)
    else:
        PAGE.write_text(page(measure_all()), encoding="utf-8")
