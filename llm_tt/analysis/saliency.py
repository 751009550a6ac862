"""What other methods say a prediction goes by, beside the flow of routes: gradients, integrated gradients, LIME, Kernel SHAP, leave-one-out.

All explain the same number of the same prompt: log p(token) after the target, or its lead over the contrast's. To take a token out is to leave it
out of the prompt: what follows moves up, nothing is put in its place. Special tokens, what a chat template wrote, and the token after which is
predicted are never taken out. What each number is, with its source, is in docs/method.md. Captum is imported when one of its methods is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from llm_tt.analysis.saliency_report import METHODS, NAMES, Feature, Floats, Method, MethodScores, Saliency, Unit, rank_correlation
from llm_tt.errors import ModelError, OutOfMemoryError, RequestError
from llm_tt.flow.graph import DEFAULT_THRESHOLD
from llm_tt.flow.propagation import flow_over_sources
from llm_tt.flow.routes import extract_routes, extract_routes_by_mass
from llm_tt.lens.direct_effects import Token
from llm_tt.lens.named_tokens import find_token
from llm_tt.models.gradients import Differentiable
from llm_tt.models.transparent_llm import Trace, TransparentLlm
from llm_tt.progress import Progress, silent

_BY_GRADIENT: frozenset[Method] = frozenset({"gradient", "gradient_x_input", "integrated_gradients"})
_BATCH_TOKENS, _MAX_BATCH = 2048, 64
"""Tokens, and prompts, that run at once"""
_N_RANDOM = 8
"""Random orders whose mean deletion curve the others are compared with"""
_KERNEL_WIDTH, _RIDGE = 0.25, 1.0
"""LIME's for text: of the cosine distance; of the ridge regression"""
_INEXACT = 0.05
"""Of what integrated gradients should sum to: more is told as a warning"""


