"""The exact likelihood and its gradient against a dense multivariate normal density and finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from gpytorch import kernels as gpk
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal
from torch.func import functional_call
from torch.testing import assert_close

from gpmoe.errors import NonFiniteError, NotPositiveDefiniteError
from gpmoe.kernels import FeatureKernel
from gpmoe.linalg import Workspace, gaussian_log_likelihood, pool, use_provider
from gpmoe.linalg.stationary import row_blocks

Normal = Callable[..., Tensor]


def seeded(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def spectral_mixture() -> Kernel:
    kernel = gpk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2)
    kernel.mixture_means = torch.tensor([[[0.1, 0.2]], [[0.5, 0.1]]])
    kernel.mixture_scales = torch.tensor([[[0.1, 0.3]], [[0.2, 0.1]]])
    return kernel


def rational_quadratic() -> Kernel:
    kernel = gpk.RQKernel(ard_num_dims=2)
    kernel.alpha = torch.tensor(0.6)
    return kernel


def network() -> torch.nn.Module:
    return seeded(lambda: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)))


FUSED: dict[str, Callable[[], Kernel]] = {
    "rbf": lambda: gpk.RBFKernel(ard_num_dims=2),
    "matern12": lambda: gpk.MaternKernel(nu=0.5, ard_num_dims=2),
    "matern32": lambda: gpk.MaternKernel(nu=1.5),
    "matern52": lambda: gpk.ScaleKernel(gpk.MaternKernel(nu=2.5, ard_num_dims=2)),
    "rq": rational_quadratic,
    "active dims": lambda: gpk.ScaleKernel(gpk.MaternKernel(nu=1.5, active_dims=(1,))),
    "periodic": lambda: gpk.PeriodicKernel(ard_num_dims=2),
    "sum": lambda: gpk.ScaleKernel(gpk.RBFKernel()) + gpk.ScaleKernel(rational_quadratic()),
    "product": lambda: gpk.RBFKernel(active_dims=(0,)) * gpk.MaternKernel(nu=0.5) * rational_quadratic(),
    "nested": lambda: gpk.ScaleKernel(
        (gpk.RBFKernel() + gpk.ScaleKernel(gpk.MaternKernel(nu=2.5, active_dims=(0,)))) * gpk.PeriodicKernel()
    ),
    "features": lambda: gpk.ScaleKernel(FeatureKernel(network(), gpk.MaternKernel(nu=2.5, ard_num_dims=2))),
}
BLOCKED: dict[str, Callable[[], Kernel]] = {
    "linear": lambda: gpk.LinearKernel(),
    "polynomial": lambda: gpk.PolynomialKernel(power=2),
    "cosine": lambda: gpk.CosineKernel(active_dims=(1,)),
    "spectral mixture": spectral_mixture,
    "generic features": lambda: FeatureKernel(network(), gpk.LinearKernel()),
    "generic sum": lambda: gpk.ScaleKernel(gpk.LinearKernel() + gpk.RBFKernel(active_dims=(0,))),
}
KERNELS = FUSED | BLOCKED


LEAVES = (gpk.RBFKernel, gpk.MaternKernel, gpk.RQKernel, gpk.PeriodicKernel)
STRUCTURE = (gpk.AdditiveKernel, gpk.ProductKernel, FeatureKernel)


@pytest.fixture(params=["torch", "scipy"])
def library(request: pytest.FixtureRequest) -> str:
    with use_provider(request.param):
        yield request.param


def with_gradients(value: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The value, and its gradient for each tensor, zero where it has none."""
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True))]


