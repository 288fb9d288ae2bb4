"""Kinds of parameters of a search space: what values they take, and their coordinates.

A number's coordinate runs from 0 at its lower end to 1 at its upper one, on the log scale where it says so; a
categorical's coordinate is the index of its choice, an ordinal's its index divided by the last one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError

Vector = NDArray[np.float64]
Value: TypeAlias = float | int | str | bool | None
When: TypeAlias = Mapping[str, Sequence[Value]]

_MANY = 10_000  # levels from which a number counts as continuous where coordinates are searched


@dataclass(frozen=True)
class Float:
    """A real number between two ends.

    Args:
        low, high: the ends, inclusive.
        log: whether it is searched by factors; then `low` is positive.
        step: distance of the values it may take, from `low` on; None for all.
        when: choices of other parameters under which it is active; None for always.

    Raises:
        InputError: if the range is empty, not finite, or does not fit `log` or `step`.

    Example:
        >>> Float(1e-4, 1.0, log=True).from_unit(0.5)
        0.01
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: When | None = None

    def __post_init__(self) -> None:
        _expect_range(self, whole=False)

    @property
    def levels(self) -> int | None:
        """How many values it takes; None if it is continuous."""
        if self.high == self.low:
            return 1
        return None if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def to_unit(self, value: Value) -> float:
        """The coordinate of a value."""
        return _to_unit(_number(self, value), self.low, self.high, self.log)

    def from_unit(self, u: float) -> float:
        """The value nearest to a coordinate."""
        value = _from_unit(u, self.low, self.high, self.log)
        if self.step is not None:
            value = self.low + self.step * _level(value, self)
        return min(max(value, self.low), self.high)

    def draw(self, u: float) -> float:
        """The coordinate of the value at a uniform number: each level is as likely as any other."""
        if self.levels is None:
            return u
        return self.to_unit(min(self.low + (self.step or 0.0) * min(int(u * self.levels), self.levels - 1), self.high))


@dataclass(frozen=True)
class Int:
    """A whole number between two ends.

    Args:
        low, high: the ends, inclusive.
        log: whether it is searched by factors; then `low` is positive.
        step: distance of the values it may take, from `low` on.
        when: choices of other parameters under which it is active; None for always.

    Raises:
        InputError: if the range is empty or does not fit `log` or `step`.

    Example:
        >>> Int(1, 1024, log=True).from_unit(0.5)
        32
    """

    low: int
    high: int
    log: bool = False
    step: int = 1
    when: When | None = None

    def __post_init__(self) -> None:
        _expect_range(self, whole=True)

    @property
    def levels(self) -> int:
        """How many values it takes."""
        return (self.high - self.low) // self.step + 1

    def to_unit(self, value: Value) -> float:
        """The coordinate of a value."""
        return _to_unit(_number(self, value), self.low, self.high, self.log)

    def from_unit(self, u: float) -> int:
        """The value nearest to a coordinate."""
        value = _from_unit(u, self.low, self.high, self.log)
        return int(self.low + self.step * _level(value, self))

    def draw(self, u: float) -> float:
        """The coordinate of the value at a uniform number, whose levels end half a step further out."""
        half = 0.5 * self.step
        value = _from_unit(u, self.low - half, self.high + half, self.log)
        return self.to_unit(int(self.low + self.step * _level(value, self)))


@dataclass(frozen=True)
class Categorical:
    """One of several choices without an order.

    Args:
        choices: strings, numbers, truth values or None; all different.
        when: choices of other parameters under which it is active; None for always.

    Raises:
        InputError: if there is no choice, one twice, or one of another type.
    """

    choices: Sequence[Value]
    when: When | None = None

    def __post_init__(self) -> None:
        _expect_choices(self)
        object.__setattr__(self, "choices", tuple(self.choices))

    @property
    def levels(self) -> int:
        """How many choices there are."""
        return len(self.choices)

    def to_unit(self, value: Value) -> float:
        """The index of a choice."""
        return float(_index(self, value))

    def from_unit(self, u: float) -> Value:
        """The choice at an index."""
        return self.choices[min(max(round(u), 0), len(self.choices) - 1)]

    def draw(self, u: float) -> float:
        """The index at a uniform number."""
        return float(min(int(u * len(self.choices)), len(self.choices) - 1))


@dataclass(frozen=True)
class Ordinal:
    """One of several choices in their order, such as sizes; neighbours are taken to be alike.

    Args:
        choices: strings, numbers, truth values or None; all different, in order.
        when: choices of other parameters under which it is active; None for always.

    Raises:
        InputError: if there is no choice, one twice, or one of another type.
    """

    choices: Sequence[Value]
    when: When | None = None

    def __post_init__(self) -> None:
        _expect_choices(self)
        object.__setattr__(self, "choices", tuple(self.choices))

    @property
    def levels(self) -> int:
        """How many choices there are."""
        return len(self.choices)

    def to_unit(self, value: Value) -> float:
        """The coordinate of a choice."""
        return _index(self, value) / max(len(self.choices) - 1, 1)

    def from_unit(self, u: float) -> Value:
        """The choice nearest to a coordinate."""
        last = len(self.choices) - 1
        return self.choices[min(max(round(u * last), 0), last)]

    def draw(self, u: float) -> float:
        """The coordinate at a uniform number."""
        return min(int(u * len(self.choices)), len(self.choices) - 1) / max(len(self.choices) - 1, 1)


