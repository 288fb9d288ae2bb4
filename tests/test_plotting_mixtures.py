"""Responsibilities, usage over training and partition maps: the numbers, and the ink against the numbers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.plotting.experts import expert_curves, plot_experts, plot_gate
from gpmoe.plotting.ink import EXPERT_COLOURS
from gpmoe.plotting.partition_map import partition_map, plot_partition_map
from gpmoe.plotting.responsibilities import plot_responsibilities, responsibility_points
from gpmoe.plotting.usage import plot_usage, usage_curves

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402


class Quadrants:
    """Three experts: left of zero, and above or below it on the right; a third input tips all to the first."""

    def predict_gate_probs(self, X):
        X = np.asarray(X)
        logits = np.stack([-6 * X[:, 0], 6 * X[:, 0] + 6 * X[:, 1], 6 * X[:, 0] - 6 * X[:, 1]], axis=1)
        if X.shape[1] == 3:
            logits[:, 0] += 1e3 * X[:, 2]
        probs = np.exp(logits - logits.max(1, keepdims=True))
        return probs / probs.sum(1, keepdims=True)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


SQUARE = [(-2.0, 2.0), (-1.0, 1.0)]


def test_the_map_holds_the_ruling_expert_and_its_probability() -> None:
    parts = partition_map(Quadrants(), SQUARE, resolution=9)
    assert (parts.expert.shape, parts.n_experts) == ((9, 9), 3)
    for i, j in ((0, 0), (8, 8), (2, 7), (4, 5)):
        probs = Quadrants().predict_gate_probs([[parts.x1[j], parts.x2[i]]])[0]
        assert (parts.expert[i, j], parts.probability[i, j]) == (probs.argmax(), probs.max())
    assert (parts.expert[0, 8], parts.expert[8, 8], parts.expert[3, 0]) == (2, 1, 0)


def test_the_map_keeps_the_other_inputs_where_it_is_told() -> None:
    whole = partition_map(Quadrants(), SQUARE, at=[5.0, 5.0, 1.0], resolution=5)
    assert_array_equal(whole.expert, 0)
    swapped = partition_map(Quadrants(), SQUARE[::-1], inputs=(1, 0), at=[0.0, 0.0, 0.0], resolution=5)
    assert_array_equal(swapped.expert, partition_map(Quadrants(), SQUARE, resolution=5).expert.T)


def test_the_map_is_drawn_in_the_experts_colours_paler_where_uncertain() -> None:
    parts = partition_map(Quadrants(), SQUARE, resolution=21)
    ax = plot_partition_map(parts, X=[[0.0, 0.5], [1.0, -0.5]], xlabel="east [km]", ylabel="north [km]")
    image = ax.images[0].get_array()
    ink = 1 - np.array(image)
    assert_allclose(ink[0, 0] / ink[0, 0].max(), (1 - np.array(to_rgb(EXPERT_COLOURS[0]))), atol=1e-2)
    assert ink[10, 10].sum() < ink[10, 0].sum()
    assert_array_equal(ax.lines[0].get_xdata(), [0.0, 1.0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("east [km]", "north [km]")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["data", "expert 1", "expert 2", "expert 3"]


def test_responsibilities_are_sorted_and_drawn_in_the_experts_colours() -> None:
    points = responsibility_points([[2.0], [1.0], [3.0]], [[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    assert_array_equal(points.x, [1.0, 2.0, 3.0])
    assert_array_equal(points.responsibilities[:, 0], [1.0, 0.5, 0.2])
    ax = plot_responsibilities(points, xlabel="time [s]")
    assert_array_equal(ax.lines[1].get_xdata(), [2.0, 3.0])  # what is not responsible has no dot
    assert_array_equal(ax.lines[1].get_ydata(), [0.5, 0.8])
    assert [line.get_color() for line in ax.lines] == list(EXPERT_COLOURS[:2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time [s]", "responsibility")


def test_responsibilities_on_the_axes_of_a_gate_name_each_expert_once() -> None:
    ax = plot_gate(expert_curves(TwoSides(), [[0.0], [1.0]]))
    plot_responsibilities(responsibility_points([[0.0], [1.0]], [[0.5, 0.5], [0.1, 0.9]]), ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["expert 1", "expert 2"]


def test_usage_that_no_fit_kept_is_refused_with_the_reason() -> None:
    with pytest.raises(ShapeError, match="reports of variational and hard EM of several experts keep it"):
        usage_curves(())


def test_usage_counts_the_experts_that_are_in_use() -> None:
    curves = usage_curves([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert_allclose(curves.effective_experts, [4.0, 2.0, 1.0])
    ax = plot_usage(curves)
    assert_array_equal(ax.lines[1].get_xdata(), [1, 2, 3])
    assert_array_equal(ax.lines[1].get_ydata(), [0.25, 0.5, 1.0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "share of the data")
    assert ax.get_title("left") == "effective experts: 4.0 at first, 1.0 at last"


def test_drawing_on_given_axes_returns_them() -> None:
    _, axes = pyplot.subplots(3)
    assert plot_usage(usage_curves([[1.0]]), axes[0]) is axes[0]
    assert plot_responsibilities(responsibility_points([0.0], [[1.0]]), axes[1]) is axes[1]
    assert plot_partition_map(partition_map(Quadrants(), SQUARE, resolution=3), axes[2]) is axes[2]


class TwoSides:
    """Two experts of different noise on the two sides of zero."""

    def predict_gate_probs(self, X):
        right = 1 / (1 + np.exp(-4.0 * np.ravel(X)))
        return np.stack([1 - right, right], axis=1)

    def predict_experts(self, X):
        x = np.ravel(X)
        return [Predictive.gaussian(x, 0.04 + 0 * x), Predictive.gaussian(-2 * x, 0.25 + 0 * x)]


def test_experts_have_bands_that_fade_with_their_gate() -> None:
    x = np.linspace(-2, 2, 41)
    curves = expert_curves(TwoSides(), x[:, None])
    for k, variance in enumerate((0.04, 0.25)):
        alone = Predictive.gaussian(curves.expert_means[:, k], np.full(41, variance))
        assert_allclose((curves.expert_lower[:, k], curves.expert_upper[:, k]), alone.interval(0.9))
    ax = plot_experts(curves)
    strip = ax.images[0].get_array()
    assert_allclose(strip[0, 0, :3], to_rgb(EXPERT_COLOURS[0]))
    opacity = strip[0, :, 3]
    gate = np.interp(np.linspace(-2, 2, len(opacity)), x, curves.gate_probs[:, 0])
    assert_allclose(opacity / opacity.max(), gate / gate.max(), rtol=1e-9)
    assert opacity[0] > 0.2
    assert opacity[-1] < 0.01
    outline, _ = ax.images[0].get_transformed_clip_path_and_affine()
    assert_allclose(outline.vertices[:41], np.stack([x, curves.expert_lower[:, 0]], 1))
    assert_allclose(outline.vertices[41:], np.stack([x, curves.expert_upper[:, 0]], 1)[::-1])


def test_experts_at_a_single_point_are_drawn() -> None:
    ax = plot_experts(expert_curves(TwoSides(), [[0.5]]))
    ax.figure.draw_without_rendering()
    assert len(ax.images) == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: usage_curves([0.5, 0.5]), ShapeError, r"shape \(n, k\).* got \(2,\)"),
        (lambda: usage_curves([[0.5, 0.5], [0.5, np.nan]]), NonFiniteError, "row 1 is"),
        (lambda: usage_curves([[0.5, 0.5], [0.5, 0.6]]), InputError, "sum to one; row 1 is"),
        (lambda: responsibility_points([[0.0]], [[0.5, 0.5]] * 2), ShapeError, "one row a row of `X`, 1; got 2"),
        (lambda: partition_map(Quadrants(), [(0, 1)]), InputError, "two pairs"),
        (lambda: partition_map(Quadrants(), [(0, 1), (1, 1)]), InputError, "low < high"),
        (lambda: partition_map(Quadrants(), SQUARE, resolution=1), InputError, "at least 2; got 1"),
        (lambda: partition_map(Quadrants(), SQUARE, inputs=(0, 2)), ShapeError, "Pass `at`"),
        (
            lambda: plot_partition_map(partition_map(Quadrants(), SQUARE, resolution=3), X=[[1.0]]),
            ShapeError,
            r"shape \(n, 2\).* got \(1, 1\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call()
