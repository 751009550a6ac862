"""`HeadShare` and `NeuronShare`, rows of the tables of heads and neurons. Apart from what computes them, so that those who only show them need
not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadShare:
    """What one head contributes to the residual stream after attention at one token."""

    layer: int
    head: int
    contribution: float
    """from all source tokens together"""
    source: int
    """the token from which most of it comes; where there is none, the target itself"""
    from_source: float
    """the contribution from that token"""


@dataclass(frozen=True)
class NeuronShare:
    """What one neuron contributes to the residual stream after the FFN at one token."""

    layer: int
    neuron: int
    name: str
    """as in `FfnShape.name`"""
    activation: float
    """what multiplies the neuron's output; in a mixture of experts the routing weight is in it"""
    contribution: float
