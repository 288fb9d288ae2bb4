"""Alarm policies against a loop, and scores of alarms and risks against scikit-learn and naive definitions."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score, roc_auc_score

from gpmoe.early_warning.alarm_report import DetectionWindow, alarm_report, tally
from gpmoe.early_warning.alarms import AlarmPolicy, confident_risk
from gpmoe.early_warning.bootstrap import Bootstrap
from gpmoe.early_warning.calibration import decision_curve, reliability
from gpmoe.early_warning.horizons import horizon_ranking, matched_controls
from gpmoe.early_warning.ranking import Ranking, largest_risk, series_ranking, time_ranking
from gpmoe.early_warning.readers import load_challenge_2019
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.utility import ChallengeUtility
from gpmoe.errors import InputError, NonFiniteError, ShapeError

DATA = Path(os.environ.get("GPMOE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def watched(n: int = 40, seed: int = 0, *, event_share: float = 0.5) -> tuple[RaggedSeries, np.ndarray]:
    """Series on uneven grids, half with an event, labels 1 in the last 6 hours before it, and rounded random risks."""
    rng = np.random.default_rng(seed)
    hours = rng.integers(1, 40, n)
    times = np.concatenate([np.cumsum(rng.choice([0.5, 1.0, 2.0], h)) for h in hours])
    offsets = np.concatenate([[0], np.cumsum(hours)])
    event = np.where(rng.random(n) < event_share, rng.uniform(2.0, 45.0, n), np.inf)
    labels = times >= np.repeat(event, hours) - 6
    series = RaggedSeries.from_arrays(
        [], [], [], np.zeros(n + 1, dtype=int), n_channels=1, grid_times=times, grid_offsets=offsets, labels=labels,
        event_time=event,
    )  # fmt: skip
    return series, np.round(0.7 * rng.random(len(times)) + 0.3 * labels * rng.random(len(times)), 2)


def naive_alarms(policy: AlarmPolicy, times: np.ndarray, risk: np.ndarray) -> tuple[list[bool], list[bool]]:
    """The policy one grid time after another."""
    raised, active, on, last, count = [], [], False, -np.inf, 0
    release = policy.threshold if policy.release is None else policy.release
    for t, score in zip(times, risk, strict=True):
        was = on
        if score > policy.threshold:
            on = True
        elif score <= release and not policy.latching:
            on = False
        due = (on and not was) if policy.snooze is None else (on and t - last >= policy.snooze)
        due = due and (policy.max_alarms is None or count < policy.max_alarms)
        if due:
            last, count = t, count + 1
        raised.append(due)
        active.append(on)
    return raised, active


@pytest.mark.parametrize("release", [None, 0.2])
@pytest.mark.parametrize("snooze", [None, 0.0, 3.0])
@pytest.mark.parametrize("latching", [False, True])
@pytest.mark.parametrize("max_alarms", [None, 2])
def test_policies_agree_with_a_loop(
    release: float | None, snooze: float | None, latching: bool, max_alarms: int | None
) -> None:
    series, risk = watched()
    policy = AlarmPolicy(0.5, release, snooze, latching, max_alarms)
    alarms = policy.alarms(series, risk)
    for i, one in enumerate(series):
        rows = slice(series.grid_offsets[i], series.grid_offsets[i + 1])
        raised, active = naive_alarms(policy, one.grid_times, risk[rows])
        assert_array_equal(alarms.active[rows], active)
        assert_array_equal(alarms.raised[rows], raised)
        assert policy.most_alarms is None or sum(raised) <= policy.most_alarms


def test_confident_risk_exceeds_a_threshold_where_enough_draws_do() -> None:
    draws = np.random.default_rng(0).random((10, 50))
    for p in (0.0, 0.3, 0.5, 0.9, 0.99):
        for threshold in (0.2, 0.5, 0.8):
            assert_array_equal(confident_risk(draws, p) > threshold, (draws > threshold).mean(0) > p + 1e-9)


def test_faulty_risks_and_policies_are_refused() -> None:
    series, risk = watched()
    with pytest.raises(ShapeError, match="one a grid time"):
        AlarmPolicy(0.5).alarms(series, risk[1:])
    with pytest.raises(NonFiniteError, match="row 3 is nan"):
        AlarmPolicy(0.5).alarms(series, np.where(np.arange(len(risk)) == 3, np.nan, risk))
    for wrong in ({"release": 0.6}, {"snooze": -1.0}, {"max_alarms": 0}):
        with pytest.raises(InputError):
            AlarmPolicy(0.5, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        confident_risk([[0.5]], 1.0)


def test_rankings_agree_with_scikit_learn_also_with_ties_and_weights() -> None:
    series, risk = watched()
    scores = time_ranking(series, risk)
    assert_allclose(scores.auroc.value, roc_auc_score(series.labels, risk))
    assert_allclose(scores.auprc.value, average_precision_score(series.labels, risk))
    weights = np.random.default_rng(1).integers(0, 3, len(series)).astype(float)
    row_weights = weights[series.grid_owner]
    auroc, auprc = Ranking(risk, series.labels, series.grid_owner).areas(weights)  # type: ignore[arg-type]
    assert_allclose(auroc, roc_auc_score(series.labels, risk, sample_weight=row_weights))
    assert_allclose(auprc, average_precision_score(series.labels, risk, sample_weight=row_weights))
    per_series = series_ranking(series, largest_risk(series, risk))
    largest = [risk[a:b].max() for a, b in zip(series.grid_offsets[:-1], series.grid_offsets[1:], strict=True)]
    assert_allclose(per_series.auroc.value, roc_auc_score(series.series_labels, largest))


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        top, size = rng.normal(1.0, 1.0, 60), rng.uniform(0.5, 1.5, 60)
        found = Bootstrap(coverage=0.9, seed=seed).of_sums(
            np.column_stack([top, size]), lambda s: s[..., 0] / s[..., 1]
        )
        covered += found.lower <= 1.0 <= found.upper
    assert abs(covered / 200 - 0.9) < 4 * np.sqrt(0.09 / 200)


def naive_utility(series: RaggedSeries, called: np.ndarray) -> float:
    """The challenge's rule, row by row."""
    observed = best = inaction = 0.0
    for i, one in enumerate(series):
        event = float(one.event_time[0])  # type: ignore[index]
        for k, t in enumerate(one.grid_times):
            since = t - event
            if since > 3:
                continue
            if np.isinf(event):
                gains = (-0.05, 0.0)
            elif since <= -6:
                gains = (max((since + 12) / 6, -0.05), 0.0)
            else:
                gains = (1 - (since + 6) / 9, -2 * (since + 6) / 9)
            observed += gains[0] if called[series.grid_offsets[i] + k] else gains[1]
            best += gains[0] if since >= -12 else gains[1]
            inaction += gains[1]
    return (observed - inaction) / (best - inaction)


