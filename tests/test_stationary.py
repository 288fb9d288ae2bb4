"""Covariances of the fused pass and of row blocks against formulas written out as double loops."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch import kernels as gpk
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.testing import assert_close

from gpmoe.kernels import FeatureKernel
from gpmoe.linalg import fused, pool
from gpmoe.linalg.stationary import fill_covariance, pack, row_blocks, stationary_terms
from gpmoe.models import ExactGP

Normal = Callable[..., Tensor]
Formula = Callable[[Tensor, Tensor], float]

LENGTHS = [0.5, 1.3, 2.0]


def of(kernel: Kernel, **values: float | list[float]) -> Kernel:
    """A kernel in float64 with these parameters; a plain number would be rounded to float32 on its way."""
    kernel = kernel.double()
    for name, value in values.items():
        setattr(kernel, name, torch.as_tensor(value, dtype=torch.float64))
    return kernel


def matern(nu: float) -> Kernel:
    return of(gpk.MaternKernel(nu=nu, ard_num_dims=3), lengthscale=LENGTHS)


def distance(x: Tensor, y: Tensor) -> float:
    return math.sqrt(sum(((a - b) / length) ** 2 for a, b, length in zip(x.tolist(), y.tolist(), LENGTHS, strict=True)))


def rbf(dims: tuple[int, ...] | None = None) -> Kernel:
    return of(gpk.RBFKernel(active_dims=dims), lengthscale=0.8)


def squares(x: Tensor, y: Tensor, *dims: int) -> float:
    return sum((x[d].item() - y[d].item()) ** 2 for d in dims)


def rational_quadratic(alpha: float) -> Kernel:
    return of(gpk.RQKernel(ard_num_dims=3), lengthscale=LENGTHS, alpha=alpha)


def periodic(dims: tuple[int, ...] | None = None) -> Kernel:
    return of(gpk.PeriodicKernel(active_dims=dims), period_length=1.7, lengthscale=0.6)


def periodic_formula(x: Tensor, y: Tensor, *dims: int) -> float:
    return math.exp(-2 / 0.6 * sum(math.sin(math.pi * (x[d] - y[d]).item() / 1.7) ** 2 for d in dims))


def scaled(kernel: Kernel, outputscale: float) -> Kernel:
    return of(gpk.ScaleKernel(kernel), outputscale=outputscale)


def nested() -> Kernel:
    """1.5 (k0 + 2 m12 p1) m, where the factor p1 sees one input."""
    inner = scaled(matern(0.5) * periodic((1,)), 2.0)
    return scaled((rbf((0,)) + inner) * matern(2.5), 1.5)


def nested_formula(x: Tensor, y: Tensor) -> float:
    r = distance(x, y)
    first = math.exp(-0.5 * squares(x, y, 0) / 0.64)
    second = 2.0 * math.exp(-r) * periodic_formula(x, y, 1)
    return 1.5 * (first + second) * (1 + math.sqrt(5) * r + 5 * r**2 / 3) * math.exp(-math.sqrt(5) * r)


def matern32(x: Tensor, y: Tensor) -> float:
    s = math.sqrt(3) * distance(x, y)
    return (1 + s) * math.exp(-s)


def matern52(x: Tensor, y: Tensor) -> float:
    s = math.sqrt(5) * distance(x, y)
    return (1 + s + s**2 / 3) * math.exp(-s)


CASES: dict[str, tuple[Callable[[], Kernel], Formula]] = {
    "rbf": (rbf, lambda x, y: math.exp(-0.5 * squares(x, y, 0, 1, 2) / 0.64)),
    "active dims": (lambda: rbf((2, 0)), lambda x, y: math.exp(-0.5 * squares(x, y, 0, 2) / 0.64)),
    "matern 1/2": (lambda: matern(0.5), lambda x, y: math.exp(-distance(x, y))),
    "matern 3/2": (lambda: matern(1.5), matern32),
    "matern 5/2": (lambda: matern(2.5), matern52),
    "rq": (lambda: rational_quadratic(0.7), lambda x, y: (1 + distance(x, y) ** 2 / 1.4) ** -0.7),
    "periodic": (periodic, lambda x, y: periodic_formula(x, y, 0, 1, 2)),
    "scaled": (lambda: scaled(scaled(matern(0.5), 3.0), 0.5), lambda x, y: 1.5 * math.exp(-distance(x, y))),
    "scaled, active dims": (
        lambda: scaled(rbf((1,)), 0.7),
        lambda x, y: 0.7 * math.exp(-0.5 * squares(x, y, 1) / 0.64),
    ),
    "product of rbf": (
        lambda: scaled(rbf((0,)), 2.0) * rbf((0, 1)),
        lambda x, y: 2 * math.exp(-0.5 * (2 * squares(x, y, 0) + squares(x, y, 1)) / 0.64),
    ),
    "nested": (nested, nested_formula),
}


def double_loop(formula: Formula, X1: Tensor, X2: Tensor) -> Tensor:
    return torch.tensor([[formula(x1, x2) for x2 in X2] for x1 in X1], dtype=torch.float64)


def filled(kernel: Kernel, X1: Tensor, X2: Tensor | None = None) -> Tensor:
    """What `fill_covariance` writes, whole."""
    out = torch.full((len(X1), len(X1 if X2 is None else X2)), torch.nan, dtype=X1.dtype)
    fill_covariance(kernel, X1, X2, out)
    return out if X2 is not None else out.tril() + out.tril(-1).mT


@pytest.mark.parametrize("case", CASES)
def test_fused_covariance_equals_the_formula_in_a_double_loop(case: str, normal: Normal) -> None:
    (make, formula), X1, X2 = CASES[case], normal(9, 3), normal(5, 3)
    assert stationary_terms(make(), X1) is not None
    assert_close(filled(make(), X1, X2), double_loop(formula, X1, X2), rtol=1e-10, atol=1e-10)
    assert_close(filled(make(), X1), double_loop(formula, X1, X1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 511, 512, 513, 600])
@pytest.mark.parametrize("m", [1, 513])
def test_ragged_ends_of_fused_blocks_are_filled(n: int, m: int, normal: Normal) -> None:
    X1, X2, kernel = normal(n, 3), normal(m, 3), scaled(matern(2.5) + matern(0.5) * rbf(), 1.3)
    with torch.no_grad():
        assert_close(filled(kernel, X1, X2), kernel(X1, X2).to_dense(), rtol=1e-10, atol=1e-10)
        assert_close(filled(kernel, X1), kernel(X1).to_dense(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_odd_and_even_numbers_of_inputs(d: int, normal: Normal) -> None:
    X1, X2 = normal(6, d), normal(4, d)
    wanted = torch.exp(-0.5 * (X1[:, None] - X2).square().sum(-1) / 0.64)
    assert_close(filled(rbf(), X1, X2), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "family", [fused.RBF, fused.MATERN12, fused.MATERN32, fused.MATERN52, fused.RATIONAL_QUADRATIC]
)
def test_slopes_of_each_family_equal_finite_differences(family: int) -> None:
    r2, step, alpha = np.linspace(0.1, 9.0, 50), 1e-6, 0.7
    k, slope, shape_slope, up, down = (np.empty(50) for _ in range(5))
    fused.leaf_and_slope(family, alpha, r2, 50, k, slope, shape_slope)
    fused._leaf(family, alpha, r2 + step, 50, up)
    fused._leaf(family, alpha, r2 - step, 50, down)
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-7, atol=1e-9)
    fused._leaf(family, alpha, r2, 50, up)
    np.testing.assert_allclose(k, up, rtol=1e-15)


def test_exponential_is_exact_to_two_ulps_over_its_range() -> None:
    x = -np.concatenate([np.linspace(0, 1, 1000), np.geomspace(1e-300, 707, 1000)])
    np.testing.assert_allclose([fused._exp(value) for value in x], np.exp(x), rtol=4.5e-16)
    assert 0.0 <= fused._exp(-1e300) < 1e-307


def test_inputs_far_from_the_origin_lose_no_more_than_their_own_rounding(normal: Normal) -> None:
    X = normal(12, 3)
    assert_close(filled(matern(2.5), X + 1e6), filled(matern(2.5), (X + 1e6) - 1e6), rtol=1e-12, atol=1e-12)


def test_repeated_rows_have_covariance_one(normal: Normal) -> None:
    X = normal(4, 3)
    for nu in (0.5, 1.5, 2.5):
        K = filled(matern(nu), torch.cat([X, X]))
        assert_close(K[:4, 4:].diagonal(), torch.ones(4, dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("n", [17, 513])
def test_one_and_two_threads_give_the_same_bits(n: int, normal: Normal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_SERIAL", 0)
    kernel, X, a = nested(), normal(n, 3), normal(n)
    packed = pack(stationary_terms(kernel, X) or [])
    W = filled(kernel, X).numpy()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            gradients = fused.gradient(a.numpy(), W, packed.Z1.detach().numpy(), packed.arrays())
            results.append([filled(kernel, X).numpy(), *gradients])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_fused_pass_leaves_other_kernels_dtypes_and_batches_alone(normal: Normal) -> None:
    class Warped(gpk.RBFKernel):
        """Not its parent: `forward` may differ."""

    X = normal(4, 3)
    batched = gpk.RBFKernel(batch_shape=torch.Size([2]))
    for kernel in (Warped(), gpk.LinearKernel(), rbf() + gpk.LinearKernel(), rbf() * Warped(), batched):
        assert stationary_terms(kernel.double(), X) is None
    assert stationary_terms(rbf().float(), X.float()) is None
    assert stationary_terms(rbf(), X.unsqueeze(0)) is None


def generic() -> dict[str, Kernel]:
    mixture = gpk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=3).double()
    mixture.mixture_means = torch.tensor([[[0.1, 0.2, 0.3]], [[0.5, 0.1, 0.2]]])
    warped = FeatureKernel(torch.nn.Linear(3, 2), gpk.LinearKernel())
    kernels = [gpk.LinearKernel(), gpk.PolynomialKernel(power=2), gpk.CosineKernel(), mixture, warped]
    sums = [gpk.ScaleKernel(gpk.LinearKernel() + gpk.RBFKernel(active_dims=(1,)))]
    return {type(kernel).__name__: kernel.double() for kernel in kernels + sums}


@pytest.mark.parametrize("name", generic())
@pytest.mark.parametrize("n", [1, 2, 33, 600])
def test_row_blocks_of_generic_kernels_equal_the_whole_matrix(name: str, n: int, normal: Normal) -> None:
    X1, X2, kernel = normal(n, 3), normal(600, 3), generic()[name]
    with torch.no_grad():
        assert_close(filled(kernel, X1, X2), kernel(X1, X2).to_dense(), rtol=1e-10, atol=1e-10)
        assert_close(filled(kernel, X1), kernel(X1).to_dense(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 600, 9000])
def test_row_blocks_cover_the_lower_triangle_once(n: int) -> None:
    blocks = row_blocks(n, n, symmetric=True)
    area = sum(
        (rows.stop - rows.start) * (columns.stop - columns.start + on_diagonal) / 2 * (1 if on_diagonal else 2)
        for rows, columns, on_diagonal in blocks
    )
    assert area == n * (n + 1) / 2
    assert all(rows == columns for rows, columns, on_diagonal in blocks if on_diagonal)
    assert all(columns.stop == rows.start for rows, columns, on_diagonal in blocks if not on_diagonal)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (600, 600), (100, 2**19)])
def test_row_blocks_of_a_rectangle_cover_each_row_once(n: int, m: int) -> None:
    blocks = row_blocks(n, m, symmetric=False)
    assert [row for rows, _, _ in blocks for row in range(rows.start, rows.stop)] == list(range(n))
    assert all(columns == slice(0, m) for _, columns, _ in blocks)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import torch
from gpmoe.models import ExactGP
X = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(-1)
gp = ExactGP(X, X.sin().squeeze(-1))
value = gp.log_marginal_likelihood()
value.backward()
print(float(value), *(float(p.grad.sum()) for p in gp.parameters()))
"""


def test_without_numba_kernels_are_computed_by_gpytorch() -> None:
    X = torch.linspace(-2, 2, 30, dtype=torch.float64).unsqueeze(-1)
    gp = ExactGP(X, X.sin().squeeze(-1))
    value = gp.log_marginal_likelihood()
    value.backward()
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True)
    got = np.array(done.stdout.splitlines()[-1].split(), dtype=float)
    wanted = [float(value.detach()), *(float(p.grad.sum()) for p in gp.parameters())]
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-10)