def naive(kernel: Kernel, X: Tensor) -> Tensor:
    """K(X, X) from differences of inputs: GPyTorch's distances come from squares, and lose half their digits near 0."""
    if isinstance(kernel, gpk.ScaleKernel):
        return kernel.outputscale * naive(kernel.base_kernel, X)
    if not isinstance(kernel, LEAVES + STRUCTURE):
        return kernel(X).to_dense()
    X = X if kernel.active_dims is None else X[:, kernel.active_dims]
    if isinstance(kernel, gpk.AdditiveKernel):
        return sum(naive(part, X) for part in kernel.kernels)
    if isinstance(kernel, gpk.ProductKernel):
        return math.prod(naive(part, X) for part in kernel.kernels)
    if isinstance(kernel, FeatureKernel):
        return naive(kernel.base_kernel, kernel.feature_map(X))
    difference = X[:, None] - X
    if isinstance(kernel, gpk.PeriodicKernel):
        return (-2 * ((math.pi * difference / kernel.period_length).sin() ** 2 / kernel.lengthscale).sum(-1)).exp()
    r2 = (difference / kernel.lengthscale).square().sum(-1)
    if isinstance(kernel, gpk.RBFKernel):
        return (-0.5 * r2).exp()
    if isinstance(kernel, gpk.RQKernel):
        return (1 + r2 / (2 * kernel.alpha)) ** -kernel.alpha
    s = math.sqrt(2 * kernel.nu) * torch.where(r2 > 0, r2, 1).sqrt() * (r2 > 0)
    polynomial = {0.5: 1, 1.5: 1 + s, 2.5: 1 + s + s**2 / 3}[kernel.nu]
    return polynomial * (-s).exp()


def dense(kernel: Kernel, X: Tensor, residual: Tensor, noise: Tensor) -> Tensor:
    """The density by torch.distributions, with autograd through the Cholesky factor."""
    C = naive(kernel, X) + torch.diag_embed(noise)
    return MultivariateNormal(torch.zeros_like(residual), C).log_prob(residual)


def assert_equals_dense(make: Callable[[], Kernel], X: Tensor, residual: Tensor, noise: Tensor) -> None:
    kernel = make().double()
    inputs = [tensor.clone().requires_grad_() for tensor in (residual, noise)]
    wanted_for = [*kernel.parameters(), *inputs]
    got = with_gradients(gaussian_log_likelihood(kernel, X, *inputs), wanted_for)
    wanted = with_gradients(dense(kernel, X, *inputs), wanted_for)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-10 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_value_and_gradient_equal_the_dense_density(name: str, n: int, library: str, normal: Normal) -> None:
    assert_equals_dense(KERNELS[name], normal(n, 2), normal(n), 0.1 + normal(n).square())


@pytest.mark.parametrize("n", [15, 16, 511, 513, 600])
def test_ragged_ends_of_blocks_lose_nothing(n: int, normal: Normal) -> None:
    assert_equals_dense(FUSED["nested"], normal(n, 2), normal(n), 0.1 + normal(n).square())


@pytest.mark.parametrize("name", ["linear", "generic features"])
def test_several_row_blocks_equal_the_dense_density(name: str, normal: Normal) -> None:
    n = 530  # blocks of 494 and 36 rows
    assert len(row_blocks(n, n, symmetric=True)) == 3
    assert_equals_dense(BLOCKED[name], normal(n, 2), normal(n), 0.1 + normal(n).square())


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_for_parameters_inputs_residual_and_noise_pass_gradcheck(name: str, normal: Normal) -> None:
    kernel = KERNELS[name]().double()
    parameters = dict(kernel.named_parameters())

    class Likelihood(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self, X: Tensor, residual: Tensor, log_noise: Tensor) -> Tensor:
            return gaussian_log_likelihood(self.kernel, X, residual, log_noise.exp())

    def value(X: Tensor, residual: Tensor, log_noise: Tensor, *values: Tensor) -> Tensor:
        named = {f"kernel.{name}": value for name, value in zip(parameters, values, strict=True)}
        return functional_call(Likelihood(), named, (X, residual, log_noise))

    tensors = (normal(6, 2), normal(6), normal(6), *parameters.values())
    assert gradcheck(value, [tensor.detach().clone().requires_grad_() for tensor in tensors])


def test_gradient_of_a_scaled_sum_of_likelihoods_is_scaled(normal: Normal) -> None:
    X, y, noise, kernel = normal(5, 2), normal(5), torch.full((5,), 0.3).double(), FUSED["matern52"]().double()
    parameters = list(kernel.parameters())
    once = torch.autograd.grad(gaussian_log_likelihood(kernel, X, y, noise), parameters)
    value = 3 * gaussian_log_likelihood(kernel, X, y, noise) - 0.5 * gaussian_log_likelihood(kernel, X, y, noise)
    for one, other in zip(torch.autograd.grad(value, parameters), once, strict=True):
        assert_close(one, 2.5 * other, rtol=1e-12, atol=1e-12)


