"""L-BFGS in steps: it descends, finds minima, and keeps what it learned."""

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der

from gpmoe.inference.lbfgs import LBFGS

Array = np.ndarray


def rosenbrock(x: Array) -> tuple[float, Array]:
    return float(rosen(x)), rosen_der(x)


def bowl(center: float) -> "object":
    """A quadratic whose curvatures span four orders of magnitude."""
    scale = np.logspace(0, 4, 6)
    return lambda x: (0.5 * float(scale @ (x - center) ** 2), scale * (x - center))


def test_it_finds_the_minimum_of_a_curved_valley() -> None:
    x, value = LBFGS().minimise(rosenbrock, np.array([-1.2, 1.0, 0.5]), 200)
    np.testing.assert_allclose(x, 1.0, atol=1e-5)
    assert value < 1e-9


def test_every_step_lowers_the_loss() -> None:
    x, lbfgs = np.array([-1.2, 1.0]), LBFGS()
    values = []
    for _ in range(40):
        x, value = lbfgs.minimise(rosenbrock, x, 1)
        values.append(value)
    assert max(np.diff(values)) <= 0


def test_memory_makes_the_next_minimum_near() -> None:
    fresh, warm = LBFGS(), LBFGS()
    warm.minimise(bowl(0.0), np.ones(6), 60)
    _, with_memory = warm.minimise(bowl(0.1), np.zeros(6), 4)
    _, without = fresh.minimise(bowl(0.1), np.zeros(6), 4)
    assert with_memory < 0.1 * without


@pytest.mark.parametrize("wall", [0.3, 1e-3])
def test_steps_stay_where_the_loss_is_defined(wall: float) -> None:
    def loss(x: Array) -> tuple[float, Array]:
        inside = bool((x < wall).all())
        return (float(((x - 1) ** 2).sum()), 2 * (x - 1)) if inside else (float("inf"), np.zeros_like(x))

    x, value = LBFGS().minimise(loss, np.zeros(2), 50)
    assert np.isfinite(value)
    assert ((x > 0) & (x < wall)).all()


def test_at_a_minimum_nothing_moves() -> None:
    x, value = LBFGS().minimise(bowl(0.5), np.full(6, 0.5), 5)
    np.testing.assert_array_equal(x, 0.5)
    assert value == 0
