"""Offline optimisation as translation: better designs from a table of designs and values, without one new evaluation.

Synthetic functions that explain the table give pairs of a poor and a good design (`synthetic_pairs`); a diffusion
bridge learns to lead from the one to the other, whatever the function (`bridge`); the best rows are led on.

Source: Dang et al. (2025), ROOT: Rethinking Offline Optimization as Distributional Translation via Probabilistic
Bridge, algorithm 1. The published program asks for 0.8 of the oracle's known maximum; here the value asked for comes
from the table alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.bo.offline.bridge import BridgeSettings, train_bridge
from gpmoe.bo.offline.synthetic_pairs import SyntheticSettings, synthetic_pairs
from gpmoe.errors import InputError, ShapeError
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


@dataclass(frozen=True)
class Proposals:
    """What translation made of a table's best rows.

    Attributes:
        designs: ``(n, d)``, in the caller's units; nothing keeps them inside bounds.
        starts: indices of the rows that they were led from, ``(n,)``.
        target: the value asked for, in the caller's units.
    """

    designs: Tensor
    starts: Tensor
    target: float


@dataclass(frozen=True)
class Standard:
    """Centres and spreads of a table's columns; a constant column has spread 1."""

    centre: Tensor
    spread: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Standard":
        """Mean and standard deviation over the first dimension."""
        spread = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(spread > 0, spread, 1.0))

    def apply(self, values: Tensor) -> Tensor:
        """Standardised."""
        return (values - self.centre) / self.spread

    def undo(self, values: Tensor) -> Tensor:
        """In the caller's units again."""
        return self.centre + self.spread * values


def propose_designs(
    X: Tensor,
    y: Tensor,
    n_designs: int = 128,
    *,
    synthetic: SyntheticSettings | None = None,
    bridge: BridgeSettings | None = None,
    target: float | None = None,
    seed: int = 0,
) -> Proposals:
    """Lead the best rows of a table to designs that should be better; larger y is better.

    float32 is enough and twice as fast; the linear systems are solved in float64 all the same.

    Args:
        X: designs, ``(n, d)``; discrete ones as logits of their categories.
        y: their values, ``(n,)``.
        n_designs: how many to propose; they start from as many best rows, by turns if there are fewer.
        synthetic: how pairs are made; `SyntheticSettings()` if None.
        bridge: network, training and sampling; `BridgeSettings()` if None.
        target: the value asked for, in units of y; if None, the mean over the synthetic functions of the largest value
            that each reaches.
        seed: of all chance; the same seed gives the same designs.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.
        InputError: for fewer than two rows, constant y or no design asked for.

    Example:
        >>> X = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
        >>> few = SyntheticSettings(n_functions=2, n_steps=5), BridgeSettings(hidden=8, n_steps=5, n_sampling_steps=5)
        >>> propose_designs(X, X.sum(-1), 4, synthetic=few[0], bridge=few[1]).designs.shape
        torch.Size([4, 2])
    """
    _expect_table(X, y, n_designs)
    synthetic, bridge = synthetic or SyntheticSettings(), bridge or BridgeSettings()
    generator = torch.Generator().manual_seed(seed)
    of_X, of_y = Standard.of(X), Standard.of(y)
    pairs = synthetic_pairs(of_X.apply(X), of_y.apply(y), synthetic, generator)
    network = train_bridge(pairs, bridge, generator)
    best = y.argsort(descending=True, stable=True)[:n_designs]
    starts = best[torch.arange(n_designs) % len(best)]
    asked = pairs.best.mean() if target is None else of_y.apply(y.new_tensor(target))
    low = of_X.apply(X[starts]), of_y.apply(y[starts])
    designs = network.sample(low[0], asked.expand(n_designs), low[1], generator)
    return Proposals(of_X.undo(designs), starts, float(of_y.undo(asked)))


def _expect_table(X: Tensor, y: Tensor, n_designs: int) -> None:
    expect_shape("X", X, ndim=2, last=(-1, -1))
    expect_floating("X", X)
    expect_floating("y", y, like=X)
    if y.shape != X.shape[:1]:
        raise ShapeError(f"`y` must have one value for each of the {len(X)} rows of `X`; got shape {tuple(y.shape)}.")
    expect_finite("X", X)
    expect_finite("y", y)
    if len(y) < 2 or bool((y == y[0]).all()):
        raise InputError(f"nothing can be learned from {len(y)} rows of equal y; give rows whose values differ.")
    if n_designs < 1:
        raise InputError(f"`n_designs` must be at least 1; got {n_designs}.")
