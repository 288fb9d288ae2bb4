"""The stochastic variational process against the collapsed one, GPyTorch's, quadrature, and one member at a time."""

import warnings
from collections.abc import Callable

import gpytorch
import pytest
import torch
from gpytorch import kernels as gpk
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import BernoulliLikelihood, FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.optim import NGD
from gpytorch.variational import NaturalVariationalDistribution, VariationalStrategy
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import (
    DifferentiationError,
    DtypeError,
    InputError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    ShapeError,
)
from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit_stochastic import fit_stochastic, fit_stochastic_quietly
from gpmoe.linalg.inducing_factor import inducing_factor
from gpmoe.linalg.natural_gaussian import moments
from gpmoe.linalg.projection import project
from gpmoe.models import ExactGP
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

Normal = Callable[..., Tensor]
Table = tuple[Tensor, Tensor]


def matern(batch: tuple[int, ...] = ()) -> gpk.Kernel:
    base = gpk.MaternKernel(nu=2.5, ard_num_dims=2, batch_shape=torch.Size(batch))
    return gpk.ScaleKernel(base, batch_shape=torch.Size(batch)).double()


def hyperparameters(gp: StochasticVariationalGP | SparseGP) -> list[torch.nn.Parameter]:
    names = ("natural", "variational")
    return [p for name, p in gp.named_parameters() if not any(word in name for word in names)]


def one_whole_step(gp: StochasticVariationalGP) -> None:
    """A natural gradient step of size one with all rows, for q(v) alone."""
    optimiser = NGD(gp.variational_distribution.parameters(), num_data=1, lr=1.0)
    (-elbo(gp)).backward()
    optimiser.step()
    gp.zero_grad()


def positive_definite(normal: Normal, *batch: int, p: int = 4) -> Tensor:
    A = normal(*batch, p, p)
    return A @ A.mT + torch.eye(p, dtype=A.dtype)


# The parts.


