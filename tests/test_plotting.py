"""Plots: the numbers against the model, and the ink against the numbers."""

import builtins
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, MissingPackageError, NonFiniteError, ShapeError
from gpmoe.metrics import calibration_error, interval_coverage
from gpmoe.plotting import (
    calibration_curve,
    expert_curves,
    plot_band,
    plot_calibration,
    plot_experts,
    plot_gate,
    posterior_band,
)
from gpmoe.plotting.ink import EXPERT_COLOURS

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

GRID = np.linspace(-2.0, 2.0, 41)[:, None]


class TwoExperts:
    """One expert on each side of zero, with means x and -2x and noise that grows with x."""

    def predict_gate_probs(self, X):
        right = 1 / (1 + np.exp(-4.0 * np.ravel(X)))
        return np.stack([1 - right, right], axis=1)

    def predict_dist(self, X, noise=0.3):
        x = np.ravel(X)
        variances = np.stack([0.02 + 0 * x, 0.02 + noise * x**2], axis=1)
        return Predictive.mixture(self.predict_gate_probs(X), np.stack([x, -2 * x], axis=1), variances)

    def predict_experts(self, X):
        whole = self.predict_dist(X)
        moments = zip(whole.component_means.T, whole.component_variances.T, strict=True)
        return [Predictive.gaussian(*each) for each in moments]

    def predict_latent_dist(self, X):
        return self.predict_dist(X, noise=0.0)


@pytest.fixture
def model() -> TwoExperts:
    return TwoExperts()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def test_band_holds_the_intervals_of_the_model(model: TwoExperts) -> None:
    band = posterior_band(model, GRID, levels=(0.9, 0.5))
    predictive = model.predict_dist(GRID)
    assert band.levels == (0.5, 0.9)
    for level, lower, upper in zip(band.levels, band.lower, band.upper, strict=True):
        assert_array_equal((lower, upper), predictive.interval(level))
    assert_array_equal(band.mean, predictive.mean)
    assert_array_equal(band.median, predictive.quantile(0.5))
    assert_array_equal((band.latent_lower, band.latent_upper), model.predict_latent_dist(GRID).interval(0.9))


def test_curves_do_not_depend_on_the_order_of_the_inputs(model: TwoExperts) -> None:
    shuffled = np.random.default_rng(0).permutation(GRID)
    for compute in (posterior_band, expert_curves):
        tidy, untidy = vars(compute(model, GRID)), vars(compute(model, shuffled))
        for name, values in tidy.items():
            assert_allclose(untidy[name], values, rtol=1e-12, atol=1e-14)


def test_expert_curves_hold_each_expert_and_its_gate(model: TwoExperts) -> None:
    curves = expert_curves(model, GRID)
    assert_array_equal(curves.expert_means, np.hstack([GRID, -2 * GRID]))
    assert_array_equal(curves.gate_probs, model.predict_gate_probs(GRID))
    assert_allclose((curves.gate_probs * curves.expert_means).sum(1), curves.mean, atol=1e-15)


def test_calibration_curve_holds_the_metrics(model: TwoExperts) -> None:
    predictive = model.predict_dist(GRID)
    y = predictive.sample(1, generator=0)[0]
    curve = calibration_curve(predictive, y, levels=[0.3, 0.9])
    assert_array_equal(curve.observed, [interval_coverage(predictive, y, level) for level in (0.3, 0.9)])
    assert (curve.n, curve.error) == (41, calibration_error(predictive, y, [0.3, 0.9]))


def test_band_is_drawn_with_its_data_labels_and_legend(model: TwoExperts) -> None:
    band = posterior_band(model, GRID)
    ax = plot_band(band, X=[[0.0], [1.0]], y=[0.1, -1.8], xlabel="time [s]", ylabel="load [kN]")
    lines = {line.get_label(): line for line in ax.lines}
    assert_array_equal(lines["mean"].get_ydata(), band.mean)
    assert_array_equal(lines["data"].get_ydata(), [0.1, -1.8])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time [s]", "load [kN]")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["90% predictive", "50% predictive", "90% latent", "mean", "data"]
    outer = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert_allclose((outer.min(), outer.max()), (band.lower[1].min(), band.upper[1].max()))


