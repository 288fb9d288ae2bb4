"""Kronecker algebra against dense algebra: products, solves, likelihoods and their gradients."""

import math
from collections.abc import Callable
from functools import reduce

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpmoe.errors import DifferentiationError, InputError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gpmoe.linalg import lapack
from gpmoe.linalg.complement import Iterative
from gpmoe.linalg.heteroscedastic_grid import HeteroscedasticGrid
from gpmoe.linalg.kronecker import KroneckerEigen, along_axes, kronecker_matmul
from gpmoe.linalg.kronecker_likelihood import kronecker_log_likelihood, sum_log_likelihood, sum_solve
from gpmoe.linalg.symmetric_eigen import eigh
from gpmoe.linalg.toeplitz import ToeplitzFactor

Draw = Callable[..., Tensor]
BATCHES = [(), (2,), (2, 3)]
SIZES = (3, 4, 2)
N = math.prod(SIZES)


def kron(factors: list[Tensor]) -> Tensor:
    """Kronecker product of matrices with batch dimensions."""
    return reduce(lambda A, B: torch.einsum("...ij,...kl->...ikjl", A, B).flatten(-4, -3).flatten(-2), factors)


def covariance(normal: Draw, *shape: int) -> Tensor:
    A = normal(*shape, shape[-1])
    return A @ A.mT / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


def covariances(normal: Draw, batch: tuple[int, ...] = ()) -> list[Tensor]:
    return [covariance(normal, *batch, n) for n in SIZES]


def symmetric(factors: tuple[Tensor, ...]) -> list[Tensor]:
    return [0.5 * (K + K.mT) for K in factors]


def dense_log_likelihood(C: Tensor, y: Tensor) -> Tensor:
    return MultivariateNormal(torch.zeros_like(y), C).log_prob(y)


