"""Experts on one feature network: its values, its share of the bound, and what mixtures of such experts do."""

import json
import math
import warnings
from pathlib import Path

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel
from gpytorch.priors import NormalPrior
from torch import Tensor
from torch.testing import assert_close

from gpmoe import GPRegressor, MixtureOfExpertsRegressor, load
from gpmoe.errors import DtypeError, InputError, NotConvergedWarning, ShapeError, UnsupportedKernelError
from gpmoe.features import FeatureNetwork, ModulatedNetwork, deep_kernels
from gpmoe.gates import FeatureGate, SoftmaxGate
from gpmoe.inference import Cholesky, fit
from gpmoe.inference.hard_em import fit_hard
from gpmoe.inference.marginal_likelihood import log_prior
from gpmoe.inference.shared_parameters import sharing_groups
from gpmoe.inference.vbem import expert_evidence, fit_mixture, run_em
from gpmoe.kernels import FeatureKernel, dimension_scaled_matern
from gpmoe.kernels.description import build_kernel, describe_kernel, share_modules, shared_modules
from gpmoe.models import ExactGP, MixtureOfExperts

NEVER = -np.inf


def warped(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two regimes of x_0, each a wave of the same steep sigmoid of x_1: flat, then fast, then flat."""
    generator = np.random.default_rng(seed)
    X = generator.uniform(-1, 1, (n, 2))
    warp = 1 / (1 + np.exp(-15 * X[:, 1]))
    right = X[:, 0] > 0
    mean = np.where(right, np.sin(8 * warp), 0.7 * np.cos(5 * warp) - 0.5)
    y = mean + np.where(right, 0.15, 0.05) * generator.standard_normal(n)
    return torch.from_numpy(X * 3**0.5), torch.from_numpy(y)


def deep_mixture(n: int = 30, *, modulated: bool = True, on_features: bool = False) -> MixtureOfExperts:
    body = FeatureNetwork(2, [5], weight_scale=1.0, seed=1)
    gate = FeatureGate(body, SoftmaxGate(2, 2)) if on_features else "softmax"
    X, y = warped(n, 0)
    experts = [ExactGP(X, y, kernel=kernel) for kernel in deep_kernels(body, 2, modulated=modulated)]
    moe = MixtureOfExperts(X, y, experts=experts, gate=gate)
    left = torch.where(X[:, 0] < 0, 0.8, 0.2).double()
    moe.set_responsibilities(torch.stack([left, 1 - left], -1))
    return moe


def shared_body(moe: MixtureOfExperts) -> FeatureNetwork:
    feature_map = moe.all_experts[0].covar_module.feature_map
    return feature_map.body if isinstance(feature_map, ModulatedNetwork) else feature_map


def bound(moe: MixtureOfExperts) -> Tensor:
    """With all log priors."""
    r = moe.responsibilities
    total = sum(expert_evidence(expert) for expert in moe.experts) + moe.gate.bound(moe.X, r)
    return total - torch.special.xlogy(r, r).sum() + log_prior(moe)


def test_the_network_is_its_layers_written_out(normal) -> None:
    network, X = FeatureNetwork(3, [4, 5], activation="silu"), normal(6, 3)
    h = X
    for layer in range(3):
        W = network.weights[layer] * 0.7 / math.sqrt(network.weights[layer].shape[1])
        h = h @ W.mT + 0.7 * network.biases[layer]
        h = h * torch.sigmoid(h) if layer < 2 else h
    assert_close(network(X), X + h)
    assert_close(network(X.expand(2, 6, 3))[1], X + h)


def test_the_modulated_network_scales_and_shifts_each_hidden_unit(normal) -> None:
    body, X = FeatureNetwork(3, [4], weight_scale=1.0), normal(6, 3)
    network = ModulatedNetwork(body)
    assert_close(network(X), body(X))
    network.gains[0].data, network.shifts[0].data = normal(4), normal(4)
    hidden = torch.tanh((1 + network.gains[0]) * (X @ body.weights[0].mT / 3**0.5 + body.biases[0]) + network.shifts[0])
    assert_close(network(X), X + hidden @ body.weights[1].mT / 2 + body.biases[1])


def test_no_weights_leave_the_inputs_and_the_plain_gp(normal) -> None:
    network, X = FeatureNetwork(3), normal(6, 3)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert torch.equal(network(X), X)
    assert torch.equal(ModulatedNetwork(network)(X), X)


def test_a_seed_fixes_the_start_and_no_global_state_moves() -> None:
    before = torch.get_rng_state()
    first, again, other = (FeatureNetwork(2, [3], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weights[0], again.weights[0])
    assert not torch.equal(first.weights[0], other.weights[0])
    assert torch.equal(before, torch.get_rng_state())


def test_arguments_that_make_no_network_are_refused(normal) -> None:
    with pytest.raises(InputError, match="`activation` must be one of 'tanh'"):
        FeatureNetwork(1, activation="step")
    with pytest.raises(InputError, match=r"at least 1; got 3 and \[\]"):
        FeatureNetwork(3, [])
    with pytest.raises(InputError, match=r"at least 1; got 3 and \[4, 0\]"):
        FeatureNetwork(3, [4, 0])
    with pytest.raises(InputError, match=r"such as \(16,\); got 16"):
        FeatureNetwork(3, 16)
    with pytest.raises(DtypeError, match=r"`X` must be torch\.float64"):
        FeatureNetwork(3)(normal(4, 3).float())
    with pytest.raises(InputError, match="`weight_scale`"):
        FeatureNetwork(1, weight_scale=0.0)
    with pytest.raises(InputError, match="`spread`"):
        ModulatedNetwork(FeatureNetwork(2), spread=0.0)
    with pytest.raises(InputError, match=r"`spread`.*got inf"):
        ModulatedNetwork(FeatureNetwork(2), spread=math.inf)
    with pytest.raises(ShapeError, match=r"\(\*batch, n, 3\)"):
        FeatureNetwork(3)(normal(4, 2))


def test_the_weights_of_a_shared_network_count_once_in_the_prior() -> None:
    moe = deep_mixture()
    body = shared_body(moe)
    flat = torch.cat([parameter.reshape(-1) for parameter in body.parameters()])
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(flat).sum()
    alone = [log_prior(expert) for expert in moe.experts]
    assert_close(log_prior(moe), sum(alone) - expected, rtol=1e-12, atol=1e-12)


def test_two_priors_of_one_object_on_two_parameters_both_count() -> None:
    prior = NormalPrior(0.0, 1.0)
    both = torch.nn.ModuleList([RBFKernel(lengthscale_prior=prior), RBFKernel(lengthscale_prior=prior)])
    model = gpytorch.Module()
    model.both = both
    assert_close(log_prior(model), 2 * log_prior(both[0]))


@pytest.mark.parametrize("modulated", [True, False])
def test_the_gradient_of_the_bound_in_the_network_is_that_of_differences(modulated: bool) -> None:
    moe = deep_mixture(12, modulated=modulated)
    for parameter in [*shared_body(moe).parameters(), *moe.all_experts[1].covar_module.feature_map.parameters()]:
        moe.zero_grad()
        bound(moe).backward()
        flat, slope = parameter.data.view(-1), parameter.grad.reshape(-1)
        for i in range(0, len(flat), 3):
            kept, values = float(flat[i]), []
            for step in (1e-5, -1e-5):
                flat[i] = kept + step
                values.append(float(bound(moe).detach()))
            flat[i] = kept
            assert_close(float(slope[i]), (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_features", [False, True])
@pytest.mark.parametrize("modulated", [True, False])
def test_the_bound_never_falls_and_is_what_the_model_has(modulated: bool, on_features: bool) -> None:
    moe = deep_mixture(modulated=modulated, on_features=on_features)
    trace = np.array(run_em(moe, Cholesky(), 10, NEVER).trace)
    assert (np.diff(trace) > -1e-9 * np.abs(trace[:-1])).all()
    assert trace[-1] > trace[0] + 1
    assert_close(trace[-1], float(bound(moe).detach()), rtol=1e-9, atol=1e-9)


def test_parameters_shared_through_a_third_part_are_one_group() -> None:
    a, b, c = (torch.nn.Linear(1, 1) for _ in range(3))
    parts = [torch.nn.Sequential(a), torch.nn.Sequential(b), c, torch.nn.Sequential(a, b), torch.nn.Identity()]
    assert sharing_groups(parts) == [[0, 1, 3], [2], [4]]
    a.requires_grad_(False)
    assert sharing_groups(parts) == [[0], [1, 3], [2], [4]]


def test_experts_of_one_kernel_object_climb_together() -> None:
    X, y = warped(20, 0)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    moe = MixtureOfExperts(X, y, experts=[ExactGP(X, y, kernel=kernel) for _ in range(2)])
    moe.set_responsibilities(torch.stack([torch.linspace(0.9, 0.1, 20), torch.linspace(0.1, 0.9, 20)], -1).double())
    trace = np.array(run_em(moe, Cholesky(), 10, NEVER).trace)
    assert (np.diff(trace) > -1e-9 * np.abs(trace[:-1])).all()
    assert_close(trace[-1], float(bound(moe).detach()), rtol=1e-9, atol=1e-9)


def test_a_fit_leaves_one_network_for_all_experts() -> None:
    X, y = warped(40, 1)
    body = FeatureNetwork(2, [4])
    before = [parameter.clone() for parameter in body.parameters()]
    moe = MixtureOfExperts(X, y, n_experts=2, kernel=deep_kernels(body, 2))
    report = fit_mixture(moe, n_restarts=2, seed=0, max_iterations=300)
    bodies = {id(expert.covar_module.feature_map.body) for expert in moe.all_experts}
    assert len(bodies) == 1
    assert_close(report.objective_trace[-1], float(bound(moe).detach()), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(old, new) for old, new in zip(before, body.parameters(), strict=True))  # the caller's own


def test_a_network_stays_shared_with_the_gate_where_the_search_is_on_some_rows(monkeypatch) -> None:
    monkeypatch.setattr("gpmoe.inference.vbem._SCREENING_ROWS", 20)
    moe = deep_mixture(40, on_features=True)
    report = fit_mixture(moe, n_restarts=1, seed=0, max_iterations=300)
    assert moe.gate.extractor is shared_body(moe)
    assert moe.all_experts[1].covar_module.feature_map.body is shared_body(moe)
    assert_close(report.objective_trace[-1], float(bound(moe).detach()), rtol=1e-6, atol=1e-6)


def test_kernels_of_a_list_that_repeats_one_object_are_copied_apart() -> None:
    X, y = warped(10, 0)
    kernel = RBFKernel()
    moe = MixtureOfExperts(X, y, n_experts=2, kernel=[kernel, kernel])
    assert moe.all_experts[0].covar_module is not moe.all_experts[1].covar_module


def test_hard_em_refuses_what_it_would_fit_one_expert_at_a_time() -> None:
    with pytest.raises(InputError, match="share parameters"):
        fit_hard(deep_mixture())
    shared_with_gate = deep_mixture(on_features=True)
    shared_with_gate.experts = shared_with_gate.experts[:1]
    with pytest.raises(InputError, match="share parameters"):
        fit_hard(shared_with_gate)


def test_on_a_warped_input_deep_experts_predict_better_than_plain_ones() -> None:
    X, y = warped(200, 0)
    X_new, y_new = warped(1000, 100)
    scores = []
    for kernel in (None, deep_kernels(FeatureNetwork(2), 2)):
        moe = MixtureOfExperts(X, y, n_experts=2, kernel=kernel)
        fit_mixture(moe, n_restarts=2, seed=0, max_iterations=300)
        scores.append(float(np.mean(moe.predictive(X_new).log_prob(y_new.numpy()))))
    assert scores[1] > scores[0] + 0.1


def test_few_data_leave_a_deep_kernel_the_plain_one() -> None:
    """Without the prior the same network fits the noise of 40 points, and predicts them worse by hundreds of nats."""
    generator = np.random.default_rng(0)
    X, X_new = (torch.from_numpy(generator.standard_normal((n, 4))) for n in (40, 500))
    y, y_new = (
        torch.sin(2 * x[:, 0]) + 0.3 * x[:, 1] + 0.2 * torch.from_numpy(generator.standard_normal(len(x)))
        for x in (X, X_new)
    )
    flat = FeatureNetwork(4)
    del flat._priors["weights_prior"]
    scores = []
    for feature_map in (None, FeatureNetwork(4), flat):
        matern = dimension_scaled_matern(4)
        gp = ExactGP(X, y, kernel=matern if feature_map is None else FeatureKernel(feature_map, matern))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)  # the one without a prior goes on for ever
            fit(gp, max_iterations=200)
        posterior = gp.posterior(X_new, observation_noise=True)
        density = torch.distributions.Normal(posterior.mean.squeeze(-1), posterior.variance.squeeze(-1).sqrt())
        scores.append(float(density.log_prob(y_new).mean().detach()))
    assert abs(scores[1] - scores[0]) < 0.1
    assert scores[2] < scores[0] - 10


@pytest.mark.parametrize("kernel", ["network", "modulated"])
def test_a_regressor_on_features_is_saved_and_predicts_alike(kernel: str, tmp_path: Path) -> None:
    X, y = warped(25, 0)
    network = FeatureNetwork(2, [4], activation="gelu", weight_scale=0.5)
    feature_map = network if kernel == "network" else ModulatedNetwork(network, spread=0.3)
    model = GPRegressor(FeatureKernel(feature_map, dimension_scaled_matern(2)), noise=0.1).fit(X.numpy(), y.numpy())
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert np.array_equal(again.predict(X.numpy()), model.predict(X.numpy()))
    assert describe_kernel(again.model_.covar_module) == describe_kernel(model.model_.covar_module)


def test_kernels_that_share_a_network_share_it_again_when_they_are_built() -> None:
    kernels = torch.nn.ModuleList(deep_kernels(FeatureNetwork(2, [4, 3]), 3))
    text = json.dumps([[describe_kernel(kernel) for kernel in kernels], shared_modules(kernels)])
    descriptions, shared = json.loads(text)
    assert shared == {f"{k}.feature_map.body": "0.feature_map.body" for k in (1, 2)}
    built = torch.nn.ModuleList([build_kernel(description) for description in descriptions])
    share_modules(built, shared)
    assert shared_modules(built) == shared
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in kernels.named_parameters()]


def test_modules_that_differ_are_not_made_one() -> None:
    kernels = [FeatureKernel(FeatureNetwork(2, [width]), RBFKernel()) for width in (3, 4)]
    with pytest.raises(UnsupportedKernelError, match="they differ"):
        share_modules(torch.nn.ModuleList(kernels), {"1.feature_map": "0.feature_map"})


def test_a_feature_map_that_is_code_is_refused() -> None:
    with pytest.raises(UnsupportedKernelError, match="FeatureKernel on a Linear"):
        describe_kernel(FeatureKernel(torch.nn.Linear(2, 2), RBFKernel()))
    description = describe_kernel(FeatureKernel(FeatureNetwork(2), RBFKernel()))
    description["feature_map"]["type"] = "os.system"
    with pytest.raises(UnsupportedKernelError, match="unknown feature map"):
        build_kernel(description)


def test_a_mixture_whose_experts_share_a_network_is_saved_as_one(tmp_path: Path) -> None:
    X, y = warped(30, 0)
    model = MixtureOfExpertsRegressor(n_experts=2, random_state=0).fit(X.numpy(), y.numpy())
    moe = MixtureOfExperts(model.model_.X, model.model_.y, n_experts=2, kernel=deep_kernels(FeatureNetwork(2, [4]), 2))
    run_em(moe, Cholesky(), 3, NEVER)
    model.model_ = moe.requires_grad_(False)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert np.array_equal(again.predict(X.numpy()), model.predict(X.numpy()))
    assert shared_body(again.model_) is again.model_.all_experts[1].covar_module.feature_map.body
