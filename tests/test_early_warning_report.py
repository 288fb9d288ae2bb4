"""The report of early warning: its numbers first, then the page that holds them."""

import re
from pathlib import Path

import numpy as np
import pytest

from gpmoe.early_warning import AlarmPolicy, Bootstrap, RaggedSeries, StayModel, simulate_stays
from gpmoe.early_warning.alarm_table import alarm_table
from gpmoe.early_warning.ranking import time_ranking
from gpmoe.errors import InputError
from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
from gpmoe.estimators.series_baselines import ClockClassifier
from gpmoe.plotting.ranking_curves import plot_precision_recall, plot_roc, ranking_curves
from gpmoe.plotting.watched_series import plot_watched_series, watched_series

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from gpmoe.plotting.early_warning_report import report, report_numbers  # noqa: E402

LAW = StayModel((0.5, 0.5, 0.3), n_labs=1, prevalence=0.4, shift=0.85, lengths=(8, 20))
FEW = Bootstrap(20)


@pytest.fixture(scope="module")
def model() -> EarlyWarningClassifier:
    series = simulate_stays(80, model=LAW, seed=0).series
    return EarlyWarningClassifier("linear", hidden=4, max_epochs=8, random_state=0).fit(series)


@pytest.fixture(scope="module")
def series() -> RaggedSeries:
    return simulate_stays(60, model=LAW, seed=1).series


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def test_the_area_under_the_curve_is_the_auroc(series: RaggedSeries) -> None:
    score = np.random.default_rng(0).random(len(series.labels)).round(2) + 0.2 * series.labels
    curves = ranking_curves(score, series.labels)
    area = np.trapezoid(curves.recall, curves.false_positive_rate)
    assert area == pytest.approx(time_ranking(series, score, bootstrap=FEW).auroc.value, abs=1e-12)
    steps = np.diff(curves.recall) @ curves.precision[1:]
    assert steps == pytest.approx(time_ranking(series, score, bootstrap=FEW).auprc.value, abs=1e-12)
    assert curves.prevalence == pytest.approx(series.labels.mean())


def test_curves_of_many_points_are_thinned_and_keep_their_area() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(20_000) < 0.05).astype(float)
    score = rng.standard_normal(20_000) + 1.5 * label
    curves = ranking_curves(score, label)
    assert len(curves.recall) <= 401
    whole = (score[label > 0][:, None] > score[label == 0]).mean()
    assert np.trapezoid(curves.recall, curves.false_positive_rate) == pytest.approx(whole, abs=2e-3)
    with pytest.raises(InputError, match="both classes"):
        ranking_curves(score, np.zeros(20_000))


def test_curves_are_drawn_with_the_clock() -> None:
    curves = {"model": ranking_curves([0.9, 0.1], [1, 0]), "clock": ranking_curves([0.1, 0.9], [1, 0])}
    for draw in (plot_roc, plot_precision_recall):
        assert [text.get_text() for text in draw(curves).get_legend().get_texts()] == ["model", "clock"]


def test_rows_of_one_share_alarm_for_as_many_series(series: RaggedSeries) -> None:
    risk = np.random.default_rng(0).random(len(series.grid_times))
    own = AlarmPolicy(0.99, latching=True)
    rows = alarm_table(series, {"model": risk, "clock": series.grid_times}, policies={"model": own}, bootstrap=FEW)
    assert [row.score for row in rows] == ["model", *["model", "clock"] * 4]
    assert rows[0].policy is own
    assert [row.share for row in rows[1::2]] == pytest.approx([0.05, 0.1, 0.2, 0.4], abs=1 / 60)
    assert all(row.share <= share for row, share in zip(rows[2::2], (0.05, 0.1, 0.2, 0.4), strict=True))
    with pytest.raises(InputError, match="`shares`"):
        alarm_table(series, {"model": risk}, shares=[10])


def test_bands_know_the_past_alone(model: EarlyWarningClassifier, series: RaggedSeries) -> None:
    stay, policy = series[[2]], AlarmPolicy(0.3)
    whole = watched_series(model, stay, policy, channels=["vital 0"])
    cut = watched_series(model, stay.until(6.0), policy, channels=["vital 0"])
    before = [(record.channels[0].at, record.channels[0].mean) for record in (whole, cut)]
    measured = stay.time[stay.time <= 6.0]
    found = [np.interp(measured[1:] - 1e-9, *each) for each in before]
    assert len(measured) > 3
    at_rows = [mean[np.isin(at, measured)] for at, mean in before]
    np.testing.assert_allclose(*at_rows, atol=1e-8)
    assert np.isfinite(found).all()


def test_watched_series_are_in_the_units_of_the_caller(model: EarlyWarningClassifier, series: RaggedSeries) -> None:
    stay = series[[2]]
    record = watched_series(model, stay, AlarmPolicy(0.3, latching=True))
    assert 1 <= len(record.channels) <= 3
    for channel in record.channels:
        rows = stay.channel == stay.channel_names.index(channel.name)
        assert np.array_equal(channel.value, stay.value[rows])
        assert (channel.lower[1] < channel.lower[0]).all()
        assert (channel.lower[0] < channel.mean).all()
        assert (channel.mean < channel.upper[0]).all()
    assert np.array_equal(record.risk, model.predict_proba(stay))
    assert (record.risk_lower <= record.risk_upper).all()
    axes = plot_watched_series(record, xlabel="hours", title="a stay")
    assert len(axes) == len(record.channels) + 1
    assert axes[-1].get_xlabel() == "hours"
    with pytest.raises(InputError, match="`axes` must be"):
        plot_watched_series(record, axes[:1])
    with pytest.raises(InputError, match="single one"):
        watched_series(model, series, AlarmPolicy(0.3))
    with pytest.raises(InputError, match="'pulse'"):
        watched_series(model, stay, AlarmPolicy(0.3), channels=["pulse"])


def test_the_page_needs_nothing_beside_it(model, series: RaggedSeries, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    policy = AlarmPolicy(0.3, latching=True)
    numbers = report(model, series, path, policy=policy, title="A & B", time_unit="hours", bootstrap=FEW)
    text = path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", text)
    assert "http" not in outside
    assert re.findall(r'src="[^"]+"', outside) == []
    assert text.count("<img") == 3 + len(numbers.examples) == 6
    assert outside.count('<tr class="clock">') == 5  # one in the scores, four among the alarms
    assert outside.count('<tr class="chosen">') == 1
    assert "<h1>A &amp; B</h1>" in text
    assert f"{numbers.scores['model'].time_auroc.value:.3f}" in outside
    assert numbers.scores["clock"].time_auroc is not None


def test_labels_a_series_and_no_events_are_reported_too(series: RaggedSeries, tmp_path: Path) -> None:
    per_series = RaggedSeries(
        **{**vars(series), "labels": series.series_labels, "label_per": "series", "event_time": None}
    )
    clock = ClockClassifier(random_state=0).fit(per_series)
    numbers = report(clock, per_series, tmp_path / "r.html", bootstrap=FEW)
    assert numbers.alarms == []
    assert len(numbers.examples) == 3
    assert "have no event times" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert numbers.examples[0][1].risk_lower.size == 0


def test_a_report_without_both_classes_is_refused(model, series: RaggedSeries, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs labels"):
        report_numbers(model, RaggedSeries(**{**vars(series), "labels": None, "label_per": None}))
    quiet = series[np.isinf(series.event_time)]
    with pytest.raises(InputError, match="positive and negative labels; got only 0"):
        report(model, quiet, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
