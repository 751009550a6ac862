"""Saliency is what its definitions say, computed here once more with plain Hugging Face models and nothing of llm_tt."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

import llm_tt
from llm_tt.analysis.saliency import features_of
from llm_tt.analysis.saliency_report import METHODS, QUICK, Saliency, rank_correlation
from llm_tt.errors import RequestError
from llm_tt.models.transparent_llm import TransparentLlm
from llm_tt.progress import Cancelled

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral"]
IDS = families.token_ids(7, seed=3)
TOKEN, CONTRAST = 11, 40
GRADIENTS = ("gradient", "gradient_x_input")
IOI = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def fresh(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """fresh(name, dtype): the checkpoint as transformers loads it, never seen by TransformerLens."""
    made: dict[Any, Any] = {}

    def load(name: str, dtype: torch.dtype = torch.float32) -> Any:
        if (name, dtype) not in made:
            made[name, dtype] = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=dtype).eval().requires_grad_(False)
        return made[name, dtype]

    return load


def lead(logits: torch.Tensor, token: int = TOKEN, contrast: int | None = None) -> torch.Tensor:
    """log p(token) - log p(contrast) of the last position, in float32 as gradients need it."""
    own = torch.log_softmax(logits.float(), -1)
    return own[..., token] if contrast is None else own[..., token] - own[..., contrast]


def of_prompt(model: Any, ids: Sequence[int], contrast: int | None = None) -> float:
    with torch.no_grad():
        return float(lead(model(torch.tensor([list(ids)])).logits[0, -1].double(), contrast=contrast))


def probability(model: Any, ids: Sequence[int]) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([list(ids)])).logits[0, -1].double().softmax(-1)[TOKEN])


def autograd(model: Any, ids: Sequence[int], contrast: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings = model.get_input_embeddings()(torch.tensor([list(ids)])).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(lead(model(inputs_embeds=embeddings).logits[0, -1], contrast=contrast), embeddings)
    return embeddings.detach()[0].double(), gradient[0].double()


def without(ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    return [token_id for position, token_id in enumerate(ids) if position not in positions]


# --- gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contrast", [None, CONTRAST])
@pytest.mark.parametrize("target", [-1, 4])
def test_gradients_are_those_of_the_plain_model(name: str, contrast: int | None, target: int, model: Callable, fresh: Callable) -> None:
    found = llm_tt.saliency(model(name).trace(IDS), target, TOKEN, contrast, GRADIENTS)
    embeddings, gradient = autograd(fresh(name), IDS[: len(IDS) + target + 1 if target < 0 else target + 1], contrast)
    norms, products = gradient.norm(dim=-1).numpy(), (gradient * embeddings).sum(-1).numpy()
    assert norms.max() > 1e-3
    np.testing.assert_allclose(found.scores("gradient"), norms, rtol=1e-4, atol=1e-5 * norms.max())
    np.testing.assert_allclose(found.scores("gradient_x_input"), products, rtol=1e-4, atol=1e-5 * np.abs(products).max())
    assert [one.n_runs for one in found.methods] == [1, 1]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_and_removal_in_bfloat16_are_those_of_the_plain_model_in_bfloat16(name: str, model: Callable, fresh: Callable) -> None:
    plain = fresh(name, torch.bfloat16)
    found = llm_tt.saliency(model(name, "bfloat16").trace(IDS), -1, TOKEN, CONTRAST, (*GRADIENTS, "leave_one_out", "integrated_gradients"))
    gradient = autograd(plain, IDS, CONTRAST)[1]
    norms = gradient.norm(dim=-1).numpy()
    np.testing.assert_allclose(found.scores("gradient"), norms, rtol=0.05)
    whole = of_prompt(plain, IDS, CONTRAST)
    expected = [whole - of_prompt(plain, without(IDS, [position]), CONTRAST) for position in range(len(IDS) - 1)]
    np.testing.assert_allclose(found.scores("leave_one_out")[:-1], expected, atol=0.05 * max(map(abs, expected)))
    assert np.isfinite(found.scores("integrated_gradients")[:-1]).all()


@pytest.mark.parametrize("eager", [False, True])
def test_gradients_do_not_depend_on_how_attention_is_computed(eager: bool, model: Callable, fresh: Callable) -> None:
    found = llm_tt.saliency(model("gpt2", eager=eager).trace(IDS), -1, TOKEN, None, GRADIENTS)
    norms = autograd(fresh("gpt2"), IDS, None)[1].norm(dim=-1).numpy()
    np.testing.assert_allclose(found.scores("gradient"), norms, rtol=1e-4, atol=1e-5 * norms.max())


def path_gradients(model: Any, ids: Sequence[int], alphas: np.ndarray, weights: np.ndarray, contrast: int | None) -> np.ndarray:
    """[T]: the integral of the gradient along the way from nothing to the embeddings, the last token's staying, times that way."""
    embeddings = model.get_input_embeddings()(torch.tensor([list(ids)])).detach()
    way = embeddings.clone()
    way[:, -1] = 0
    total = torch.zeros_like(embeddings, dtype=torch.float64)
    for start in range(0, len(alphas), 100):
        alpha, weight = (torch.tensor(some[start : start + 100])[:, None, None] for some in (alphas, weights))
        points = (embeddings - (1 - alpha) * way).float().requires_grad_()
        (gradients,) = torch.autograd.grad(lead(model(inputs_embeds=points).logits[:, -1], contrast=contrast).sum(), points)
        total += (weight * gradients.double()).sum(0)
    return (total * way.double()).sum(-1)[0].numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("contrast", [None, CONTRAST])