def noisy(factors: list[Tensor], noise: Tensor) -> Tensor:
    return kron(factors) + noise[..., None, None] * torch.eye(N, dtype=torch.float64)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_are_those_of_the_dense_matrix(normal: Draw, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    factors = [normal(*batch, n, m).to(dtype) for n, m in ((2, 3), (4, 4), (5, 2))]
    V = normal(*batch, 24, 3).to(dtype)
    found = kronecker_matmul(factors, V)
    assert found.dtype == dtype
    assert torch.allclose(found, kron(factors) @ V, atol=1e-10 if dtype == torch.float64 else 1e-4)


def test_products_of_one_factor_and_of_no_columns(normal: Draw) -> None:
    F, T = normal(3, 4), normal(5, 4)
    assert torch.allclose(along_axes([F], T), T @ F.mT)
    assert kronecker_matmul([F, F], normal(16, 0)).shape == (9, 0)


def test_factors_of_a_batch_meet_columns(normal: Draw) -> None:
    factors, T = [normal(2, 3, 3), normal(2, 4, 4)], normal(2, 5, 3, 4)
    expected = torch.einsum("bij,bkl,bcjl->bcik", *factors, T)
    assert torch.allclose(along_axes(factors, T), expected)


def test_products_are_differentiable(normal: Draw) -> None:
    inputs = leaves(normal(2, 3), normal(4, 2), normal(6, 2))
    assert torch.autograd.gradcheck(lambda A, B, V: kronecker_matmul([A, B], V), inputs)


def test_axes_of_other_lengths_are_refused(normal: Draw) -> None:
    with pytest.raises(ShapeError, match=r"\(3, 4\).*got \(4, 3\)"):
        along_axes([normal(2, 3), normal(2, 4)], normal(4, 3))
    with pytest.raises(ShapeError, match=r"12, c\); got \(11, 1\)"):
        kronecker_matmul([normal(2, 3), normal(2, 4)], normal(11, 1))


@pytest.mark.parametrize("name", ["torch", "scipy"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_libraries_decompose_alike(normal: Draw, name: lapack.Provider, dtype: torch.dtype) -> None:
    K = covariance(normal, 7).to(dtype)
    with lapack.use_provider(name):
        values, vectors = eigh(K)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose((vectors * values) @ vectors.mT, K, atol=tolerance)
    assert torch.allclose(values, torch.linalg.eigvalsh(K), atol=tolerance)


@pytest.mark.parametrize("batch", BATCHES)
def test_solve_determinant_and_root_are_those_of_the_dense_matrix(normal: Draw, batch: tuple[int, ...]) -> None:
    factors, noise = covariances(normal, batch), normal(*batch, 1).squeeze(-1).square() + 0.1
    basis, C = KroneckerEigen.of(factors), noisy(factors, noise)
    T = normal(*batch, 5, *SIZES)
    flat = T.flatten(-3).mT
    assert torch.allclose(basis.solve(T, noise).flatten(-3).mT, torch.linalg.solve(C, flat))
    assert torch.allclose(basis.log_determinant(noise), torch.logdet(C))
    twice = basis.square_root(basis.square_root(T, noise), noise)
    assert torch.allclose(twice.flatten(-3).mT, C @ flat)


def test_samples_have_the_covariance(normal: Draw, generator: torch.Generator) -> None:
    factors, noise, n = covariances(normal), torch.tensor(0.2, dtype=torch.float64), 40_000
    C = noisy(factors, noise)
    samples = KroneckerEigen.of(factors).sample(n, noise, generator).flatten(1)
    deviation = C.diagonal().sqrt()
    assert ((samples.T.cov() - C).abs() < 4.5 * torch.outer(deviation, deviation) * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_the_likelihood_and_its_gradient_are_right(normal: Draw, batch: tuple[int, ...]) -> None:
    factors, y, noise = covariances(normal, batch), normal(*batch, *SIZES), normal(*batch, 1).squeeze(-1).square() + 0.1
    expected = dense_log_likelihood(noisy(factors, noise), y.flatten(-3))
    assert torch.allclose(kronecker_log_likelihood(factors, y, noise), expected, atol=1e-10)
    inputs = leaves(y, noise, *factors)
    assert torch.autograd.gradcheck(lambda y, s, *K: kronecker_log_likelihood(symmetric(K), y, s), inputs)


def test_single_precision_agrees_with_double(normal: Draw) -> None:
    factors, y, noise = covariances(normal), normal(*SIZES), torch.tensor(0.3, dtype=torch.float64)
    double, single = leaves(*factors), leaves(*(K.float() for K in factors))
    kronecker_log_likelihood(double, y, noise).backward()
    value = kronecker_log_likelihood(single, y.float(), noise.float())
    value.backward()
    assert value.dtype == torch.float32
    for a, b in zip(single, double, strict=True):
        assert torch.allclose(a.grad.double(), b.grad, atol=1e-4, rtol=1e-3)


def test_equal_eigenvalues_and_repeated_points_leave_the_gradient_right(normal: Draw) -> None:
    eye, ones = torch.eye(3, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64)
    y, noise = normal(3, 4), torch.tensor(0.5, dtype=torch.float64)
    inputs = leaves(y, noise, eye, ones)
    found = torch.autograd.grad(kronecker_log_likelihood(inputs[2:], *inputs[:2]), inputs)
    C = kron(inputs[2:]) + inputs[1] * torch.eye(12, dtype=torch.float64)
    expected = torch.autograd.grad(dense_log_likelihood(C, inputs[0].flatten()), inputs)
    for a, b in zip(found[2:], expected[2:], strict=True):
        assert torch.allclose(a, 0.5 * (b + b.mT))


def test_one_cell_is_a_grid(normal: Draw) -> None:
    K, y, noise = normal(1, 1).square(), normal(1, 1), torch.tensor(0.5, dtype=torch.float64)
    value = kronecker_log_likelihood([K, torch.ones_like(K)], y, noise)
    assert torch.allclose(value, dense_log_likelihood(K + 0.5, y.flatten()))


def test_no_noise_is_right_for_full_rank_and_refused_without(normal: Draw) -> None:
    zero = torch.tensor(0.0, dtype=torch.float64)
    factors, y = covariances(normal), normal(*SIZES)
    assert torch.allclose(kronecker_log_likelihood(factors, y, zero), dense_log_likelihood(kron(factors), y.flatten()))
    factors[1] = torch.ones(4, 4, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="noise variance near zero"):
        kronecker_log_likelihood(factors, y, zero)


def test_what_can_not_be_a_grid_is_refused(normal: Draw) -> None:
    K, noise = covariance(normal, 3), torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="at least one row"):
        kronecker_log_likelihood([K, normal(0, 0)], normal(3, 0), noise)
    with pytest.raises(ShapeError, match="square"):
        kronecker_log_likelihood([K, normal(2, 3)], normal(3, 2), noise)
    with pytest.raises(ShapeError, match=r"\(3, 3\).*got \(9,\)"):
        kronecker_log_likelihood([K, K], normal(9), noise)
    with pytest.raises(NonFiniteError):
        kronecker_log_likelihood([K, K * float("nan")], normal(3, 3), noise)


def test_a_second_derivative_is_refused(normal: Draw) -> None:
    K = covariance(normal, 3).requires_grad_()
    value = kronecker_log_likelihood([K], normal(3), torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(value, K, create_graph=True)


@pytest.mark.parametrize("batch", BATCHES[:2])
def test_a_sum_of_two_products_is_solved_exactly(normal: Draw, batch: tuple[int, ...]) -> None:
    first, second, y = covariances(normal, batch), covariances(normal, batch), normal(*batch, *SIZES)
    C = kron(first) + kron(second)
    assert torch.allclose(sum_log_likelihood(first, second, y), dense_log_likelihood(C, y.flatten(-3)), atol=1e-9)
    inputs = leaves(y, *first, *second)

    def value(y: Tensor, *K: Tensor) -> Tensor:
        return sum_log_likelihood(symmetric(K[:3]), symmetric(K[3:]), y)

    assert torch.autograd.gradcheck(value, inputs)
    T = normal(*batch, 2, *SIZES)
    assert torch.allclose(sum_solve(first, second, T).flatten(-3).mT, torch.linalg.solve(C, T.flatten(-3).mT))


def test_a_sum_needs_a_definite_second_product(normal: Draw) -> None:
    K = covariance(normal, 3)
    with pytest.raises(NotPositiveDefiniteError):
        sum_log_likelihood([K], [torch.ones_like(K)], normal(3))
    with pytest.raises(ShapeError, match="same shapes"):
        sum_log_likelihood([K], [covariance(normal, 2)], normal(3))


def test_noise_of_each_cell_is_solved_to_its_tolerance(normal: Draw) -> None:
    factors, noise, B = covariances(normal), normal(*SIZES).exp(), normal(2, *SIZES)
    grid = HeteroscedasticGrid(Iterative(tolerance=1e-10))
    C = kron(factors) + torch.diag(noise.flatten())
    x = grid.solve(factors, noise, B)
    assert torch.allclose(x.flatten(1).mT, torch.linalg.solve(C, B.flatten(1).mT), atol=1e-8)
    assert grid.converged
    assert grid.residual < 1e-10


def test_the_likelihood_with_noise_of_each_cell_is_right_within_its_error(normal: Draw) -> None:
    factors, noise, y = covariances(normal), normal(*SIZES).exp(), normal(*SIZES)
    inputs = leaves(y, noise, *factors)
    grid = HeteroscedasticGrid(Iterative(tolerance=1e-10, probes=2000))
    value = grid.log_likelihood(inputs[2:], inputs[0], inputs[1])
    found = torch.autograd.grad(value, inputs)
    C = kron(inputs[2:]) + torch.diag(inputs[1].flatten())
    dense = dense_log_likelihood(C, inputs[0].flatten())
    expected = torch.autograd.grad(dense, inputs)
    assert 0 < grid.standard_error < 0.1
    assert abs(float(value.detach() - dense.detach())) < 4 * grid.standard_error
    assert torch.allclose(found[0], expected[0], atol=1e-8)
    for a, b in zip(found[1:], expected[1:], strict=True):
        b = b if b.dim() == 3 else 0.5 * (b + b.mT)
        assert (a - b).norm() < 0.05 * b.norm()


def test_equal_noise_of_each_cell_leaves_nothing_to_estimate(normal: Draw) -> None:
    factors, y = covariances(normal), normal(*SIZES)
    noise = torch.full(SIZES, 0.3, dtype=torch.float64)
    inputs, others = leaves(*factors), leaves(*factors)
    grid = HeteroscedasticGrid(Iterative(probes=2))
    grid.log_likelihood(inputs, y, noise).backward()
    kronecker_log_likelihood(others, y, noise[0, 0, 0]).backward()
    assert grid.standard_error < 1e-10
    for a, b in zip(inputs, others, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-9)


def test_noise_of_each_cell_must_be_positive_and_fit(normal: Draw) -> None:
    factors, y = covariances(normal), normal(*SIZES)
    with pytest.raises(InputError, match="positive"):
        HeteroscedasticGrid().log_likelihood(factors, y, torch.zeros_like(y))
    with pytest.raises(ShapeError, match="grid"):
        HeteroscedasticGrid().solve(factors, y.abs()[0], y.unsqueeze(0))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_toeplitz_factor_multiplies_as_its_dense_matrix(normal: Draw, n: int) -> None:
    F, G = ToeplitzFactor(normal(n)), normal(4, 3)
    V = normal(3 * n, 2)
    assert torch.allclose(kronecker_matmul([F, G], torch.cat([V])), kron([F.to_dense(), G]) @ V, atol=1e-10)
    assert torch.allclose(kronecker_matmul([G, F], V), kron([G, F.to_dense()]) @ V, atol=1e-10)


def test_a_toeplitz_product_is_differentiable(normal: Draw) -> None:
    column, T = leaves(normal(4), normal(2, 4))
    assert torch.autograd.gradcheck(lambda c, T: along_axes([ToeplitzFactor(c)], T), (column, T))


def test_a_toeplitz_factor_is_a_column(normal: Draw) -> None:
    with pytest.raises(ShapeError, match="column"):
        ToeplitzFactor(normal(3, 3))