@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
def test_moments_and_natural_gradients_are_gpytorchs(batch, normal: Normal) -> None:
    q = NaturalVariationalDistribution(4, torch.Size(batch)).double()
    q.natural_vec.data, q.natural_mat.data = normal(*batch, 4), -0.5 * positive_definite(normal, *batch)
    wanted = q()
    mean, S, log_det = moments(q.natural_vec, q.natural_mat)
    assert_close(mean, wanted.mean, rtol=1e-10, atol=1e-10)
    assert_close(S, wanted.covariance_matrix, rtol=1e-10, atol=1e-10)
    assert_close(log_det, torch.logdet(wanted.covariance_matrix), rtol=1e-10, atol=1e-10)
    a, B = normal(*batch, 4), positive_definite(normal, *batch)
    parameters = [q.natural_vec, q.natural_mat]

    def objective(mean: Tensor, S: Tensor, log_det: Tensor) -> Tensor:
        return (a * mean.sin()).sum() + (B * S).sum() + log_det.sum()

    got = torch.autograd.grad(objective(mean, S, log_det), parameters)
    S = wanted.covariance_matrix
    for one, other in zip(got, torch.autograd.grad(objective(wanted.mean, S, S.logdet()), parameters), strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_precision_that_is_not_positive_definite_is_refused(normal: Normal) -> None:
    with pytest.raises(NotPositiveDefiniteError, match="natural_step"):
        moments(normal(3), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_a_projection_and_its_gradient_are_the_dense_ones(batch, normal: Normal) -> None:
    L = torch.linalg.cholesky(positive_definite(normal, *batch)).requires_grad_()
    K, mu = normal(*batch, 4, 7).requires_grad_(), normal(*batch, 4).requires_grad_()
    S = positive_definite(normal, *batch).requires_grad_()
    V = torch.linalg.solve_triangular(L, K, upper=False)
    wanted = (V.mT @ mu.unsqueeze(-1)).squeeze(-1), (V.mT @ (S @ V - V)).diagonal(dim1=-2, dim2=-1)
    got, weights = project(L, K, mu, S), (normal(*batch, 7), normal(*batch, 7))
    pairs = zip(got, wanted, strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(values, [L, K, mu, S], weights) for values in (got, wanted))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_second_derivative_is_refused(table: Table) -> None:
    gp = StochasticVariationalGP(*table, table[0][:5])
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(elbo(gp), [gp.inducing_points], create_graph=True)


# The bound.


def test_the_bound_is_the_dense_one(table: Table, normal: Normal) -> None:
    X, y = table
    gp = StochasticVariationalGP(X, y, normal(5, 2), kernel=matern())
    S, mu = torch.linalg.inv(positive_definite(normal, p=5)), normal(5)
    q = gp.variational_distribution
    q.natural_mat.data, q.natural_vec.data = -0.5 * S.inverse(), torch.linalg.solve(S, mu)
    Z, kernel, noise = gp.inducing_points, gp.covar_module, gp.likelihood.noise
    V = torch.linalg.solve(inducing_factor(kernel, Z)[0], kernel(Z, X).to_dense())
    variance = kernel(X, diag=True) + (V * ((S - torch.eye(5)) @ V)).sum(0)
    fit_term = -0.5 * (((y - V.mT @ mu) ** 2 + variance) / noise + (2 * torch.pi * noise).log()).sum()
    standard = torch.distributions.MultivariateNormal(torch.zeros_like(mu), torch.eye(5, dtype=mu.dtype))
    divergence = torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(mu, S), standard)
    assert_close(elbo(gp), fit_term - divergence, rtol=1e-10, atol=1e-10)


def test_the_bound_is_gpytorchs_up_to_its_jitter(table: Table, normal: Normal) -> None:
    X, y = table

    class Peer(gpytorch.models.ApproximateGP):
        def __init__(self, Z: Tensor) -> None:
            q = NaturalVariationalDistribution(5, mean_init_std=0.0)
            super().__init__(VariationalStrategy(self, Z, q, learn_inducing_locations=True))
            self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), matern()

        def forward(self, X: Tensor) -> MultivariateNormal:
            return MultivariateNormal(self.mean_module(X), self.covar_module(X))

    Z = normal(5, 2)
    peer, gp = Peer(Z).double().train(), StochasticVariationalGP(X, y, Z, kernel=matern())
    one_whole_step(gp)
    peer(X)  # GPyTorch initialises q at its first call
    peer.variational_strategy._variational_distribution.load_state_dict(gp.variational_distribution.state_dict())
    mll = gpytorch.mlls.VariationalELBO(gp.likelihood, peer, num_data=20)
    assert_close(20 * mll(peer(X), y), elbo(gp), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["prior", "anywhere"])
def test_one_natural_step_of_size_one_reaches_the_collapsed_optimum(start: str, table: Table, normal: Normal) -> None:
    X, y = table
    Z = normal(6, 2)
    collapsed = SparseGP(X, y, Z, kernel=matern())
    gp = StochasticVariationalGP(X, y, Z, kernel=matern())
    if start == "anywhere":
        q = gp.variational_distribution
        q.natural_vec.data, q.natural_mat.data = normal(6), -0.5 * positive_definite(normal, p=6)
    assert elbo(gp) < collapsed.elbo() - 1
    one_whole_step(gp)
    assert_close(elbo(gp), collapsed.elbo(), rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(elbo(each), hyperparameters(each)) for each in (gp, collapsed))
    for one, other in zip(*gradients, strict=True):  # at the optimum of q both bounds have one gradient
        assert_close(one, other, rtol=1e-7, atol=1e-7)
    for one, other in zip(gp.marginals(2 * X), collapsed.marginals(2 * X), strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)
    posterior, wanted = gp.posterior(2 * X, observation_noise=True), collapsed.posterior(2 * X, observation_noise=True)
    assert_close(posterior.mean, wanted.mean, rtol=1e-8, atol=1e-8)
    assert_close(posterior.variance, wanted.variance, rtol=1e-8, atol=1e-8)