def test_band_without_latent_has_no_latent_lines(model: TwoExperts) -> None:
    band = posterior_band(model, GRID, include_latent=False)
    assert band.latent_lower is None
    assert [line.get_label() for line in plot_band(band).lines] == ["mean"]


def test_an_expert_fades_with_its_gate_and_keeps_its_colour_in_the_gate_plot(model: TwoExperts) -> None:
    curves = expert_curves(model, GRID)
    figure, (top, bottom) = pyplot.subplots(2)
    assert plot_experts(curves, top) is top
    assert plot_gate(curves, bottom) is bottom
    figure.canvas.draw()
    left = top.collections[0].get_colors()
    assert left[0, 3] > 0.99
    assert left[-1, 3] < 0.1
    for k in range(2):
        drawn = to_hex(top.collections[k].get_colors()[0]), to_hex(bottom.collections[k].get_facecolor()[0])
        assert drawn == (EXPERT_COLOURS[k].lower(),) * 2


def test_gate_is_stacked_to_one(model: TwoExperts) -> None:
    curves = expert_curves(model, GRID)
    first, last = (area.get_paths()[0].vertices for area in plot_gate(curves).collections)
    assert_allclose(last[:, 1].max(), 1.0)
    middle = first[np.isclose(first[:, 0], 0.0), 1]
    assert_allclose((middle.min(), middle.max()), (0.0, 0.5))


def test_an_expert_that_is_ruled_out_does_not_stretch_the_axes(model: TwoExperts) -> None:
    curves = expert_curves(model, np.linspace(-50.0, 2.0, 200)[:, None])
    assert plot_experts(curves).get_ylim()[1] < 60.0  # expert 2 is at 100 where its gate is shut


def test_calibration_is_drawn_on_the_unit_square(model: TwoExperts) -> None:
    predictive = model.predict_dist(GRID)
    curve = calibration_curve(predictive, predictive.mean)
    ax = plot_calibration(curve)
    assert_array_equal(ax.lines[1].get_ydata(), curve.observed)
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 1), (0, 1))
    chance = ax.collections[0].get_paths()[0].vertices
    assert_allclose(chance[np.isclose(chance[:, 0], 0.5), 1].max(), 0.5 + 1 / np.sqrt(41))


def test_drawing_changes_no_global_setting(model: TwoExperts) -> None:
    before = dict(matplotlib.rcParams)
    plot_band(posterior_band(model, GRID))
    plot_experts(expert_curves(model, GRID))
    assert dict(matplotlib.rcParams) == before


def test_importing_plotting_does_not_import_matplotlib() -> None:
    code = "import sys, gpmoe.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_matplotlib_is_answered_with_the_line_to_type(model: TwoExperts, monkeypatch) -> None:
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    band = posterior_band(model, GRID)
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(MissingPackageError, match=r'pip install "gpmoe\[plot\]"'):
        plot_band(band)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: posterior_band(m, np.zeros((3, 2))), ShapeError, r"`X_new` must have one feature.* got \(3, 2\)"),
        (lambda m: posterior_band(m, GRID, levels=()), InputError, "at least one coverage"),
        (lambda m: posterior_band(m, GRID, levels=(90,)), InputError, r"strictly between 0 and 1; got 90"),
        (lambda m: plot_band(posterior_band(m, GRID), X=GRID), ShapeError, "`X` and `y` must be given together"),
        (lambda m: plot_band(posterior_band(m, GRID), X=GRID, y=[1.0]), ShapeError, r"shape \(41,\).* got \(1,\)"),
        (lambda m: calibration_curve(m.predict_dist(GRID), [np.nan] * 41), NonFiniteError, "row 0 is nan"),
    ],
)
def test_arguments_that_cannot_be_drawn_are_refused_with_the_reason(model, call, error, text) -> None:
    with pytest.raises(error, match=text):
        call(model)


def test_a_gate_with_another_number_of_experts_is_refused(model: TwoExperts, monkeypatch) -> None:
    monkeypatch.setattr(model, "predict_experts", lambda X: [Predictive.gaussian(np.zeros(len(X)), np.ones(len(X)))])
    with pytest.raises(ShapeError, match=r"shape \(41, 1\); got \(41, 2\)"):
        expert_curves(model, GRID)