def saliency(
    trace: Trace,
    target: int = -1,
    token: Token | None = None,
    contrast: Token | None = None,
    methods: Sequence[Method] = METHODS,
    unit: Unit = "token",
    *,
    n_samples: int = 256,
    n_steps: int = 256,
    n_removed: int = 10,
    seed: int = 0,
    threshold: float = DEFAULT_THRESHOLD,
    mass: float | None = None,
    renormalize: bool = True,
    progress: Progress = silent,
) -> Saliency:
    """Scores of every token or word up to the target by several methods, their rank correlations and their deletion curves.

    Args:
        token: what is explained; None for the model's first choice after the target.
        contrast: explain why the token and not this one.
        unit: what is taken out and scored as one: a token, or a word with the punctuation that follows it.
        n_samples: prompts with tokens taken out, for LIME and Kernel SHAP each. Kernel SHAP runs all there are if they are no more.
        n_steps: points of integrated gradients on the way from no embeddings to those of the prompt.
        n_removed: how many features the deletion curves take out at most.
        seed: of the samples and of the random orders.
        threshold, mass, renormalize: of the routes whose flow is scored; with a mass, the threshold does nothing.
        progress: called after every batch; may raise to cancel.

    Raises:
        RequestError: a value is out of its range, a name is no token or no method, nothing can be taken out, or none of the methods can be had.
    """
    _check(methods, unit, n_samples, n_steps, n_removed, seed)
    model, target = trace.model, trace.position(target)
    (token_id, contrast_id), notes = _asked(trace, target, token, contrast)
    features = features_of(trace, target, unit)
    removable = [index for index, feature in enumerate(features) if not feature.is_kept]
    if not removable:
        raise RequestError(
            f"Nothing can be taken out of the prompt up to token {target}: special tokens, those of a chat template and the token after which is "
            "predicted stay. Choose a later target, or a longer prompt."
        )
    differentiable = model.gradients() if _BY_GRADIENT & set(methods) else None
    unavailable: list[tuple[Method, str]] = []
    chosen: list[Method] = []
    for method in dict.fromkeys(methods):
        if method in _BY_GRADIENT and differentiable is None:
            unavailable.append((method, f"{NAMES[method]} needs gradients, which the backend of {model.info.name} does not give."))
        else:
            chosen.append(method)
    if not chosen:
        raise RequestError(" ".join(sentence for _, sentence in unavailable) + " Ask for leave_one_out, lime, kernel_shap or flow.")

    n_removed = min(n_removed, len(removable))
    planned = {method: _planned(method, len(removable), n_samples, n_steps) for method in chosen}
    n_deletions = (len(chosen) + _N_RANDOM) * n_removed
    meter = _Meter(progress, 2 + sum(planned.values()) + n_deletions)
    token_ids = trace.token_ids[: target + 1]
    prompts = _Prompts(model, token_ids, features, removable, token_id, contrast_id, meter)
    given = _Given(trace, target, token_id, contrast_id, features, removable, unit, n_samples, n_steps, seed)

    prompts.begin("The prompt", 2)
    (whole, lead), (nothing, _) = prompts.read([(1,) * len(removable), (0,) * len(removable)])
    scored: list[tuple[Method, Floats, int, str | None]] = []
    gradients: tuple[Tensor, Tensor] | None = None
    for method in chosen:
        prompts.begin(NAMES[method], planned[method])
        note: str | None = None
        n_runs: int | None = None
        if method == "flow":
            if mass is None:
                graph = extract_routes(trace, target, threshold, renormalize)
            else:
                graph = extract_routes_by_mass(trace, target, mass, renormalize)
            scores, n_runs = _summed(flow_over_sources(graph)[: target + 1], features), 1
            meter.tell(1)
        elif method == "leave_one_out":
            scores = _spread(_leave_one_out(prompts), given)
        elif method == "lime":
            scores = _spread(_lime(prompts, given), given)
        elif method == "kernel_shap":
            values, note = _kernel_shap(prompts, given)
            scores = _spread(values, given)
        elif method == "integrated_gradients":
            assert differentiable is not None
            values, n_runs, note = _integrated(differentiable, given, meter)
            scores = _spread(values, given)
        else:
            assert differentiable is not None
            gradients = _gradient(differentiable, given) if gradients is None else gradients
            scores, n_runs = _of_gradient(method, *gradients, features), 1
            meter.tell(1)
        scored.append((method, scores, prompts.n_used if n_runs is None else n_runs, note))

    orders = [_order(scores, removable) for _, scores, _, _ in scored]
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(removable).tolist() for _ in range(_N_RANDOM)]
    prompts.begin("Taking the first ones out", n_deletions)
    curves = prompts.deletions([*orders, *shuffled], n_removed)
    meter.tell(n_deletions)
    found = tuple(
        MethodScores(method, scores, tuple(order), np.exp(curve[:, 0]), curve[:, 1], n_runs, note)
        for (method, scores, n_runs, note), order, curve in zip(scored, orders, curves[: len(scored)], strict=True)
    )
    return Saliency(
        target=target,
        token_id=token_id,
        token_text=model.texts([token_id])[0],
        contrast_id=contrast_id,
        contrast_text=None if contrast_id is None else model.texts([contrast_id])[0],
        unit=unit,
        token_texts=trace.token_texts[: target + 1],
        features=features,
        probability=math.exp(whole),
        lead=lead,
        probability_of_nothing=math.exp(nothing),
        methods=found,
        correlations=_correlations(found, removable),
        random_deletion=np.exp(np.array(curves[len(scored) :])[..., 0]).mean(0),
        n_random=_N_RANDOM,
        seed=seed,
        unavailable=tuple(unavailable),
        notes=notes,
    )


