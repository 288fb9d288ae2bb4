"""The sparse mixture against the single sparse process, dense sums, exact experts and Monte Carlo."""

import sys
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood
from scipy.special import log_ndtr, logsumexp
from scipy.stats import poisson
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DtypeError, InputError, NotConvergedWarning, ShapeError
from gpmoe.gates import ConstantGate, SoftmaxGate
from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit_sparse_mixture import fit_sparse_mixture, learns_by_gradient, natural_pass
from gpmoe.inference.fit_stochastic import fit_stochastic_quietly
from gpmoe.inference.hard_em import fit_hard, fit_hard_sparse, sparse_from_clusters, sparse_from_exact
from gpmoe.models.categorical_likelihood import CategoricalLikelihood
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

Table = tuple[Tensor, Tensor]


@pytest.fixture
def regimes(generator: torch.Generator) -> Table:
    """Three hundred points: smooth with little noise left of zero, a steep line with much noise right of it."""
    X = 2 * torch.rand(300, 1, dtype=torch.float64, generator=generator) - 1
    left = X[:, 0] < 0
    f = torch.where(left, (6 * X[:, 0]).sin(), 2 - 3 * X[:, 0])
    return X, f + torch.where(left, 0.05, 0.4) * torch.randn(300, dtype=torch.float64, generator=generator)