@dataclass(frozen=True)
class Fixed:
    """A parameter that keeps one value.

    Args:
        value: a string, number, truth value or None.
        when: choices of other parameters under which it is active; None for always.
    """

    value: Value
    when: When | None = None

    def __post_init__(self) -> None:
        _expect_choices(self)

    @property
    def choices(self) -> tuple[Value]:
        """The one choice."""
        return (self.value,)

    @property
    def levels(self) -> int:
        """One."""
        return 1

    def to_unit(self, value: Value) -> float:
        """Zero, for the one value."""
        return float(_index(self, value))

    def from_unit(self, u: float) -> Value:
        """The value."""
        return self.value

    def draw(self, u: float) -> float:
        """Zero."""
        return 0.0


Parameter: TypeAlias = Float | Int | Categorical | Ordinal | Fixed


def grid(parameter: Parameter) -> Vector | None:
    """Coordinates of all values of a parameter, ``(levels,)``; None if it is continuous or has more than 10,000."""
    levels = parameter.levels
    if levels is None or levels > _MANY:
        return None
    if isinstance(parameter, Float | Int):
        step = parameter.step or 0
        return np.array([parameter.to_unit(parameter.low + i * step) for i in range(levels)])
    if isinstance(parameter, Categorical):
        return np.arange(levels, dtype=np.float64)
    return np.arange(levels) / max(levels - 1, 1)


def _to_unit(value: float, low: float, high: float, log: bool) -> float:
    if high == low:
        return 0.0
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value / 2 - low / 2) / (high / 2 - low / 2)  # halves, as the width may overflow


def _from_unit(u: float, low: float, high: float, log: bool) -> float:
    u = min(max(u, 0.0), 1.0)
    if log:
        return (
            low * (high / low) ** u if high / low < math.inf else math.exp(math.log(low) * (1 - u) + math.log(high) * u)
        )
    return low * (1 - u) + high * u


def _level(value: float, parameter: Float | Int) -> int:
    levels, step = parameter.levels, parameter.step
    if levels is None or step is None:
        return 0
    return min(max(round((value - parameter.low) / step), 0), levels - 1)


def _number(parameter: Float | Int, value: Value) -> float:
    whole = isinstance(parameter, Int)
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        inside = parameter.low <= value <= parameter.high
        if inside and (not whole or value == int(value)):
            return float(value)
    kind = "a whole number" if whole else "a number"
    raise InputError(f"expected {kind} from {parameter.low} to {parameter.high}; got {value!r}.")


def _index(parameter: Categorical | Ordinal | Fixed, value: Value) -> int:
    for i, choice in enumerate(parameter.choices):
        if _same(choice, value):
            return i
    raise InputError(f"expected one of {list(parameter.choices)}; got {value!r}.")


def _same(a: Value, b: Value) -> bool:
    """Whether two choices are one; 1 and 1.0 are, 1 and True are not."""
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    return a == b or (a != a and b != b)


def _expect_range(parameter: Float | Int, *, whole: bool) -> None:
    low, high, step = parameter.low, parameter.high, parameter.step
    kind = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    numbers = [low, high] + ([] if step is None else [step])
    if any(isinstance(x, bool) or not isinstance(x, kind) or not math.isfinite(x) for x in numbers):
        wanted = "whole" if whole else "finite"
        raise InputError(f"the ends and the step of a range must be {wanted} numbers; got {parameter}.")
    if low > high:
        raise InputError(f"`low` must not be above `high`; got {parameter}.")
    if step is not None and step <= 0:
        raise InputError(f"`step` must be positive; got {parameter}.")
    if parameter.log and low <= 0:
        raise InputError(f"a log scale needs a positive `low`; got {parameter}.")
    if parameter.log and step not in (None, 1):
        raise InputError(f"a log scale can't have a step; got {parameter}. Leave one of the two out.")


def _expect_choices(parameter: Categorical | Ordinal | Fixed) -> None:
    choices = list(parameter.choices)
    if isinstance(parameter.choices, str) or not choices:
        raise InputError(f"`choices` must be a list of at least one value; got {parameter.choices!r}.")
    for i, choice in enumerate(choices):
        if not isinstance(choice, str | int | float | bool | None):
            raise InputError(f"a choice must be a string, a number, a truth value or None; got {choice!r}. Name it.")
        if any(_same(choice, other) for other in choices[:i]):
            raise InputError(f"`choices` must differ from each other; {choice!r} stands there twice.")