def test_with_all_points_the_optimum_is_the_exact_process(table: Table) -> None:
    X, y = table
    gp = StochasticVariationalGP(X, y, X, kernel=matern())
    one_whole_step(gp)
    exact = ExactGP(X, y, kernel=gp.covar_module, noise=0.1)
    assert_close(elbo(gp), exact.log_marginal_likelihood(), rtol=1e-6, atol=1e-6)
    for one, other in zip(gp.marginals(2 * X), exact.marginals(2 * X), strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_minibatches_estimate_the_bound_without_bias(table: Table) -> None:
    gp = StochasticVariationalGP(*table, table[0][:5])
    parts = [gp.elbo(rows) for rows in torch.arange(20).split(5)]
    assert_close(torch.stack(parts).mean(), gp.elbo(), rtol=1e-10, atol=1e-10)


def test_a_weight_of_two_is_a_row_twice(table: Table) -> None:
    X, y = table
    weights = torch.ones_like(y)
    weights[:4] = 2.0
    weighted = StochasticVariationalGP(X, y, X[:5], kernel=matern(), weights=weights)
    repeated = StochasticVariationalGP(torch.cat([X, X[:4]]), torch.cat([y, y[:4]]), X[:5], kernel=matern())
    one_whole_step(weighted)
    one_whole_step(repeated)
    assert_close(elbo(weighted), elbo(repeated), rtol=1e-9, atol=1e-9)
    assert_close(weighted.marginals(X), repeated.marginals(X), rtol=1e-9, atol=1e-9)


def test_the_bound_of_a_bernoulli_likelihood_is_quadrature(table: Table) -> None:
    X, y = table[0], (table[1] > table[1].median()).double()
    gp = StochasticVariationalGP(X, y, X[:5], kernel=matern(), likelihood=BernoulliLikelihood())
    one_whole_step(gp)
    mean, variance = gp.marginals(X)
    f = mean + variance.sqrt() * torch.linspace(-8, 8, 4001, dtype=X.dtype).unsqueeze(-1)
    sign, weight = 2 * y - 1, torch.distributions.Normal(mean, variance.sqrt()).log_prob(f).exp()
    expected = torch.trapezoid(weight * torch.special.log_ndtr(sign * f), f, dim=0).sum()
    mu, S, log_det = moments(*gp.variational_distribution.parameters())
    divergence = 0.5 * (S.trace() + mu @ mu - 5 - log_det)
    assert_close(elbo(gp), expected - divergence, rtol=1e-3, atol=1e-3)  # GPyTorch takes 20 points


# Batches of models.


@pytest.mark.parametrize("own", ["points", "kernels", "targets", "rows"])
def test_a_batch_of_models_is_each_model_alone(own: str, normal: Normal) -> None:
    X, y, Z, kernel = normal(12, 2), normal(12), normal(4, 2), matern()
    if own == "points":
        Z = normal(3, 4, 2)
    elif own == "kernels":
        kernel = matern((3,))
        kernel.base_kernel.lengthscale = normal(3, 1, 2).exp()
    elif own == "targets":
        y = normal(3, 12)
    else:
        X, y = normal(3, 12, 2), normal(3, 12)
    weights = normal(*y.shape).exp()
    batch = StochasticVariationalGP(X, y, Z, kernel=kernel, weights=weights)
    assert batch.batch_shape == (3,)
    one_whole_step(batch)
    mean, variance = batch.marginals(normal(7, 2))
    assert (mean.shape, variance.shape) == ((3, 7), (3, 7))
    for k in range(3):
        alone = StochasticVariationalGP(
            X[k] if X.dim() > 2 else X,
            y[k] if y.dim() > 1 else y,
            batch.inducing_points[k],
            kernel=kernel[k] if own == "kernels" else kernel,
            weights=weights[k] if y.dim() > 1 else weights,
        )
        one_whole_step(alone)
        assert_close(batch.elbo()[k], elbo(alone), rtol=1e-9, atol=1e-9)


def test_a_batch_is_fitted_and_predicts(normal: Normal) -> None:
    X = normal(60, 2)
    y = torch.stack([X[:, 0].sin(), X[:, 1].cos()])
    gp = StochasticVariationalGP(X, y, X[:15], kernel=matern((2,)))
    fit_stochastic_quietly(gp, epochs=100, batch_size=30, seed=0)
    mean, _ = gp.marginals(X)
    assert (mean - y).square().mean(-1).sqrt().max() < 0.1
    assert gp.posterior(X[:3]).mean.shape == (2, 3, 1)


# The fit.


def test_a_fit_reaches_what_the_collapsed_bound_reaches(normal: Normal) -> None:
    X = 3 * torch.rand(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (2 * X[:, 0]).sin() + 0.1**0.5 * normal(200)
    gp = StochasticVariationalGP(X, y, X[:8])
    report = fit_stochastic(gp, epochs=100, batch_size=50, natural_step=0.2, learning_rate=0.05, seed=0)
    collapsed = SparseGP(
        X, y, gp.inducing_points, kernel=gp.covar_module, mean=gp.mean_module, noise=gp.likelihood
    ).elbo()
    assert 0 < (collapsed - elbo(gp)).item() < 2
    assert abs(gp.likelihood.noise.item() - 0.1) < 4 * 0.1 * (2 / 200) ** 0.5
    assert report.converged
    assert report.iterations == 400
    assert len(report.objective_trace) == 100
    assert "minibatches of 50" in report.solver


def test_a_seed_fixes_the_fit(table: Table) -> None:
    def fitted(seed: int) -> Tensor:
        gp = StochasticVariationalGP(*table, table[0][:5])
        fit_stochastic_quietly(gp, epochs=5, batch_size=6, seed=seed)
        return gp.marginals(table[0])[0]

    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))


