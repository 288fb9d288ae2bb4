"""The exact Gaussian process against dense algebra, brute force and finite differences."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf
from gpytorch import kernels as gpk
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean, LinearMean, ZeroMean
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from gpmoe.errors import DtypeError, InputError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gpmoe.inference import Cholesky, log_marginal_likelihood
from gpmoe.kernels import FeatureKernel
from gpmoe.linalg import use_provider
from gpmoe.models import ExactGP

Normal = Callable[..., Tensor]
Table = tuple[Tensor, Tensor]

KERNELS: dict[str, Callable[[], Kernel | None]] = {
    "default": lambda: None,
    "matern12": lambda: gpk.MaternKernel(nu=0.5),
    "rbf + rq": lambda: gpk.ScaleKernel(gpk.RBFKernel(active_dims=(0,)) + gpk.RQKernel(ard_num_dims=2)),
    "linear": lambda: gpk.LinearKernel() + gpk.RBFKernel(),
}


def dense(gp: ExactGP, X_new: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and covariance of the latent function by a dense solve."""
    kernel, mean = gp.covar_module, gp.mean_module
    C = kernel(gp.X).to_dense() + torch.diag_embed(gp.noise())
    K_new = kernel(X_new, gp.X).to_dense()
    weights = torch.linalg.solve(C, K_new.mT).mT
    residual = (gp.y - mean(gp.X)).unsqueeze(-1)
    return mean(X_new) + (weights @ residual).squeeze(-1), kernel(X_new).to_dense() - weights @ K_new.mT


def assert_equals_dense(gp: ExactGP, X_new: Tensor, tolerance: float = 1e-10) -> None:
    mean, covariance = dense(gp, X_new)
    posterior = gp.posterior(X_new)
    assert_close(posterior.mean.squeeze(-1), mean, rtol=tolerance, atol=tolerance)
    assert_close(posterior.distribution.covariance_matrix, covariance, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["torch", "scipy"])
def library(request: pytest.FixtureRequest) -> str:
    with use_provider(request.param):
        yield request.param


@pytest.fixture
def X_new(normal: Normal) -> Tensor:
    return 2 + 2 * normal(7, 2)


@pytest.mark.parametrize("name", KERNELS)
def test_posterior_equals_dense_algebra(name: str, library: str, table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, kernel=KERNELS[name](), mean=LinearMean(2), noise=0.05)
    assert_equals_dense(gp, X_new)


@pytest.mark.parametrize("name", KERNELS)
def test_marginals_equal_dense_algebra(name: str, library: str, table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, kernel=KERNELS[name](), noise=0.05)
    wanted_mean, covariance = dense(gp, X_new)
    mean, variance = gp.marginals(X_new)
    assert_close(mean, wanted_mean, rtol=1e-10, atol=1e-10)
    assert_close(variance, covariance.diagonal(), rtol=1e-10, atol=1e-10)


