"""A dense FFN is run as far as its neurons, or for some tokens, where no more is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_tt.models.ffn import DenseFfn, in_pieces


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.downs = self.rows = 0
        self.down.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.downs += 1

    def forward(self, x: Tensor) -> Tensor:
        self.rows += x.shape[1]
        return self.down(torch.relu(self.up(x)))


def test_neurons_are_known_before_the_output_projection_runs() -> None:
    mlp, x = Mlp(), torch.randn(3, 4)
    made = DenseFfn(mlp, mlp.down).neurons(x)
    assert torch.equal(made.activations, torch.relu(mlp.up(x[None]))[0])
    assert mlp.downs == 0
    mlp(x[None])
    assert mlp.downs == 1, "nothing is left behind that would stop it"


def test_an_error_on_the_way_is_not_taken_for_neurons() -> None:
    mlp = Mlp()
    with pytest.raises(RuntimeError):
        DenseFfn(mlp, mlp.down).neurons(torch.randn(3, 5))
    with pytest.raises(ValueError, match="does not call its output projection"):
        DenseFfn(lambda x: mlp.up(x), mlp.down).neurons(torch.randn(3, 4))
    assert mlp(torch.randn(1, 3, 4)).shape == (1, 3, 4)


def test_where_only_sizes_are_wanted_one_piece_is_read() -> None:
    mlp, x = Mlp(), torch.randn(1, 5, 4)
    whole = mlp(x)
    mlp.rows = 0
    with in_pieces(mlp, 2):
        assert torch.allclose(mlp(x), whole)
    assert mlp.rows == 5
    with in_pieces(mlp, 2, only_first=True):
        first = mlp(x)
    assert mlp.rows == 7
    assert torch.allclose(first[:, :2], whole[:, :2])
    assert not first[:, 2:].any()
    assert torch.equal(mlp(x), whole)


def test_a_length_that_divides_a_size_of_the_model_tells_nothing(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model("gpt2")
    lengths = []
    monkeypatch.setattr(llm, "_record", lambda ids, *_, **__: (lengths.append(len(ids)), llm._first_run, None))
    for shape, expected in (({"per_expert": 512}, 13), ({"per_expert": 13 * 512}, 17)):
        lengths.clear()
        with monkeypatch.context() as patch:
            patch.setattr(llm, "info", _with_neurons(llm.info, shape["per_expert"]))
            patch.setattr(llm, "_first_run", ())
            llm._measured_running()
        assert lengths == [expected]


def _with_neurons(info: Any, n_neurons: int) -> Any:
    from dataclasses import replace

    return replace(info, ffn=tuple(replace(shape, per_expert=n_neurons) for shape in info.ffn))
