"""Preconditioned conjugate gradients against dense solves."""

from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from gpmoe.errors import DtypeError, NonFiniteError, NotConvergedWarning, ShapeError
from gpmoe.linalg.conjugate_gradients import conjugate_gradients
from gpmoe.linalg.low_rank import pivoted_cholesky, randomly_pivoted_cholesky
from gpmoe.linalg.operator import DenseOperator, KernelOperator
from gpmoe.linalg.preconditioners import LowRankPreconditioner, precondition


def matern(X: Tensor, noise: float) -> DenseOperator:
    r = torch.cdist(X, X) * 5**0.5
    return DenseOperator((1 + r + r**2 / 3) * (-r).exp(), torch.full((len(X),), noise, dtype=X.dtype))


def dense(operator: DenseOperator) -> Tensor:
    return operator.K + operator.noise.diag()


def preconditioned(operator: DenseOperator, rank: int) -> LowRankPreconditioner:
    generator = torch.Generator().manual_seed(0)
    return precondition(operator, randomly_pivoted_cholesky(operator, rank, generator=generator))


@pytest.mark.parametrize("rank", [None, 30])
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "float64"])
def test_many_right_hand_sides_equal_a_dense_solve(
    normal: Callable[..., Tensor], rank: int | None, mixed: bool
) -> None:
    C, B = matern(normal(250, 3), 0.01), normal(250, 5)
    P = None if rank is None else preconditioned(C, rank)
    solution = conjugate_gradients(C, B, preconditioner=P, tolerance=1e-9, mixed=mixed)
    assert solution.converged
    torch.testing.assert_close(solution.X, torch.linalg.solve(dense(C), B), atol=1e-5, rtol=1e-6)


def test_the_residuals_it_reports_are_true(normal: Callable[..., Tensor]) -> None:
    C, B = matern(normal(200, 2), 1e-4), normal(200, 3)
    solution = conjugate_gradients(C, B, preconditioner=preconditioned(C, 80), tolerance=1e-6)
    remainder = B - dense(C) @ solution.X
    torch.testing.assert_close(solution.remainder, remainder, atol=1e-10, rtol=0)
    assert solution.residual == pytest.approx(float((remainder.norm(dim=0) / B.norm(dim=0)).max()), rel=1e-4)
    assert solution.converged
    assert solution.residual <= 1e-6


def test_float32_products_reach_residuals_that_float32_alone_cannot(normal: Callable[..., Tensor]) -> None:
    C, b = matern(normal(300, 2), 1e-4), normal(300, 1)  # a condition number of 10^6
    mixed = conjugate_gradients(C, b, preconditioner=preconditioned(C, 40), tolerance=1e-10)
    single = DenseOperator(C.K.float(), C.noise.float())
    alone = conjugate_gradients(single, b.float(), tolerance=1e-10, max_iterations=500)
    assert mixed.converged
    assert not alone.converged
    assert alone.residual > 1e-6


def test_a_preconditioner_saves_iterations(normal: Callable[..., Tensor]) -> None:
    C, b = matern(normal(300, 2), 1e-3), normal(300, 1)
    plain = conjugate_gradients(C, b)
    assert conjugate_gradients(C, b, preconditioner=preconditioned(C, 60)).iterations < 0.3 * plain.iterations


def test_a_full_preconditioner_solves_at_once(normal: Callable[..., Tensor]) -> None:
    C, b = matern(normal(50, 2), 0.1), normal(50, 1)
    P = precondition(C, pivoted_cholesky(C, 50))
    assert conjugate_gradients(C, b, preconditioner=P, tolerance=1e-5).iterations <= 2


def test_each_column_may_have_its_tolerance(normal: Callable[..., Tensor]) -> None:
    C, B = matern(normal(200, 2), 0.01), normal(200, 2)
    solution = conjugate_gradients(C, B, tolerance=torch.tensor([1e-1, 1e-8]))
    assert solution.converged
    assert solution.residuals[1] <= 1e-8 < solution.residuals[0] <= 1e-1


