"""Woodbury preconditioners, and the rank that a model of the time gives them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.low_rank import nystrom, pivoted_cholesky
from gpmoe.linalg.operator import DenseOperator
from gpmoe.linalg.preconditioners import LowRankPreconditioner, TimeModel, adapted_preconditioner, precondition


@pytest.fixture
def operator(normal: Callable[..., Tensor]) -> DenseOperator:
    """200 points with noise variances that differ."""
    X = normal(200, 2)
    noise = torch.linspace(0.01, 0.2, 200, dtype=torch.float64)
    return DenseOperator((-0.5 * torch.cdist(X, X).square()).exp(), noise)


@pytest.mark.parametrize("rank", [0, 1, 25])
def test_solves_and_determinant_equal_dense_algebra(operator: DenseOperator, rank: int) -> None:
    low_rank = pivoted_cholesky(operator, rank)
    P = precondition(operator, low_rank)
    dense = low_rank.F.mT @ low_rank.F + operator.noise.diag()
    B = torch.eye(200, dtype=torch.float64)[:, :7]
    torch.testing.assert_close(P.solve(B), torch.linalg.solve(dense, B), atol=1e-10, rtol=1e-9)
    assert P.log_determinant() == pytest.approx(float(torch.linalg.slogdet(dense)[1]), abs=1e-9)
    assert P.rank == rank


def test_float32_right_hand_sides_are_solved_in_float32(operator: DenseOperator) -> None:
    P = precondition(operator, pivoted_cholesky(operator, 25))
    B = torch.ones(200, 2, dtype=torch.float64)
    single = P.solve(B.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), P.solve(B), atol=1e-3, rtol=1e-3)


def test_samples_have_the_covariance_of_the_preconditioner(operator: DenseOperator) -> None:
    low_rank = pivoted_cholesky(operator, 25)
    P = precondition(operator, low_rank)
    samples = P.sample(20_000, generator=torch.Generator().manual_seed(2))
    dense = low_rank.F.mT @ low_rank.F + operator.noise.diag()
    error = ((dense**2 + torch.outer(dense.diagonal(), dense.diagonal())) / 20_000).sqrt()
    assert float(((samples @ samples.mT / 20_000 - dense) / error).abs().max()) < 6  # of 20,100 entries


def test_its_inverse_bounds_the_inverse_of_the_covariance(operator: DenseOperator) -> None:
    P = precondition(operator, nystrom(operator, 25, generator=torch.Generator().manual_seed(1)))
    identity = torch.eye(200, dtype=torch.float64)
    gap = P.solve(identity) - torch.linalg.inv(operator.K + operator.noise.diag())
    assert float(torch.linalg.eigvalsh(gap).min()) > -1e-6


def test_zero_noise_is_refused(operator: DenseOperator) -> None:
    silent = DenseOperator(operator.K, torch.zeros(200, dtype=torch.float64))
    with pytest.raises(InputError, match="noise"):
        precondition(silent, pivoted_cholesky(silent, 5))


def test_more_right_hand_sides_and_tighter_tolerances_get_larger_ranks(operator: DenseOperator) -> None:
    def rank(tolerance: float, columns: int) -> int:
        generator = torch.Generator().manual_seed(0)
        P = adapted_preconditioner(operator, tolerance=tolerance, columns=columns, most=100, generator=generator)
        assert isinstance(P, LowRankPreconditioner)
        return P.rank

    assert 0 < rank(1e-2, 1) <= rank(1e-8, 1) <= rank(1e-8, 1000) <= 100


def test_the_time_model_stops_when_the_spectrum_is_exhausted() -> None:
    model = TimeModel(10_000, 0.1, 1e-6, 1)
    assert not model(128, 1000.0)
    assert model(256, 1000.0)  # nothing was gained: a larger rank only costs


def test_the_time_model_goes_on_while_the_spectrum_falls() -> None:
    model = TimeModel(20_000, 0.01, 1e-6, 1)
    assert [model(128 * k, 20_000 / k**1.5) for k in range(1, 5)] == [False] * 4