def test_values_in_one_workspace_keep_their_own_gradients(normal: Normal) -> None:
    X, noise, kernel, workspace = normal(8, 2), torch.full((8,), 0.3).double(), FUSED["rq"]().double(), Workspace()
    parameters, targets = list(kernel.parameters()), normal(2, 8)
    shared = [gaussian_log_likelihood(kernel, X, y, noise, workspace=workspace) for y in targets]
    for value, y in zip(shared, targets, strict=True):
        alone = with_gradients(gaussian_log_likelihood(kernel, X, y, noise), parameters)
        for one, other in zip(with_gradients(value, parameters), alone, strict=True):
            assert torch.equal(one, other)


def test_differentiating_twice_is_refused(normal: Normal) -> None:
    kernel, X, y, noise = FUSED["rbf"]().double(), normal(4, 2), normal(4), torch.ones(4).double()

    def second_derivative() -> None:
        value = gaussian_log_likelihood(kernel, X, y, noise)
        (gradient,) = torch.autograd.grad(value, kernel.raw_lengthscale, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError, match="differentiat"):
        second_derivative()


@pytest.mark.parametrize("name", ["matern52", "nested", "linear"])
def test_a_batch_equals_a_loop(name: str, normal: Normal) -> None:
    X, y, noise, kernel = normal(3, 7, 2), normal(3, 7), 0.1 + normal(3, 7).square(), KERNELS[name]().double()
    parameters = list(kernel.parameters())
    batch = gaussian_log_likelihood(kernel, X, y, noise)
    loop = torch.stack([gaussian_log_likelihood(kernel, *one) for one in zip(X, y, noise, strict=True)])
    assert_close(batch, loop, rtol=1e-10, atol=1e-10)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    pairs = zip(with_gradients(weights @ batch, parameters), with_gradients(weights @ loop, parameters), strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shapes", [((5, 2), (3, 5), (5,)), ((3, 5, 2), (5,), (3, 5)), ((2, 1, 5, 2), (3, 5), (5,))])
def test_gradients_of_broadcast_batches_pass_gradcheck(shapes: tuple[tuple[int, ...], ...], normal: Normal) -> None:
    X, y, log_noise = (normal(*shape).requires_grad_() for shape in shapes)
    kernel = gpk.ScaleKernel(gpk.RBFKernel()).double()

    def value(X: Tensor, y: Tensor, log_noise: Tensor) -> Tensor:
        return gaussian_log_likelihood(kernel, X, y, log_noise.exp())

    assert value(X, y, log_noise).shape == torch.broadcast_shapes(X.shape[:-2], y.shape[:-1])
    assert gradcheck(value, [X, y, log_noise])


def test_a_batch_of_kernels_equals_a_loop(normal: Normal) -> None:
    X, y, noise = normal(7, 2), normal(7), torch.full((7,), 0.2).double()
    kernel = gpk.RBFKernel(batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.5]], [[2.0]]])
    got = gaussian_log_likelihood(kernel, X, y.expand(2, 7), noise.expand(2, 7))
    assert_close(got, torch.stack([dense(kernel[i], X, y, noise) for i in range(2)]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["matern52", "features", "linear"])
def test_float32_stays_float32_and_is_close(name: str, library: str, normal: Normal) -> None:
    X, y, noise = normal(15, 2), normal(15), torch.full((15,), 0.3).double()
    kernel = KERNELS[name]().double()
    wanted = with_gradients(gaussian_log_likelihood(kernel, X, y, noise), list(kernel.parameters()))
    single = KERNELS[name]().float()
    value = gaussian_log_likelihood(single, X.float(), y.float(), noise.float())
    for one, other in zip(with_gradients(value, list(single.parameters())), wanted, strict=True):
        assert one.dtype == torch.float32
        assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [100, 600])