def test_integrated_gradients_are_the_sum_over_their_points(name: str, contrast: int | None, model: Callable, fresh: Callable) -> None:
    found = llm_tt.saliency(model(name).trace(IDS), -1, TOKEN, contrast, ["integrated_gradients"], n_steps=20)
    points, weights = np.polynomial.legendre.leggauss(20)
    expected = path_gradients(fresh(name), IDS, (points + 1) / 2, weights / 2, contrast)
    np.testing.assert_allclose(found.scores("integrated_gradients")[:-1], expected[:-1], rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert math.isnan(found.scores("integrated_gradients")[-1])
    assert found.methods[0].n_runs == 22


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_integrated_gradients_are_complete_and_a_plain_riemann_sum(name: str, model: Callable, fresh: Callable) -> None:
    """With many points the sum is the change from the baseline, and that of any rule: here of the middle of steps."""
    plain = fresh(name)
    found = llm_tt.saliency(model(name).trace(IDS), -1, TOKEN, None, ["integrated_gradients"], n_steps=1000)
    scores = found.scores("integrated_gradients")[:-1]
    embeddings = plain.get_input_embeddings()(torch.tensor([IDS])).detach()
    baseline = torch.zeros_like(embeddings)
    baseline[:, -1] = embeddings[:, -1]
    with torch.no_grad():
        change = float(lead(plain(inputs_embeds=embeddings).logits[0, -1]) - lead(plain(inputs_embeds=baseline).logits[0, -1]))
    assert scores.sum() == pytest.approx(change, rel=0.01, abs=0.01)
    # Small steps first: where nothing is left of a token, a norm makes much of little.
    edges = np.linspace(0, 1, 1501) ** 3
    expected = path_gradients(plain, IDS, (edges[:-1] + edges[1:]) / 2, np.diff(edges), None)
    np.testing.assert_allclose(scores, expected[:-1], atol=0.02 * np.abs(expected).max())
    told = found.methods[0].note or ""
    assert told.startswith(f"Sums to {scores.sum():.4g}, ")
    assert "too few" not in told


def test_too_few_points_are_told() -> None:
    trace = llm_tt.load_model("demo").trace(IOI)
    (found,) = llm_tt.saliency(trace, token=" Mary", contrast=" John", methods=["integrated_gradients"], n_steps=4).methods
    assert (found.note or "").endswith(" 4 steps are too few here: take more.")


# --- by taking out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contrast", [None, CONTRAST])
def test_leave_one_out_is_a_loop(name: str, contrast: int | None, model: Callable, fresh: Callable) -> None:
    found = llm_tt.saliency(model(name).trace(IDS), -1, TOKEN, contrast, ["leave_one_out"])
    whole = of_prompt(fresh(name), IDS, contrast)
    expected = [whole - of_prompt(fresh(name), without(IDS, [position]), contrast) for position in range(len(IDS) - 1)]
    assert max(map(abs, expected)) > 0.01
    np.testing.assert_allclose(found.scores("leave_one_out")[:-1], expected, atol=1e-4)
    assert math.isnan(found.scores("leave_one_out")[-1])
    assert found.lead == pytest.approx(whole, abs=1e-4)
    assert found.methods[0].n_runs == len(IDS)


def shapley(value: Callable[[frozenset[int]], float], n: int) -> list[float]:
    """By the definition: what a feature adds, the mean over all orders in which features can come."""
    result = [0.0] * n
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        for place, feature in enumerate(order):
            before = frozenset(order[:place])
            result[feature] += (value(before | {feature}) - value(before)) / len(orders)
    return result


def plain_value(model: Any, ids: Sequence[int], contrast: int | None = None) -> Callable[[frozenset[int]], float]:
    known: dict[frozenset[int], float] = {}

    def value(there: frozenset[int]) -> float:
        if there not in known:
            known[there] = of_prompt(model, without(ids, [position for position in range(len(ids) - 1) if position not in there]), contrast)
        return known[there]

    return value


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_kernel_shap_of_few_features_is_shapleys_value(name: str, n: int, model: Callable, fresh: Callable) -> None:
    ids = IDS[: n + 1]
    found = llm_tt.saliency(model(name).trace(ids), -1, TOKEN, CONTRAST, ["kernel_shap"])
    expected = shapley(plain_value(fresh(name), ids, CONTRAST), n)
    np.testing.assert_allclose(found.scores("kernel_shap")[:-1], expected, atol=2e-4)
    assert found.methods[0].note is None
    assert found.methods[0].n_runs == 2**n


def test_sampled_kernel_shap_comes_near_and_keeps_the_sum(model: Callable, fresh: Callable) -> None:
    ids = families.token_ids(8, seed=5)
    value = plain_value(fresh("gpt2"), ids)
    n = len(ids) - 1
    trace = model("gpt2").trace(ids)
    found = [llm_tt.saliency(trace, -1, TOKEN, None, ["kernel_shap"], n_samples=120, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (one.scores("kernel_shap")[:-1] for one in found)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6
    exact = np.array(shapley(value, n))
    for scores in (first, other):
        assert scores.sum() == pytest.approx(value(frozenset(range(n))) - value(frozenset()), abs=1e-4)
        assert np.abs(scores - exact).max() < 0.35 * np.abs(exact).max()
    assert found[0].methods[0].note == "An estimate from 120 of the 2^7 sets of tokens; another seed gives another."
    few = llm_tt.saliency(trace, -1, TOKEN, None, ["kernel_shap"], n_samples=8)
    assert (few.methods[0].note or "").endswith("So few samples tell little about 7 tokens: take more.")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("seed", [0, 7])
def test_lime_is_its_ridge_regression(name: str, seed: int, model: Callable, fresh: Callable) -> None:
    """Weighted normal equations in float64: (X'WX + I) b = X'Wy after taking weighted means off, which are the intercept's."""
    n, n_samples = len(IDS) - 1, 90
    found = llm_tt.saliency(model(name).trace(IDS), -1, TOKEN, CONTRAST, ["lime"], n_samples=n_samples, seed=seed)
    drawn = torch.rand(n_samples - 1, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    x = np.vstack([np.ones((1, n)), drawn.numpy()]).astype(float)
    value = plain_value(fresh(name), IDS, CONTRAST)
    y = np.array([value(frozenset(np.flatnonzero(row).tolist())) for row in x])
    cosine = np.array([row.sum() / math.sqrt(n * row.sum()) if row.sum() else 0.0 for row in x])
    w = np.exp(-((1 - cosine) ** 2) / 0.25**2)
    x, y = x - w @ x / w.sum(), y - w @ y / w.sum()
    expected = np.linalg.solve(x.T @ (w[:, None] * x) + np.eye(n), x.T @ (w * y))
    np.testing.assert_allclose(found.scores("lime")[:-1], expected, atol=1e-3 * np.abs(expected).max())
    assert found.methods[0].n_runs == len({tuple(row) for row in np.vstack([np.ones(n), drawn.numpy()]).tolist()})


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_flow_is_the_librarys(name: str, model: Callable) -> None:
    trace = model(name).trace(IDS)
    for options in ({}, {"threshold": 0.1, "renormalize": False}):
        found = llm_tt.saliency(trace, 4, TOKEN, None, ["flow"], **options)
        expected = llm_tt.flow_over_sources(llm_tt.extract_routes(trace, 4, **options))
        np.testing.assert_allclose(found.scores("flow"), expected[:5])
    by_mass = llm_tt.saliency(trace, 4, TOKEN, None, ["flow"], mass=0.8)
    expected = llm_tt.flow_over_sources(llm_tt.extract_routes_by_mass(trace, 4, 0.8))
    np.testing.assert_allclose(by_mass.scores("flow"), expected[:5])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_deletion_curves_are_a_loop(name: str, model: Callable, fresh: Callable) -> None:
    found = llm_tt.saliency(model(name).trace(IDS), -1, TOKEN, CONTRAST, METHODS, n_samples=40, n_steps=8, n_removed=4, seed=2)
    plain, n = fresh(name), len(IDS) - 1
    for method in found.methods:
        order = sorted(range(n), key=lambda index, scores=method.scores: -scores[index])
        assert list(method.order) == order
        expected = [probability(plain, without(IDS, order[:count])) for count in range(5)]
        np.testing.assert_allclose(method.deletion, expected, rtol=1e-3)
        leads = [of_prompt(plain, without(IDS, order[:count]), CONTRAST) for count in range(5)]
        np.testing.assert_allclose(method.lead, leads, atol=1e-4)
        assert method.drop == pytest.approx(expected[0] - sum(expected[1:]) / 4, rel=1e-3, abs=1e-7)
    random = np.random.default_rng(2)
    orders = [random.permutation(list(range(n))).tolist() for _ in range(found.n_random)]
    means = [np.mean([probability(plain, without(IDS, order[:count])) for order in orders]) for count in range(5)]
    np.testing.assert_allclose(found.random_deletion, means, rtol=1e-3)
    assert found.probability == pytest.approx(probability(plain, IDS), rel=1e-3)
    assert found.probability_of_nothing == pytest.approx(probability(plain, IDS[-1:]), rel=1e-3)
    scores = np.array([method.scores[:-1] for method in found.methods])
    np.testing.assert_allclose(found.correlations, spearmanr(scores.T).statistic, atol=1e-12)


def test_rank_correlation_is_spearmans() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.integers(0, 5, (2, 9)).astype(float)
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


# --- what may be taken out


def kept_texts(trace: llm_tt.Trace, unit: Any = "token", target: int = -1) -> list[str]:
    return [feature.text for feature in features_of(trace, trace.position(target), unit) if feature.is_kept]


def test_special_tokens_templates_and_the_last_token_stay() -> None:
    llm = llm_tt.load_model("demo")
    assert kept_texts(llm.trace(IOI)) == ["<bos>", " to"]
    assert kept_texts(llm.trace(IOI), target=5) == ["<bos>", " went"]
    chat = llm.trace([{"role": "user", "content": "Is this payment risky?"}])
    kept = features_of(chat, chat.n_tokens - 1)
    assert [feature.is_kept for feature in kept] == [
        role == "special" or position == chat.n_tokens - 1 for position, role in enumerate(chat.prompt.roles)
    ]
    assert 0 < sum(feature.is_kept for feature in kept) < len(kept)
    # The same by their ids alone, which say nothing of roles.
    ids = llm.trace(list(chat.token_ids))
    special = {"<bos>", "<user>", "<assistant>", "<eos>", "<pad>"}
    assert kept_texts(ids) == [text for position, text in enumerate(ids.token_texts) if text in special or position == ids.n_tokens - 1]
    found = llm_tt.saliency(chat, methods=["leave_one_out"])
    assert np.isnan(found.scores("leave_one_out")).tolist() == [feature.is_kept for feature in found.features]


def test_words_are_taken_out_as_one_and_sum_their_tokens() -> None:
    llm = llm_tt.load_model("demo")
    trace = llm.trace("When Mary and John went to the store, Zanzibar gave a drink to")
    words = features_of(trace, trace.n_tokens - 1, "word")
    assert [word.text for word in words] == [
        "<bos>", "When", " Mary", " and", " John", " went", " to", " the", " store,", " Zanzibar", " gave", " a", " drink", " to",
    ]  # fmt: skip
    one, other = (llm_tt.saliency(trace, token=" Mary", methods=QUICK, unit=unit) for unit in ("token", "word"))
    for method in ("flow", "gradient_x_input"):
        expected = [one.scores(method)[word.start : word.stop].sum() for word in words]
        np.testing.assert_allclose(other.scores(method), expected, rtol=1e-9)
    squares = [(one.scores("gradient")[word.start : word.stop] ** 2).sum() ** 0.5 for word in words]
    np.testing.assert_allclose(other.scores("gradient"), squares, rtol=1e-9)
    log_p = [
        float(llm.last_logits(ids).double().log_softmax(-1)[other.token_id])
        for ids in (trace.token_ids, without(trace.token_ids, range(words[8].start, words[8].stop)))
    ]
    assert other.scores("leave_one_out")[8] == pytest.approx(log_p[0] - log_p[1], abs=1e-4)
    assert words[9].stop - words[9].start > 1


# --- models without gradients, refusals, progress


def test_a_backend_without_gradients_has_the_rest(model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("llama")
    trace = llm.trace(IDS)
    expected = llm_tt.saliency(trace, -1, TOKEN, None, ["lime", "leave_one_out"])
    monkeypatch.setattr(type(llm), "gradients", TransparentLlm.gradients)
    monkeypatch.setattr(type(llm), "next_logits", TransparentLlm.next_logits)
    found = llm_tt.saliency(trace, -1, TOKEN)
    assert [one.method for one in found.methods] == ["flow", "lime", "kernel_shap", "leave_one_out"]
    name = llm.info.name
    assert dict(found.unavailable)["gradient"] == f"Gradient norm needs gradients, which the backend of {name} does not give."
    assert [method for method, _ in found.unavailable] == ["gradient", "gradient_x_input", "integrated_gradients"]
    for method in ("lime", "leave_one_out"):
        np.testing.assert_allclose(found.scores(method), expected.scores(method), atol=1e-4)
    with pytest.raises(RequestError, match=r"does not give\. Ask for leave_one_out, lime, kernel_shap or flow\."):
        llm_tt.saliency(trace, -1, TOKEN, None, ["gradient"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["saliency"]}, '"saliency" is not a method. Name one or more of: flow, gradient, '),
        ({"methods": "flow"}, '"flow" is not a method. Name one'),
        ({"methods": []}, "No method is named. Name one or more of: flow"),
        ({"unit": "letter"}, 'The unit is "letter". Expected "token" or "word".'),
        ({"n_samples": 7}, "n_samples is 7. Expected a whole number from 8 to 100000."),
        ({"n_steps": 0}, "n_steps is 0. Expected a whole number from 1 to 1000."),
        ({"n_removed": 0}, "n_removed is 0. Expected a whole number from 1 to 1000."),
        ({"seed": -1}, "seed is -1. Expected"),
        ({"token": TOKEN, "contrast": TOKEN}, f"Token and contrast are both id {TOKEN}: nothing sets them apart. Choose another contrast."),
        ({"target": 0}, "Nothing can be taken out of the prompt up to token 0: special tokens"),
        ({"target": 99}, "Position 99 does not exist"),
        ({"token": "no such token"}, "Name a single one"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, model: Callable) -> None:
    with pytest.raises(RequestError) as refused:
        llm_tt.saliency(model("gpt2").trace(IDS), **options)
    assert message in str(refused.value)


def test_progress_rises_to_the_end_and_cancels(model: Callable) -> None:
    trace = model("gpt2").trace(IDS)
    told: list[tuple[str, float]] = []
    llm_tt.saliency(trace, n_samples=20, n_steps=8, progress=lambda *now: told.append(now))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages[1:] == [
        "Flow over sources", "Gradient norm", "Gradient x input", "Integrated gradients", "LIME", "Kernel SHAP", "Leave-one-out",
        "Taking the first ones out",
    ]  # fmt: skip
    for stopped in ("Integrated gradients", "LIME", "Taking the first ones out"):

        def stop(stage: str, fraction: float, stopped: str = stopped) -> None:
            if stage == stopped:
                raise Cancelled

        with pytest.raises(Cancelled):
            llm_tt.saliency(trace, n_samples=20, n_steps=8, progress=stop)


def test_nothing_stays_in_the_model(model: Callable) -> None:
    llm = model("llama")
    before = llm.trace(IDS)
    found = llm_tt.saliency(before, -1, TOKEN, n_samples=20, n_steps=8)
    hf_model = llm._bridge.original_model
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in hf_model.parameters())
    assert not hf_model.get_input_embeddings()._forward_hooks
    after = llm.trace(IDS)
    assert torch.equal(before.logits(-1), after.logits(-1))
    again = llm_tt.saliency(after, -1, TOKEN, n_samples=20, n_steps=8)
    assert again.to_dict() == found.to_dict()


def test_traces_and_saliency_at_once(model: Callable) -> None:
    llm = model("gpt2")
    trace, other_ids = llm.trace(IDS), families.token_ids(9, seed=8)
    expected, logits = llm_tt.saliency(trace, -1, TOKEN, None, GRADIENTS), llm.trace(other_ids).logits(-1)
    wrong: list[Any] = []

    def repeat(run: Callable[[], bool]) -> None:
        wrong.extend(index for index in range(15) if not run())

    def same_gradient() -> bool:
        found = llm_tt.saliency(trace, -1, TOKEN, None, GRADIENTS)
        return np.allclose(found.scores("gradient"), expected.scores("gradient"), rtol=1e-5)

    threads = [
        threading.Thread(target=repeat, args=(run,))
        for run in (same_gradient, lambda: torch.equal(llm.trace(other_ids).logits(-1), logits))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_captum_is_imported_for_its_own_methods_only() -> None:
    code = (
        "import sys, llm_tt; trace = llm_tt.load_model('demo').trace('Mary went to the store'); "
        "llm_tt.saliency(trace, methods=('flow', 'gradient', 'gradient_x_input', 'leave_one_out')); print('captum' in sys.modules); "
        "llm_tt.saliency(trace, methods=['lime']); print('captum' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True"]


# --- the answer as files


@pytest.fixture(scope="module")
def answer(model: Callable) -> Saliency:
    return llm_tt.saliency(model("gpt2").trace(IDS), -1, TOKEN, CONTRAST, n_samples=20, n_steps=8, n_removed=3)


def test_the_csv_has_every_number(answer: Saliency) -> None:
    lines = list(csv.DictReader(io.StringIO(answer.to_csv(), newline="")))
    for method in answer.methods:
        mine = [line for line in lines if line["method"] == method.method]
        scores = [line for line in mine if line["table"] == "score"]
        assert [line["text"] for line in scores] == list(answer.token_texts)
        assert [float(line["value"] or "nan") for line in scores] == pytest.approx(method.scores.tolist(), nan_ok=True)
        curve = [line for line in mine if line["table"] == "deletion"]
        assert [(int(line["taken_out"]), float(line["value"])) for line in curve] == list(enumerate(method.deletion.tolist()))
        others = {line["other_method"]: float(line["value"]) for line in mine if line["table"] == "correlation"}
        row = answer.correlations[list(answer.methods).index(method)]
        assert list(others.values()) == pytest.approx(row.tolist())
    random = [float(line["value"]) for line in lines if line["method"] == "random"]
    assert random == answer.random_deletion.tolist()


def test_the_dictionary_is_json(answer: Saliency) -> None:
    found = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert found["methods"]["lime"]["scores"][:-1] == answer.scores("lime")[:-1].tolist()
    assert found["methods"]["lime"]["scores"][-1] is None
    assert found["methods"]["flow"]["deletion"] == answer.of_method("flow").deletion.tolist()
    assert found["token"]["id"] == TOKEN
    assert found["contrast"]["id"] == CONTRAST
    assert found["random_drop"] == pytest.approx(answer.probability - answer.random_deletion[1:].mean())
    assert len(found["correlations"]) == len(METHODS)
