"""Merged models: quadratic surrogates, their noise-free limit, and amortised Pareto fronts."""

import math

import pytest
import torch
from torch import Tensor

from gpmoe.bo.offline.amortised_pareto import ParetoFront, amortised_front, first_coefficients, merged
from gpmoe.bo.offline.quadratic_surrogate import least_squares_quadratic, quadratic_gp
from gpmoe.errors import InputError, NonFiniteError, ShapeError

ENDS = torch.eye(2, dtype=torch.float64)


def distances(c: Tensor) -> Tensor:
    """Two metrics whose best points are (1, 0) and (0, 1); the Pareto front is the line between."""
    return -(c - ENDS).square().sum(-1)


@pytest.fixture
def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    C = torch.rand(25, 2, dtype=torch.float64, generator=generator)
    return C, C[:, 0].exp() - C[:, 0] * C[:, 1] + 0.1 * torch.randn(25, dtype=torch.float64, generator=generator)


def test_the_quadratic_mean_gp_without_noise_is_the_quadratic_of_least_squares(points: tuple[Tensor, Tensor]) -> None:
    C, metric = points
    gp = quadratic_gp(C, metric, residual=False, noise=1e-7)
    new = C + 0.3
    with torch.no_grad():
        mean = gp.posterior(new).mean.squeeze(-1)
    torch.testing.assert_close(mean, least_squares_quadratic(C, metric)(new), rtol=0, atol=1e-5)


def test_least_squares_recovers_a_quadratic(points: tuple[Tensor, Tensor]) -> None:
    C, _ = points
    A = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    b = torch.tensor([0.3, -0.7], dtype=torch.float64)
    found = least_squares_quadratic(C, 1.5 + C @ b + 0.5 * torch.einsum("ni,ij,nj->n", C, A, C))
    torch.testing.assert_close(found.curvature, A, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.slope, b, rtol=0, atol=1e-10)


def test_the_residual_follows_what_is_not_quadratic(points: tuple[Tensor, Tensor]) -> None:
    C, _ = points
    metric = (6 * C[:, 0]).sin()
    gp = quadratic_gp(C, metric, noise=1e-4)
    with torch.no_grad():
        missed = (gp.posterior(C).mean.squeeze(-1) - metric).square().mean()
    assert missed < 0.1 * (least_squares_quadratic(C, metric)(C) - metric).square().mean()


def test_points_that_determine_no_quadratic_are_refused(points: tuple[Tensor, Tensor]) -> None:
    C, metric = points
    with pytest.raises(InputError, match="5 points determine 5 of the 6"):
        least_squares_quadratic(C[:5], metric[:5])
    with pytest.raises(ShapeError, match="one value for each of 25 rows"):
        quadratic_gp(C, metric[:3])


def test_merging_with_one_coefficient_gives_that_model_back() -> None:
    pretrained, tuned = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [5.0, 5.0]])
    assert torch.equal(merged(pretrained, tuned, torch.eye(2)), tuned)
    assert torch.equal(merged(pretrained, tuned, torch.zeros(2)), pretrained)


def test_first_coefficients_begin_with_each_model_alone_and_the_even_mix(generator: torch.Generator) -> None:
    C = first_coefficients(3, 20, generator)
    assert C.shape == (20, 3)
    assert torch.equal(C[:3], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(C[3], torch.full((3,), 1 / 3, dtype=torch.float64))
    assert bool(((C >= 0) & (C <= 1)).all())


@pytest.fixture(scope="module")
def front() -> ParetoFront:
    return amortised_front(distances, 2, n_first=8, n_rounds=1, batch_size=2)


@pytest.mark.slow
def test_the_amortised_front_lies_on_the_true_one(front: ParetoFront) -> None:
    assert len(front.evaluated) == len(front.measured) == 10
    off = (front.coefficients.sum(-1) - 1).abs()
    assert float(off.mean()) < 0.05
    assert float(off.max()) < 0.2  # near its ends few candidates are at hand to dominate one
    true = torch.stack([distances(c) for c in front.coefficients])
    torch.testing.assert_close(front.metrics, true, rtol=0, atol=0.02)


@pytest.mark.slow
def test_a_preference_moves_the_pick_along_the_front(front: ParetoFront) -> None:
    for weight in (0.2, 0.5, 0.8):  # the best of w m_1 + (1 - w) m_2 is (w, 1 - w)
        picked = front.pick([weight, 1 - weight])
        torch.testing.assert_close(picked, torch.tensor([weight, 1 - weight], dtype=torch.float64), rtol=0, atol=0.08)
    with pytest.raises(InputError, match="needs 2 weights"):
        front.pick([1.0])
    with pytest.raises(InputError, match="none negative"):
        front.pick([1.0, -1.0])


@pytest.mark.slow
def test_a_seed_fixes_the_front_and_leaves_the_global_generator(front: ParetoFront) -> None:
    state = torch.get_rng_state()
    again = amortised_front(distances, 2, n_first=8, n_rounds=1, batch_size=2)
    assert torch.equal(again.evaluated, front.evaluated)
    assert torch.equal(again.coefficients, front.coefficients)
    assert torch.equal(torch.get_rng_state(), state)


def test_metrics_that_are_not_finite_or_change_shape_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="returned NaN"):
        amortised_front(lambda c: distances(c) * math.nan, 2)
    with pytest.raises(ShapeError, match="one tensor"):
        amortised_front(lambda c: c.sum(), 2)
    with pytest.raises(InputError, match="at least one model"):
        amortised_front(distances, 0)
