"""Pyro on mixtures of experts: the density against its parts, NUTS against quadrature, bounds against the evidence."""

import math

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from pyro.ops.stats import effective_sample_size
from torch.distributions import LogNormal, MultivariateNormal, Normal

from gpmoe.errors import InputError
from gpmoe.inference.pyro_mixture import CollapsedMixture, fit_variational, sample_mixture
from gpmoe.models import MixtureOfExperts

# Pyro's own calls of torch.jit and of names that are on their way out
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:pyro")


def few(n: int, n_experts: int, gate: str = "softmax") -> MixtureOfExperts:
    """Experts without priors on hyperparameters, of different mean and noise."""
    X = torch.linspace(-1, 1, n, dtype=torch.float64).unsqueeze(-1) if n > 1 else torch.zeros(1, 1).double()
    y = torch.sin(3 * X.squeeze(-1)) + 0.4
    moe = MixtureOfExperts(X, y, n_experts=n_experts, kernel=ScaleKernel(RBFKernel()), noise=0.05, gate=gate)
    for k, expert in enumerate(moe.all_experts):
        expert.mean_module.constant = 1.5 * k
        expert.covar_module.outputscale = 0.5 + k
    return moe


def test_the_density_is_the_sum_over_all_assignments() -> None:
    moe = few(3, 2)
    target = CollapsedMixture(moe)
    values = target.start()
    values["gate"] = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
    total = []
    f = [m.mean_module(moe.X) + target._factor(k, values) @ values["u"][k] for k, m in enumerate(moe.all_experts)]
    log_pi = torch.log_softmax(values["gate"][0] + moe.X @ values["gate"][1:], -1)
    for z in range(8):
        chosen = [(z >> i) & 1 for i in range(3)]
        terms = [log_pi[i, k] + Normal(f[k][i], 0.05**0.5).log_prob(moe.y[i]) for i, k in enumerate(chosen)]
        total.append(torch.stack(terms).sum())
    standard = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    wanted = torch.stack(total).logsumexp(0) + standard.log_prob(values["u"]).sum()
    wanted = wanted + Normal(0.0, moe.gate.precision**-0.5).log_prob(values["gate"]).sum()
    assert float(target.log_joint(values).detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)


def test_priors_count_with_the_jacobian_of_their_constraint() -> None:
    moe, prior = few(3, 1), LogNormal(torch.tensor(-1.0, dtype=torch.float64), 0.5)
    bare, target = CollapsedMixture(moe), CollapsedMixture(moe, {"covar_module.outputscale": prior})
    name = "experts.0.covar_module.raw_outputscale"
    assert list(target.priors) == [name]
    values = {"u": torch.zeros(1, 3, dtype=torch.float64)}  # at u = 0 the data don't depend on the outputscale
    with torch.no_grad():
        grid = torch.linspace(-15, 15, 6001, dtype=torch.float64)
        base = bare.log_joint(values)
        mass = torch.stack([target.log_joint({**values, name: raw}) - base for raw in grid[::20]]).exp()
        assert float(torch.trapezoid(mass, grid[::20])) == pytest.approx(1.0, abs=1e-4)


def test_a_constant_gate_has_its_dirichlet_prior() -> None:
    target = CollapsedMixture(few(1, 2, "constant"))
    grid = torch.linspace(-14, 14, 57, dtype=torch.float64)
    with torch.no_grad():
        pairs = torch.cartesian_prod(grid, grid)
        mass = torch.stack([torch.as_tensor(target._log_prior_of_gate({"gate": pair})) for pair in pairs]).exp()
    assert float(mass.sum()) * 0.5**2 == pytest.approx(1.0, abs=1e-3)


def test_the_start_is_the_posterior_mean_of_the_model() -> None:
    moe = few(8, 2)
    target = CollapsedMixture(moe)
    with torch.no_grad():
        _, means, _ = target.conditional(target.start(), moe.X)
        for k, expert in enumerate(moe.all_experts):
            assert float((means[:, k] - expert.marginals(moe.X)[0]).abs().max()) < 1e-5


def expect_mean(drawn: np.ndarray, wanted: float) -> None:
    """The mean of correlated draws is within four standard errors, by their effective number."""
    effective = float(effective_sample_size(torch.from_numpy(drawn.copy())[None], chain_dim=0, sample_dim=1))
    assert effective > 30
    assert abs(drawn.mean() - wanted) < 4 * drawn.std() / math.sqrt(effective)