def test_a_start_near_the_solution_saves_iterations(normal: Callable[..., Tensor]) -> None:
    C, B = matern(normal(200, 2), 0.01), normal(200, 2)
    exact = torch.linalg.solve(dense(C), B)
    assert conjugate_gradients(C, B, start=exact).iterations == 0
    near = conjugate_gradients(C, B, start=exact + 1e-4 * normal(200, 2))
    assert near.converged
    assert near.iterations < conjugate_gradients(C, B).iterations


def test_repeated_rows_are_solved(normal: Callable[..., Tensor]) -> None:
    X = normal(80, 2)
    C, b = matern(torch.cat([X, X, X]), 0.01), normal(240, 1)
    solution = conjugate_gradients(C, b, preconditioner=preconditioned(C, 30), tolerance=1e-8)
    torch.testing.assert_close(solution.X, torch.linalg.solve(dense(C), b), atol=1e-5, rtol=1e-6)


def test_zero_noise_is_solved_without_a_preconditioner(normal: Callable[..., Tensor]) -> None:
    C = matern(3 * normal(40, 3), 0.0)
    b = normal(40, 1)
    solution = conjugate_gradients(C, b, tolerance=1e-8)
    assert solution.converged
    torch.testing.assert_close(solution.X, torch.linalg.solve(C.K, b), atol=1e-5, rtol=1e-5)


def test_zero_columns_no_columns_no_rows_and_one_row() -> None:
    C = DenseOperator(torch.eye(3).double(), torch.ones(3).double())
    zero = conjugate_gradients(C, torch.zeros(3, 2).double())
    assert zero.converged
    assert zero.X.abs().max() == 0
    assert conjugate_gradients(C, torch.zeros(3, 0).double()).residual == 0.0
    empty = DenseOperator(torch.zeros(0, 0).double(), torch.zeros(0).double())
    assert conjugate_gradients(empty, torch.zeros(0, 1).double()).converged
    one = DenseOperator(torch.ones(1, 1).double(), torch.ones(1).double())
    assert conjugate_gradients(one, torch.ones(1, 1).double()).X.item() == pytest.approx(0.5)


def test_non_convergence_is_reported_with_the_residual(normal: Callable[..., Tensor]) -> None:
    C, b = matern(normal(200, 2), 1e-5), normal(200, 1)
    solution = conjugate_gradients(C, b, max_iterations=3)
    assert not solution.converged
    assert solution.iterations == 3
    with pytest.warns(NotConvergedWarning, match=r"true relative residual of \d"):
        solution.warn_unless_converged("test", stacklevel=1)


def test_right_hand_sides_that_do_not_fit_are_refused() -> None:
    C = DenseOperator(torch.eye(3).double(), torch.ones(3).double())
    with pytest.raises(ShapeError, match="n=3"):
        conjugate_gradients(C, torch.zeros(3).double())
    with pytest.raises(DtypeError):
        conjugate_gradients(C, torch.zeros(3, 1))
    with pytest.raises(NonFiniteError):
        conjugate_gradients(C, torch.full((3, 1), torch.nan).double())


@pytest.mark.parametrize("memory", [2e9, 0.0], ids=["kept", "computed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_kernel_operator_equals_its_dense_matrix(
    normal: Callable[..., Tensor], memory: float, dtype: torch.dtype
) -> None:
    kernel = ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=3)).double()
    kernel.outputscale = 2.0
    X, noise = normal(70, 3), torch.linspace(0.1, 1, 70, dtype=torch.float64)
    operator = KernelOperator(kernel, X, noise, memory=memory)
    K = kernel(X).to_dense().detach()
    V = normal(70, 4).to(dtype)
    expected = ((K + noise.diag()) @ V.double()).to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert operator.matmul(V).dtype == dtype
    torch.testing.assert_close(operator.matmul(V), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(operator.diagonal(), K.diagonal())
    index = torch.tensor([5, 0, 69])
    torch.testing.assert_close(operator.rows(index), K[index], atol=1e-10, rtol=0)
