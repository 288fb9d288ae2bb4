"""From risks to alarms: threshold, hysteresis, snooze, latching, and doubt about what was not measured."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, NonFiniteError, ShapeError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Alarms:
    """What a policy does at each grid time.

    Attributes:
        raised: an alarm goes off, ``(G,)``.
        active: the state of alarm holds, whether or not one goes off just then, ``(G,)``.
    """

    raised: Mask
    active: Mask


@dataclass(frozen=True)
class AlarmPolicy:
    """When a risk becomes an alarm.

    The state of alarm begins when the risk rises above `threshold` and ends when it falls to `release` or below. One
    alarm goes off as it begins, and with `snooze` again whenever it still holds so long after the last; none goes
    off before then, not even if the state ended and began anew.

    Attributes:
        threshold: risk above which the state begins.
        release: risk at which it ends, at most `threshold`, which is the default.
        snooze: least time between alarms; None for one alarm each time that the state begins.
        latching: the state never ends once it has begun.
        max_alarms: most alarms a series, None for any number.

    Example:
        >>> series = RaggedSeries.from_arrays([0, 1, 2, 3], [0] * 4, [0.0] * 4, [0, 4], n_channels=1)
        >>> AlarmPolicy(0.5, release=0.3).alarms(series, [0.6, 0.4, 0.2, 0.7]).active.tolist()
        [True, True, False, True]
        >>> AlarmPolicy(0.5, snooze=2.0).alarms(series, [0.6, 0.9, 0.9, 0.7]).raised.tolist()
        [True, False, True, False]
    """

    threshold: float
    release: float | None = None
    snooze: float | None = None
    latching: bool = False
    max_alarms: int | None = None

    def __post_init__(self) -> None:
        if self.release is not None and self.release > self.threshold:
            raise InputError(f"`release` can't lie above `threshold`, {self.threshold}; got {self.release}.")
        if self.snooze is not None and self.snooze < 0:
            raise InputError(f"`snooze` must not be negative; got {self.snooze}.")
        if self.max_alarms is not None and self.max_alarms < 1:
            raise InputError(f"`max_alarms` must be at least 1; got {self.max_alarms}.")

    @property
    def most_alarms(self) -> int | None:
        """Most alarms that this policy can raise on a series; None if there is no such number."""
        return 1 if self.latching and self.snooze is None else self.max_alarms

    def alarms(self, series: RaggedSeries, risk: ArrayLike) -> Alarms:
        """Apply the policy.

        Args:
            series: what was scored.
            risk: at each grid time, ``(G,)``; `confident_risk` makes one of draws.

        Raises:
            ShapeError: if there is not one risk a grid time.
            NonFiniteError: if a risk is NaN or infinite; names the row.
        """
        score = checked_risk(series, risk)
        first = series.grid_offsets[:-1][np.diff(series.grid_offsets) > 0]
        active = self._active(score, first)
        owner = series.grid_owner
        if self.snooze is None:
            before = np.concatenate([[False], active[:-1]])[: len(active)]
            before[first] = False
            raised = active & ~before
        else:
            raised = _spaced(series.grid_times, owner, active, self.snooze, len(series))
        if self.max_alarms is not None:
            raised &= _counted(raised, series) <= self.max_alarms
        return Alarms(raised, active)

    def _active(self, score: Array, first: Index) -> Mask:
        """The state at each row; `first` are the rows with which series begin."""
        begins = score > self.threshold
        ends = score <= (self.threshold if self.release is None else self.release)
        ends = np.zeros_like(begins) if self.latching else ends
        known = begins | ends
        known[first] = True
        last = np.maximum.accumulate(np.where(known, np.arange(len(score)), 0))
        return begins[last]


def confident_risk(draws: ArrayLike, probability: float) -> Array:
    """The score that exceeds a threshold exactly where P(risk > threshold | missing data) exceeds `probability`.

    With S draws it is the k-th largest, k = floor(probability S) + 1: more than a share `probability` of the draws
    lies above a threshold if and only if that one does. So policies, metrics and budgets take it as they take a risk.

    Args:
        draws: of the risk, given what was measured, ``(S, G)``.
        probability: p in [0, 1).

    Raises:
        ShapeError: if draws are not ``(S, G)``, S >= 1.
        InputError: if the probability is not in [0, 1).

    Example:
        >>> confident_risk([[0.1, 0.9], [0.5, 0.8], [0.7, 0.2]], 0.5).tolist()
        [0.5, 0.8]
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ShapeError(f"`draws` must have shape (S, G) with S >= 1; got {values.shape}.")
    if not 0 <= probability < 1:
        raise InputError(f"`probability` must lie in [0, 1); got {probability}.")
    rank = int(np.floor(probability * len(values) + 1e-9)) + 1
    place = len(values) - rank
    return np.partition(values, place, axis=0)[place]


def checked_risk(series: RaggedSeries, risk: ArrayLike) -> Array:
    """Risks as float64 ``(G,)``.

    Raises:
        ShapeError: if there is not one a grid time.
        NonFiniteError: if one is NaN or infinite; names the row.
    """
    score = np.asarray(risk, dtype=np.float64)
    if score.shape != series.grid_times.shape:
        raise ShapeError(f"`risk` must have shape {series.grid_times.shape}, one a grid time; got {score.shape}.")
    bad = np.flatnonzero(~np.isfinite(score))
    if bad.size:
        raise NonFiniteError(f"`risk` must be finite; row {bad[0]} is {score[bad[0]]}. Score every grid time.")
    return score


def _spaced(time: Array, owner: Index, active: Mask, snooze: float, n: int) -> Mask:
    """Active rows at which an alarm goes off: the first of a series, then each one `snooze` after the last alarm.

    All series go step by step together, over their active rows alone.
    """
    rows = np.flatnonzero(active)
    size = np.bincount(owner[rows], minlength=n)
    start = np.cumsum(size) - size
    order = np.argsort(-size, kind="stable")
    last = np.full(n, -np.inf)
    raised = np.zeros(len(active), dtype=bool)
    reach = np.searchsorted(-size[order], -np.arange(size.max(initial=0)), side="left")  # series with more than k rows
    for k, several in enumerate(reach):
        who = order[:several]
        row = rows[start[who] + k]
        due = time[row] - last[who] >= snooze * (1 - 1e-9)
        raised[row[due]] = True
        last[who[due]] = time[row[due]]
    return raised


def _counted(raised: Mask, series: RaggedSeries) -> Index:
    """Alarms of the series up to each row, that row included."""
    total = np.concatenate([[0], np.cumsum(raised)])
    return total[1:] - total[series.grid_offsets[:-1]][series.grid_owner]