@pytest.mark.slow
def test_nuts_agrees_with_quadrature_on_one_latent_value() -> None:
    moe = few(1, 2)  # one point: each f_k is one number, and the gate's prior is symmetric, so its mean is 1/2
    prior = Normal(torch.zeros((), dtype=torch.float64), 0.5)
    draws = sample_mixture(moe, n_draws=400, n_warmup=100, priors={"gate": prior}, seed=0)
    predictive = draws.predictive(moe.X, include_noise=False)
    grid = torch.linspace(-8, 10, 4001, dtype=torch.float64)
    density = [Normal(1.5 * k, (0.5 + k) ** 0.5).log_prob(grid).exp() for k in range(2)]
    like = Normal(grid, 0.05**0.5).log_prob(moe.y).exp()
    with torch.no_grad():
        evidence = [torch.trapezoid(p * like, grid) for p in density]
        for k in range(2):
            share = float(evidence[k] / sum(evidence))
            posterior = share * density[k] * like / evidence[k] + (1 - share) * density[k]
            wanted = float(torch.trapezoid(posterior * grid, grid))
            drawn = predictive.component_means[0, k::2]
            expect_mean(drawn, wanted)
            expect_mean((drawn - wanted) ** 2, float(torch.trapezoid(posterior * (grid - wanted) ** 2, grid)))


def test_nuts_of_one_expert_has_the_posterior_of_its_gp() -> None:
    moe = few(4, 1)
    X_new = torch.tensor([[-0.3], [1.8]], dtype=torch.float64)
    predictive = sample_mixture(moe, n_draws=300, n_warmup=100, seed=1).predictive(X_new)
    exact = moe.predictive(X_new)
    for i in range(2):
        means, variances = predictive.component_means[i], predictive.component_variances[i]
        expect_mean(means, float(exact.mean[i]))
        expect_mean(variances + (means - exact.mean[i]) ** 2, float(exact.variance[i]))


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_the_bound_of_variational_inference_is_below_the_evidence(guide: str) -> None:
    moe = few(4, 1)
    draws = fit_variational(moe, guide=guide, n_steps=300, learning_rate=0.05, n_draws=200, seed=0)
    K = moe.experts[0].covar_module(moe.X).to_dense() + 0.05 * torch.eye(4)
    evidence = float(MultivariateNormal(torch.zeros(4, dtype=torch.float64), K).log_prob(moe.y).detach())
    assert draws.elbo <= evidence + 4 * draws.elbo_error
    assert draws.elbo > evidence - 2.0


def test_a_full_guide_finds_the_conjugate_posterior() -> None:
    """But for the noise of stochastic gradients, within a tenth of a standard deviation."""
    moe = few(4, 1)
    options = {"n_steps": 600, "learning_rate": 0.05, "n_draws": 400, "seed": 0}
    predictive = fit_variational(moe, guide="multivariate_normal", **options).predictive(moe.X)
    exact = moe.predictive(moe.X)
    error = 4 * predictive.component_means.std(1) / math.sqrt(400)
    assert (np.abs(predictive.mean - exact.mean) < error + 0.1 * exact.stddev).all()
    np.testing.assert_allclose(predictive.stddev, exact.stddev, rtol=0.1)


def test_a_delta_guide_finds_the_mode() -> None:
    moe = few(4, 1)
    draws = fit_variational(moe, guide="delta", n_steps=400, learning_rate=0.05)
    assert len(draws) == 1
    np.testing.assert_allclose(
        draws.predictive(moe.X).component_means, moe.predictive(moe.X).component_means, atol=0.01
    )
    assert math.isnan(draws.elbo)


def test_a_seed_fixes_the_draws_and_leaves_torchs_generator_alone() -> None:
    moe = few(3, 2)
    state = torch.random.get_rng_state()
    first, again = (sample_mixture(moe, n_draws=5, n_warmup=5, seed=7) for _ in range(2))
    assert torch.equal(first.values["u"], again.values["u"])
    assert torch.equal(
        *(fit_variational(moe, n_steps=5, n_draws=3, seed=s).values["u"] for s in (7, 7)),
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    import pyro

    assert len(pyro.get_param_store()) == 0


def test_models_that_pyro_does_not_take_are_named() -> None:
    large = MixtureOfExperts(torch.zeros(201, 1).double(), torch.zeros(201).double())
    with pytest.raises(InputError, match="at most 200 rows; got 201"):
        sample_mixture(large)
    with pytest.raises(InputError, match="`n_draws` must be at least 4; got 3"):
        sample_mixture(few(3, 2), n_draws=3)
    with pytest.raises(InputError, match="SoftmaxGate or a ConstantGate; got GPGate"):
        sample_mixture(few(3, 2, "gp"))
    with pytest.raises(InputError, match=r"'gate': covar_module\.base_kernel\.lengthscale.*; got 'lengthscale'"):
        CollapsedMixture(few(3, 2), {"lengthscale": LogNormal(0.0, 1.0)})
    with pytest.raises(InputError, match="one of normal, multivariate_normal, delta; got 'flow'"):
        fit_variational(few(3, 2), guide="flow")