def test_a_fit_leaves_global_chance_alone_and_what_wants_no_gradient(table: Table) -> None:
    gp = StochasticVariationalGP(*table, table[0][:5])
    gp.inducing_points.requires_grad_(False)
    state = torch.get_rng_state()
    fit_stochastic_quietly(gp, epochs=3, batch_size=6, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(gp.inducing_points, table[0][:5])


def test_a_short_fit_says_that_it_has_not_converged(table: Table) -> None:
    gp = StochasticVariationalGP(*table, table[0][:5])
    with pytest.warns(NotConvergedWarning, match="2 epochs; the last tenth gained"):
        report = fit_stochastic(gp, epochs=2, seed=0)
    assert not report.converged


def test_classes_are_learned_and_predicted_as_probabilities(normal: Normal) -> None:
    X = normal(200, 2)
    y = (X[:, 0] * X[:, 1] > 0).double()
    gp = StochasticVariationalGP(X, y, X[:20], likelihood=BernoulliLikelihood())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        fit_stochastic(gp, epochs=60, batch_size=50, seed=0)
    probabilities = gp.predictive(X).mean
    assert ((probabilities > 0.5) == y.bool()).double().mean() > 0.9
    with pytest.raises(InputError, match="predictive"):
        gp.posterior(X[:2], observation_noise=True)


def test_in_float32_everything_stays_float32(normal: Normal) -> None:
    X = normal(40, 2).float()
    gp = StochasticVariationalGP(X, X[:, 0].sin(), X[:8])
    fit_stochastic_quietly(gp, epochs=20, batch_size=20, seed=0)
    mean, variance = gp.marginals(X)
    assert (mean.dtype, variance.dtype) == (torch.float32, torch.float32)
    assert (mean - X[:, 0].sin()).abs().max() < 0.5


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_rows_and_repeated_points_are_enough(n: int, normal: Normal) -> None:
    gp = StochasticVariationalGP(normal(n, 2), normal(n), normal(1, 2).repeat(3, 1))
    fit_stochastic_quietly(gp, epochs=3, seed=0)
    mean, variance = gp.marginals(normal(3, 2))
    assert bool(mean.isfinite().all() and (variance > 0).all())


def test_what_does_not_fit_is_named(table: Table) -> None:
    X, y = table
    with pytest.raises(ShapeError, match="`Z`"):
        StochasticVariationalGP(X, y, X[:, :1])
    with pytest.raises(DtypeError, match="`Z`"):
        StochasticVariationalGP(X, y, X.float())
    with pytest.raises(ShapeError, match="`weights`"):
        StochasticVariationalGP(X, y, X, weights=-y.abs())
    with pytest.raises(InputError, match="weights"):
        StochasticVariationalGP(X, y, X, likelihood=FixedNoiseGaussianLikelihood(y.abs()))


def test_a_likelihood_that_is_passed_in_is_used(table: Table) -> None:
    likelihood = GaussianLikelihood()
    assert StochasticVariationalGP(*table, table[0][:3], likelihood=likelihood).likelihood is likelihood
