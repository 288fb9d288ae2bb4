"""Grids with missing cells against dense algebra, by each way of solving them."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gpmoe.errors import InputError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gpmoe.linalg import grid_cells
from gpmoe.linalg.complement import Complement, Iterative
from gpmoe.linalg.grid_conjugate_gradients import conjugate_gradients, log_quadrature
from gpmoe.linalg.latent_kronecker import LatentKronecker, plan

Draw = Callable[..., Tensor]
EXACT = ["complement", "dense"]
SIZES = (3, 4, 5)


def problem(normal: Draw, missing: float = 0.4) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Factors, noise, which cells are observed, and their targets."""
    factors = []
    for n in SIZES:
        A = normal(n, n)
        factors.append(A @ A.mT / n + 0.1 * torch.eye(n, dtype=torch.float64))
    observed = normal(*SIZES) < torch.special.ndtri(torch.tensor(1 - missing, dtype=torch.float64))
    return factors, torch.tensor(0.3, dtype=torch.float64), observed, normal(int(observed.sum()))


def covariance(factors: list[Tensor], noise: Tensor, observed: Tensor) -> Tensor:
    flat = observed.flatten()
    K = reduce(torch.kron, factors)[flat][:, flat]
    return K + noise * torch.eye(len(K), dtype=K.dtype)


def dense_log_likelihood(factors: list[Tensor], y: Tensor, noise: Tensor, observed: Tensor) -> Tensor:
    return MultivariateNormal(torch.zeros_like(y), covariance(factors, noise, observed)).log_prob(y)


