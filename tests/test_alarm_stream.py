"""Alarms as a stream are those of the policy on a table; grids and labels made from times."""

import numpy as np
import pytest

from gpmoe.early_warning import AlarmPolicy, ChallengeUtility, RaggedSeries
from gpmoe.early_warning.alarm_stream import AlarmState, AlarmStream
from gpmoe.early_warning.horizon_labels import horizon_labels
from gpmoe.early_warning.regular_grid import grid_step, regular_grid
from gpmoe.early_warning.scorecard import crossed_utility, scorecard
from gpmoe.early_warning.simulator import StayModel, simulate_stays
from gpmoe.errors import InputError

POLICIES = {
    "plain": AlarmPolicy(0.5),
    "hysteresis": AlarmPolicy(0.6, release=0.3),
    "latching": AlarmPolicy(0.5, latching=True),
    "snooze": AlarmPolicy(0.5, snooze=2.5),
    "latching snooze": AlarmPolicy(0.5, snooze=3.0, latching=True),
    "at most two": AlarmPolicy(0.4, max_alarms=2),
    "all": AlarmPolicy(0.6, release=0.2, snooze=1.5, max_alarms=3),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_steps_are_those_of_the_policy(policy: AlarmPolicy) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 40)
    grid = np.concatenate([np.cumsum(rng.uniform(0.2, 2.0, n)) for n in lengths])
    series = RaggedSeries.from_arrays(
        [], [], [], np.zeros(41, int), n_channels=1, grid_times=grid, grid_offsets=np.cumsum([0, *lengths])
    )
    risk = rng.random(len(grid))
    expected = policy.alarms(series, risk)
    states = [AlarmState(policy) for _ in range(40)]
    steps = zip(series.grid_owner, grid, risk, strict=True)
    found = np.array([states[i].step(time, score) for i, time, score in steps])
    assert np.array_equal(found[:, 0], expected.raised)
    assert np.array_equal(found[:, 1], expected.active)
    assert expected.raised.any()


class Counting:
    """Stands for a `RiskStream`: the risk is the number of measurements so far, over 10."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def check(self, id, time, channel, value):
        if channel != "0":
            raise InputError("unknown channel")

    def update(self, id, time, channel, value):
        self.seen[id] = self.seen.get(id, 0) + 1

    def score(self, id, time):
        return np.array([self.seen[id] / 10])

    def forget(self, id):
        del self.seen[id]


def test_grid_times_are_scored_once_a_later_measurement_comes() -> None:
    stream = AlarmStream(Counting(), 1.0, AlarmPolicy(0.15))
    assert stream.update("a", 0.5, "0", 1.0) == []
    assert stream.update("a", 1.0, "0", 1.0) == []  # it may still count for the grid time 1
    found = stream.update("a", 3.5, "0", 1.0)
    assert [(each.time, each.risk, each.alarm, each.active) for each in found] == [
        (1.0, 0.2, True, True), (2.0, 0.2, False, True), (3.0, 0.2, False, True)
    ]  # fmt: skip
    with pytest.raises(InputError, match="unknown"):
        stream.update("a", 9.0, "x", 1.0)
    assert [(each.time, each.risk) for each in stream.end_all()] == [(4.0, 0.3)]


@pytest.mark.parametrize("every", [0.1, 0.2, 1 / 3, 1.0, 7.0])
def test_a_grid_step_is_the_least_that_is_not_before(every: float) -> None:
    for time in np.concatenate([np.arange(-30, 30) * every, np.random.default_rng(0).uniform(-9, 9, 50)]):
        k = grid_step(float(time), every)
        assert (k - 1) * every < time <= k * every


def test_a_grid_step_of_nothing_is_refused() -> None:
    for every in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="must be positive"):
            grid_step(1.0, every)


def test_a_regular_grid_reaches_from_first_to_last() -> None:
    series = RaggedSeries.from_arrays(
        [0.5, 1.0, 2.0, 4.0], [0] * 4, [1.0] * 4, [0, 3, 3, 4], n_channels=1, labels=[0, 1, 1]
    )
    found = regular_grid(series, 1.0)
    assert found.grid_times.tolist() == [1.0, 2.0, 4.0]
    assert found.grid_offsets.tolist() == [0, 2, 2, 3]
    assert found.label_per == "series"


def test_labels_from_events_are_unknown_after_them() -> None:
    series = RaggedSeries.from_arrays(
        [], [], [], [0, 0, 0], n_channels=1, grid_times=[1, 2, 3, 4, 1.0], grid_offsets=[0, 4, 5],
        event_time=[3.5, np.inf],
    )  # fmt: skip
    assert str(horizon_labels(series, 1.5).labels.tolist()) == "[0.0, 1.0, 1.0, nan, 0.0]"
    with pytest.raises(InputError, match="`horizon` must be positive"):
        horizon_labels(series, 0.0)
    with pytest.raises(InputError, match="event_time"):
        horizon_labels(regular_grid(RaggedSeries.from_arrays([], [], [], [0], n_channels=1), 1.0), 1.0)


def test_the_utility_of_halves_is_less_than_the_best_and_good_for_a_good_score() -> None:
    series = simulate_stays(200, model=StayModel(prevalence=0.3), seed=0).series
    noise = np.random.default_rng(0).random(len(series.labels))
    good, bad = crossed_utility(series, series.labels + 0.1 * noise), crossed_utility(series, noise)
    assert good.value > 0.7
    always = ChallengeUtility().score(series, np.ones(len(noise), dtype=bool)).value
    assert bad.value < max(always, 0.0) + 0.05  # nothing learned: calling everybody, or nobody
    assert bad.value < good.value


def test_a_scorecard_has_what_the_series_allow() -> None:
    series = simulate_stays(60, model=StayModel(prevalence=0.4), seed=1).series
    card = scorecard(series, series.grid_times)
    assert card.time_auroc is not None
    assert card.utility is not None
    assert card.calibration_error is None  # times are no probabilities
    per_series = RaggedSeries(
        **{**vars(series), "labels": series.series_labels, "label_per": "series", "event_time": None}
    )
    card = scorecard(per_series, np.full(len(series.grid_times), 0.3))
    assert card.time_auroc is None
    assert card.utility is None
    assert card.series_auroc.value == 0.5
    assert card.calibration_error is not None
    assert card.calibration_error.value == pytest.approx(abs(0.3 - card.prevalence))
