"""Simulated stays: mean squares tell nothing, and the optimal risk is the posterior that a naive sum gives."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from gpmoe.early_warning.optimal_risk import optimal_risk
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.simulator import StayModel, simulate_stays
from gpmoe.errors import InputError

HALF = StayModel(prevalence=0.5)


def naive_risk(model: StayModel, stay: RaggedSeries, t: float) -> float:
    """Sum over every length, onset and excursion, with scipy's densities and quadrature."""
    known = stay.until(t)
    time, channel, value = known.time, known.channel, known.value
    labs = channel >= len(model.rates) - model.n_labs
    lab_rate = sum(model.rates[-model.n_labs :])
    excursions = [(1 - model.excursions, np.zeros(len(time)))] + [
        (model.excursions / len(model.excursion_starts) / 2, model.excursion(time, channel, start, sign))
        for start in model.excursion_starts
        for sign in (-1.0, 1.0)
    ]
    total, positive = 0.0, 0.0
    for onset in [*range(model.earliest, model.lengths[1] + 1), np.inf]:
        prior = sum(
            (1 - model.prevalence) * p0 if np.isinf(onset) else model.prevalence * p1 / (hours - model.earliest + 1)
            for hours, p0, p1 in zip(model.hours, model.length_probs(False), model.length_probs(True), strict=True)
            if hours >= t and (np.isinf(onset) or hours >= onset)
        )
        w = model.severity(time, float(onset))
        law = multivariate_normal(np.zeros(len(time)), model.covariance(time, channel, w)) if len(time) else None
        residual = value - model.mean(channel, w)
        density = sum(chance * (law.pdf(residual - pulse) if law else 1.0) for chance, pulse in excursions)
        expected = quad(lambda u, o=onset: float(model.severity(np.float64(u), float(o))), 0, t, limit=200)[0]
        orders = np.prod(1 + model.ordering * w[labs]) * np.exp(-lab_rate * model.ordering * expected)
        total += prior * density * orders
        positive += prior * density * orders * (onset <= t + model.lead)
    return positive / total


@pytest.mark.parametrize("ordering", [0.0, 1.0])
@pytest.mark.parametrize("longer", [False, True])
def test_optimal_risk_is_the_naive_posterior(ordering: float, longer: bool) -> None:
    model = StayModel(prevalence=0.3, lengths=(8, 20), ordering=ordering, longer_with_event=longer)
    series = simulate_stays(3, model=model, seed=5).series
    risk = optimal_risk(model, series)
    for i, stay in enumerate(series):
        for step in (0, len(stay.grid_times) // 2, len(stay.grid_times) - 1):
            expected = naive_risk(model, stay, stay.grid_times[step])
            assert_allclose(risk[series.grid_offsets[i] + step], expected, rtol=1e-6)


def test_optimal_risk_looks_at_the_past_alone() -> None:
    series = simulate_stays(5, model=HALF, seed=2).series
    whole = optimal_risk(HALF, series)
    assert_allclose(optimal_risk(HALF, series.until(8.0)), whole[series.grid_times <= 8.0], atol=1e-9)


def test_optimal_risk_ranks_and_is_calibrated() -> None:
    model = StayModel(prevalence=0.2)
    series = simulate_stays(300, model=model, seed=11).series
    risk, label = optimal_risk(model, series), series.labels
    assert label is not None
    assert roc_auc_score(label, risk) > roc_auc_score(label, series.grid_times) + 0.15
    for low, high in [(0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1.01)]:
        off = np.where((risk >= low) & (risk < high), label - risk, 0.0)
        by_stay = np.bincount(series.grid_owner, off)
        assert abs(by_stay.sum()) < 4 * np.sqrt((by_stay**2).sum())


def test_neither_mean_square_nor_length_separates_the_classes() -> None:
    series = simulate_stays(3000, model=HALF, seed=3).series
    event = np.isfinite(series.event_time)  # type: ignore[arg-type]
    count = np.maximum(np.diff(series.offsets), 1)
    mean_square = np.bincount(series.owner, series.value**2, minlength=len(series)) / count
    assert abs(roc_auc_score(event, mean_square) - 0.5) < 0.05
    assert abs(roc_auc_score(event, np.diff(series.grid_offsets)) - 0.5) < 4 * 0.011  # s.e. of 3,000 in halves
    assert abs(roc_auc_score(event, count / np.diff(series.grid_offsets)) - 0.5) < 4 * 0.011


def test_the_switches_bring_the_clock_and_the_orders_back() -> None:
    model = StayModel(prevalence=0.5, ordering=1.0, longer_with_event=True)
    series = simulate_stays(1000, model=model, seed=3).series
    event = np.isfinite(series.event_time)  # type: ignore[arg-type]
    hours = np.diff(series.grid_offsets)
    labs = np.bincount(series.owner, series.channel >= 3, minlength=len(series)) / hours
    assert roc_auc_score(event, hours) > 0.6
    assert roc_auc_score(event, labs) > 0.6


def test_values_have_unit_mean_square_at_every_severity() -> None:
    model = StayModel(prevalence=0.99, excursions=0.0)
    series = simulate_stays(1500, model=model, seed=0).series
    w = model.severity(series.time, series.event_time[series.owner])  # type: ignore[index]
    for low, high in [(0.0, 0.001), (0.2, 0.8), (0.999, 1.01)]:
        chosen = (w >= low) & (w < high)
        stays = np.bincount(series.owner, np.where(chosen, series.value**2 - 1, 0.0))
        assert abs(stays.sum()) < 4 * np.sqrt((stays**2).sum())


def test_labels_turn_before_the_event_and_prevalence_is_as_asked() -> None:
    series = simulate_stays(2000, seed=4).series
    event = series.event_time
    assert event is not None
    assert series.labels is not None
    assert abs(np.isfinite(event).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert np.array_equal(series.labels == 1, series.grid_times >= event[series.grid_owner] - 6)


def test_stays_are_fixed_by_their_seed() -> None:
    assert np.array_equal(simulate_stays(5, seed=1).series.value, simulate_stays(5, seed=1).series.value)


@pytest.mark.parametrize("wrong", [{"prevalence": 0.0}, {"shift": 0.95}, {"lengths": (3, 10)}])
def test_impossible_models_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        StayModel(**wrong)  # type: ignore[arg-type]