def test_one_and_two_threads_of_the_fused_pass_give_the_same_bits(
    n: int, normal: Normal, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, noise, kernel = normal(n, 2), normal(n), torch.full((n,), 0.3).double(), FUSED["nested"]().double()
    monkeypatch.setattr(pool, "_SERIAL", 0)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with use_provider("scipy"):
                results.append(with_gradients(gaussian_log_likelihood(kernel, X, y, noise), list(kernel.parameters())))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_one_point_has_the_normal_density(normal: Normal) -> None:
    kernel = gpk.ScaleKernel(gpk.MaternKernel()).double()
    kernel.outputscale = 2.0
    y, noise = torch.tensor([1.5], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    wanted = -0.5 * (1.5**2 / 2.5 + math.log(2 * math.pi * 2.5))
    assert gaussian_log_likelihood(kernel, normal(1, 3), y, noise).item() == pytest.approx(wanted, abs=1e-12)


def test_matern_half_equals_the_density_of_a_markov_chain(normal: Normal) -> None:
    t = normal(40).sort().values
    y, kernel = normal(40), gpk.MaternKernel(nu=0.5).double()
    got = gaussian_log_likelihood(kernel, t.unsqueeze(-1), y, torch.zeros(40).double())
    a = torch.exp(-t.diff() / kernel.lengthscale.squeeze())  # y_i | y_{i-1} ~ N(a y_{i-1}, 1 - a²)
    steps = torch.distributions.Normal(a * y[:-1], (1 - a**2).sqrt()).log_prob(y[1:]).sum()
    assert_close(got, steps - 0.5 * (y[0] ** 2 + math.log(2 * math.pi)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["rbf", "linear"])
def test_jitter_for_duplicates_without_noise_is_reported_and_what_was_used(
    name: str, library: str, normal: Normal
) -> None:
    X, y, kernel, workspace = normal(6, 2).repeat(3, 1), 1e-4 * normal(18), KERNELS[name]().double(), Workspace()
    value = gaussian_log_likelihood(kernel, X, y, torch.zeros(18).double(), workspace=workspace)
    assert 0 < workspace.jitter <= 1e-6 * float(kernel(X).to_dense().diagonal().mean().detach())
    wanted = dense(kernel, X, y, torch.full((18,), workspace.jitter, dtype=torch.float64))
    assert_close(value, wanted, rtol=1e-4, atol=1e-4)  # a condition number of 1e11
    gaussian_log_likelihood(kernel, X, y, torch.ones(18).double(), workspace=workspace)
    assert workspace.jitter == 0


def test_a_negative_variance_is_refused_with_causes(library: str, normal: Normal) -> None:
    for kernel in (FUSED["matern52"](), BLOCKED["linear"]()):
        with pytest.raises(NotPositiveDefiniteError, match=r"(?s)\(5, 5\).*Usual causes.*noise variance near zero"):
            gaussian_log_likelihood(kernel.double(), normal(5, 2), normal(5), torch.full((5,), -9.0).double())


@pytest.mark.parametrize("name", ["rbf", "matern52", "rq", "linear", "spectral mixture"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_gives_an_error_and_no_number(
    name: str, value: float, library: str, normal: Normal
) -> None:
    kernel = gpk.ScaleKernel(KERNELS[name]()).double()
    kernel.raw_outputscale.data.fill_(value)
    with pytest.raises(NonFiniteError, match="hyperparameter that left its range"):
        gaussian_log_likelihood(kernel, normal(5, 2), normal(5), torch.ones(5).double())


@pytest.mark.parametrize("name", ["rbf", "matern12", "matern52", "rq"])
def test_a_lengthscale_of_nan_gives_an_error_and_no_number(name: str, library: str, normal: Normal) -> None:
    kernel = FUSED[name]().double()
    for parameter in kernel.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="hyperparameter that left its range"):
        gaussian_log_likelihood(kernel, normal(5, 2), normal(5), torch.ones(5).double())


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1e8, 1e100])
def test_huge_and_tiny_targets_shift_the_log_density_by_their_scale(scale: float, library: str, normal: Normal) -> None:
    X, y, noise = normal(9, 1), normal(9), torch.full((9,), 0.1).double()
    kernel = gpk.MaternKernel().double()
    weight = gpk.ConstantKernel(constant_constraint=None).double()
    weight.constant = torch.tensor(scale**2, dtype=torch.float64)
    got = gaussian_log_likelihood(kernel * weight, X, scale * y, scale**2 * noise)
    wanted = gaussian_log_likelihood(kernel, X, y, noise) - 9 * math.log(scale)
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