def features_of(trace: Trace, target: int, unit: Unit = "token") -> tuple[Feature, ...]:
    """The tokens up to the target, or its words: a word begins with a token that begins with white space, or that follows some.

    Raises:
        RequestError: which tokens a chat template wrote is not known.
    """
    prompt = trace.prompt
    if prompt.no_roles is not None:
        raise RequestError(
            f"{prompt.no_roles} So it is not known which tokens may be taken out. Type the conversation as plain text instead."
        )
    tokenizer = trace.model.info.tokenizer
    special = set() if tokenizer is None else set(tokenizer.special_tokens)
    texts = prompt.token_texts[: target + 1]
    kept = [
        position == target or role == "special" or text in special
        for position, (text, role) in enumerate(zip(texts, prompt.roles[: target + 1], strict=True))
    ]
    starts: list[int] = []
    for position, text in enumerate(texts):
        is_inside = position > 0 and not kept[position] and not kept[position - 1] and unit == "word"
        # White space of its own begins the word that follows.
        begun = "".join(texts[starts[-1] : position]) if starts else ""
        if not is_inside or (begun.strip() and (text[:1].isspace() or begun[-1:].isspace())):
            starts.append(position)
    return tuple(
        Feature(start, stop, "".join(texts[start:stop]), kept[start]) for start, stop in zip(starts, [*starts[1:], target + 1], strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Given:
    """What is asked, as all methods need it."""

    trace: Trace
    target: int
    token_id: int
    contrast_id: int | None
    features: tuple[Feature, ...]
    removable: list[int]
    unit: Unit
    n_samples: int
    n_steps: int
    seed: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.trace.token_ids[: self.target + 1]

    def lead(self, logits: Tensor) -> Tensor:
        """[B, V] -> [B]: what is explained."""
        return _log_probabilities(logits, self.token_id, self.contrast_id)[1]


def _log_probabilities(logits: Tensor, token_id: int, contrast_id: int | None) -> tuple[Tensor, Tensor]:
    """[B, V] -> [B] each: log p(token), and its lead over the contrast's."""
    own = logits.log_softmax(-1)[:, token_id]
    # The difference of logits is that of the log probabilities, without the rounding of the softmax.
    return own, own if contrast_id is None else logits[:, token_id] - logits[:, contrast_id]


class _Meter:
    """How far all methods are together. A stage that needs fewer prompts than planned ends early, and the next begins where it does."""

    def __init__(self, progress: Progress, planned: int) -> None:
        self._progress = progress
        self._planned = planned
        self._stage, self._before, self._length, self._done = "Starting", 0, 0, 0

    def begin(self, stage: str, planned: int) -> None:
        self._stage, self._before, self._length, self._done = stage, self._before + self._length, planned, 0
        self.tell(0)

    def tell(self, n_more: int) -> None:
        self._done = min(self._done + n_more, self._length)
        self._progress(self._stage, (self._before + self._done) / self._planned)


Kept = tuple[int, ...]
"""For each feature that can be taken out, in order: 1 if it is there"""


class _Prompts:
    """The prompt with features taken out, run through the model: each once, in batches of one length."""

    def __init__(
        self,
        model: TransparentLlm,
        token_ids: Sequence[int],
        features: Sequence[Feature],
        removable: Sequence[int],
        token_id: int,
        contrast_id: int | None,
        meter: _Meter,
    ) -> None:
        self._model = model
        self._token_ids = token_ids
        self._features = features
        self.removable = removable
        self._asked = token_id, contrast_id
        self.meter = meter
        self._known: dict[Kept, tuple[float, float]] = {}
        self._used: set[Kept] = set()

    def begin(self, stage: str, planned: int) -> None:
        """What follows is another method's."""
        self.meter.begin(stage, planned)
        self._used = set()

    @property
    def n_used(self) -> int:
        """How many prompts the current method needed, those known already too, each once."""
        return len(self._used)

    def ids(self, kept: Kept) -> list[int]:
        out = {index for index, there in zip(self.removable, kept, strict=True) if not there}
        return [
            token_id
            for index, feature in enumerate(self._features)
            if index not in out
            for token_id in self._token_ids[feature.start : feature.stop]
        ]

    def read(self, wanted: Iterable[Kept]) -> list[tuple[float, float]]:
        """(log p(token), its lead) for each."""
        wanted = list(wanted)
        self._used.update(wanted)
        by_length: dict[int, dict[Kept, list[int]]] = {}
        for kept in wanted:
            if kept not in self._known:
                ids = self.ids(kept)
                by_length.setdefault(len(ids), {})[kept] = ids
        for length, prompts in sorted(by_length.items()):
            size = _batch(length)
            keys = list(prompts)
            for start in range(0, len(keys), size):
                some = keys[start : start + size]
                # float64, so that a log probability near 0 keeps its digits.
                logits = self._model.next_logits([prompts[kept] for kept in some]).double()
                own, lead = _log_probabilities(logits, *self._asked)
                self._known.update(zip(some, zip(own.tolist(), lead.tolist(), strict=True), strict=True))
                self.meter.tell(len(some))
        return [self._known[kept] for kept in wanted]

    def leads(self, wanted: Iterable[Kept]) -> Tensor:
        return torch.tensor([lead for _, lead in self.read(wanted)], dtype=torch.float64)

    def deletions(self, orders: Sequence[Sequence[int]], n_removed: int) -> list[Floats]:
        """[K+1, 2] for each order: log p(token) and its lead with the first 0 .. K features of the order taken out."""
        wanted = [
            [tuple(int(index not in order[:count]) for index in self.removable) for count in range(n_removed + 1)] for order in orders
        ]
        self.read(kept for order in wanted for kept in order)
        return [np.array([self._known[kept] for kept in order]) for order in wanted]


# --- by taking out


def _leave_one_out(prompts: _Prompts) -> Floats:
    n = len(prompts.removable)
    leads = prompts.leads([(1,) * n, *(tuple(int(other != index) for other in range(n)) for index in range(n))])
    return (leads[0] - leads[1:]).numpy()


def _lime(prompts: _Prompts, given: _Given) -> Floats:
    from captum._utils.models.linear_model import SkLearnRidge

    def closeness(original: Tensor, perturbed: Tensor, kept: Tensor, **options: Any) -> Tensor:
        # Of a prompt without anything, the cosine is 0.
        distance = 1 - torch.sqrt(kept.double().mean())
        return torch.exp(-(distance**2) / _KERNEL_WIDTH**2)[None]

    samples = lime_samples(len(given.removable), given.n_samples, given.seed)
    return _regressed(prompts, samples, SkLearnRidge(alpha=_RIDGE), closeness)


def lime_samples(n_features: int, n_samples: int, seed: int) -> list[Kept]:
    """The whole prompt, then prompts in which every feature is there with probability 1/2."""
    drawn = torch.rand(n_samples - 1, n_features, generator=torch.Generator().manual_seed(seed)) < 0.5
    return [(1,) * n_features, *(tuple(row) for row in drawn.int().tolist())]


def _kernel_shap(prompts: _Prompts, given: _Given) -> tuple[Floats, str | None]:
    n = len(given.removable)
    everything, nothing = prompts.leads([(1,) * n, (0,) * n])
    samples, weights = shapley_samples(n, given.n_samples, given.seed)
    is_exact = n < 2 or len(samples) == 2**n - 2
    note = None if is_exact else f"An estimate from {len(samples)} of the 2^{n} sets of {given.unit}s; another seed gives another."
    if not is_exact and len(samples) < 2 * n:
        note = f"{note} So few samples tell little about {n} {given.unit}s: take more."
    if n < 2:
        return np.array([float(everything - nothing)]), note
    weighed = iter(weights)
    solved = _regressed(
        prompts,
        samples,
        _shapley_model(float(everything), float(nothing)),
        lambda original, perturbed, kept, **options: torch.tensor([next(weighed)], dtype=torch.float64),
    )
    return solved, note


def shapley_samples(n_features: int, n_samples: int, seed: int) -> tuple[list[Kept], list[float]]:
    """Coalitions, neither all nor nothing, with their weights in the regression: all there are with Shapley's kernel, or some of them.

    Then all of those of 1, 2, ... features, and of all but 1, 2, ..., which have the largest weights, come as far as the samples reach
    (Lundberg & Lee's own program does so); the rest is drawn in pairs, a coalition and what it leaves out, which cancels much of the noise (Covert
    & Lee 2021).
    """
    if n_features < 2:
        return [], []
    every = n_features < 60 and 2**n_features - 2 <= n_samples
    mass = {size: (n_features - 1) / (size * (n_features - size)) for size in range(1, n_features)}
    samples: list[Kept] = []
    weights: list[float] = []
    for size in range(1, n_features // 2 + 1):
        sizes = sorted({size, n_features - size})
        count = sum(math.comb(n_features, one) for one in sizes)
        share = sum(mass[one] for one in sizes)
        if not every and count > (n_samples - len(samples)) * share / sum(mass.values()):
            break
        for one in sizes:
            for chosen in combinations(range(n_features), one):
                samples.append(_kept(chosen, n_features))
                weights.append(mass[one] / math.comb(n_features, one))
            del mass[one]
    n_pairs = (n_samples - len(samples) + 1) // 2
    if not mass or not n_pairs:
        return samples, weights
    random = torch.Generator().manual_seed(seed)
    sizes = list(mass)
    drawn = torch.multinomial(
        torch.tensor([mass[size] for size in sizes], dtype=torch.float64), n_pairs, replacement=True, generator=random
    )
    for index in drawn.tolist():
        there = _kept(torch.randperm(n_features, generator=random)[: sizes[index]].tolist(), n_features)
        samples += [there, tuple(1 - one for one in there)]
        weights += [sum(mass.values()) / (2 * n_pairs)] * 2
    return samples, weights


def _kept(there: Sequence[int], n_features: int) -> Kept:
    return tuple(int(index in there) for index in range(n_features))


def _shapley_model(everything: float, nothing: float) -> Any:
    """The linear model of Kernel SHAP, for Captum: least squares with the two ends met exactly, where Captum's own weighs them by a million."""
    from captum._utils.models.model import Model

    class ShapleyRegression(Model):
        _values: Tensor

        def fit(self, train_data: Any, **options: object) -> None:
            columns = [torch.cat(column).double() for column in zip(*train_data, strict=True)]
            kept, leads, weights = columns
            # The last value is what the others leave of the whole.
            ends = everything - nothing
            inputs = (kept[:, :-1] - kept[:, -1:]) * weights[:, None].sqrt()
            outputs = (leads - nothing - kept[:, -1] * ends) * weights.sqrt()
            found = torch.linalg.lstsq(inputs, outputs[:, None], driver="gelsd").solution[:, 0]
            self._values = torch.cat([found, ends - found.sum()[None]])

        def representation(self) -> Tensor:
            return self._values

        def __call__(self, x: Any) -> Any:
            return nothing + x.double() @ self._values

    return ShapleyRegression()


def _regressed(prompts: _Prompts, samples: Sequence[Kept], model: Any, closeness: Callable[..., Tensor]) -> Floats:
    """[N]: a linear model of what is explained, fitted by Captum to prompts with features taken out."""
    from captum.attr import LimeBase

    def sampled(original: Tensor, **options: Any) -> Iterator[Tensor]:
        for kept in samples:
            yield torch.tensor([kept])

    explainer = LimeBase(
        lambda kept: prompts.leads(map(tuple, kept.tolist())),
        model,
        closeness,
        sampled,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda kept, original, **options: kept,
        to_interp_rep_transform=None,
    )
    whole = torch.ones(1, len(prompts.removable))
    return explainer.attribute(whole, n_samples=len(samples), perturbations_per_eval=len(samples)).double().flatten().numpy()


# --- by gradients


def _gradient(model: Differentiable, given: _Given) -> tuple[Tensor, Tensor]:
    """Embeddings and the gradient there, [T, d] float32 on the CPU."""
    embeddings = model.embed(given.token_ids).requires_grad_()
    with torch.enable_grad(), _differentiating(given):
        lead = given.lead(model.logits(given.token_ids, embeddings[None])).sum()
        (gradient,) = torch.autograd.grad(lead, embeddings)
    return embeddings.detach().cpu(), gradient.cpu()


@contextmanager
def _differentiating(given: _Given) -> Iterator[None]:
    """What torch says, as a sentence."""
    name = given.trace.model.info.name
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"The device ran out of memory while computing gradients of {len(given.token_ids)} tokens. Shorten the prompt, or leave the gradient "
            "methods out."
        ) from error
    except RuntimeError as error:
        raise ModelError(f"{name} lets no gradient through: {str(error).splitlines()[0]} Leave the gradient methods out.") from error


def _of_gradient(method: Method, embeddings: Tensor, gradient: Tensor, features: Sequence[Feature]) -> Floats:
    if method == "gradient":
        return np.sqrt(_summed(gradient.double().square().sum(-1).numpy(), features))
    return _summed((gradient.double() * embeddings.double()).sum(-1).numpy(), features)


def _integrated(model: Differentiable, given: _Given, meter: _Meter) -> tuple[Floats, int, str]:
    """[N], the number of runs, and how far the sum is from what it should be."""
    from captum.attr import IntegratedGradients

    embeddings, n_runs = model.embed(given.token_ids), 0
    baseline = embeddings.clone()
    for index in given.removable:
        baseline[given.features[index].start : given.features[index].stop] = 0

    def lead(embeddings: Tensor) -> Tensor:
        nonlocal n_runs
        n_runs += len(embeddings)
        meter.tell(len(embeddings))
        return given.lead(model.logits(given.token_ids, embeddings))

    with _differentiating(given):
        found, delta = IntegratedGradients(lead).attribute(
            embeddings[None],
            baselines=baseline[None],
            n_steps=given.n_steps,
            method="gausslegendre",
            internal_batch_size=min(_batch(len(embeddings)), given.n_steps),
            return_convergence_delta=True,
        )
    scores = _summed(found[0].sum(-1).double().cpu().numpy(), given.features)[given.removable]
    gap, total = abs(float(delta)), abs(float(scores.sum()) - float(delta))
    note = f"Sums to {scores.sum():.4g}, {gap:.2g} from the change that it explains."
    if gap > _INEXACT * max(total, 1e-3):
        note += f" {given.n_steps} steps are too few here: take more."
    return scores, n_runs, note


# --- small things


def _check(methods: Sequence[Method], unit: Unit, n_samples: int, n_steps: int, n_removed: int, seed: int) -> None:
    if isinstance(methods, str) or not methods or not set(methods) <= set(METHODS):
        wrong = [methods] if isinstance(methods, str) else [method for method in methods if method not in METHODS]
        problem = f'"{wrong[0]}" is not a method' if wrong else "No method is named"
        raise RequestError(f"{problem}. Name one or more of: {', '.join(METHODS)}.")
    if unit not in get_args(Unit):
        raise RequestError(f'The unit is "{unit}". Expected "token" or "word".')
    for name, value, least, most in (
        ("n_samples", n_samples, 8, 100_000),
        ("n_steps", n_steps, 1, 1000),
        ("n_removed", n_removed, 1, 1000),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if not least <= value <= most:
            raise RequestError(f"{name} is {value}. Expected a whole number from {least} to {most}.")


def _asked(trace: Trace, target: int, token: Token | None, contrast: Token | None) -> tuple[tuple[int, int | None], tuple[str, ...]]:
    """The ids of token and contrast, and how texts were read."""
    token_id, note = (int(trace.logits(target).argmax()), None) if token is None else find_token(trace.model, token)
    contrast_id, other_note = (None, None) if contrast is None else find_token(trace.model, contrast)
    if token_id == contrast_id:
        raise RequestError(f"Token and contrast are both id {token_id}: nothing sets them apart. Choose another contrast.")
    return (token_id, contrast_id), tuple(text for text in (note, other_note) if text is not None)


def _planned(method: Method, n: int, n_samples: int, n_steps: int) -> int:
    """About how many prompts a method needs, for the progress bar."""
    if method == "integrated_gradients":
        return n_steps + 2
    return {"lime": n_samples, "kernel_shap": n_samples + 2, "leave_one_out": n + 1}.get(method, 1)


def _batch(length: int) -> int:
    return max(1, min(_MAX_BATCH, _BATCH_TOKENS // length))


def _summed(values: np.ndarray, features: Sequence[Feature]) -> Floats:
    return np.array([values[feature.start : feature.stop].sum() for feature in features], dtype=np.float64)


def _spread(values: Floats, given: _Given) -> Floats:
    """[N] of the features that can be taken out -> [F]; NaN for the others."""
    scores = np.full(len(given.features), np.nan)
    scores[given.removable] = values
    return scores


def _order(scores: Floats, removable: Sequence[int]) -> list[int]:
    return [removable[place] for place in np.argsort(-scores[list(removable)], kind="stable")]


def _correlations(found: Sequence[MethodScores], removable: Sequence[int]) -> Floats:
    scores = [one.scores[list(removable)] for one in found]
    return np.array([[rank_correlation(one, other) for other in scores] for one in scores])