def quiet(moe: SparseMixtureOfExperts, **options: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        fit_sparse_mixture(moe, **options)  # type: ignore[arg-type]


def value_of(scalar: Tensor) -> float:
    return float(scalar.detach())


def started(regimes: Table, k: int = 2, p: int = 15, seed: int = 0) -> SparseMixtureOfExperts:
    """A sparse mixture whose q(v) and gate have left their starts."""
    X, y = regimes
    return sparse_from_clusters(X, y, n_experts=k, likelihood=GaussianLikelihood().double(), n_inducing=p, seed=seed)


# One expert.


def test_one_expert_is_the_single_process(table: Table) -> None:
    X, y = table
    moe, gp = SparseMixtureOfExperts(X, y, X[:6], n_experts=1), StochasticVariationalGP(X, y, X[:6])
    assert_close(moe.elbo(), elbo(gp), rtol=1e-10, atol=1e-10)
    quiet(moe, epochs=20, batch_size=8, seed=3)
    fit_stochastic_quietly(gp, epochs=20, batch_size=8, seed=3)
    assert_close(moe.elbo(), elbo(gp), rtol=1e-6, atol=1e-6)
    mean, variance = gp.marginals(X)
    got = moe.predictive(X)
    assert_close(torch.from_numpy(got.mean), mean, rtol=1e-6, atol=1e-6)
    assert_close(torch.from_numpy(got.variance), variance + gp.new_noise(), rtol=1e-6, atol=1e-6)


# The bounds.


def test_the_bound_is_the_naive_sum(regimes: Table) -> None:
    moe = started(regimes)
    X, y = regimes
    terms = []
    for k, expert in enumerate(moe.all_experts):
        mean, variance = expert.marginals(X)
        noise = expert.new_noise()
        expected = torch.distributions.Normal(mean, noise.sqrt()).log_prob(y) - 0.5 * variance / noise
        terms.append(moe.gate.log_probs(X)[:, k] + expected)
    divergence = sum(expert.bound_terms(X)[2] for expert in moe.all_experts)
    wanted = torch.stack(terms).exp().sum(0).log().sum() - divergence
    assert_close(moe.elbo(), wanted, rtol=1e-8, atol=1e-8)


def test_the_predictive_sum_is_that_of_the_mixture_density(regimes: Table) -> None:
    moe = started(regimes)
    X, y = regimes
    divergence = sum(expert.bound_terms(X)[2] for expert in moe.all_experts)
    wanted = torch.from_numpy(moe.predictive(X).log_prob(y.numpy())).sum() - 0.3 * divergence
    assert_close(moe.tight(divergence_weight=0.3), wanted, rtol=1e-8, atol=1e-8)


def test_the_bound_lies_below_the_predictive_sum(regimes: Table) -> None:
    with torch.no_grad():
        assert all((moe := started(regimes, k)).elbo() <= moe.tight() for k in (1, 2, 3))


def test_given_responsibilities_only_lower_the_bound(regimes: Table) -> None:
    moe = started(regimes)
    best = moe.responsibilities(*regimes)
    assert_close(moe.elbo(responsibilities=best), moe.elbo(), rtol=1e-8, atol=1e-8)
    assert value_of(moe.elbo(responsibilities=best.round())) < value_of(moe.elbo())


@pytest.mark.parametrize("name", ["elbo", "tight"])
def test_minibatches_estimate_value_and_gradient_without_bias(name: str, regimes: Table) -> None:
    moe = started(regimes)
    wanted_value = getattr(moe, name)()
    parameters = [p for p in moe.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(wanted_value, parameters)
    values, total = [], [torch.zeros_like(p) for p in parameters]
    for rows in torch.arange(300).split(50):
        value = getattr(moe, name)(rows)
        values.append(value_of(value))
        for sum_, part in zip(total, torch.autograd.grad(value, parameters), strict=True):
            sum_ += part / 6
    assert sum(values) / 6 == pytest.approx(value_of(wanted_value))
    assert_close(total, list(wanted), rtol=1e-7, atol=1e-7)


def test_relabelling_experts_changes_nothing(regimes: Table) -> None:
    moe = started(regimes)
    other = deepcopy(moe)
    other.experts = torch.nn.ModuleList([other.experts[1], other.experts[0]])
    other.gate.weights = other.gate.weights.flip(-1)
    assert_close(other.elbo(), moe.elbo(), rtol=1e-10, atol=1e-10)
    assert_close(other.tight(), moe.tight(), rtol=1e-10, atol=1e-10)
    X = regimes[0][:5]
    assert_close(other.predictive(X).mean, moe.predictive(X).mean, rtol=1e-10, atol=1e-10)
    assert_close(other.posterior(X).covariance, moe.posterior(X).covariance, rtol=1e-10, atol=1e-10)


def test_a_whole_natural_step_with_all_points_inducing_gives_the_exact_experts(table: Table) -> None:
    X, y = table
    exact = MixtureOfExperts(X, y, n_experts=2)
    r = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r = r / r.sum(-1, keepdim=True)
    exact.set_responsibilities(r)
    sparse = SparseMixtureOfExperts(
        X,
        y,
        X,
        kernel=[expert.covar_module for expert in exact.all_experts],
        likelihood=[expert.likelihood for expert in exact.all_experts],
    )
    natural_pass(sparse, torch.arange(20), r)
    new = X[:7] + 0.1
    for one, other in zip(sparse.all_experts, exact.all_experts, strict=True):
        assert_close(one.marginals(new), other.marginals(new), rtol=1e-5, atol=1e-6)
    assert_close(sparse.predictive(new).variance, exact.predictive(new).variance, rtol=1e-5, atol=1e-6)


def test_a_pass_in_blocks_is_one_step(regimes: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = started(regimes)
    other = deepcopy(moe)
    natural_pass(moe, torch.arange(300))
    monkeypatch.setattr(sys.modules["gpmoe.inference.fit_sparse_mixture"], "_BLOCK", 70)
    natural_pass(other, torch.arange(300))
    assert_close(other.natural_parameters(), moe.natural_parameters(), rtol=1e-8, atol=1e-8)


def test_an_expert_without_responsibility_is_its_prior(regimes: Table) -> None:
    moe = started(regimes)
    r = torch.zeros(300, 2, dtype=torch.float64)
    r[:, 0] = 1.0
    natural_pass(moe, torch.arange(300), r)
    idle, X = moe.all_experts[1], regimes[0]
    mean, variance = idle.marginals(X)
    assert_close(mean, idle.mean_module(X), rtol=0, atol=1e-6)
    assert_close(variance, idle.covar_module(X, diag=True), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(moe.elbo())


# Fits.


def test_a_fit_finds_both_regimes_and_raises_the_bound(regimes: Table) -> None:
    moe = started(regimes)
    before = value_of(moe.elbo())
    quiet(moe, epochs=120, batch_size=100, learning_rate=0.1, seed=0)
    assert value_of(moe.elbo()) > before + 30
    noises = sorted(float(expert.new_noise().detach()) ** 0.5 for expert in moe.all_experts)
    assert noises[0] == pytest.approx(0.05, abs=0.03)
    assert noises[1] == pytest.approx(0.4, abs=0.1)
    probs = moe.gate_probs(torch.tensor([[-0.8], [0.8]], dtype=torch.float64))
    assert float((probs[0] - probs[1]).abs().max()) > 0.8


def test_fine_tuning_raises_the_predictive_sum(regimes: Table) -> None:
    moe = started(regimes)
    quiet(moe, epochs=60, batch_size=100, seed=0)
    before = value_of(moe.tight())
    quiet(moe, epochs=30, batch_size=300, objective="tight", seed=0)
    assert value_of(moe.tight()) > before


def test_a_seed_fixes_a_fit(regimes: Table) -> None:
    runs = []
    for _ in range(2):
        moe = started(regimes)
        quiet(moe, epochs=3, batch_size=64, seed=5)
        runs.append(moe)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_the_report_names_engine_and_objective(regimes: Table) -> None:
    with pytest.warns(NotConvergedWarning):
        report = fit_sparse_mixture(started(regimes), epochs=1, seed=0)
    assert "natural gradients and Adam on 'elbo'" in report.solver
    with pytest.raises(InputError, match="'elbo' or 'tight'; got 'loss'"):
        fit_sparse_mixture(started(regimes), objective="loss")


@pytest.mark.parametrize("gate", ["constant", "softmax", "gp"])
def test_every_gate_fits(gate: str, regimes: Table) -> None:
    X, y = regimes
    moe = sparse_from_clusters(
        X, y, n_experts=2, likelihood=GaussianLikelihood().double(), gate=gate, n_inducing=10, seed=0
    )
    quiet(moe, epochs=3, batch_size=100, seed=0)
    assert_close(moe.gate_probs(X).sum(-1), torch.ones(300, dtype=torch.float64))


# Hard EM.


def test_hard_em_separates_the_regimes(regimes: Table) -> None:
    X, y = regimes
    moe = MixtureOfExperts(X, y, n_experts=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        report = fit_hard(moe, seed=0)
    assert set(moe.responsibilities.unique().tolist()) == {0.0, 1.0}
    same = (moe.responsibilities[:, 0] > 0.5) == (X[:, 0] < 0)
    assert max(float(same.double().mean()), 1 - float(same.double().mean())) > 0.9
    assert "hard EM" in report.solver
    assert len(report.starts) == 4


def test_a_sparse_mixture_starts_where_exact_experts_ended(regimes: Table) -> None:
    X, y = regimes
    exact = MixtureOfExperts(X, y, n_experts=2)
    exact.set_responsibilities(torch.stack([X[:, 0] < 0, X[:, 0] >= 0], -1).double())
    exact.gate.fit_step(X, exact.responsibilities)
    sparse = sparse_from_exact(exact, X, y, n_inducing=30, seed=0)
    new = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64).unsqueeze(-1)
    assert_close(sparse.predictive(new).mean, exact.predictive(new).mean, rtol=0, atol=0.1)


def test_hard_em_of_sparse_experts_stands_still(regimes: Table) -> None:
    moe = started(regimes)
    report = fit_hard_sparse(moe)
    assert report.converged
    assert report.objective_trace[-1] >= report.objective_trace[0]


# Other likelihoods.


def test_categorical_expectations_agree_with_monte_carlo(normal) -> None:
    likelihood = CategoricalLikelihood(3)
    mean, scale = normal(3, 4), 0.5 + normal(3, 4).abs()
    latent = MultivariateNormal(mean, torch.diag_embed(scale.square()))
    y = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    log_probs = torch.log_softmax((mean + scale * normal(40_000, 3, 4)).mT, -1)
    own = log_probs.gather(-1, y.long().expand(40_000, 4).unsqueeze(-1)).squeeze(-1)
    assert_close(likelihood.expected_log_prob(y, latent), own.mean(0), rtol=0, atol=0.05)
    assert_close(likelihood.log_marginal(y, latent).exp(), own.exp().mean(0), rtol=0, atol=0.02)
    assert_close(likelihood(latent).probs, log_probs.exp().mean(0), rtol=0, atol=0.02)


def test_a_symmetric_categorical_latent_gives_equal_probabilities() -> None:
    latent = MultivariateNormal(torch.zeros(2, 1), torch.ones(2, 1, 1))
    assert_close(CategoricalLikelihood(2)(latent).probs, torch.full((1, 2), 0.5), rtol=0, atol=1e-6)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2; got 1"):
        CategoricalLikelihood(1)


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), CategoricalLikelihood(3), PoissonLikelihood()])
def test_other_likelihoods_raise_their_bound(likelihood, regimes: Table) -> None:
    X, _ = regimes
    y = ((X[:, 0] > -0.3).double() + (X[:, 0] > 0.4).double()).clamp_max(
        1 if isinstance(likelihood, BernoulliLikelihood) else 2
    )
    moe = sparse_from_clusters(X, y, n_experts=2, likelihood=likelihood, n_inducing=10, seed=0)
    before = value_of(moe.elbo())
    quiet(moe, epochs=20, batch_size=150, seed=0)
    assert value_of(moe.elbo()) > before
    assert value_of(moe.elbo()) <= value_of(moe.tight())
    with pytest.raises(InputError, match="no noise variance"):
        moe.predictive(X)


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), PoissonLikelihood()])
def test_labels_and_counts_have_the_bound_of_quadrature(likelihood, regimes: Table) -> None:
    X, f = regimes
    y = (f > 0).double() if isinstance(likelihood, BernoulliLikelihood) else f.exp().round()
    moe = sparse_from_clusters(X, y, n_experts=2, likelihood=likelihood, n_inducing=6, seed=0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    expected, marginal = [], []
    for expert in moe.all_experts:
        mean, variance = (part.detach().numpy()[:, None] for part in expert.marginals(X))
        latent = mean + np.sqrt(variance) * nodes
        if isinstance(likelihood, BernoulliLikelihood):
            log_prob = log_ndtr(np.where(y.numpy()[:, None] > 0, latent, -latent))
        else:
            log_prob = poisson.logpmf(y.numpy()[:, None], np.logaddexp(0.0, latent))  # GPyTorch's rate is softplus
        expected.append(log_prob @ weights / weights.sum())
        marginal.append(logsumexp(log_prob, b=weights / weights.sum(), axis=1))
    gate = moe.gate.log_probs(X).detach().numpy()
    divergence = sum(float(expert.bound_terms(X)[2].sum().detach()) for expert in moe.all_experts)
    for terms, value in ((expected, moe.elbo()), (marginal, moe.tight())):
        naive = logsumexp(gate + np.stack(terms, 1), axis=1).sum() - divergence
        assert value_of(value) == pytest.approx(naive, abs=0.02)  # 300 rows, 20 nodes


# What can't be.


def test_misfits_are_refused(table: Table) -> None:
    X, y = table
    for arguments, error, text in [
        ({"n_experts": 0}, InputError, "at least 1; got 0"),
        ({"Z": [X[:3]]}, ShapeError, "`Z` must be one or 2, one for each expert; got 1"),
        ({"gate": ConstantGate(3)}, InputError, "must have 2 experts; got one of 3"),
        ({"gate": "tree"}, InputError, "tree"),
        ({"X": X.float()}, DtypeError, "float64"),
    ]:
        with pytest.raises(error, match=text):
            SparseMixtureOfExperts(**{"X": X, "y": y, "Z": X[:3], **arguments})


def test_one_row_has_a_mixture(table: Table) -> None:
    X, y = table
    moe = SparseMixtureOfExperts(X[:1], y[:1], X[:1], gate=SoftmaxGate(2, 2))
    quiet(moe, epochs=2, seed=0)
    assert torch.isfinite(moe.elbo())


def test_duplicated_rows_and_a_constant_target_fit(table: Table) -> None:
    X = table[0][:5].repeat(4, 1)
    moe = sparse_from_clusters(
        X, torch.ones(20, dtype=torch.float64), n_experts=2, likelihood=GaussianLikelihood().double(), n_inducing=9
    )
    quiet(moe, epochs=3, seed=0)
    assert torch.isfinite(moe.elbo())


def test_class_probabilities_need_classes(table: Table) -> None:
    with pytest.raises(InputError, match="Bernoulli or categorical"):
        SparseMixtureOfExperts(*table, table[0][:3]).class_probs(table[0])


def test_a_posterior_takes_no_noise_tensor(table: Table) -> None:
    moe = SparseMixtureOfExperts(*table, table[0][:3])
    with pytest.raises(InputError, match="noise tensors"):
        moe.posterior(table[0], observation_noise=torch.ones(1))
    assert moe.posterior(table[0].unsqueeze(0), observation_noise=True).mean.shape == (1, 20, 1)


class LinearGate(torch.nn.Module):
    """A softmax gate of the simplest kind, which learns by gradient alone."""

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.slope = torch.nn.Parameter(torch.linspace(-1, 1, n_experts, dtype=torch.float64))

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Nothing in closed form."""

    def log_probs(self, X: Tensor) -> Tensor:
        return torch.log_softmax(X[..., :1] * self.slope, -1)

    def log_prior(self) -> Tensor:
        return -0.5 * self.slope.square().sum()


def test_a_gate_of_parameters_learns_by_gradient(regimes: Table) -> None:
    gate = LinearGate(2)
    moe = sparse_from_clusters(
        *regimes, n_experts=2, likelihood=GaussianLikelihood().double(), gate=gate, n_inducing=10, seed=0
    )
    before = moe.gate.slope.detach().clone()
    assert learns_by_gradient(moe.gate, moe.X)
    assert not learns_by_gradient(SoftmaxGate(2, 1), moe.X)
    quiet(moe, epochs=5, batch_size=100, seed=0)
    assert not torch.equal(moe.gate.slope.detach(), before)


def test_a_gp_gate_learns_its_kernel(regimes: Table) -> None:
    moe = sparse_from_clusters(
        *regimes, n_experts=2, likelihood=GaussianLikelihood().double(), gate="gp", n_inducing=10, seed=0
    )
    before = moe.gate.kernel.outputscale.detach().clone()
    quiet(moe, epochs=2, batch_size=100, seed=0)
    assert not torch.equal(moe.gate.kernel.outputscale.detach(), before)


def test_a_sparse_mixture_can_be_conditioned_on_further_observations(regimes: Table) -> None:
    X, _ = regimes
    moe = started(regimes, k=1).requires_grad_(False)
    X_more, Y = X[:2] + 0.05, torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    later = moe.condition_on_observations(X_more, Y).posterior(X[:5])
    expected = moe.all_experts[0].condition_on_observations(X_more, Y).posterior(X[:5])
    assert_close(later.mean, expected.mean, rtol=1e-8, atol=1e-8)
    assert_close(later.variance, expected.variance, rtol=1e-6, atol=1e-8)
