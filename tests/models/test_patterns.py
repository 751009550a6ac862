"""Attention patterns: stored or recomputed, always the model's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import ATTENTION_VARIANTS, CORE, WINDOW, token_ids

import llm_tt
from llm_tt.models import bridge
from llm_tt.models.patterns import RecomputedPattern, StoredPattern, Visible

N_TOKENS = 60


NOT_FUSED = {"gpt_neo"}
"""Families whose attention does not go through the interface of transformers"""


@pytest.mark.parametrize("name", [*CORE, *ATTENTION_VARIANTS])
def test_attention_runs_fused_wherever_it_can(name: str, model: Callable) -> None:
    assert model(name).info.attention == ("eager" if name in NOT_FUSED else "fused")
    assert model(name, eager=True).info.attention == "eager"


@pytest.mark.parametrize("name", [*CORE, *ATTENTION_VARIANTS])
@pytest.mark.parametrize(
    ("eager", "kind"),
    [(False, RecomputedPattern), (True, RecomputedPattern), (True, StoredPattern)],
    ids=["fused", "eager-recomputed", "eager-stored"],
)
def test_rows_equal_the_attention_probabilities_of_plain_transformers(
    name: str, eager: bool, kind: type, model: Callable, plain_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(name, eager=eager)
    if kind is StoredPattern:
        # No recomputed row is ever near enough.
        monkeypatch.setattr(bridge, "_PATTERN_TOLERANCE", -1.0)
    for layer, block in enumerate(llm.trace(token_ids(N_TOKENS)).blocks):
        assert isinstance(block.pattern, kind)
        expected = plain_run(name, N_TOKENS).layers[layer].alpha
        rows = block.pattern.rows(range(N_TOKENS))
        assert rows.dtype == torch.float32
        assert rows.shape == expected.shape
        assert float((rows - expected).abs().max()) <= 1e-5
        assert (rows.triu(1) == 0).all()
        some = block.pattern.rows([N_TOKENS - 1, 0, 5])
        assert torch.allclose(some, rows[:, [N_TOKENS - 1, 0, 5]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "windowed"),
    [
        ("mistral", (True, True, True)),
        ("gpt_neo", (False, True)),
        ("qwen2_sliding", (False, True, True)),
        ("qwen2_window_off", (False,) * 3),
    ],
)
def test_layers_with_a_window_see_no_further_than_it(name: str, windowed: tuple[bool, ...], model: Callable) -> None:
    blocks = model(name).trace(token_ids(N_TOKENS)).blocks
    for block, is_windowed in zip(blocks, windowed, strict=True):
        rows = block.pattern.rows(range(N_TOKENS))
        beyond = rows.tril(-WINDOW)
        assert (float(beyond.abs().max()) == 0) == is_windowed
        assert float(rows[:, N_TOKENS - 1, N_TOKENS - WINDOW].max()) > 0, "the window's own last token is seen"


def test_a_short_prompt_keeps_its_pattern_and_a_long_one_its_queries_and_keys(model: Callable) -> None:
    for n_tokens, kind in ((5, StoredPattern), (60, RecomputedPattern)):
        block = model("llama", eager=True).trace(token_ids(n_tokens)).blocks[0]
        assert isinstance(block.pattern, kind)
        stored = 4 * n_tokens * n_tokens * 4
        recomputed = (4 + 2) * n_tokens * 8 * 4
        assert block.pattern.nbytes == min(stored, recomputed)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_recomputation_that_would_be_wrong_is_not_used(
    name: str, model: Callable, plain_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bridge.softmax_scale
    monkeypatch.setattr(
        bridge, "softmax_scale", lambda config, layer, d_head: original(config, layer, d_head) * (1.01 if layer == 1 else 1)
    )
    blocks = model(name, eager=True).trace(token_ids(N_TOKENS)).blocks
    assert [type(block.pattern) for block in blocks] == [RecomputedPattern, StoredPattern, RecomputedPattern]
    assert float((blocks[1].pattern.rows(range(N_TOKENS)) - plain_run(name, N_TOKENS).layers[1].alpha).abs().max()) <= 1e-5


@pytest.mark.parametrize("wrong", [None, WINDOW + 1, WINDOW - 1])
def test_a_wrong_window_is_not_used_either(wrong: int | None, model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("mistral", eager=True)
    monkeypatch.setattr(llm, "_windows", [wrong] * 3)
    assert {type(block.pattern) for block in llm.trace(token_ids(N_TOKENS)).blocks} == {StoredPattern}


@pytest.mark.parametrize("wrong", [None, WINDOW + 1, WINDOW - 1])
def test_fused_attention_that_does_not_add_up_is_given_up_for_eager_attention(
    wrong: int | None, checkpoint: Callable, plain_run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = llm_tt.load_model(str(checkpoint("mistral")))
    assert isinstance(llm, bridge.BridgeLlm)
    assert llm.info.attention == "fused"
    monkeypatch.setattr(Visible, "of", lambda mask: Visible(wrong))
    trace = llm.trace(token_ids(N_TOKENS))
    assert llm.info.attention == "eager"
    for block, layer in zip(trace.blocks, plain_run("mistral", N_TOKENS).layers, strict=True):
        assert float((block.pattern.rows(range(N_TOKENS)) - layer.alpha).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_fused_and_eager_attention_give_the_same_trace(name: str, model: Callable) -> None:
    fused, eager = (model(name, eager=eager).trace(token_ids(N_TOKENS)) for eager in (False, True))
    for one, other in zip(fused.blocks, eager.blocks, strict=True):
        for field in ("resid_mid", "resid_post", "attn_out", "ffn_out", "values"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-4, atol=1e-5)
    assert fused.nbytes <= eager.nbytes


def test_no_tensor_of_a_fused_trace_grows_with_the_square_of_the_prompt(model: Callable) -> None:
    llm = model("llama")
    short, long = (llm.trace(token_ids(n_tokens)).nbytes for n_tokens in (50, 200))
    assert long == 4 * short


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neo"])
def test_half_precision_rows_are_float32_and_sum_to_one(name: str, dtype: str, model: Callable) -> None:
    for n_tokens in (5, N_TOKENS):
        for block in model(name, dtype).trace(token_ids(n_tokens)).blocks:
            rows = block.pattern.rows(range(n_tokens))
            assert rows.dtype == torch.float32
            assert torch.allclose(rows.sum(-1), torch.ones(()), atol=2e-2)
            assert (rows.triu(1) == 0).all()


def test_recomputed_rows_by_hand() -> None:
    """Two query heads on one key head, window 2."""
    queries = torch.tensor([[[1.0], [2.0], [3.0]], [[0.0], [0.0], [0.0]]])
    keys = torch.tensor([[[0.5], [1.0], [2.0]]])
    rows = RecomputedPattern(queries, keys, scale=0.5, visible=Visible(2)).rows([2, 0])
    weights = torch.tensor([1.5 * 1.0, 1.5 * 2.0]).softmax(0)
    assert torch.allclose(rows[0, 0], torch.tensor([0.0, *weights.tolist()]))
    assert torch.allclose(rows[1, 0], torch.tensor([0.0, 0.5, 0.5]))
    assert torch.equal(rows[:, 1], torch.tensor([[1.0, 0.0, 0.0]] * 2))


def _mask(n_tokens: int, sees: Callable[[int, int], bool]) -> torch.Tensor:
    return torch.tensor([[j <= i and sees(i, j) for j in range(n_tokens)] for i in range(n_tokens)])


@pytest.mark.parametrize("n_tokens", [1, 5, 8, 9, 30])
def test_a_mask_becomes_a_window_only_where_a_window_says_the_same(n_tokens: int) -> None:
    masks = {
        "causal": _mask(n_tokens, lambda i, j: True),
        "window": _mask(n_tokens, lambda i, j: i - j < 8),
        "chunks": _mask(n_tokens, lambda i, j: i // 8 == j // 8),
        "holes": _mask(n_tokens, lambda i, j: i == j or j % 3 == 0),
    }
    for name, mask in masks.items():
        visible = Visible.of(mask)
        assert torch.equal(visible.hidden(torch.arange(n_tokens), n_tokens), ~mask), name
    for name, window in (("causal", None), ("window", 8 if n_tokens > 8 else None)):
        assert (Visible.of(masks[name]).window, Visible.of(masks[name]).mask) == (window, None)
    if n_tokens == 30:
        assert Visible.of(masks["chunks"]).mask is not None
        assert Visible.of(masks["holes"]).mask is not None
    assert (Visible.of(None).window, Visible.of(None).mask) == (None, None)
