"""All of a covariance in float32 as a preconditioner, and when the model of the time takes it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg.conjugate_gradients import conjugate_gradients
from gpmoe.linalg.lanczos import log_determinant
from gpmoe.linalg.operator import DenseOperator
from gpmoe.linalg.preconditioners import LowRankPreconditioner, TimeModel, adapted_preconditioner
from gpmoe.linalg.single_factor import SingleFactor, factorise_in_single


@pytest.fixture
def operator(normal: Callable[..., Tensor]) -> DenseOperator:
    """700 points, more than one block of rows, with noise variances that differ and a spectrum that falls slowly."""
    X = normal(700, 6)
    noise = torch.linspace(0.01, 0.2, 700, dtype=torch.float64)
    return DenseOperator((-torch.cdist(X, X)).exp(), noise)


def dense(operator: DenseOperator) -> Tensor:
    return operator.K + operator.noise.diag()


def test_solves_determinant_and_samples_are_those_of_the_shifted_covariance(operator: DenseOperator) -> None:
    P = factorise_in_single(operator)
    shifted = dense(operator) + P.shift * torch.eye(700, dtype=torch.float64)
    B = torch.eye(700, dtype=torch.float64)[:, :7] * torch.logspace(-30, 30, 7, dtype=torch.float64)
    exact = torch.linalg.solve(shifted, B)
    assert float(((P.solve(B) - exact).norm(dim=0) / exact.norm(dim=0)).max()) < 1e-4
    assert P.log_determinant() == pytest.approx(float(torch.linalg.slogdet(shifted)[1]), abs=1e-3)
    samples = P.sample(20_000, generator=torch.Generator().manual_seed(2))
    error = ((shifted**2 + torch.outer(shifted.diagonal(), shifted.diagonal())) / 20_000).sqrt()
    assert float(((samples @ samples.mT / 20_000 - shifted) / error).abs().max()) < 6.5  # of 245,350 entries


def test_its_inverse_times_the_slack_bounds_the_inverse_of_the_covariance(operator: DenseOperator) -> None:
    P = factorise_in_single(operator)
    identity = torch.eye(700, dtype=torch.float64)
    inverse = P.solve(identity)
    gap = P.slack * 0.5 * (inverse + inverse.mT) - torch.linalg.inv(dense(operator))
    assert float(torch.linalg.eigvalsh(gap).min()) > -1e-6
    assert 1 < P.slack < 1.01


def test_conjugate_gradients_reach_float64_in_a_few_iterations(operator: DenseOperator) -> None:
    B = torch.ones(700, 3, dtype=torch.float64)
    solution = conjugate_gradients(operator, B, preconditioner=factorise_in_single(operator), tolerance=1e-12)
    assert solution.converged
    assert solution.iterations <= 8
    torch.testing.assert_close(solution.X, torch.linalg.solve(dense(operator), B), atol=1e-9, rtol=1e-9)


def test_the_determinant_of_the_covariance_itself_is_recovered(operator: DenseOperator) -> None:
    estimate = log_determinant(operator, preconditioner=factorise_in_single(operator))
    exact = float(torch.linalg.slogdet(dense(operator))[1])
    assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-3


def test_duplicated_rows_under_noise_below_single_precision_are_shifted_apart() -> None:
    twins = DenseOperator(torch.ones(600, 600, dtype=torch.float64), torch.full((600,), 1e-6, dtype=torch.float64))
    P = factorise_in_single(twins)
    assert P.shift > 1e-6
    assert P.slack > 2


def test_what_is_not_positive_definite_is_refused_by_name() -> None:
    indefinite = DenseOperator(-torch.eye(3, dtype=torch.float64), torch.full((3,), 0.1, dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match="float32"):
        factorise_in_single(indefinite)


def test_many_columns_over_a_slow_spectrum_take_the_whole_factor_where_there_is_room(
    normal: Callable[..., Tensor],
) -> None:
    X = normal(1500, 6)
    operator = DenseOperator((-torch.cdist(X, X)).exp(), torch.full((1500,), 0.01, dtype=torch.float64))

    def chosen(*, whole: bool, columns: int) -> object:
        generator = torch.Generator().manual_seed(0)
        return adapted_preconditioner(
            operator, tolerance=1e-6, columns=columns, most=600, whole=whole, generator=generator
        )

    assert isinstance(chosen(whole=True, columns=10_000), SingleFactor)
    assert isinstance(chosen(whole=False, columns=10_000), LowRankPreconditioner)


def test_the_time_model_keeps_a_low_rank_where_the_spectrum_falls_fast() -> None:
    model = TimeModel(20_000, 0.01, 1e-2, 1, whole=True)
    for k in range(1, 9):
        stopped = model(128 * k, 20_000 * 0.1**k)
        assert not model.prefers_whole
        if stopped:
            break
    slow = TimeModel(5_000, 0.01, 1e-2, 1000, whole=True)
    assert any(slow(128 * k, 5_000 - 100 * k) for k in range(1, 9))
    assert slow.prefers_whole