def test_marginals_are_the_same_in_one_block_and_in_many(
    table: Table, normal: Normal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gp, X_new = ExactGP(*table, noise=0.05), normal(101, 2)
    whole = gp.marginals(X_new)
    monkeypatch.setattr("gpmoe.models.exact_gp._BLOCK", 1)
    for one, other in zip(gp.marginals(X_new), whole, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_points_have_the_closed_form_posterior(n: int, library: str, normal: Normal) -> None:
    X, y = normal(n, 1), normal(n)
    gp = ExactGP(X, y, kernel=gpk.RBFKernel(), mean=ZeroMean(), noise=0.1)
    assert_equals_dense(gp, normal(3, 1))
    wanted = MultivariateNormal(
        torch.zeros_like(y), gp.covar_module(X).to_dense() + 0.1 * torch.eye(n, dtype=X.dtype)
    ).log_prob(y)
    assert_close(log_marginal_likelihood(gp), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_log_marginal_likelihood_equals_the_dense_density(name: str, table: Table) -> None:
    gp = ExactGP(*table, kernel=KERNELS[name]())
    gp.mean_module.initialize(constant=0.4)
    C = gp.covar_module(gp.X).to_dense() + gp.noise().diag()
    wanted = MultivariateNormal(gp.mean_module(gp.X), C).log_prob(gp.y)
    got = log_marginal_likelihood(gp)
    parameters = [parameter for parameter in gp.parameters() if parameter.requires_grad]
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    pairs = zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True)
    for one, other in pairs:
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_log_marginal_likelihood_sums_over_a_batch(normal: Normal) -> None:
    X, y = normal(3, 6, 2), normal(3, 6)
    alone = [log_marginal_likelihood(ExactGP(*one, noise=0.1)) for one in zip(X, y, strict=True)]
    assert_close(log_marginal_likelihood(ExactGP(X, y, noise=0.1)), sum(alone), rtol=1e-10, atol=1e-10)


def test_leave_one_out_equals_refitting_without_each_point(library: str, table: Table) -> None:
    X, y = table
    noise = torch.linspace(0.02, 0.2, len(y), dtype=torch.float64)
    kernel, mean = gpk.ScaleKernel(gpk.MaternKernel()).double(), ConstantMean().double()
    mean.initialize(constant=0.3)
    got = torch.stack(ExactGP(X, y, kernel=kernel, mean=mean, noise=noise).leave_one_out(), dim=-1)
    for i in range(len(y)):
        others = torch.arange(len(y)) != i
        rest = ExactGP(X[others], y[others], kernel=kernel, mean=mean, noise=noise[others])
        one, variance = rest.marginals(X[i : i + 1])
        assert_close(got[i], torch.cat([one, variance + noise[i]]), rtol=1e-10, atol=1e-10)


def test_leave_one_out_densities_chain_to_the_evidence_for_two_points(normal: Normal) -> None:
    gp = ExactGP(normal(2, 1), normal(2), kernel=gpk.RBFKernel(), mean=ZeroMean(), noise=0.1)
    mean, variance = gp.leave_one_out()
    alone = torch.distributions.Normal(torch.zeros_like(gp.y[0]), math.sqrt(1.1)).log_prob(gp.y[0])
    given = torch.distributions.Normal(mean[1], variance[1].sqrt()).log_prob(gp.y[1])
    assert_close(alone + given, log_marginal_likelihood(gp).detach(), rtol=1e-10, atol=1e-10)


def test_posterior_interpolates_at_training_points_when_noise_vanishes(table: Table) -> None:
    gp = ExactGP(*table, noise=1e-6)
    posterior = gp.posterior(gp.X)
    assert_close(posterior.mean.squeeze(-1), gp.y, rtol=0, atol=1e-3)
    assert (posterior.variance < 1e-6).all()
    assert (gp.marginals(gp.X)[1] > 0).all()


def test_posterior_far_away_is_the_prior(table: Table) -> None:
    gp = ExactGP(*table)
    far = gp.posterior(gp.X[:2] + torch.tensor([[1e4], [-1e4]], dtype=torch.float64))
    prior = torch.diag(gp.covar_module.outputscale.expand(2))
    assert_close(far.distribution.covariance_matrix, prior, rtol=1e-10, atol=1e-10)
    assert_close(far.mean.squeeze(-1), gp.mean_module(gp.X[:2]), rtol=0, atol=1e-10)


def test_noise_is_added_to_the_diagonal_when_asked_for(table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, noise=torch.linspace(0.1, 0.3, 20, dtype=torch.float64))
    latent = gp.posterior(X_new).distribution.covariance_matrix
    eye = torch.eye(7, dtype=torch.float64)
    for asked, noise in ((True, 0.2 * eye), (torch.full((7, 1), 0.7).double(), 0.7 * eye)):
        predictive = gp.posterior(X_new, observation_noise=asked).distribution.covariance_matrix
        assert_close(predictive, latent + noise, rtol=1e-6, atol=1e-6)


def test_samples_have_the_moments_of_the_posterior(table: Table, X_new: Tensor) -> None:
    posterior = ExactGP(*table, noise=0.05).posterior(X_new[:3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = posterior.rsample(torch.Size([40_000])).squeeze(-1)
    covariance = posterior.distribution.covariance_matrix.detach()
    error = (draws.mean(0) - posterior.mean.squeeze(-1)).abs() / (covariance.diagonal() / 40_000).sqrt()
    assert (error < 4).all()
    spread = (covariance.diagonal().outer(covariance.diagonal()) + covariance**2).div(40_000).sqrt()
    assert ((draws.mT.cov() - covariance).abs() < 4 * spread).all()


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_of_the_posterior_for_new_inputs_passes_gradcheck(name: str, table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, kernel=KERNELS[name](), noise=0.05)
    gp.requires_grad_(False)
    assert gradcheck(lambda X: gp.latent(X), [X_new[:3].clone().requires_grad_()])


def test_a_batch_of_new_inputs_equals_a_loop(table: Table, normal: Normal) -> None:
    gp, X_new = ExactGP(*table, noise=0.05), normal(3, 2, 4, 2)
    mean, covariance = gp.latent(X_new)
    for i in range(3):
        for j in range(2):
            one, own = gp.latent(X_new[i, j])
            assert_close(mean[i, j], one, rtol=1e-10, atol=1e-10)
            assert_close(covariance[i, j], own, rtol=1e-10, atol=1e-10)


def test_a_batch_of_data_sets_equals_a_loop(normal: Normal) -> None:
    X, y, X_new = normal(3, 6, 2), normal(3, 6), normal(4, 2)
    mean, covariance = ExactGP(X, y, noise=0.1).latent(X_new)
    for i in range(3):
        one, own = ExactGP(X[i], y[i], noise=0.1).latent(X_new)
        assert_close(mean[i], one, rtol=1e-10, atol=1e-10)
        assert_close(covariance[i], own, rtol=1e-10, atol=1e-10)


def set_lengthscale(gp: ExactGP) -> None:
    gp.covar_module.base_kernel.lengthscale = 0.3


def set_data(gp: ExactGP) -> None:
    gp.covar_module.base_kernel.raw_lengthscale.data.add_(1.0)


def set_mean(gp: ExactGP) -> None:
    gp.mean_module.constant.data.fill_(2.0)


def set_noise(gp: ExactGP) -> None:
    gp.likelihood.noise = 0.7


def take_a_step(gp: ExactGP) -> None:
    optimizer = torch.optim.SGD(gp.parameters(), lr=0.01)
    (-log_marginal_likelihood(gp)).backward()
    optimizer.step()


def load_parameters(gp: ExactGP) -> None:
    other = deepcopy(gp)
    set_lengthscale(other)
    gp.load_state_dict(other.state_dict())


def load_targets(gp: ExactGP) -> None:
    gp.load_state_dict({**gp.state_dict(), "y": gp.y.flip(0) + 1})


def change_targets(gp: ExactGP) -> None:
    gp.y = gp.y.flip(0)


def change_inputs(gp: ExactGP) -> None:
    gp.X = 2 * gp.X


def evaluate_the_likelihood(gp: ExactGP) -> None:
    log_marginal_likelihood(gp)


CHANGES = [
    set_lengthscale,
    set_data,
    set_mean,
    set_noise,
    take_a_step,
    load_parameters,
    load_targets,
    change_targets,
    change_inputs,
    evaluate_the_likelihood,
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_posterior_follows_every_change_of_the_model(
    change: Callable[[ExactGP], None], table: Table, X_new: Tensor
) -> None:
    gp = ExactGP(*table)
    assert_equals_dense(gp, X_new)
    change(gp)
    assert_equals_dense(gp, X_new)


def test_the_posterior_follows_a_change_of_fixed_noise(table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, noise=0.1)
    before = gp.posterior(X_new).mean
    gp.likelihood.noise = torch.full((20,), 0.9, dtype=torch.float64)
    assert not torch.allclose(gp.posterior(X_new).mean, before)
    assert_equals_dense(gp, X_new)


def test_the_factor_is_computed_once_for_the_same_parameters(table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table)
    gp.posterior(X_new)
    factor = gp.factor()
    gp.posterior(X_new)
    gp.marginals(X_new)
    assert gp.factor() is factor


@pytest.mark.parametrize("make", [deepcopy, lambda gp: pickle.loads(pickle.dumps(gp))])
def test_copies_predict_the_same_carry_no_factor_and_are_apart(
    make: Callable[[ExactGP], ExactGP], normal: Normal
) -> None:
    X, y = normal(60, 2), normal(60)
    gp, X_new = ExactGP(X, y), normal(3, 2)
    before = gp.posterior(X_new).mean
    copy = make(gp)
    assert len(pickle.dumps(gp)) < 60 * 60 * 8  # the factor alone takes that much
    assert torch.equal(copy.posterior(X_new).mean, before)
    set_lengthscale(copy)
    assert torch.equal(gp.posterior(X_new).mean, before)
    assert not torch.equal(copy.posterior(X_new).mean, before)


def test_training_mode_and_dropout_are_as_before_after_a_posterior(table: Table, X_new: Tensor) -> None:
    body = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5)).double()
    gp = ExactGP(*table, kernel=FeatureKernel(body, gpk.RBFKernel()), noise=0.05)
    gp.train()
    body[0].eval()
    assert_close(gp.posterior(X_new).mean, gp.posterior(X_new).mean, rtol=0, atol=0)
    assert gp.training
    assert body[1].training
    assert not body[0].training


NOISES: dict[str, tuple[Callable[[], object], Callable[[], Tensor]]] = {
    "number": (lambda: 0.3, lambda: torch.full((20,), 0.3).double()),
    "per point": (lambda: torch.arange(1.0, 21.0).double(), lambda: torch.arange(1.0, 21.0).double()),
    "one entry": (lambda: torch.tensor([0.3]).double(), lambda: torch.full((20,), 0.3).double()),
    "learned": (lambda: None, lambda: torch.full((20,), 0.1).double()),
    "likelihood": (lambda: GaussianLikelihood(), lambda: torch.full((20,), math.log(2) + 1e-4).double()),
    "fixed likelihood": (
        lambda: FixedNoiseGaussianLikelihood(torch.arange(1.0, 21.0).double()),
        lambda: torch.arange(1.0, 21.0).double(),
    ),
    "fixed and learned": (
        lambda: FixedNoiseGaussianLikelihood(torch.arange(1.0, 21.0).double(), learn_additional_noise=True),
        lambda: torch.arange(1.0, 21.0).double() + math.log(2) + 1e-4,
    ),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_every_kind_stands_on_the_diagonal(name: str, table: Table, X_new: Tensor) -> None:
    make, wanted = NOISES[name]
    gp = ExactGP(*table, noise=make())
    assert_close(gp.noise(), wanted(), rtol=1e-6, atol=1e-6)
    assert_close(gp.new_noise(), wanted().mean(-1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert_equals_dense(gp, X_new)


@pytest.mark.parametrize("noise", [1e-9, 1e-6, 0.1, 1e9])
def test_a_noise_that_is_given_is_used_as_it_is(noise: float, table: Table) -> None:
    assert ExactGP(*table, noise=noise).noise().tolist() == [noise] * 20


def test_float32_models_stay_float32_and_agree_with_float64(table: Table, X_new: Tensor, library: str) -> None:
    X, y = table
    single, double = ExactGP(X.float(), y.float(), noise=0.05), ExactGP(X, y, noise=0.05)
    pairs = [
        (log_marginal_likelihood(single), log_marginal_likelihood(double)),
        (single.posterior(X_new.float()).mean, double.posterior(X_new).mean),
        (single.posterior(X_new.float()).variance, double.posterior(X_new).variance),
        *zip(single.marginals(X_new.float()), double.marginals(X_new), strict=True),
        *zip(single.leave_one_out(), double.leave_one_out(), strict=True),
    ]
    for one, other in pairs:
        assert one.dtype == torch.float32
        assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_a_model_converted_to_float32_predicts_in_float32(table: Table, X_new: Tensor) -> None:
    gp = ExactGP(*table, noise=0.05)
    double = gp.posterior(X_new).mean
    single = gp.float().posterior(X_new.float()).mean
    assert single.dtype == torch.float32
    assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_a_weight_stands_for_repeated_observations(table: Table, X_new: Tensor) -> None:
    X, y = table
    weights = torch.ones(20, dtype=torch.float64)
    weights[:3] = 2
    kernel = gpk.MaternKernel().double()
    weighted = ExactGP(X, y, kernel=kernel, noise=0.05, weights=weights)
    repeated = ExactGP(torch.cat([X, X[:3]]), torch.cat([y, y[:3]]), kernel=kernel, noise=0.05)
    for one, other in zip(weighted.latent(X_new), repeated.latent(X_new), strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [None, 0.05])
def test_weights_divide_the_noise_in_value_and_gradient(noise: float | None, table: Table, X_new: Tensor) -> None:
    weights = torch.linspace(0.1, 3, 20, dtype=torch.float64)
    gp = ExactGP(*table, noise=noise, weights=weights)
    C = gp.covar_module(gp.X).to_dense() + (gp.likelihood.noise / weights).diag()
    wanted, got = MultivariateNormal(gp.mean_module(gp.X), C).log_prob(gp.y), log_marginal_likelihood(gp)
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    parameters = list(gp.parameters())
    for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (got, wanted)), strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert_equals_dense(gp, X_new)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (torch.ones(4, dtype=torch.float64), ShapeError),
        (torch.full((5,), -1.0, dtype=torch.float64), InputError),
        (torch.zeros(5, dtype=torch.float64), InputError),
        (torch.full((5,), float("nan"), dtype=torch.float64), InputError),
        (torch.ones(5), DtypeError),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="weights"):
        ExactGP(X, Y, weights=weights)


def test_replaced_data_give_the_model_of_those_data(table: Table, normal: Normal, X_new: Tensor) -> None:
    gp = ExactGP(*table)
    gp.posterior(X_new)
    inputs, y, weights = normal(8, 2), normal(8), 1 + normal(8).square()
    gp.set_data(inputs, y, weights)
    fresh = ExactGP(inputs, y, kernel=gp.covar_module, mean=gp.mean_module, noise=gp.likelihood, weights=weights)
    assert torch.equal(gp.posterior(X_new).mean, fresh.posterior(X_new).mean)
    assert torch.equal(log_marginal_likelihood(gp), log_marginal_likelihood(fresh))


def test_replaced_data_that_do_not_fit_are_refused(table: Table, normal: Normal) -> None:
    gp = ExactGP(*table)
    for inputs, y, text in [
        (normal(3, 4, 2), normal(3, 4), "keep their features and batch dimensions"),
        (normal(4, 3), normal(4), "keep their features"),
        (normal(4, 2), normal(5), r"`y` must have shape \(\*batch, 4\)"),
    ]:
        with pytest.raises(ShapeError, match=text):
            gp.set_data(inputs, y)


def test_repeated_rows_under_a_sum_with_a_linear_kernel_need_no_jitter_and_no_warning(table: Table) -> None:
    X, y = torch.cat([table[0]] * 2), torch.cat([table[1]] * 2)
    gp = ExactGP(X, y, kernel=gpk.RBFKernel() + gpk.LinearKernel(), noise=0.05)
    log_marginal_likelihood(gp)
    gp.posterior(X)
    assert gp.factor().jitter == 0


def test_the_jitter_that_duplicates_need_is_reported(table: Table) -> None:
    X, y = torch.cat([table[0]] * 2), torch.cat([table[1]] * 2)
    gp = ExactGP(X, y, kernel=gpk.RBFKernel(), noise=GaussianLikelihood(noise_constraint=gpk.kernel.Positive()))
    gp.likelihood.noise = 1e-20
    factor = gp.factor()
    assert 1e-11 < factor.jitter <= 1e-6
    assert_close(factor.L.tril() @ factor.L.tril().mT, gp.covar_module(X).to_dense() + factor.jitter * torch.eye(40))


X, Y = torch.zeros(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
NAN = torch.tensor([0.0, 0.0, float("nan"), 0.0, 0.0], dtype=torch.float64)
BAD_DATA: dict[str, tuple[Tensor, Tensor, type[Exception], str]] = {
    "a vector": (X[:, 0], Y, ShapeError, r"`X` must have shape \(\*batch, any, any\); got \(5,\)"),
    "other length": (X, Y[:4], ShapeError, r"`y` must have shape \(\*batch, 5\); got \(4,\)"),
    "a column": (X, Y[:, None], ShapeError, r"`y` must have shape \(\*batch, 5\); got \(5, 1\)"),
    "no rows": (X[:0], Y[:0], ShapeError, r"at least one row and one column; got \(0, 2\)"),
    "no columns": (X[:, :0], Y, ShapeError, r"at least one row and one column; got \(5, 0\)"),
    "other batch": (X.expand(3, 5, 2), Y.expand(2, 5), ShapeError, r"\(3, 5, 2\).*\(2, 5\)"),
    "float32 y": (X, Y.float(), DtypeError, r"`y` must be torch\.float64.*got torch\.float32.*`y\.to\(X\)`"),
    "integers": (X.long(), Y, DtypeError, r"`X` must be float32 or float64; got torch\.int64"),
    "complex": (X.cfloat(), Y, DtypeError, r"`X` must be float32 or float64; got torch\.complex64"),
    "half": (X.half(), Y.half(), DtypeError, r"`X` must be float32 or float64; got torch\.float16"),
    "nan in X": (
        X + NAN[:, None] * torch.tensor([1.0, 0.0]).double(),
        Y,
        NonFiniteError,
        r"`X` has nan at index \(2, 0\)",
    ),
    "nan in y": (X, NAN, NonFiniteError, r"`y` has nan at index 2"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_do_not_fit_are_refused_with_what_came_and_what_was_wanted(name: str) -> None:
    inputs, targets, error, text = BAD_DATA[name]
    with pytest.raises(error, match=text):
        ExactGP(inputs, targets)


@pytest.mark.parametrize(
    ("noise", "error", "text"),
    [
        (0.0, InputError, r"positive and finite; got a minimum of 0\.0"),
        (-1.0, InputError, r"positive and finite; got a minimum of -1\.0"),
        (float("nan"), InputError, "positive and finite; got a minimum of nan"),
        (torch.ones(4), ShapeError, r"a number or have shape \(5,\); got \(4,\)"),
    ],
)
def test_noise_that_cannot_be_is_refused(noise: float | Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ExactGP(X, Y, noise=noise)


@pytest.mark.parametrize("ask", ["posterior", "marginals", "latent"])
def test_new_inputs_that_do_not_fit_are_refused(ask: str, table: Table) -> None:
    predict = getattr(ExactGP(*table), ask)
    for X_new, error, text in [
        (X[:, :1], ShapeError, r"`X` must have shape \(\*batch, q, d\) with d=2; got \(5, 1\)"),
        (X.float(), DtypeError, r"must be torch\.float64.*got torch\.float32"),
        (X + NAN[:, None], NonFiniteError, r"`X` has nan at index \(2, 0\)"),
    ]:
        with pytest.raises(error, match=text):
            predict(X_new)


def test_a_second_output_is_refused(table: Table) -> None:
    with pytest.raises(InputError, match=r"one output; got \[1\]"):
        ExactGP(*table).posterior(X, output_indices=[1])


def test_marginals_of_a_batch_are_refused(normal: Normal) -> None:
    with pytest.raises(ShapeError, match=r"without batch dimensions; got \(3,\)"):
        ExactGP(normal(3, 6, 2), normal(3, 6)).marginals(X)


def test_a_covariance_without_factor_is_refused_with_causes(table: Table) -> None:
    gp = ExactGP(*table, kernel=gpk.CosineKernel())  # of a distance in the plane: not a covariance
    gp.likelihood.noise = 1e-5
    with pytest.raises(NotPositiveDefiniteError, match=r"(?s)\(20, 20\).*not positive definite.*Usual causes"):
        gp.posterior(X)


def test_what_a_user_passes_in_is_not_changed(table: Table, X_new: Tensor) -> None:
    copies = [tensor.clone() for tensor in (*table, X_new)]
    gp = ExactGP(*table, noise=0.05)
    log_marginal_likelihood(gp).backward()
    gp.posterior(X_new)
    gp.marginals(X_new)
    gp.leave_one_out()
    assert all(torch.equal(one, other) for one, other in zip((*table, X_new), copies, strict=True))


AT_THE_SWITCH = """
import json
import torch
from gpytorch import kernels as gpk
from gpmoe.models import ExactGP
g = torch.Generator().manual_seed(0)
for n in (800, 801):
    X, X_new = (torch.randn(m, 2, dtype=torch.float64, generator=g) for m in (n, 6))
    gp = ExactGP(X, X[:, 0].sin(), kernel=gpk.ScaleKernel(gpk.MaternKernel()), noise=0.01).requires_grad_(False)
    K = gp.covar_module(X, X).to_dense() + 0.01 * torch.eye(n, dtype=torch.float64)
    K_new = gp.covar_module(X_new, X).to_dense()
    weights = torch.linalg.solve(K, K_new.mT).mT
    wanted = gp.covar_module(X_new, X_new).to_dense() - weights @ K_new.mT
    posterior = gp.posterior(X_new)
    assert (posterior.mean.squeeze(-1) - weights @ gp.y).abs().max() < 1e-8
    assert (posterior.distribution.covariance_matrix - wanted).abs().max() < 1e-8
    assert (gp.marginals(X_new)[1] - wanted.diagonal()).abs().max() < 1e-8
    draw = posterior.rsample_from_base_samples(torch.Size([1]), torch.ones(1, 6, dtype=torch.float64))
    results = (posterior.mean, posterior.variance, gp.log_marginal_likelihood(), draw)
    print(json.dumps([result.tolist() for result in results]))
"""


def test_around_gpytorchs_switch_of_solvers_results_are_exact_with_and_without_botorch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_SWITCH], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    exec(AT_THE_SWITCH, {})  # this process has imported BoTorch first, the other one had not
    assert done.stdout.splitlines()[-2:] == capsys.readouterr().out.splitlines()[-2:]


def test_noisy_expected_improvement_is_optimised_on_the_model(table: Table, generator: torch.Generator) -> None:
    gp = ExactGP(*table, noise=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        acquisition = qLogNoisyExpectedImprovement(gp, X_baseline=gp.X, prune_baseline=True)
        bounds = torch.tensor([[0.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
        best, value = optimize_acqf(acquisition, bounds, q=2, num_restarts=2, raw_samples=32)
    assert value >= acquisition(4 * torch.rand(50, 2, 2, dtype=torch.float64, generator=generator)).max() - 1e-6
    assert gp.posterior(best).mean.max() > gp.y.mean() + gp.y.std()


def test_log_expected_improvement_is_optimised_on_the_model(table: Table) -> None:
    gp = ExactGP(*table, noise=0.01)
    acquisition = LogExpectedImprovement(gp, best_f=gp.y.max())
    bounds = torch.tensor([[0.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        best, value = optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=64)
    grid = torch.cartesian_prod(*[torch.linspace(0, 4, 30, dtype=torch.float64)] * 2)
    assert value >= acquisition(grid.unsqueeze(1)).max() - 1e-6
    assert ((best >= 0) & (best <= 4)).all()


def test_gpytorchs_settings_are_restored_by_the_solver() -> None:
    from gpytorch import settings

    before = settings.max_cholesky_size.value()
    with Cholesky().applied():
        assert settings.max_cholesky_size.value() > 10**9
        assert settings.fast_computations.log_prob.off()
    assert settings.max_cholesky_size.value() == before
