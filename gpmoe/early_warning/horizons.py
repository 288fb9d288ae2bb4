"""Ranking some time before the event: cases cut before their event against controls cut at a matched time.

Each series with an event is scored at its last grid time no later than event - h. A control has no event, so it is
given one: under "random" at a time that is uniform over its grid, under "length" at the time of the event of a case
that it is matched to, which it must have reached. Under "random", how long a series has run tells the classes
apart; under "length" it can't. Every horizon scores the same cases and controls.

Source: Moor et al. (2019), Early recognition of sepsis with Gaussian process temporal convolutional networks and
dynamic time warping, sec. 4; Rosnati & Fortuin (2021), MGP-AttTCN, PLOS ONE 16(5), for controls of equal length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarms import checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap
from gpmoe.early_warning.ranking import RankingScores, ranked
from gpmoe.early_warning.rows import Array, Index
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError

HOURS: tuple[float, ...] = tuple(float(h) for h in range(8))
"""The horizons 0, 1, ..., 7."""


@dataclass(frozen=True)
class MatchedControls:
    """Which series are compared, and the time of the event of each, real or given.

    Attributes:
        which: numbers of the series, ``(k,)``.
        is_case: ``(k,)``, 1 for a case and 0 for a control.
        time: of the event, ``(k,)``.
    """

    which: Index
    is_case: Array
    time: Array


def matched_controls(
    series: RaggedSeries,
    *,
    controls: str = "length",
    per_case: int | None = None,
    longest: float = 7.0,
    seed: int | None = 0,
) -> MatchedControls:
    """Cases that have a grid time at least `longest` before their event, and controls that have one likewise.

    Under "length" every case gets the same number of controls, and cases for which there are not so many, mostly
    late ones, are left out. Under "random" all cases and controls are taken.

    Args:
        series: with event times.
        controls: "random" or "length".
        per_case: controls a case under "length"; by default the largest number that leaves no case out, at least 1.
        longest: horizon that all of them must allow.
        seed: of NumPy's generator.

    Raises:
        InputError: if there are no event times, no case or no control is left, or `controls` is another word.
    """
    if series.event_time is None:
        raise InputError("horizons need `event_time` of the series, infinite where there is none.")
    if controls not in ("random", "length"):
        raise InputError(f"`controls` must be 'random' or 'length'; got {controls!r}.")
    if per_case is not None and per_case < 1:
        raise InputError(f"`per_case` must be at least 1; got {per_case}.")
    rng = np.random.default_rng(seed)
    some = np.diff(series.grid_offsets) > 0
    first, last = np.full((2, len(series)), np.nan)
    first[some] = series.grid_times[series.grid_offsets[:-1][some]]
    last[some] = series.grid_times[series.grid_offsets[1:][some] - 1]
    cases = np.flatnonzero(np.isfinite(series.event_time) & (series.event_time - longest >= first))
    others = np.flatnonzero(np.isinf(series.event_time) & (last - longest >= first))
    if controls == "random":
        given = rng.uniform(first[others] + longest, last[others])
    else:
        cases, others, given = _of_equal_length(rng, series.event_time, cases, others, first + longest, last, per_case)
    if not len(cases) or not len(others):
        raise InputError(f"{len(cases)} cases and {len(others)} controls reach {longest} before the event; need both.")
    is_case = np.repeat([1.0, 0.0], [len(cases), len(others)])
    return MatchedControls(np.concatenate([cases, others]), is_case, np.concatenate([series.event_time[cases], given]))


def horizon_ranking(
    series: RaggedSeries,
    risk: ArrayLike,
    *,
    horizons: Sequence[float] = HOURS,
    controls: str = "length",
    per_case: int | None = None,
    seed: int | None = 0,
    bootstrap: Bootstrap = DEFAULT,
) -> dict[float, RankingScores]:
    """AUROC and AUPRC at each horizon before the event.

    Args:
        series: with event times.
        risk: at each grid time, from the past alone, ``(G,)``.
        horizons: in the unit of time of the series.
        controls, per_case: as in `matched_controls`; see the head of this module.
        seed: of the matching.
        bootstrap: how intervals are made, over cases and controls.

    Raises:
        InputError: as `matched_controls`.

    Example:
        >>> from gpmoe.early_warning.simulator import StayModel, simulate_stays
        >>> series = simulate_stays(60, model=StayModel(prevalence=0.5), seed=0).series
        >>> scores = horizon_ranking(series, series.grid_times, horizons=[0.0, 4.0])  # the clock tells nothing
        >>> scores[0.0].auroc.value
        0.5
    """
    score = checked_risk(series, risk)
    matched = matched_controls(series, controls=controls, per_case=per_case, longest=max(horizons), seed=seed)
    result = {}
    for horizon in horizons:
        row = _last_row(series, matched.which, matched.time - horizon)
        owner = np.arange(len(row))
        result[float(horizon)] = ranked(score[row], matched.is_case, owner, len(row), bootstrap)
    return result


def _of_equal_length(
    rng: np.random.Generator,
    event: Array,
    cases: Index,
    others: Index,
    reach: Array,
    last: Array,
    per_case: int | None,
) -> tuple[Index, Index, Array]:
    """Cases, their controls and the times given to those: the longest cases choose first, as fewest reach them."""
    cases = cases[np.argsort(-event[cases], kind="stable")]
    others = rng.permutation(others)
    others = others[np.argsort(-last[others], kind="stable")]
    reached = np.searchsorted(-last[others], -event[cases], side="right")  # controls that go on at each event
    enough = (reached // np.arange(1, len(cases) + 1)).min(initial=len(others))
    each = max(int(enough), 1) if per_case is None else per_case
    kept, chosen, given = [], [], []
    free = np.ones(len(others), dtype=bool)
    for case, n in zip(cases, reached, strict=True):
        pool = np.flatnonzero(free[:n] & (reach[others[:n]] <= event[case]))
        if len(pool) >= each:
            taken = rng.choice(pool, each, replace=False)
            free[taken] = False
            kept.append(case)
            chosen.extend(others[taken])
            given.extend([event[case]] * each)
    return np.array(kept, dtype=np.int64), np.array(chosen, dtype=np.int64), np.array(given)


def _last_row(series: RaggedSeries, which: Index, time: Array) -> Index:
    """Last grid row of each series no later than its time; every one has such a row."""
    limit = np.full(len(series), -np.inf)
    limit[which] = time
    before = series.grid_times <= limit[series.grid_owner]
    count = np.bincount(series.grid_owner, before, minlength=len(series)).astype(np.int64)
    return series.grid_offsets[which] + count[which] - 1