def test_utility_is_that_of_a_loop_and_spans_zero_to_one() -> None:
    series, risk = watched(seed=2)
    utility = ChallengeUtility()
    for called in (risk > 0.5, np.ones(len(risk), dtype=bool)):
        assert_allclose(utility.score(series, called).value, naive_utility(series, called))
    since = series.grid_times - series.event_time[series.grid_owner]  # type: ignore[index]
    assert_allclose(utility.score(series, (since >= -12) & (since <= 3)).value, 1.0)
    assert utility.score(series, np.zeros(len(risk), dtype=bool)).value == 0.0


def test_best_threshold_beats_every_other() -> None:
    series, risk = watched(seed=2)
    utility = ChallengeUtility()
    threshold, found = utility.best_threshold(series, risk)
    assert_allclose(utility.score(series, risk > threshold).value, found)
    others = [utility.score(series, risk > t).value for t in np.append(np.unique(risk), -1.0)]
    assert_allclose(max(others), found)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "physionet2019_b").exists(), reason="no data folder")
def test_the_clock_has_its_known_utility_in_the_challenge() -> None:
    """On all 20,000 stays: always -1.059, from hour 48 0.227, from 52 0.242; the folder has 16,000 of them."""
    series = load_challenge_2019(DATA / "physionet2019_b" / "stays.npz")
    for hour, known, off in [(0, -1.059, 0.06), (48, 0.227, 0.01), (52, 0.242, 0.01)]:
        called = series.grid_times >= hour
        found = ChallengeUtility().score(series, called).value
        assert abs(found - known) < off
        assert_allclose(found, naive_utility(series, called))


