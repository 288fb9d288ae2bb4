"""The sparse Gaussian process against dense algebra, the exact process, and automatic differentiation."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf
from gpytorch import kernels as gpk
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean, ZeroMean
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from gpmoe.errors import DifferentiationError, DtypeError, InputError, NonFiniteError, ShapeError
from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit import fit
from gpmoe.kernels import FeatureKernel
from gpmoe.linalg import use_provider
from gpmoe.linalg.collapsed_bound import collapsed_bound
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.inducing_factor import NUGGET, inducing_factor
from gpmoe.models import ExactGP
from gpmoe.models.sparse_gp import SparseGP

Normal = Callable[..., Tensor]
Table = tuple[Tensor, Tensor]

KERNELS: dict[str, Callable[[], Kernel]] = {
    "matern52, ard": lambda: gpk.ScaleKernel(gpk.MaternKernel(nu=2.5, ard_num_dims=2)),
    "matern12": lambda: gpk.MaternKernel(nu=0.5),
    "rbf + rq": lambda: gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,)) + gpk.RQKernel(ard_num_dims=2)),
    "matern32 * periodic": lambda: gpk.ScaleKernel(gpk.MaternKernel(nu=1.5) * gpk.PeriodicKernel()),
    "linear + rbf": lambda: gpk.LinearKernel() + gpk.RBFKernel(),
    "features": lambda: FeatureKernel(torch.nn.Linear(2, 3), gpk.ScaleKernel(gpk.RBFKernel())),
}
each_kernel = pytest.mark.parametrize("name", KERNELS)


def dense_parts(kernel: Kernel, X: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
    """K(Z, X) and the covariance of the inducing points with its nugget."""
    K_zz = kernel(Z).to_dense()
    nugget = NUGGET[Z.dtype] * K_zz.detach().diagonal().mean()
    return kernel(Z, X).to_dense(), K_zz + nugget * torch.eye(len(Z)).to(Z)


def dense_bound(kernel: Kernel, X: Tensor, Z: Tensor, residual: Tensor, noise: Tensor) -> Tensor:
    """Titsias (2009), eq. 9, as it stands."""
    K_zx, K_zz = dense_parts(kernel, X, Z)
    Q = K_zx.mT @ torch.linalg.solve(K_zz, K_zx)
    density = MultivariateNormal(torch.zeros_like(residual), 0.5 * (Q + Q.mT) + noise.diag()).log_prob(residual)
    return density - 0.5 * ((kernel(X, diag=True) - Q.diagonal()) / noise).sum()


def dense_posterior(gp: SparseGP, X_new: Tensor) -> tuple[Tensor, Tensor]:
    """Titsias (2009), eq. 6 and 10."""
    Z, noise = gp.inducing_points, gp.noise()
    K_zx, K_zz = dense_parts(gp.covar_module, gp.X, Z)
    K_zn = dense_parts(gp.covar_module, X_new, Z)[0]
    middle = K_zz + (K_zx / noise) @ K_zx.mT
    weights = torch.linalg.solve(middle, (K_zx / noise) @ (gp.y - gp.mean_module(gp.X)))
    explained = K_zn.mT @ (torch.linalg.solve(K_zz, K_zn) - torch.linalg.solve(middle, K_zn))
    return gp.mean_module(X_new) + K_zn.mT @ weights, gp.covar_module(X_new).to_dense() - explained


@pytest.fixture(params=["torch", "scipy"])
def library(request: pytest.FixtureRequest) -> str:
    with use_provider(request.param):
        yield request.param


def example(normal: Normal, name: str = "matern52, ard", dtype: torch.dtype = torch.float64, n: int = 20) -> tuple:
    """A kernel, n inputs, 6 inducing points or fewer, residuals and noise variances that differ."""
    torch.manual_seed(0)  # for the feature map's weights
    kernel = KERNELS[name]().to(dtype)
    tensors = normal(n, 2), normal(min(n, 6), 2), normal(n), 0.1 + 0.1 * normal(n).abs()
    return kernel, *(tensor.to(dtype).requires_grad_() for tensor in tensors)


# The covariance of two sets, and the factor.


@each_kernel
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7)], ids=str)
def test_the_cross_covariance_and_its_gradient_are_the_kernels(name: str, shape, normal: Normal) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[name]().double()
    X1, X2, W = normal(shape[0], 2).requires_grad_(), normal(shape[1], 2).requires_grad_(), normal(*shape)
    wanted = [X1, X2, *kernel.parameters()]
    pairs = cross_covariance(kernel, X1, X2), kernel(X1, X2).to_dense()
    assert_close(*pairs, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(K, wanted, W) for K in pairs)
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_cross_covariance_of_no_points_is_empty(normal: Normal) -> None:
    kernel = KERNELS["matern52, ard"]().double()
    assert cross_covariance(kernel, normal(0, 2), normal(3, 2)).shape == (0, 3)
    assert cross_covariance(kernel, normal(3, 2), normal(0, 2)).shape == (3, 0)


@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
def test_the_factor_and_its_gradient_are_those_of_cholesky(batch, library: str, normal: Normal) -> None:
    kernel, Z = gpk.MaternKernel().double(), normal(*batch, 5, 2).requires_grad_()
    L, jitter = inducing_factor(kernel, Z)
    C = kernel(Z).to_dense() + 1e-10 * torch.eye(5, dtype=torch.float64)
    assert jitter == 0
    W = normal(*batch, 5, 5)
    assert_close(L, torch.linalg.cholesky(C), rtol=1e-12, atol=1e-12)
    (got,), (wanted,) = torch.autograd.grad(L, Z, W), torch.autograd.grad(torch.linalg.cholesky(C), Z, W)
    assert_close(got, wanted, rtol=1e-8, atol=1e-8)


# The bound.


@each_kernel
def test_the_bound_and_its_gradient_are_the_dense_ones(name: str, library: str, normal: Normal) -> None:
    kernel, *tensors = example(normal, name)
    got, wanted = collapsed_bound(kernel, *tensors), dense_bound(kernel, *tensors)
    tolerance = 1e-8 if name == "matern12" else 1e-10  # GPyTorch's distances have half the digits
    assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    parameters = [*tensors, *kernel.parameters()]
    pairs = zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_the_gradient_is_that_of_finite_differences(normal: Normal) -> None:
    kernel, *tensors = example(normal, n=3)
    assert torch.autograd.gradcheck(lambda *given: collapsed_bound(kernel, *given), tensors, atol=1e-4, rtol=1e-4)


def test_in_float32_the_bound_and_its_gradient_are_near(normal: Normal) -> None:
    kernel, *tensors = example(normal, dtype=torch.float32)
    got, wanted = collapsed_bound(kernel, *tensors), dense_bound(kernel, *tensors)
    assert got.dtype == torch.float32
    assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    pairs = zip(torch.autograd.grad(got, tensors), torch.autograd.grad(wanted, tensors), strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["matern52, ard", "linear + rbf"])
def test_one_block_of_rows_and_many_give_the_same(name: str, normal: Normal, monkeypatch) -> None:
    kernel, *tensors = example(normal, name)
    whole = collapsed_bound(kernel, *tensors)
    wanted = torch.autograd.grad(whole, tensors)
    monkeypatch.setattr("gpmoe.linalg.collapsed_bound._BLOCK", 1)  # blocks of p rows
    parts = collapsed_bound(kernel, *tensors)
    assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(parts, tensors), wanted, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_second_derivative_is_refused(normal: Normal) -> None:
    kernel, *tensors = example(normal)
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(collapsed_bound(kernel, *tensors), tensors, create_graph=True)


@each_kernel
@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1.0])
def test_the_bound_stays_below_the_evidence_and_grows_with_points(name: str, noise: float, table: Table) -> None:
    torch.manual_seed(0)
    X, y = table
    kernel = KERNELS[name]().double()
    evidence = ExactGP(X, y, kernel=kernel, mean=ZeroMean(), noise=noise).log_marginal_likelihood().item()
    bounds = [SparseGP(X, y, X[:p], kernel=kernel, mean=ZeroMean(), noise=noise).elbo().item() for p in (1, 5, 10, 20)]
    slack = 1e-9 * max(1.0, abs(bounds[0]))  # rounding
    assert all(low <= high + slack for low, high in zip(bounds, [*bounds[1:], evidence], strict=True))


@pytest.mark.parametrize("repeats", [1, 6])
def test_points_that_coincide_keep_the_bound_a_bound(repeats: int, normal: Normal) -> None:
    X = torch.linspace(0, 1, 60, dtype=torch.float64).unsqueeze(-1)
    y, kernel = X.squeeze(-1).sin() + 0.01 * normal(60), gpk.RBFKernel().double()
    Z = X[::3].repeat(repeats, 1) + 1e-9 * normal(20 * repeats, 1)
    gp = SparseGP(X, y, Z, kernel=kernel, noise=1e-4)
    evidence = ExactGP(X, y, kernel=kernel, noise=1e-4).log_marginal_likelihood()
    assert 0 <= (evidence - gp.elbo()).item() < 1.0
    assert gp.factor().jitter == 0


# The model.


def test_the_posterior_is_the_dense_one(table: Table, normal: Normal, library: str) -> None:
    gp = SparseGP(*table, normal(7, 2), noise=0.05)
    gp.mean_module.initialize(constant=0.4)
    X_new = 2 * normal(9, 2)
    mean, covariance = dense_posterior(gp, X_new)
    posterior = gp.posterior(X_new)
    assert_close(posterior.mean.squeeze(-1), mean, rtol=1e-8, atol=1e-8)
    assert_close(posterior.distribution.covariance_matrix, covariance, rtol=1e-8, atol=1e-8)
    for got, wanted in zip(gp.marginals(X_new), (mean, covariance.diagonal()), strict=True):
        assert_close(got, wanted.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["matern52, ard", "matern12", "rbf + rq", "linear + rbf"])
@pytest.mark.parametrize("noise", [0.05, None, "each"])
def test_with_all_points_as_inducing_points_it_is_the_exact_process(name: str, noise, table: Table, normal) -> None:
    X, y = table
    noise = 0.05 + normal(20).abs() if noise == "each" else noise
    kernel = KERNELS[name]().double()
    exact = ExactGP(X, y, kernel=kernel, noise=noise)
    sparse = SparseGP(X, y, X, kernel=kernel, noise=noise)
    assert_close(sparse.elbo(), exact.log_marginal_likelihood(), rtol=1e-6, atol=1e-6)
    parameters = list(kernel.parameters())
    both = (torch.autograd.grad(value, parameters) for value in (sparse.elbo(), exact.log_marginal_likelihood()))
    for one, other in zip(*both, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(sparse.marginals(2 * X), exact.marginals(2 * X), strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert_close(sparse.new_noise(), exact.new_noise())


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_rows_and_one_inducing_point_are_enough(n: int, normal: Normal) -> None:
    gp = SparseGP(normal(n, 2), normal(n), normal(1, 2))
    mean, variance = gp.marginals(normal(3, 2))
    assert bool(gp.elbo().isfinite() and mean.isfinite().all() and (variance > 0).all())


def test_repeated_rows_are_taken_as_they_come(table: Table, normal: Normal) -> None:
    X, y = table[0].repeat(3, 1), table[1].repeat(3)
    kernel = gpk.RBFKernel().double()
    exact, sparse = ExactGP(X, y, kernel=kernel), SparseGP(X, y, X, kernel=kernel)
    assert_close(sparse.elbo(), exact.log_marginal_likelihood(), rtol=1e-6, atol=1e-6)


def test_no_new_points_give_no_predictions(table: Table) -> None:
    mean, variance = SparseGP(*table, table[0][:3]).marginals(table[0][:0])
    assert (mean.shape, variance.shape) == ((0,), (0,))


def test_marginals_are_the_same_in_one_block_and_in_many(table: Table, normal: Normal, monkeypatch) -> None:
    gp, X_new = SparseGP(*table, table[0][:7]), normal(101, 2)
    whole = gp.marginals(X_new)
    monkeypatch.setattr("gpmoe.models.inducing_model._BLOCK", 1)
    for one, other in zip(gp.marginals(X_new), whole, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_factor_is_kept_until_something_changes(table: Table) -> None:
    gp = SparseGP(*table, table[0][:7], noise=torch.full((20,), 0.1, dtype=torch.float64))
    first = gp.factor()
    assert gp.factor() is first
    gp.likelihood.noise_covar.noise = torch.full((20,), 0.2, dtype=torch.float64)
    second = gp.factor()
    assert second is not first
    gp.inducing_points.data += 0.1
    assert gp.factor() is not second


def test_fitting_raises_the_bound_moves_the_points_and_recovers_the_noise(normal: Normal) -> None:
    X = 3 * torch.rand(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (2 * X[:, 0]).sin() + 0.1**0.5 * normal(400)
    gp = SparseGP(X, y, X[:8])
    before, Z = gp.elbo().item(), gp.inducing_points.detach().clone()
    report = fit(gp, elbo)
    assert report.converged
    assert report.jitter == 0
    assert gp.elbo().item() > before + 10
    assert not torch.equal(gp.inducing_points, Z)
    assert abs(gp.noise()[0].item() - 0.1) < 4 * 0.1 * (2 / 400) ** 0.5
    evidence = ExactGP(X, y, kernel=gp.covar_module, mean=gp.mean_module, noise=gp.likelihood).log_marginal_likelihood()
    assert 0 < (evidence - gp.elbo()).item() < 1


def test_inducing_points_can_be_kept_where_they_are(table: Table) -> None:
    gp = SparseGP(*table, table[0][:5])
    gp.inducing_points.requires_grad_(False)
    fit(gp, elbo, max_iterations=200)
    assert torch.equal(gp.inducing_points, table[0][:5])


def test_a_learned_likelihood_and_kernel_are_used_as_they_are(table: Table) -> None:
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(1e-3)).double()
    kernel, mean = gpk.RBFKernel().double(), ConstantMean().double()
    gp = SparseGP(*table, table[0][:5], kernel=kernel, mean=mean, noise=likelihood)
    assert (gp.covar_module, gp.mean_module, gp.likelihood) == (kernel, mean, likelihood)


def test_copies_and_pickles_predict_the_same(table: Table, normal: Normal) -> None:
    gp, X_new = SparseGP(*table, table[0][:5]), normal(4, 2)
    wanted = gp.marginals(X_new)
    for other in (deepcopy(gp), pickle.loads(pickle.dumps(gp))):
        assert other._factor is None
        for one, two in zip(other.marginals(X_new), wanted, strict=True):
            assert torch.equal(one, two)


def test_new_observations_condition_it(table: Table, normal: Normal) -> None:
    gp, X_new = SparseGP(*table, table[0][:8], noise=0.01), normal(1, 2)
    later = gp.condition_on_observations(X_new, torch.full((1, 1), 3.0, dtype=X_new.dtype), torch.full((1, 1), 1e-8))
    assert_close(later.posterior(X_new).mean.item(), 3.0, rtol=1e-3, atol=1e-3)


def test_botorch_optimises_an_acquisition_function_on_it(table: Table) -> None:
    gp = SparseGP(*table, table[0][:8], noise=0.01)
    acquisition = qLogNoisyExpectedImprovement(gp, X_baseline=table[0][:5])
    bounds = torch.tensor([[0.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    X_next, value = optimize_acqf(acquisition, bounds, q=1, num_restarts=2, raw_samples=8)
    assert X_next.shape == (1, 2)
    assert bool(value.isfinite())


@pytest.mark.parametrize(
    ("Z", "error"),
    [
        (torch.zeros(3, 5, dtype=torch.float64), ShapeError),
        (torch.zeros(0, 2, dtype=torch.float64), ShapeError),
        (torch.zeros(2, 3, 2, dtype=torch.float64), ShapeError),
        (torch.zeros(3, 2), DtypeError),
        (torch.full((3, 2), float("inf"), dtype=torch.float64), NonFiniteError),
    ],
    ids=["features", "none", "batch", "dtype", "infinite"],
)
def test_inducing_points_that_do_not_fit_are_named(Z: Tensor, error, table: Table) -> None:
    with pytest.raises(error, match=r"`?Z"):
        SparseGP(*table, Z)


def test_zero_noise_and_batches_are_refused(table: Table, normal: Normal) -> None:
    X, y = table
    with pytest.raises(InputError, match="positive"):
        SparseGP(X, y, X[:3], noise=0.0)
    with pytest.raises(ShapeError, match="StochasticVariationalGP"):
        SparseGP(normal(2, 5, 2), normal(2, 5), X[:3])
