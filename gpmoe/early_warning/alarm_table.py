"""What alarms achieve at several thresholds, for a model and for the clock beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarm_report import AlarmReport, DetectionWindow, alarm_report
from gpmoe.early_warning.alarms import AlarmPolicy, checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap
from gpmoe.early_warning.ranking import largest_risk
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError

SHARES = (0.05, 0.1, 0.2, 0.4)
"""Shares of series that alarm, at which scores are compared."""


@dataclass(frozen=True)
class AlarmRow:
    """One policy on one score.

    Attributes:
        score: name of the score.
        policy: what decides.
        share: of the series that alarm.
        report: what it achieves.
    """

    score: str
    policy: AlarmPolicy
    share: float
    report: AlarmReport


def alarm_table(
    series: RaggedSeries,
    scores: Mapping[str, ArrayLike],
    *,
    policies: Mapping[str, AlarmPolicy] | None = None,
    shares: Sequence[float] = SHARES,
    window: DetectionWindow | None = None,
    day: float = 24.0,
    bootstrap: Bootstrap = DEFAULT,
) -> list[AlarmRow]:
    """One alarm a series at most, at thresholds at which each score lets the same share of series alarm.

    Args:
        series: with event times.
        scores: by name, each ``(G,)``, such as the risks of a model and `grid_times` for the clock.
        policies: further rows: policies that belong to the scores of these names.
        shares: of the series, rising.
        window, day, bootstrap: as in `alarm_report`.

    Returns:
        Rows by share, then in the order of the scores; those of `policies` first.

    Raises:
        InputError: if the series have no event times, or a share is not between 0 and 1.

    Example:
        >>> from gpmoe.early_warning.simulator import StayModel, simulate_stays
        >>> series = simulate_stays(40, model=StayModel(prevalence=0.3), seed=0).series
        >>> rows = alarm_table(series, {"clock": series.grid_times}, shares=[0.1])
        >>> rows[0].score, rows[0].share <= 0.1
        ('clock', True)
    """
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"`shares` must lie between 0 and 1; got {list(shares)}.")
    checked = {name: checked_risk(series, score) for name, score in scores.items()}
    chosen = list((policies or {}).items())
    for share in shares:
        for name, score in checked.items():
            chosen.append((name, AlarmPolicy(_threshold(series, score, share), latching=True)))
    rows = []
    for name, policy in chosen:
        raised = policy.alarms(series, checked[name]).raised
        found = alarm_report(series, raised, window=window, day=day, bootstrap=bootstrap)
        alarming = np.bincount(series.grid_owner, raised, minlength=len(series)) > 0
        rows.append(AlarmRow(name, policy, float(alarming.mean()), found))
    return rows


def _threshold(series: RaggedSeries, score: Array, share: float) -> float:
    """The least threshold that at most this share of the series exceed."""
    largest = np.sort(largest_risk(series, score))
    return float(largest[min(len(largest) - 1, len(largest) - 1 - int(np.floor(share * len(largest))))])
