"""Products with covariances, by every engine, against dense float64 matrices."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import (
    DifferentiationError,
    DtypeError,
    InputError,
    MissingPackageError,
    NonFiniteError,
    ShapeError,
    UnsupportedKernelError,
)
from gpmoe.kernels import FeatureKernel
from gpmoe.linalg import product_pass, product_plan
from gpmoe.linalg.covariance_product import covariance_product
from gpmoe.linalg.exponential import SCALES
from gpmoe.linalg.fused_product import fused_matrix
from gpmoe.linalg.product_plan import plan_product
from gpmoe.linalg.stationary import pack, product_terms
from gpmoe.linalg.tiles import leaf

Normal = Callable[..., Tensor]


def spectral(components: int, d: int) -> Kernel:
    kernel = SpectralMixtureKernel(num_mixtures=components, ard_num_dims=d)
    generator = torch.Generator().manual_seed(1)
    kernel.mixture_means = 0.5 * torch.rand(components, 1, d, generator=generator)
    kernel.mixture_scales = 0.05 + 0.3 * torch.rand(components, 1, d, generator=generator)
    kernel.mixture_weights = 0.2 + torch.rand(components, generator=generator)
    return kernel


KERNELS: dict[str, Callable[[], Kernel]] = {
    "RBF": lambda: ScaleKernel(RBFKernel(ard_num_dims=3)),
    "Matérn-1/2": lambda: MaternKernel(nu=0.5),
    "Matérn-3/2": lambda: MaternKernel(nu=1.5, active_dims=[2, 0]),
    "Matérn-5/2": lambda: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=3)),
    "rational quadratic": lambda: RQKernel(),
    "periodic": lambda: PeriodicKernel(),
    "spectral mixture": lambda: ScaleKernel(spectral(2, 3)),
    "sum of products": lambda: (
        ScaleKernel(RBFKernel()) + ScaleKernel(PeriodicKernel() * RQKernel() * MaternKernel(nu=0.5))
    ),
    "features": lambda: FeatureKernel(torch.nn.Linear(3, 2), RBFKernel()),
}


def dense(kernel: Kernel, X1: Tensor, X2: Tensor | None) -> Tensor:
    return kernel(X1, X1.clone() if X2 is None else X2).to_dense()


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("columns", [1, 3, 11])
@pytest.mark.parametrize("name", KERNELS)
def test_products_and_gradients_equal_the_dense_ones(name: str, columns: int, square: bool, normal: Normal) -> None:
    torch.manual_seed(0)
    kernel, X1 = KERNELS[name]().double(), normal(300, 3).requires_grad_()
    X2 = None if square else normal(270, 3).requires_grad_()
    V = normal(300 if square else 270, columns).requires_grad_()
    weights = normal(300, columns)
    wanted = [V, X1, *([] if X2 is None else [X2]), *kernel.parameters()]
    product = covariance_product(kernel, X1, X2, V, engine="fused")
    reference = dense(kernel, X1, X2) @ V
    # GPyTorch keeps squared distances above 1e-30, so that its Matérn-1/2 is right to 1e-15 only where points differ
    assert_close(product, reference, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad((product * weights).sum(), wanted)
    theirs = torch.autograd.grad((reference * weights).sum(), wanted)
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected, rtol=1e-6, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("engine", ["fused", "tiled"])
@pytest.mark.parametrize("square", [True, False])
def test_gradients_equal_finite_differences(engine: str, square: bool, normal: Normal) -> None:
    kernel = ScaleKernel(RBFKernel(ard_num_dims=2)).double()
    inputs = [normal(4, 2), normal(4 if square else 3, 2)]

    def product(x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        return covariance_product(kernel, x1, None if square else x2, v, engine=engine)

    assert torch.autograd.gradcheck(product, [x.requires_grad_() for x in (*inputs, normal(len(inputs[1]), 2))])


@pytest.mark.parametrize("family", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_values_are_within_four_ulp_of_the_value_at_their_distance(family: int, dtype: type) -> None:
    exact = np.longdouble
    for alpha in (0.3, 40.0, 1e6) if family == 4 else (1.0,):
        r2 = np.concatenate([np.linspace(0, 160, 20_001), np.geomspace(1e-12, 100, 5001)]).astype(dtype)
        if family == 5:  # of points on a circle
            r2 = np.linspace(0, 1.9, 5001).astype(dtype)
        k, r = r2.copy(), r2.astype(exact)
        leaf(family, dtype(alpha), SCALES[np.dtype(dtype)], len(k), k)
        s3, s5, a = np.sqrt(3 * r), np.sqrt(5 * r), exact(dtype(alpha))
        truth = [
            np.exp(-r / 2),
            np.exp(-np.sqrt(r)),
            (1 + s3) * np.exp(-s3),
            (1 + s5 + s5**2 / 3) * np.exp(-s5),
            np.exp(-a * np.log1p(r / (2 * a))),
            1 - r / 2,
        ][family]
        normal_numbers = truth > (1e-37 if dtype is np.float32 else 1e-300)
        ulp = np.abs(k - truth) / np.spacing(truth.astype(dtype))
        assert ulp[normal_numbers].max() <= 4.0
        assert np.all(k[~normal_numbers] < 2e-37)


@pytest.mark.parametrize(("columns", "most"), [(1, 1.1), (16, 1.1), (64, 2.0)])  # BLAS sums 128 entries in a row
def test_float32_sums_are_as_accurate_as_pairwise_ones(columns: int, most: float, normal: Normal) -> None:
    X, V, kernel = normal(3000, 3).float(), normal(3000, columns).float(), RBFKernel()
    with torch.no_grad():
        K = fused_matrix(pack(product_terms(kernel, X)))
        ours = covariance_product(kernel, X, None, V, engine="fused")
    truth, scale = K.double() @ V.double(), K.double() @ V.double().abs()
    pairwise = torch.stack([torch.from_numpy((K * V[:, q]).numpy().sum(1)) for q in range(columns)], -1)
    errors = [float(((x - truth) / scale).square().mean().sqrt()) for x in (ours.double(), pairwise.double())]
    assert errors[0] <= most * errors[1]


@pytest.mark.parametrize("name", KERNELS)
def test_float32_stays_float32_and_agrees_with_float64(name: str, normal: Normal) -> None:
    torch.manual_seed(0)
    kernel, X, V = KERNELS[name](), normal(200, 3), normal(200, 2)
    single = covariance_product(kernel, X.float(), None, V.float(), engine="fused")
    assert single.dtype == torch.float32
    double = covariance_product(kernel.double(), X.float().double(), None, V.float().double(), engine="fused")
    assert_close(single.double(), double, rtol=2e-5, atol=2e-5)


def test_angles_far_from_the_origin_are_reduced_without_loss(normal: Normal) -> None:
    X = (20_000.0 + 0.25 * torch.arange(400)).unsqueeze(-1)  # exact in float32, thousands of turns
    V = normal(400, 1)
    for kernel in (PeriodicKernel(), spectral(2, 1)):
        single = covariance_product(kernel, X, None, V.float(), engine="fused")
        truth = dense(kernel.double(), X.double() - 20_050.0, None) @ V
        assert_close(single.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("columns", [2, 9])
def test_results_do_not_depend_on_the_number_of_threads(square: bool, columns: int, normal: Normal) -> None:
    X, V, kernel = normal(900, 3).requires_grad_(), normal(900, columns), MaternKernel(nu=2.5).double()
    results, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        product = covariance_product(kernel, X, None if square else X.detach(), V, engine="fused")
        results.append([product, *torch.autograd.grad(product.square().sum(), [X, *kernel.parameters()])])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("blocks", range(1, 9))
def test_rounds_hold_every_pair_once_and_no_block_twice(blocks: int) -> None:
    halves, rectangle = product_pass.tournament(blocks), product_pass.rounds(blocks, 5)
    assert sorted(pair for pairs in halves for pair in pairs) == [(i, j) for i in range(blocks) for j in range(i)]
    assert sorted(pair for pairs in rectangle for pair in pairs) == [(i, j) for i in range(blocks) for j in range(5)]
    for pairs in halves:
        used = [block for pair in pairs for block in pair]
        assert len(used) == len(set(used))
    for pairs in rectangle:
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


@pytest.mark.parametrize("engine", ["auto", "dense", "fused", "tiled"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 1), (1, 5)])
def test_empty_and_single_rows(engine: str, n: int, m: int, normal: Normal) -> None:
    X1, X2, V, kernel = normal(n, 2), normal(m, 2), normal(m, 4), RBFKernel().double()
    wanted = torch.exp(-0.5 * torch.cdist(X1, X2) ** 2 / kernel.lengthscale.detach() ** 2) @ V
    assert_close(covariance_product(kernel, X1, X2, V, engine=engine).detach(), wanted)


@pytest.mark.parametrize("engine", ["dense", "fused", "tiled"])
def test_repeated_rows_give_equal_products_and_finite_gradients(engine: str, normal: Normal) -> None:
    X = normal(1, 2).expand(6, 2).clone().requires_grad_()
    kernel, v = MaternKernel(nu=0.5).double(), normal(6)
    product = covariance_product(kernel, X, None, v, engine=engine)
    assert_close(product, v.sum().expand(6))
    product.sum().backward()
    assert X.grad is not None
    assert bool(X.grad.isfinite().all())


@pytest.mark.parametrize("d", [1, 4, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_inputs_and_columns(d: int, dtype: torch.dtype, normal: Normal) -> None:
    X, V = (normal(600, d) / d**0.5).to(dtype), normal(600, 64).to(dtype)
    kernel = MaternKernel(nu=1.5).to(dtype)
    truth = dense(MaternKernel(nu=1.5).double(), X.double(), None) @ V.double()
    got = covariance_product(kernel, X, None, V, engine="fused")
    assert_close(got.double(), truth, rtol=1e-4, atol=2e-4 if dtype == torch.float32 else 1e-9)


def test_a_kernel_that_is_not_stationary_is_tiled_in_bounded_memory(normal: Normal) -> None:
    kernel = (ScaleKernel(LinearKernel()) + RBFKernel()).double()
    X, V = normal(3000, 2), normal(3000, 2)
    plan = plan_product(kernel, X, columns=2)
    assert plan.engine == "tiled"
    assert plan.memory < 50e6
    parts = sum(dense(part, X, None) @ V for part in kernel.kernels)
    assert_close(covariance_product(kernel, X, None, V), parts)


def test_dense_takes_batches_and_can_be_differentiated_twice(normal: Normal) -> None:
    kernel, X, V = RBFKernel().double(), normal(2, 5, 3).requires_grad_(), normal(2, 5, 1)
    assert_close(covariance_product(kernel, X, None, V), dense(kernel, X, None) @ V)
    one = X[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(
        covariance_product(kernel, one, None, V[0], engine="dense").sum(), one, create_graph=True
    )
    slope.sum().backward()
    assert one.grad is not None


@pytest.mark.parametrize("engine", ["fused", "tiled"])
def test_differentiating_twice_is_refused(engine: str, normal: Normal) -> None:
    X = normal(5, 2).requires_grad_()
    product = covariance_product(RBFKernel().double(), X, None, normal(5), engine=engine)
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(product.sum(), X, create_graph=True)


def test_inputs_that_do_not_fit_are_named(normal: Normal) -> None:
    kernel, X = RBFKernel().double(), normal(5, 2)
    with pytest.raises(ShapeError, match="`V`"):
        covariance_product(kernel, X, None, normal(4))
    with pytest.raises(ShapeError, match="`X2`"):
        covariance_product(kernel, X, normal(5, 3), normal(5))
    with pytest.raises(DtypeError, match="`V`"):
        covariance_product(kernel, X, None, normal(5).float())
    with pytest.raises(NonFiniteError, match="`X1`"):
        covariance_product(kernel, X / 0.0, None, normal(5))
    with pytest.raises(InputError, match="engine"):
        covariance_product(kernel, X, None, normal(5), engine="magic")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedKernelError, match="tiled"):
        covariance_product(LinearKernel().double(), X, None, normal(5), engine="fused")
    with pytest.raises(InputError, match="batch"):
        covariance_product(kernel, normal(2, 5, 2), None, normal(2, 5, 1), engine="fused")


def test_triton_needs_its_package_and_a_gpu(normal: Normal) -> None:
    with pytest.raises((MissingPackageError, InputError), match="triton"):
        covariance_product(RBFKernel().double(), normal(5, 2), None, normal(5), engine="triton")


def test_without_numba_products_are_tiled(monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    monkeypatch.setattr(product_plan, "AVAILABLE", False)
    kernel, X, v = RBFKernel().double(), normal(3000, 2), normal(3000)
    assert plan_product(kernel, X).engine == "tiled"
    with pytest.raises(MissingPackageError, match="numba"):
        covariance_product(kernel, X, None, v, engine="fused")
    assert_close(covariance_product(kernel, X, None, v), dense(kernel, X, None) @ v)


def test_the_plan_says_which_engine_and_why() -> None:
    plan = plan_product(RBFKernel(), torch.zeros(20_000, 3), columns=16)
    assert plan.engine == "fused"
    assert "tiled" in plan.reason
    assert "GB" in plan.reason
    assert "fused" in str(plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Matérn-5/2", "periodic"])
def test_keops_agrees_with_the_dense_product(name: str, normal: Normal, capfd: pytest.CaptureFixture[str]) -> None:
    kernel, X, V = KERNELS[name]().double(), normal(50, 3).requires_grad_(), normal(50, 1).requires_grad_()
    product = covariance_product(kernel, X, None, V, engine="keops")
    reference = dense(kernel, X, None) @ V
    assert_close(product, reference)
    wanted = [X, V, *kernel.parameters()]
    pairs = (torch.autograd.grad(result.square().sum(), wanted) for result in (product, reference))
    for got, expected in zip(*pairs, strict=True):
        assert_close(got, expected, rtol=1e-6, atol=1e-8)
