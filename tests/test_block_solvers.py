"""Alternating projections and stochastic dual descent against dense solves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpmoe.errors import InputError, NotPositiveDefiniteError, ShapeError
from gpmoe.linalg.alternating_projections import alternating_projections, factorise_blocks
from gpmoe.linalg.operator import DenseOperator
from gpmoe.linalg.stochastic_dual_descent import stochastic_dual_descent


@pytest.fixture
def operator(normal: Callable[..., Tensor]) -> DenseOperator:
    """120 points in four dimensions."""
    X = normal(120, 4)
    return DenseOperator((-0.5 * torch.cdist(X, X).square()).exp(), torch.full((120,), 0.1, dtype=torch.float64))


def exact(operator: DenseOperator, B: Tensor) -> Tensor:
    return torch.linalg.solve(operator.K + operator.noise.diag(), B)


@pytest.mark.parametrize("block_size", [20, 50, 120, 500])
def test_projections_equal_a_dense_solve(
    operator: DenseOperator, normal: Callable[..., Tensor], block_size: int
) -> None:
    B = normal(120, 3)
    blocks = factorise_blocks(operator, block_size)
    solution = alternating_projections(operator, B, blocks=blocks, tolerance=1e-8)
    assert solution.converged
    torch.testing.assert_close(solution.X, exact(operator, B), atol=1e-6, rtol=1e-6)
    remainder = B - operator.matmul(solution.X)
    torch.testing.assert_close(solution.remainder, remainder, atol=1e-12, rtol=0)


def test_one_block_is_a_cholesky_solve(operator: DenseOperator, normal: Callable[..., Tensor]) -> None:
    blocks = factorise_blocks(operator, 120)
    assert alternating_projections(operator, normal(120, 1), blocks=blocks, tolerance=1e-10).iterations == 1


def test_each_projection_shrinks_the_error_in_the_norm_of_the_operator(
    operator: DenseOperator, normal: Callable[..., Tensor]
) -> None:
    b = normal(120, 1)
    blocks = factorise_blocks(operator, 30)
    errors = []
    for passes in range(5):
        X = alternating_projections(operator, b, blocks=blocks, tolerance=0.0, max_passes=passes).X
        error = X - exact(operator, b)
        errors.append(float((error * operator.matmul(error)).sum()))
    assert errors == sorted(errors, reverse=True)


def test_blocks_that_cannot_be_factorised_are_refused() -> None:
    flat = DenseOperator(torch.ones(4, 4).double(), torch.zeros(4).double())
    with pytest.raises(NotPositiveDefiniteError):
        factorise_blocks(flat, 2)
    with pytest.raises(InputError, match="block_size"):
        factorise_blocks(flat, 0)


def test_descent_comes_near_a_dense_solve(operator: DenseOperator, normal: Callable[..., Tensor]) -> None:
    B = normal(120, 2)
    generator = torch.Generator().manual_seed(0)
    solution = stochastic_dual_descent(operator, B, batch_size=30, tolerance=1e-3, max_passes=2000, generator=generator)
    assert solution.converged
    assert solution.residual <= 1e-3
    torch.testing.assert_close(solution.X, exact(operator, B), atol=0.1, rtol=0)


def test_descent_does_not_diverge_where_one_eigenvalue_rules(normal: Callable[..., Tensor]) -> None:
    K = torch.ones(200, 200).double() * 5
    operator = DenseOperator(K, torch.full((200,), 0.5).double())
    generator = torch.Generator().manual_seed(0)
    solution = stochastic_dual_descent(operator, normal(200, 1), batch_size=20, max_passes=50, generator=generator)
    assert solution.residual < 1.0


def test_the_same_seed_descends_alike(operator: DenseOperator, normal: Callable[..., Tensor]) -> None:
    b = normal(120, 1)
    a, c = (
        stochastic_dual_descent(operator, b, max_passes=10, generator=torch.Generator().manual_seed(4)).X
        for _ in range(2)
    )
    assert bool((a == c).all())


def test_what_does_not_fit_is_refused(operator: DenseOperator) -> None:
    with pytest.raises(ShapeError):
        stochastic_dual_descent(operator, torch.zeros(7, 1).double())
    with pytest.raises(InputError, match="batch_size"):
        stochastic_dual_descent(operator, torch.zeros(120, 1).double(), batch_size=0)
    with pytest.raises(ShapeError):
        alternating_projections(operator, torch.zeros(7, 1).double(), blocks=factorise_blocks(operator, 60))