def symmetric(factors: Sequence[Tensor]) -> list[Tensor]:
    return [0.5 * (K + K.mT) for K in factors]


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("missing", [0.1, 0.4, 0.9])
def test_exact_ways_give_the_dense_likelihood_and_gradient(normal: Draw, method: str, missing: float) -> None:
    factors, noise, observed, y = problem(normal, missing)
    grid = LatentKronecker(observed, method=method)
    expected = dense_log_likelihood(factors, y, noise, observed)
    assert torch.allclose(grid.log_likelihood(factors, y, noise), expected, atol=1e-10)
    inputs = [tensor.clone().requires_grad_() for tensor in (y, noise, *factors)]
    found = torch.autograd.grad(grid.log_likelihood(symmetric(inputs[2:]), *inputs[:2]), inputs)
    dense = torch.autograd.grad(dense_log_likelihood(symmetric(inputs[2:]), *inputs[:2], observed), inputs)
    for a, b in zip(found, dense, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    assert grid.report.method == method


@pytest.mark.parametrize("method", EXACT)
def test_gradients_are_those_of_differences(normal: Draw, method: str) -> None:
    factors, noise, observed, y = problem(normal, 0.5)
    grid = LatentKronecker(observed[:2, :2, :3], method=method)
    factors, y = [factors[0][:2, :2], factors[1][:2, :2], factors[2][:3, :3]], y[: int(grid.observed.sum())]
    inputs = [tensor.clone().requires_grad_() for tensor in (y, noise, *factors)]
    assert torch.autograd.gradcheck(lambda y, s, *K: grid.log_likelihood(symmetric(K), y, s), inputs)


def test_cells_without_the_compiler_give_the_same(normal: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    factors, noise, observed, y = problem(normal)
    cells = observed.nonzero().T.contiguous()
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(grid_cells, "AVAILABLE", compiled)
        monkeypatch.setattr(grid_cells, "_BLOCK", 7 * cells.shape[1])
        solver = grid_cells.CellCovariance(factors, noise, cells)
        alpha = solver.solve(y.unsqueeze(0))[0]
        results.append([alpha, *solver.gradients(alpha)[0]])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("method", [*EXACT, "iterative"])
def test_solves_and_quadratic_forms_are_those_of_the_dense_matrix(normal: Draw, method: str) -> None:
    factors, noise, observed, y = problem(normal)
    C, B = covariance(factors, noise, observed), normal(3, len(y))
    grid = LatentKronecker(observed, method=method, iterative=Iterative(tolerance=1e-12))
    solver = grid.factorise(factors, noise)
    expected = torch.linalg.solve(C, B.mT).mT
    assert torch.allclose(solver.solve(B), expected, atol=1e-9)
    assert torch.allclose(solver.solve(B[:1]), expected[:1], atol=1e-9)
    assert solver.solve(B[:0]).shape == (0, len(y))
    assert torch.allclose(solver.quadratic(B), (B * expected).sum(-1), atol=1e-9)


def test_blocks_of_columns_give_the_same(normal: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    factors, noise, observed, y = problem(normal)
    grid = LatentKronecker(observed, method="complement")
    inputs = [K.clone().requires_grad_() for K in factors]
    whole = torch.autograd.grad(grid.log_likelihood(inputs, y, noise), inputs)
    monkeypatch.setattr("gpmoe.linalg.complement._CHUNK", 5 * math.prod(SIZES))
    in_blocks = torch.autograd.grad(grid.log_likelihood(inputs, y, noise), inputs)
    for a, b in zip(whole, in_blocks, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_the_iterative_way_is_right_within_its_standard_error(normal: Draw) -> None:
    factors, noise, observed, y = problem(normal)
    inputs = [tensor.clone().requires_grad_() for tensor in (y, noise, *factors)]
    grid = LatentKronecker(observed, method="iterative", iterative=Iterative(tolerance=1e-10, probes=2000))
    value = grid.log_likelihood(inputs[2:], *inputs[:2])
    expected = dense_log_likelihood(inputs[2:], *inputs[:2], observed)
    assert abs(float((value - expected).detach())) < 4 * grid.report.standard_error
    found, dense = (torch.autograd.grad(v, inputs) for v in (value, expected))
    assert torch.allclose(found[0], dense[0], atol=1e-8)
    for a, b in zip(found[1:], dense[1:], strict=True):
        b = 0.5 * (b + b.mT) if b.dim() else b
        assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_the_reported_residual_is_the_true_one(normal: Draw, tolerance: float) -> None:
    factors, noise, observed, y = problem(normal)
    solver = Complement(factors, noise, observed, Iterative(tolerance=tolerance))
    _, done, _ = solver.log_likelihood(y)
    residual = covariance(factors, noise, observed) @ done.alpha[0] - y
    assert float(residual.norm() / y.norm()) == pytest.approx(solver.residual, rel=1e-3, abs=1e-12)
    assert solver.residual <= tolerance
    assert solver.converged


def test_whole_regions_missing_take_preconditioned_steps(normal: Draw) -> None:
    n = 40
    x = torch.linspace(0, 4, n, dtype=torch.float64)
    K = (-0.5 * (x.unsqueeze(-1) - x).square()).exp()
    observed = torch.ones(n, n, dtype=torch.bool)
    observed[n // 2 :, n // 3 :] = False
    noise, y = torch.tensor(1e-3, dtype=torch.float64), normal(int(observed.sum()))
    solver = Complement([K, K], noise, observed, Iterative(tolerance=1e-4))
    alpha = solver.solve(y.unsqueeze(0))[0]
    assert solver.steps > 50
    assert solver.converged
    assert (covariance([K, K], noise, observed) @ alpha - y).norm() <= 1.1e-4 * y.norm()


def test_not_converging_is_said(normal: Draw) -> None:
    factors, noise, observed, y = problem(normal)
    grid = LatentKronecker(observed, method="iterative", iterative=Iterative(tolerance=1e-12, max_steps=2))
    grid.log_likelihood(factors, y, noise)
    assert not LatentKronecker(observed, method="dense").report.steps
    assert grid.report.steps <= 50
    assert grid.report.converged == (grid.report.residual <= 1e-12)


def test_the_estimate_is_a_function(normal: Draw) -> None:
    factors, noise, observed, y = problem(normal)
    grid = LatentKronecker(observed, method="iterative")
    assert torch.equal(grid.log_likelihood(factors, y, noise), grid.log_likelihood(factors, y, noise))


@pytest.mark.parametrize("method", ["auto", "complement", "dense", "iterative"])
def test_complete_grids_are_exact_by_every_way(normal: Draw, method: str) -> None:
    factors, noise, observed, _ = problem(normal)
    observed, y = torch.ones_like(observed), normal(math.prod(SIZES))
    grid = LatentKronecker(observed, method=method)
    expected = dense_log_likelihood(factors, y, noise, observed)
    assert torch.allclose(grid.log_likelihood(factors, y, noise), expected, atol=1e-10)
    assert grid.report.standard_error == 0


@pytest.mark.parametrize("method", [*EXACT, "iterative"])
def test_single_precision_stays_single_and_close(normal: Draw, method: str) -> None:
    factors, noise, observed, y = problem(normal)
    inputs = [K.float().requires_grad_() for K in factors]
    grid = LatentKronecker(observed, method=method)
    value = grid.log_likelihood(inputs, y.float(), noise.float())
    value.backward()
    double = LatentKronecker(observed, method=method).log_likelihood(factors, y, noise)
    assert value.dtype == inputs[0].grad.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(double), rel=1e-4)


def test_the_cheapest_exact_way_is_taken_and_named() -> None:
    assert plan((10, 500), 5000).method == "eigenbasis"
    assert plan((10, 500), 4500).method == "complement"
    assert plan((10, 500), 500).method == "dense"
    found = plan((300, 300, 30), 1_000_000)
    assert found.method == "iterative"
    assert "would take" in found.reason
    assert plan((10, 500), 3500, "iterative").reason == "asked for"


@pytest.mark.parametrize("method", EXACT)
def test_a_singular_covariance_is_refused(normal: Draw, method: str) -> None:
    ones, zero = torch.ones(3, 3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    observed = torch.ones(3, 3, dtype=torch.bool)
    observed[0, 1] = False
    grid = LatentKronecker(observed, method=method)
    if method == "complement":
        with pytest.raises(NotPositiveDefiniteError):
            grid.log_likelihood([ones, ones], normal(8), zero)
    else:
        grid.log_likelihood([ones, ones], normal(8), zero)
        assert grid.report.jitter > 0  # and the report says so


def test_repeated_points_on_an_axis_are_right_with_noise(normal: Draw) -> None:
    factors, noise, observed, y = problem(normal)
    factors[1] = torch.ones(4, 4, dtype=torch.float64)
    expected = dense_log_likelihood(factors, y, noise, observed)
    for method in EXACT:
        value = LatentKronecker(observed, method=method).log_likelihood(factors, y, noise)
        assert torch.allclose(value, expected, atol=1e-9)


def test_what_does_not_fit_is_refused(normal: Draw) -> None:
    factors, noise, observed, y = problem(normal)
    grid = LatentKronecker(observed)
    with pytest.raises(ShapeError, match="at least one True"):
        LatentKronecker(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="observed cell"):
        grid.log_likelihood(factors, y[1:], noise)
    with pytest.raises(ShapeError, match=r"\(3, 4, 5\) rows"):
        grid.log_likelihood(factors[::-1], y, noise)
    with pytest.raises(InputError, match="'auto'"):
        LatentKronecker(observed, method="cg")
    with pytest.raises(InputError, match="complete grids"):
        LatentKronecker(observed, method="eigenbasis")
    with pytest.raises(NonFiniteError):
        grid.log_likelihood([K * float("nan") for K in factors], y, noise)


def test_conjugate_gradients_give_solutions_and_logarithms(normal: Draw) -> None:
    n = 12
    A = normal(n, n)
    A = A @ A.mT / n + torch.eye(n, dtype=torch.float64)
    b = normal(3, n)
    b /= b.norm(dim=1, keepdim=True)
    solved = conjugate_gradients(lambda T: T @ A, b, lambda r: r.norm(dim=1), tolerance=1e-12, max_steps=2 * n)
    assert torch.allclose(solved.x, torch.linalg.solve(A, b.mT).mT, atol=1e-10)
    values, Q = torch.linalg.eigh(A)
    logarithm = (Q * values.log()) @ Q.mT
    assert torch.allclose(log_quadrature(solved.quadrature, first=0), ((b @ logarithm) * b).sum(-1), atol=1e-8)


def test_rows_that_start_at_their_solution_stay_there(normal: Draw) -> None:
    b = torch.stack([torch.zeros(4, dtype=torch.float64), normal(4)])
    scale = torch.ones(2, dtype=torch.float64)
    solved = conjugate_gradients(lambda T: 2 * T, b, lambda r: r.norm(dim=1) / scale, tolerance=1e-9, max_steps=10)
    assert torch.allclose(solved.x, b / 2)
    assert solved.x.isfinite().all()
