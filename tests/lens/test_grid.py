"""Every cell of the lens grid, and every trajectory, against plain Hugging Face modules in float64, one vector after the other."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from families import N_VOCAB
from torch import Tensor

import llm_tt
from llm_tt.errors import RequestError
from llm_tt.flow.graph import Node
from llm_tt.lens import grid as grid_module
from llm_tt.progress import Cancelled

# LayerNorm with biases; RMS norm with biases; norms after the blocks and soft caps; attention and FFN in parallel.
NORMS = {"gpt2": "transformer.ln_f", "llama": "model.norm", "gemma2": "model.norm", "gpt_neox": "gpt_neox.final_layer_norm"}
families = pytest.mark.parametrize("name", list(NORMS))
normalized = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
N_TOKENS = 9
CHOSEN = 17


@dataclass(frozen=True)
class Cell:
    """What one vector says, by brute force."""

    logits: Tensor
    probabilities: Tensor

    @property
    def entropy(self) -> float:
        return -sum(p * math.log2(p) for p in self.probabilities.tolist() if p > 0)

    def rank(self, token_id: int) -> int:
        return sorted(self.logits.tolist(), reverse=True).index(float(self.logits[token_id])) + 1


@pytest.fixture(scope="session")
def brute_force(plain: Callable, plain_run: Callable) -> Callable[..., dict[str, Cell]]:
    """brute_force(name, normalize): node -> what it says; float64 activations of the plain model, its own head in float64."""

    def every(name: str, normalize: bool) -> dict[str, Cell]:
        exact = copy.deepcopy(plain(name)).double()
        norm, cap = exact.get_submodule(NORMS[name]), getattr(exact.config, "final_logit_softcapping", None)
        run = plain_run(name, N_TOKENS)
        vectors = {f"X0_{position}": run.layers[0].pre[position] for position in range(N_TOKENS)}
        for layer, acts in enumerate(run.layers):
            for position in range(N_TOKENS):
                vectors[f"A{layer}_{position}"] = acts.mid[position]
                vectors[f"I{layer}_{position}"] = acts.post[position]
        cells = {}
        for node, vector in vectors.items():
            with torch.no_grad():
                scores = exact.get_output_embeddings()(norm(vector.double()) if normalize else vector.double())
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            cells[node] = Cell(scores, scores.exp() / scores.exp().sum())
        return cells

    return every


@families
@normalized
@pytest.mark.parametrize("points", ["post", "both"])
def test_every_cell_is_the_brute_force(
    name: str, normalize: bool, points: Any, trace: Callable, brute_force: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three positions at a time, so that the last chunk of nine is full; of a vocabulary this small all would go at once.
    monkeypatch.setattr(grid_module, "_LOGITS_AT_ONCE", 3 * N_VOCAB)
    grid = llm_tt.lens_grid(trace(name, N_TOKENS), points, CHOSEN, normalize)
    expected = brute_force(name, normalize)
    nodes = [grid.node(row, position) for row in range(grid.n_rows) for position in range(N_TOKENS)]
    assert set(nodes) == {node for node in expected if points == "both" or node[0] != "A"}
    assert grid.probabilities is not None
    assert grid.ranks is not None
    for row in range(grid.n_rows):
        for position in range(N_TOKENS):
            node = grid.node(row, position)
            cell = expected[node]
            assert (Node.parse(node).position, node.split("_")[0]) == (position, grid.points[row])
            assert grid.top_ids[row, position] == cell.logits.argmax(), node
            assert grid.top_probabilities[row, position] == pytest.approx(float(cell.probabilities.max()), abs=1e-5)
            assert grid.entropies[row, position] == pytest.approx(cell.entropy, abs=1e-4)
            assert grid.probabilities[row, position] == pytest.approx(float(cell.probabilities[CHOSEN]), abs=1e-5)
            assert grid.ranks[row, position] == cell.rank(CHOSEN)
            assert grid.top_text(row, position) == trace(name, N_TOKENS).model.texts([int(cell.logits.argmax())])[0]


@families
def test_the_last_row_is_what_the_plain_model_predicts(name: str, trace: Callable, plain_run: Callable) -> None:
    probabilities = plain_run(name, N_TOKENS).logits.softmax(-1)
    grid = llm_tt.lens_grid(trace(name, N_TOKENS), token=CHOSEN)
    assert grid.points == ("X0", "I0", "I1", "I2")
    assert grid.top_ids[-1].tolist() == probabilities.argmax(-1).tolist()
    np.testing.assert_allclose(grid.top_probabilities[-1], probabilities.max(-1).values, atol=1e-5)
    np.testing.assert_allclose(grid.probabilities[-1], probabilities[:, CHOSEN], atol=1e-5)  # type: ignore[index]


@families
@normalized
@pytest.mark.parametrize("points", ["post", "both"])
@pytest.mark.parametrize("position", [0, 4, -1])
def test_trajectories_are_the_brute_force(
    name: str, normalize: bool, points: Any, position: int, trace: Callable, brute_force: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_module, "_LOGITS_AT_ONCE", 2 * N_VOCAB)
    tokens = [CHOSEN, 3, 40, 5]
    result = llm_tt.token_trajectories(trace(name, N_TOKENS), position, [*tokens, 3], points, normalize)
    expected = brute_force(name, normalize)
    assert result.position == position % N_TOKENS
    assert result.token_ids == tuple(tokens)
    assert list(result.nodes) == [f"{point}_{position % N_TOKENS}" for point in result.points]
    assert len(result.points) == (4 if points == "post" else 7)
    for row, node in enumerate(result.nodes):
        cell = expected[node]
        np.testing.assert_allclose(result.logits[row], cell.logits[tokens], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.probabilities[row], cell.probabilities[tokens], atol=1e-5)
        assert result.ranks[row].tolist() == [cell.rank(token_id) for token_id in tokens]


def test_without_tokens_the_models_own_predictions_are_followed(trace: Callable, plain_run: Callable) -> None:
    result = llm_tt.token_trajectories(trace("llama", N_TOKENS), 4)
    assert list(result.token_ids) == plain_run("llama", N_TOKENS).logits[4].topk(5).indices.tolist()
    assert result.ranks[-1].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("at_once", [1, N_VOCAB, 4 * N_VOCAB, 10**9])
def test_how_many_positions_are_read_at_a_time_changes_nothing_and_bounds_what_is_formed(
    at_once: int, trace: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llm_tt.lens_grid(trace("gpt2", N_TOKENS), "both", CHOSEN)
    sizes: list[int] = []
    logits = grid_module.logits

    def watched(*args: Any) -> Tensor:
        result = logits(*args)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(grid_module, "logits", watched)
    monkeypatch.setattr(grid_module, "_LOGITS_AT_ONCE", at_once)
    stages: list[tuple[str, float]] = []
    grid = llm_tt.lens_grid(trace("gpt2", N_TOKENS), "both", CHOSEN, progress=lambda *stage: stages.append(stage))
    assert max(sizes) <= max(at_once, N_VOCAB)
    assert sum(sizes) == 7 * N_TOKENS * N_VOCAB
    assert grid.top_ids.tolist() == whole.top_ids.tolist()
    np.testing.assert_allclose(grid.entropies, whole.entropies, atol=1e-5)
    np.testing.assert_allclose(grid.probabilities, whole.probabilities, atol=1e-6)  # type: ignore[arg-type]
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert (fractions[0], len(stages)) == (0.0, len(sizes))
    assert fractions[-1] < 1


def test_it_can_be_cancelled_in_the_middle(trace: Callable) -> None:
    seen: list[str] = []

    def cancel(stage: str, fraction: float) -> None:
        seen.append(stage)
        if fraction > 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        llm_tt.lens_grid(trace("gpt2", N_TOKENS), progress=cancel)
    assert seen == ["Reading X0", "Reading I0", "Reading I1"]


def test_entropy_is_in_bits_and_excluded_tokens_add_none() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, -math.inf, -math.inf], [1.0, -math.inf, -math.inf, -math.inf]])
    assert grid_module._entropy(scores.log_softmax(-1)).tolist() == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)


def test_ties_share_the_better_rank() -> None:
    assert grid_module._ranks(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), [0, 1, 2, 3]).tolist() == [[1, 4, 1, 3]]


def test_the_csv_has_every_cell(trace: Callable) -> None:
    grid = llm_tt.lens_grid(trace("gpt2", N_TOKENS), "both", CHOSEN)
    rows = list(csv.DictReader(io.StringIO(grid.to_csv(), newline="")))
    assert len(rows) == 7 * N_TOKENS
    for index, row in enumerate(rows):
        place = divmod(index, N_TOKENS)
        assert row["node"] == grid.node(*place)
        assert (row["token"], row["top_token"]) == (grid.token_texts[place[1]], grid.top_text(*place))
        assert int(row["top_token_id"]) == grid.top_ids[place]
        assert float(row["top_probability"]) == pytest.approx(float(grid.top_probabilities[place]), rel=1e-6)
        assert float(row["entropy_bits"]) == pytest.approx(float(grid.entropies[place]), rel=1e-6)
        assert float(row["chosen_probability"]) == pytest.approx(float(grid.probabilities[place]), rel=1e-6)  # type: ignore[index]
        assert int(row["chosen_rank"]) == grid.ranks[place]  # type: ignore[index]
    plain = llm_tt.lens_grid(trace("gpt2", N_TOKENS))
    assert "chosen_rank" not in plain.to_csv()
    assert plain.probabilities is plain.ranks is plain.chosen is None


def test_trajectories_as_json(trace: Callable) -> None:
    result = llm_tt.token_trajectories(trace("gpt2", N_TOKENS), -1, [CHOSEN, 3])
    data = json.loads(json.dumps(result.to_dict()))
    assert data["nodes"][:3] == ["X0_8", "A0_8", "I0_8"]
    assert [token["id"] for token in data["tokens"]] == [CHOSEN, 3]
    assert data["tokens"][1]["ranks"] == result.ranks[:, 1].tolist()
    assert data["tokens"][0]["probabilities"] == pytest.approx(result.probabilities[:, 0].tolist())


def test_strings_are_taken_where_ids_are(trace: Callable) -> None:
    traced = trace("gpt2", N_TOKENS)
    (text,) = traced.model.texts([CHOSEN])
    grid = llm_tt.lens_grid(traced, token=text)
    assert (grid.chosen, grid.chosen_text) == (CHOSEN, text)
    assert llm_tt.token_trajectories(traced, tokens=[text]).token_ids == (CHOSEN,)


def test_what_cannot_be_followed_is_refused(trace: Callable) -> None:
    with pytest.raises(RequestError, match="No token is named, so that there is nothing to follow"):
        llm_tt.token_trajectories(trace("gpt2", N_TOKENS), tokens=[])
    with pytest.raises(RequestError, match="Position 9 does not exist: the prompt has 9 tokens"):
        llm_tt.token_trajectories(trace("gpt2", N_TOKENS), 9)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_half_precision_model_answers_in_float32(name: str, model: Callable) -> None:
    traced = model(name, "bfloat16").trace(list(range(5, 12)))
    grid = llm_tt.lens_grid(traced, "both", CHOSEN)
    assert {array.dtype for array in (grid.top_probabilities, grid.entropies, grid.probabilities)} == {np.dtype(np.float32)}  # type: ignore[union-attr]
    logits = torch.stack([traced.logits(position) for position in range(7)])
    np.testing.assert_allclose(grid.top_probabilities[-1], logits.softmax(-1).max(-1).values, atol=1e-2)
