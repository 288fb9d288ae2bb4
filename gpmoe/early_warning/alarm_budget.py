"""A threshold that keeps a promise on new series: precision of alarms, alarms a day, with a stated risk of failing.

The threshold is searched for, and the promise holds all the same. Some of the series are used to search: they give
the candidates and the one to begin with. The others test, from there downwards, one hypothesis a candidate, "the
budget is broken at this threshold", each at the full level `risk`, and stop at the first that can't be rejected
(fixed-sequence testing; the sequence does not depend on the data that test). The probability that any candidate
passes whose budget is broken is then at most `risk`. The lowest threshold that passed is taken: it finds most events,
and where every series has alarmed already, it finds them earliest.

The p-values hold for any number of series, which must be independent draws of one law:

- at most one alarm a series: the number of true alarms among A is binomial, so p = P(Bin(A, precision) >= true);
- several: with T_i true of A_i <= B alarms on series i, E[T_i - precision A_i] <= 0 if the budget is broken. For each
  bet l in [0, 1/(precision B)) the product over series of 1 + l (T_i - precision A_i) has then a mean of at most 1,
  and so has its mean over bets, M; p = min(1, 1/M) by Markov's inequality;
- alarms a day: likewise with rate * days_i - A_i and bets in [0, 1/B).

Source: Angelopoulos, Bates, Candes, Jordan & Lei (2021), Learn then test: calibrating predictive algorithms to
achieve risk control, sec. 3; Waudby-Smith & Ramdas (2023), Estimating means of bounded random variables by betting,
JRSS-B 86(1), sec. 4.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from scipy.stats import binom

from gpmoe.early_warning.alarm_report import AlarmTally, DetectionWindow, tally
from gpmoe.early_warning.alarms import AlarmPolicy, checked_risk
from gpmoe.early_warning.ranking import largest_risk
from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError

_BETS = np.array([0.05, 0.15, 0.35, 0.65, 0.95])  # shares of the largest bet; many would dilute the best
_CANDIDATES = 60


@dataclass(frozen=True)
class AlarmBudget:
    """What is promised of alarms on new series.

    Attributes:
        precision: least share of alarms that are true, over all alarms; None for no such promise.
        alarms_per_day: most alarms a day watched; None for no such promise.
        risk: probability, over the series used to choose, that the promise fails.
        day: length of a day in the unit of time of the series.
    """

    precision: float | None = None
    alarms_per_day: float | None = None
    risk: float = 0.1
    day: float = 24.0

    def __post_init__(self) -> None:
        if self.precision is None and self.alarms_per_day is None:
            raise InputError("a budget promises `precision`, `alarms_per_day` or both; got neither.")
        if self.precision is not None and not 0 < self.precision < 1:
            raise InputError(f"`precision` must lie between 0 and 1; got {self.precision}.")
        if self.alarms_per_day is not None and self.alarms_per_day <= 0:
            raise InputError(f"`alarms_per_day` must be positive; got {self.alarms_per_day}.")
        if not 0 < self.risk < 1:
            raise InputError(f"`risk` must lie between 0 and 1; got {self.risk}.")

    def p_value(self, counts: AlarmTally, most_alarms: int) -> float:
        """Probability of so good alarms, or better, if the budget is broken; the larger one of two promises."""
        total = counts.true + counts.false
        values = []
        if self.precision is not None and most_alarms == 1:
            values.append(float(binom.sf(counts.true.sum() - 1, int(total.sum()), self.precision)))
        elif self.precision is not None:
            values.append(_betting(counts.true - self.precision * total, self.precision * most_alarms))
        if self.alarms_per_day is not None:
            values.append(_betting(self.alarms_per_day * counts.watched / self.day - total, float(most_alarms)))
        return max(values)


@dataclass(frozen=True)
class AlarmChoice:
    """What became of a budget.

    Attributes:
        attainable: whether a threshold passed.
        policy: with the threshold that passed; None if none did.
        reason: in words.
        thresholds: that were tested, in this order, ``(k,)``; the last one failed unless all passed.
        p_values, precision, alarms_per_day: of each, on the series that tested, ``(k,)``.
    """

    attainable: bool
    policy: AlarmPolicy | None
    reason: str
    thresholds: Array
    p_values: Array
    precision: Array
    alarms_per_day: Array


def choose_threshold(
    series: RaggedSeries,
    risk: ArrayLike,
    policy: AlarmPolicy,
    budget: AlarmBudget,
    *,
    window: DetectionWindow | None = None,
    search_fraction: float = 0.3,
    seed: int | None = 0,
) -> AlarmChoice:
    """The lowest threshold that keeps a budget, or that there is none.

    Args:
        series: with event times, which neither the model that scored nor the policy has seen.
        risk: ``(G,)``.
        policy: its threshold is replaced, and its `release` moves along at the same ratio. It must bound the alarms
            of a series, by `latching` or `max_alarms`: without a bound nothing can be promised.
        budget: the promise.
        window: which alarms are true; by default all before the event.
        search_fraction: of the series, drawn at random, used to search.
        seed: of that draw.

    Raises:
        InputError: if the policy does not bound alarms, or there are fewer than two series to search or test.

    Example:
        >>> from gpmoe.early_warning.simulator import StayModel, simulate_stays
        >>> series = simulate_stays(400, model=StayModel(prevalence=0.3), seed=0).series
        >>> soon = (series.labels + np.random.default_rng(0).random(len(series.labels))) / 2  # a good score
        >>> choice = choose_threshold(series, soon, AlarmPolicy(0.5, latching=True), AlarmBudget(precision=0.8))
        >>> choice.attainable
        True
        >>> choose_threshold(series, 0 * soon, choice.policy, AlarmBudget(precision=0.8)).attainable
        False
    """
    score = checked_risk(series, risk)
    if policy.most_alarms is None:
        raise InputError("the policy must bound the alarms of a series: pass it `latching=True` or `max_alarms`.")
    order = np.random.default_rng(seed).permutation(len(series))
    n_search = round(search_fraction * len(series))
    if min(n_search, len(series) - n_search) < 2:
        raise InputError(f"{n_search} series to search and {len(series) - n_search} to test; each needs at least 2.")
    trial = _Trial(series, score, policy, budget, window or DetectionWindow())
    search, test = trial.part(np.sort(order[:n_search])), trial.part(np.sort(order[n_search:]))
    candidates = search.candidates()
    hopes = [search.run(threshold)[0] for threshold in candidates]
    sequence = candidates[int(np.argmin(hopes)) :] if len(candidates) else candidates
    sequence = np.concatenate([sequence, search.earlier()])
    results = []
    for threshold in sequence:
        results.append(test.run(threshold))
        if results[-1][0] > budget.risk:
            break
    return _choice(policy, budget, sequence[: len(results)], np.array(results).reshape(-1, 3))


@dataclass(frozen=True)
class _Trial:
    """Some series, and what a threshold does on them."""

    series: RaggedSeries
    score: Array
    policy: AlarmPolicy
    budget: AlarmBudget
    window: DetectionWindow

    def part(self, which: Array) -> "_Trial":
        inside = np.zeros(len(self.series), dtype=bool)
        inside[which] = True
        return replace(self, series=self.series[inside], score=self.score[inside[self.series.grid_owner]])

    def candidates(self) -> Array:
        """Thresholds from high to low, just below largest risks of series, so that each lets more series alarm."""
        largest = largest_risk(self.series, self.score)
        return _from_high_to_low(largest[np.isfinite(largest)])

    def earlier(self) -> Array:
        """Thresholds at which every series alarms, from high to low, so that alarms come earlier."""
        largest = largest_risk(self.series, self.score)
        return _from_high_to_low(self.score[self.score < largest[np.isfinite(largest)].min(initial=np.inf)])

    def run(self, threshold: float) -> tuple[float, float, float]:
        """p-value, precision and alarms a day at a threshold."""
        policy = _at(self.policy, float(threshold))
        counts = tally(self.series, policy.alarms(self.series, self.score).raised, self.window)
        true, total = counts.true.sum(), (counts.true + counts.false).sum()
        rate = total / (counts.watched.sum() / self.budget.day)
        return self.budget.p_value(counts, policy.most_alarms or 1), true / total if total else np.nan, float(rate)


def _from_high_to_low(risks: Array) -> Array:
    """Thresholds just below some of these risks, closest at the highest."""
    if not risks.size:
        return risks
    place = np.unique(np.geomspace(1, len(risks), _CANDIDATES).astype(int)) - 1
    return np.unique(np.nextafter(np.sort(risks)[::-1][place], -np.inf))[::-1]


def _at(policy: AlarmPolicy, threshold: float) -> AlarmPolicy:
    if policy.release is None or policy.threshold == 0:
        return replace(policy, threshold=threshold)
    ratio = policy.release / policy.threshold
    return replace(policy, threshold=threshold, release=min(threshold, ratio * threshold))


def _choice(policy: AlarmPolicy, budget: AlarmBudget, thresholds: Array, results: Array) -> AlarmChoice:
    p_values, precision, rate = results.T
    passed = int((p_values <= budget.risk).sum())
    if passed:
        chosen, place = _at(policy, float(thresholds[passed - 1])), passed - 1
        reason = f"attainable at threshold {chosen.threshold:.4g}: p = {p_values[place]:.2g} <= {budget.risk:g}"
    else:
        chosen, place = None, 0
        reason = (
            "not attainable: no series has a risk"
            if not len(p_values)
            else (
                f"not attainable with these series: at the most promising threshold, {thresholds[0]:.4g}, "
                f"p = {p_values[0]:.2g} > {budget.risk:g}"
            )
        )
    if len(p_values):
        reason += f"; on the series that tested, precision was {precision[place]:.3g}, alarms a day {rate[place]:.3g}."
    return AlarmChoice(passed > 0, chosen, reason, thresholds, p_values, precision, rate)


def _betting(gain: Array, largest_loss: float) -> float:
    """p-value of "the mean of gain is at most 0", for independent gains of at least -largest_loss, ``(N,)``."""
    wealth = np.log1p(np.multiply.outer(_BETS / largest_loss, gain[gain != 0])).sum(axis=1)
    return float(np.exp(min(0.0, np.log(len(_BETS)) - logsumexp(wealth))))