def test_alarms_are_counted_as_by_hand() -> None:
    series = RaggedSeries.from_arrays(
        [], [], [], [0, 0, 0, 0], n_channels=1, grid_times=[1.0, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2],
        grid_offsets=[0, 5, 9, 11], event_time=[4.0, np.inf, 2.0],
    )  # fmt: skip
    raised = np.array([1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 0], dtype=bool)
    counts = tally(series, raised, DetectionWindow(earliest=2.0))
    assert_array_equal(counts.true, [1, 0, 0])
    assert_array_equal(counts.false, [1, 2, 0])  # the alarm after the event counts neither way
    assert_array_equal(counts.lead, [1, np.nan, np.nan])
    assert_array_equal(counts.watched, [4, 4, 2])
    report = alarm_report(series, raised, window=DetectionWindow(earliest=2.0), day=24.0)
    assert report.detected.value == 0.5
    assert report.warned.value == 0.5
    assert report.precision.value == 0.25
    assert report.false_per_true.value == 3.0
    assert_allclose(report.alarms_per_day.value, 4 / (10 / 24))
    assert report.lead[0.5].value == 1.0


def test_lead_quantiles_are_those_of_numpy() -> None:
    series, risk = watched(300, seed=5)
    alarms = AlarmPolicy(0.6).alarms(series, risk)
    report = alarm_report(series, alarms.raised)
    for level in (0.25, 0.5, 0.75):
        assert report.lead[level].value == np.quantile(report.leads, level, method="inverted_cdf")
        assert report.lead[level].lower <= report.lead[level].value <= report.lead[level].upper


def test_reliability_is_the_weighted_distance_of_its_bins() -> None:
    series, risk = watched(100, seed=1)
    found = reliability(series, risk, n_bins=5)
    assert found.count.sum() == len(risk)
    expected = (found.count * np.abs(found.observed - found.mean_risk)).sum() / len(risk)
    assert_allclose(found.error.value, expected)
    rng = np.random.default_rng(0)
    calibrated = rng.random(20_000)
    honest = RaggedSeries.from_arrays(
        [], [], [], np.zeros(20_001, dtype=int), n_channels=1, labels=rng.random(20_000) < calibrated
    )
    assert reliability(honest, calibrated).error.value < 0.02
    assert reliability(honest, calibrated**2).error.value > 0.1


def test_net_benefit_is_as_defined() -> None:
    series, risk = watched(seed=3)
    curve = decision_curve(series, risk, [0.0, 0.2, 0.5])
    label = series.labels == 1
    for level, found in zip(curve.thresholds, curve.net_benefit, strict=True):
        hits, false = (label & (risk > level)).mean(), (~label & (risk > level)).mean()
        assert_allclose(found.value, hits - false * level / (1 - level))
    assert_allclose(curve.treat_all[1], label.mean() - (1 - label.mean()) * 0.25)
    with pytest.raises(InputError, match="probabilities"):
        reliability(series, risk + 1)


@pytest.mark.parametrize("controls", ["random", "length"])
def test_every_horizon_reads_the_last_score_before_it(controls: str) -> None:
    series, risk = watched(300, seed=4)
    matched = matched_controls(series, controls=controls, seed=1)
    found = horizon_ranking(series, risk, controls=controls, seed=1)
    for horizon in (0.0, 7.0):
        scores = []
        for i, t in zip(matched.which, matched.time, strict=True):
            one = series[int(i)].until(t - horizon)
            scores.append(risk[series.grid_offsets[i] + len(one.grid_times) - 1])
            assert len(one.grid_times) > 0
        assert_allclose(found[horizon].auroc.value, roc_auc_score(matched.is_case, scores))
        assert_allclose(found[horizon].auprc.value, average_precision_score(matched.is_case, scores))


@pytest.mark.parametrize("per_case", [None, 3])
def test_controls_of_equal_length_take_the_clock_away(per_case: int | None) -> None:
    series, _ = watched(600, seed=4, event_share=0.2)
    matched = matched_controls(series, controls="length", per_case=per_case)
    cases = np.sort(matched.time[matched.is_case == 1])
    each = int((matched.is_case == 0).sum() / len(cases))
    assert_array_equal(np.sort(matched.time[matched.is_case == 0]), np.repeat(cases, each))
    assert per_case in (None, each)
    last = series.grid_times[series.grid_offsets[1:] - 1][matched.which]
    assert (last >= matched.time)[matched.is_case == 0].all()
    assert len(np.unique(matched.which)) == len(matched.which)
    with pytest.raises(InputError, match="'random' or 'length'"):
        matched_controls(series, controls="age")
