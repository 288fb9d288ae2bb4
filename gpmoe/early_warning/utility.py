"""The utility of the challenge of 2019: early alarms of an event are worth up to 1, late and false ones cost.

With t_s the time of the event, and a positive or negative call at each grid time t up to t_s + 3 h,

| | positive | negative |
|---|---|---|
| no event | -0.05 | 0 |
| t from t_s - 12 to t_s - 6 | rises from 0 to 1; -0.05 before | 0 |
| t from t_s - 6 to t_s + 3 | falls from 1 to 0 | falls from 0 to -2 |

Later times of a series with an event don't count. The sum U is put on the scale on which never calling has 0 and
the best calls have 1.

Source: Reyna et al. (2020), Early prediction of sepsis from clinical data, Critical Care Medicine 48(2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpmoe.early_warning.alarms import checked_risk
from gpmoe.early_warning.bootstrap import DEFAULT, Bootstrap, Estimate
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError, ShapeError


@dataclass(frozen=True)
class ChallengeUtility:
    """The rule, in units of time of the series (hours in the challenge).

    Attributes:
        earliest, optimal, latest: times relative to the event at which a call begins to be worth something, is worth
            most, and stops to count.
        best: utility of a call at the optimal time.
        missed: utility of no call at the latest time.
        false: utility of a call without event.

    Example:
        >>> series = RaggedSeries.from_arrays([1.0], [0], [0.0], [0, 1], n_channels=1, event_time=[7.0])
        >>> ChallengeUtility().score(series, [True]).value
        1.0
    """

    earliest: float = -12.0
    optimal: float = -6.0
    latest: float = 3.0
    best: float = 1.0
    missed: float = -2.0
    false: float = -0.05

    def of_calls(self, series: RaggedSeries) -> tuple[Array, Array]:
        """Utility of a positive and of a negative call at each grid time, ``(G,)`` each; 0 where none counts.

        Raises:
            InputError: if the series have no event times.
        """
        if series.event_time is None:
            raise InputError("the utility needs `event_time` of the series, infinite where there is none.")
        since = series.grid_times - series.event_time[series.grid_owner]  # minus infinity without an event
        rise = self.best * (since - self.earliest) / (self.optimal - self.earliest)
        late = (since - self.optimal) / (self.latest - self.optimal)
        positive = np.where(since <= self.optimal, np.maximum(rise, self.false), self.best * (1 - late))
        negative = np.where(since <= self.optimal, 0.0, self.missed * late)
        counts = since <= self.latest
        return np.where(counts, positive, 0.0), np.where(counts, negative, 0.0)

    def score(self, series: RaggedSeries, called: ArrayLike, *, bootstrap: Bootstrap = DEFAULT) -> Estimate:
        """Normalised utility of calls ``(G,)``, True for positive; at most 1, 0 for never calling.

        NaN without any event.

        Raises:
            ShapeError: if there is not one call a grid time.
        """
        calls = np.asarray(called)
        if calls.shape != series.grid_times.shape or calls.dtype != bool:
            raise ShapeError(
                f"`called` must be bool of shape {series.grid_times.shape}; got {calls.dtype} {calls.shape}. "
                "Compare risks with a threshold first."
            )
        positive, negative = self.of_calls(series)
        sums = [
            np.bincount(series.grid_owner, gain, minlength=len(series))
            for gain in (np.where(calls, positive - negative, 0.0), np.maximum(positive - negative, 0.0))
        ]
        return bootstrap.of_sums(np.column_stack(sums), lambda s: s[..., 0] / s[..., 1])

    def best_threshold(self, series: RaggedSeries, risk: ArrayLike) -> tuple[float, float]:
        """Threshold on risk, to call where it is exceeded, with the largest utility on these series, and that utility.

        Choose it on validation data: on the data it was chosen on, the utility is too good.
        """
        score = checked_risk(series, risk)
        positive, negative = self.of_calls(series)
        gain = positive - negative
        order = np.argsort(-score, kind="stable")
        total = np.concatenate([[0.0], np.cumsum(gain[order])])
        cut = np.concatenate([[True], np.append(np.diff(score[order]) != 0, True)])
        best = int(np.argmax(np.where(cut, total, -np.inf)))
        above = score[order][best - 1] if best else np.inf
        below = score[order][best] if best < len(score) else -np.inf
        threshold = above if np.isinf(above) else (above + below) / 2 if np.isfinite(below) else above - 1.0
        return float(threshold), float(total[best] / np.maximum(gain, 0.0).sum())
