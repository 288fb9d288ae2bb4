"""Hyperparameters that gradients move: where each may lie, and its unconstrained coordinate.

| symbol | name in code |
|---|---|
| λ, in the caller's units | `value` |
| r, any real number | `raw` |

λ = a + (b - a) / (1 + exp(-r)) on an interval (a, b);   λ = a + log(1 + exp(r)) on a half-line (a, ∞).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpmoe.errors import InputError


class HyperRange(Protocol):
    """Where one hyperparameter may lie and starts."""

    start: float

    def value(self, raw: Tensor) -> Tensor:
        """λ of r, elementwise."""

    def raw(self, value: float) -> float:
        """r of λ."""


@dataclass(frozen=True)
class Interval:
    """A hyperparameter between two ends, by a sigmoid stretched over them.

    Args:
        low, high: the ends, which are approached and not reached.
        start: where tuning begins.

    Raises:
        InputError: unless low < start < high, all finite.

    Example:
        >>> dropout = Interval(0.0, 0.9, start=0.3)
        >>> round(float(dropout.value(torch.tensor(dropout.raw(0.3)))), 6)
        0.3
    """

    low: float
    high: float
    start: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.start < self.high < math.inf:
            raise InputError(f"an interval needs low < start < high; got {self.low}, {self.start}, {self.high}.")

    def value(self, raw: Tensor) -> Tensor:
        """a + (b - a) / (1 + exp(-r))."""
        return self.low + (self.high - self.low) * raw.sigmoid()

    def raw(self, value: float) -> float:
        """log((λ - a) / (b - λ))."""
        return math.log((value - self.low) / (self.high - value))


@dataclass(frozen=True)
class HalfLine:
    """A hyperparameter above an end, by softplus.

    Args:
        start: where tuning begins.
        low: the end, which is approached and not reached.

    Raises:
        InputError: unless low < start, both finite.

    Example:
        >>> penalty = HalfLine(0.1)
        >>> round(float(penalty.value(torch.tensor(penalty.raw(0.1)))), 6)
        0.1
    """

    start: float
    low: float = 0.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.start < math.inf:
            raise InputError(f"a half-line needs low < start, both finite; got low={self.low}, start={self.start}.")

    def value(self, raw: Tensor) -> Tensor:
        """a + log(1 + exp(r))."""
        return self.low + torch.nn.functional.softplus(raw)

    def raw(self, value: float) -> float:
        """log(exp(λ - a) - 1)."""
        above = value - self.low
        return above + math.log(-math.expm1(-above))


class HyperDraw(Mapping[str, Tensor]):
    """Hyperparameters of each row of a batch, read by name in the caller's units.

    Args:
        ranges: of each hyperparameter, by name.
        raw: unconstrained, ``(n, h)``, columns in the order of `ranges`.

    Example:
        >>> draw = HyperDraw({"penalty": HalfLine(1.0)}, torch.zeros(3, 1))
        >>> draw["penalty"]
        tensor([0.6931, 0.6931, 0.6931])
    """

    def __init__(self, ranges: Mapping[str, HyperRange], raw: Tensor) -> None:
        self.ranges, self.raw = ranges, raw
        self._names: Sequence[str] = list(ranges)

    def __getitem__(self, name: str) -> Tensor:
        """The values of one hyperparameter, ``(n,)``."""
        return self.ranges[name].value(self.raw[..., self._names.index(name)])

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many hyperparameters there are."""
        return len(self._names)
