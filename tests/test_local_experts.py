"""Local experts as a model: against loops over exact processes, and the exact process where they must equal it."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import get_args

import numpy as np
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from gpmoe.errors import InputError, ShapeError, UnsupportedKernelError
from gpmoe.inference.fit import fit_quietly
from gpmoe.inference.fit_local_experts import ExpertPlan, fit_local_experts
from gpmoe.models import aggregation as rules
from gpmoe.models import expert_moments
from gpmoe.models.aggregation import Aggregation
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert_layout import ExpertLayout
from gpmoe.models.local_experts import LocalExperts
from gpmoe.models.partition import partition_rows

Normal = Callable[..., Tensor]
RULES = get_args(Aggregation)
every_rule = pytest.mark.parametrize("rule", RULES)


def surface(normal: Normal, n: int = 90, d: int = 2) -> tuple[Tensor, Tensor]:
    X = 1.5 * normal(n, d)
    return X, X[:, 0].sin() + 0.3 * X[:, 1] + 0.1 * normal(n) + 3.0


def matern(d: int = 2) -> ScaleKernel:
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=d)).double()
    kernel.outputscale = torch.tensor(1.3, dtype=torch.float64)
    return kernel


def local_experts(
    X: Tensor, y: Tensor, n_parts: int, rule: Aggregation = "grbcm", communication: int = 15, **more
) -> LocalExperts:
    """Experts with the rows in order, a Matérn kernel, noise 0.02 and mean 2."""
    regions, labels = partition_rows(X.numpy(), n_parts)
    order = np.argsort(labels, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    centers = np.stack([X.numpy()[labels == part].mean(0) for part in range(n_parts)])
    shared = np.sort(np.random.default_rng(0).choice(len(X), communication, replace=False))
    layout = ExpertLayout(offsets, centers, regions, shared, more.pop("n_nearest", None))
    index = torch.from_numpy(order)
    kernel = more.pop("kernel", None) or matern(X.shape[-1])
    model = LocalExperts(X[index], y[index], layout, aggregation=rule, kernel=kernel, noise=0.02, **more)
    torch.nn.init.constant_(model.mean_module.raw_constant, 2.0)
    return model.requires_grad_(False)


def exact(model: LocalExperts, rows: Tensor | slice = slice(None)) -> ExactGP:
    """The exact process on some of a model's rows, with its hyperparameters."""
    kernel, mean = deepcopy(model.covar_module), deepcopy(model.mean_module)
    return ExactGP(model.X[rows], model.y[rows], kernel=kernel, mean=mean, noise=0.02)


# What the rules are given.


@pytest.mark.parametrize("small", [True, False], ids=["compiled", "LAPACK"])
def test_experts_are_exact_processes_on_their_rows(small: bool, normal: Normal, monkeypatch) -> None:
    if not small:
        monkeypatch.setattr(expert_moments, "_SMALL", 0)
    X, y = surface(normal)
    model, X_new = local_experts(X, y, 5, "rbcm"), normal(7, 2)
    experts = [exact(model, slice(int(a), int(b))) for a, b in zip(*offsets_of(model), strict=True)]
    wanted = sum(gp.log_marginal_likelihood().item() for gp in experts)
    assert model.log_marginal_likelihood().item() == pytest.approx(wanted, rel=1e-10)
    means, variances = (torch.stack(part, -1) for part in zip(*(gp.marginals(X_new) for gp in experts), strict=True))
    priors = torch.full_like(means, 1.3)
    votes = rules.differential_entropy_votes(variances, priors)
    mean, variance = rules.committee_machine(means - 2.0, variances, priors, priors[:, 0], votes)
    assert_close(model.marginals(X_new), (mean + 2.0, variance), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("small", [True, False], ids=["compiled", "LAPACK"])
def test_enhanced_experts_have_the_communication_rows_too(small: bool, normal: Normal, monkeypatch) -> None:
    if not small:
        monkeypatch.setattr(expert_moments, "_SMALL", 0)
    X, y = surface(normal)
    model, X_new = local_experts(X, y, 4), normal(6, 2)
    shared = model.layout.communication
    base_mean, base = exact(model, torch.from_numpy(shared)).marginals(X_new)
    for i, near in enumerate(model.layout.nearest(X_new.numpy())):
        found = []
        for expert in near:
            own = np.arange(*model.layout.offsets[expert : expert + 2])
            rows = torch.from_numpy(np.union1d(own, shared))
            found.append(exact(model, rows).marginals(X_new[i : i + 1]))
        means, variances = (torch.cat(part).unsqueeze(0) for part in zip(*found, strict=True))
        wanted = rules.generalised_robust_committee(means, variances, base_mean[i : i + 1], base[i : i + 1])
        assert_close(model.marginals(X_new[i : i + 1]), wanted, rtol=1e-8, atol=1e-9)


def offsets_of(model: LocalExperts) -> tuple[list[int], list[int]]:
    return model.layout.offsets[:-1].tolist(), model.layout.offsets[1:].tolist()


# What must come out.


@every_rule
def test_one_expert_is_the_exact_process(rule: Aggregation, normal: Normal) -> None:
    X, y = surface(normal, 30)
    model, X_new = local_experts(X, y, 1, rule), normal(8, 2)
    gp = exact(model)
    assert_close(model.marginals(X_new), gp.marginals(X_new), rtol=1e-7, atol=1e-8)
    mean, covariance = model.latent(X_new[:3])
    wanted, joint = gp.latent(X_new[:3])
    assert_close(mean, wanted, rtol=1e-7, atol=1e-8)
    assert_close(covariance, joint, rtol=1e-6, atol=1e-7)


def test_a_communication_expert_with_all_rows_makes_it_exact(normal: Normal) -> None:
    X, y = surface(normal, 60)
    model, X_new = local_experts(X, y, 4, communication=60), normal(8, 2)
    assert_close(model.marginals(X_new), exact(model).marginals(X_new), rtol=1e-7, atol=1e-8)


def test_fully_correlated_experts_are_exact(normal: Normal) -> None:
    X, y = surface(normal, 60)
    model, X_new = local_experts(X, y, 4, "cpoe", degree=4), normal(8, 2)
    gp = exact(model)
    assert_close(model.marginals(X_new), gp.marginals(X_new), rtol=1e-7, atol=1e-8)
    assert model.log_evidence() == pytest.approx(gp.log_marginal_likelihood().item(), rel=1e-9)


def test_rules_that_know_of_dependence_come_nearest_to_the_exact_process(normal: Normal) -> None:
    X, y = surface(normal, 400)
    model, X_new = local_experts(X, y, 10, "nested", communication=60, degree=3), 1.2 * normal(200, 2)
    mean, variance = exact(model).marginals(X_new)

    def divergence(rule: Aggregation) -> float:
        """From the exact predictive to the rule's, mean over points, nats."""
        model.combine_by(rule, 3)
        got, spread = model.marginals(X_new)
        ratio = (variance + 0.02) / (spread + 0.02)
        return float(0.5 * (ratio - 1 - ratio.log() + (got - mean).square() / (spread + 0.02)).mean())

    found = {rule: divergence(rule) for rule in RULES}
    assert found["nested"] < 0.01
    assert max(found["cpoe"], found["nested"]) < min(found["poe"], found["bcm"], found["gpoe"])
    assert found["grbcm"] < min(found["poe"], found["gpoe"])


def test_nested_kriging_is_the_best_linear_combination(normal: Normal) -> None:
    X, y = surface(normal, 40)
    model, x = local_experts(X, y, 3, "nested"), normal(1, 2)
    K = model.covar_module(model.X, model.X).to_dense()
    k = model.covar_module(x, model.X).to_dense()[0]
    C = K + 0.02 * torch.eye(40).double()
    W = torch.zeros(3, 40).double()
    for i, (a, b) in enumerate(zip(*offsets_of(model), strict=True)):
        W[i, a:b] = torch.linalg.solve(C[a:b, a:b], k[a:b])
    between, told = W @ C @ W.mT, W @ k
    weights = torch.linalg.solve(between, told)
    mean, variance = model.marginals(x)
    # off the diagonal the noise of different experts is independent, so C and K agree there
    assert_close(mean[0], 2.0 + weights @ W @ (model.y - 2.0), rtol=1e-6, atol=1e-7)
    assert_close(variance[0], 1.3 - weights @ told, rtol=1e-6, atol=1e-7)


@every_rule
def test_experts_in_another_order_say_the_same(rule: Aggregation, normal: Normal) -> None:
    X, y = surface(normal, 60)
    model, X_new = local_experts(X, y, 4, rule, communication=60 if rule == "grbcm" else 5), normal(9, 2)
    layout = model.layout
    swap = np.array([2, 0, 3, 1])
    rows, offsets = layout.rows_of(swap)
    regions = layout.regions
    assert regions is not None
    back = np.argsort(swap)
    children = np.where(regions.children < 0, ~back[~np.minimum(regions.children, -1)], regions.children)
    moved = ExpertLayout(
        offsets,
        layout.centers[swap],
        type(regions)(regions.normals, regions.thresholds, children),
        np.arange(60) if rule == "grbcm" else layout.communication,
    )
    index = torch.from_numpy(rows)
    other = LocalExperts(model.X[index], model.y[index], moved, aggregation=rule, kernel=matern(), noise=0.02)
    torch.nn.init.constant_(other.mean_module.raw_constant, 2.0)
    assert_close(other.marginals(X_new), model.marginals(X_new), rtol=1e-7, atol=1e-8)


@every_rule
def test_far_from_all_rows_the_prior_is_left_or_what_a_rule_is_known_for(rule: Aggregation, normal: Normal) -> None:
    X, y = surface(normal, 60)
    mean, variance = local_experts(X, y, 4, rule).marginals(torch.full((1, 2), 1e3).double())
    assert_close(mean, torch.tensor([2.0]).double(), rtol=0, atol=1e-6)
    assert_close(variance, torch.tensor([1.3 / 4 if rule == "poe" else 1.3]).double(), rtol=1e-5, atol=0)


@every_rule
def test_blocks_of_points_and_their_order_change_nothing(rule: Aggregation, normal: Normal, monkeypatch) -> None:
    X, y = surface(normal, 60)
    model, X_new = local_experts(X, y, 6, rule, n_nearest=3), normal(40, 2)
    mean, variance = model.marginals(X_new)
    monkeypatch.setattr("gpmoe.models.local_experts._PAIRS", 7)
    monkeypatch.setattr("gpmoe.models.nested_kriging._BLOCK", 200)
    again = model.marginals(X_new.flip(0))
    assert_close(again[0].flip(0), mean, rtol=1e-9, atol=1e-10)
    assert_close(again[1].flip(0), variance, rtol=1e-9, atol=1e-10)
    for i in (0, 17):
        assert_close(model.marginals(X_new[i : i + 1])[0], mean[i : i + 1], rtol=1e-9, atol=1e-10)


# Joint posteriors, BoTorch.


@every_rule
def test_joint_posteriors_have_the_marginals_and_are_covariances(rule: Aggregation, normal: Normal) -> None:
    X, y = surface(normal, 60)
    model, X_new = local_experts(X, y, 6, rule, n_nearest=3), normal(2, 5, 2)
    mean, covariance = model.latent(X_new)
    wanted, variance = model.marginals(X_new.reshape(-1, 2))
    assert_close(mean.reshape(-1), wanted, rtol=1e-8, atol=1e-9)
    assert_close(covariance.diagonal(dim1=-2, dim2=-1).reshape(-1), variance, rtol=1e-6, atol=1e-8)
    assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-9
    assert model.posterior(X_new, observation_noise=True).mean.shape == (2, 5, 1)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("nested", "minimum_variance")])
def test_posteriors_are_differentiable_in_new_points(rule: Aggregation, normal: Normal) -> None:
    X, y = surface(normal, 40)
    model, X_new = local_experts(X, y, 4, rule), normal(2, 2)
    X_new.requires_grad_()
    assert gradcheck(lambda x: model.latent(x.unsqueeze(-2))[0], [X_new], atol=1e-4)
    assert gradcheck(lambda x: model.latent(x), [X_new], atol=1e-4)


# Hyperparameters.


@pytest.mark.parametrize("small", [True, False], ids=["compiled", "LAPACK"])
def test_the_gradient_of_the_summed_evidence_is_right(small: bool, normal: Normal, monkeypatch) -> None:
    if not small:
        monkeypatch.setattr(expert_moments, "_SMALL", 0)
    X, y = surface(normal, 30)
    model = local_experts(X, y, 3, "rbcm").requires_grad_(True)
    model.likelihood.noise = 0.05
    model.zero_grad()
    model.log_marginal_likelihood().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            flat, slope = parameter.reshape(-1), parameter.grad
            assert slope is not None
            for i in range(len(flat)):
                values = []
                for step in (1e-5, -2e-5):
                    flat[i] += step
                    values.append(model.log_marginal_likelihood().item())
                flat[i] += 1e-5
                assert slope.reshape(-1)[i].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-5)


def test_experts_share_what_all_of_them_say(normal: Normal) -> None:
    X, y = surface(normal, 300)
    fitted = fit_local_experts(X, y, ExpertPlan(points_per_expert=60))
    model = fitted.model
    assert fitted.report.converged
    assert fitted.report.objective_trace[-1] > fitted.report.objective_trace[0]
    assert 0.003 < model.new_noise().item() < 0.03
    free = deepcopy(model).requires_grad_(True)
    assert fit_quietly(free).objective_trace[-1] == pytest.approx(fitted.report.objective_trace[-1], abs=0.05)


def test_experts_may_have_hyperparameters_of_their_own(normal: Normal) -> None:
    X = 4 * torch.rand(240, 1, generator=torch.Generator().manual_seed(0)).double() - 2
    quiet = X[:, 0] < 0
    y = torch.where(quiet, X[:, 0].cos() + 0.02 * normal(240), (6 * X[:, 0]).sin() + 0.4 * normal(240))
    plan = ExpertPlan(points_per_expert=60, aggregation="rbcm", shared=False)
    fitted = fit_local_experts(X, y, plan)
    model = fitted.model
    noise = model.likelihood.noise.detach().squeeze(-1)
    assert model.covar_module.batch_shape == (4,)
    left = torch.from_numpy(model.layout.centers[:, 0]) < 0
    assert float(noise[left].max()) < 0.01 < 0.1 < float(noise[~left].min())
    ends = torch.tensor([[-1.5], [1.5]]).double()
    predicted = model.answers(ends)[2]
    assert float(predicted[0]) < 0.02
    assert float(predicted[1]) > 0.08
    for i, (a, b) in enumerate(zip(*offsets_of(model), strict=True)):
        kernel, mean = model.covar_module[i], deepcopy(model.mean_module)
        mean.raw_constant.data = mean.raw_constant.data[i]
        gp = ExactGP(model.X[a:b], model.y[a:b], kernel=kernel, mean=mean, noise=float(noise[i]))
        only = LocalExperts(
            model.X[a:b], model.y[a:b], ExpertLayout(np.array([0, b - a]), np.zeros((1, 1)), None, np.zeros(0, int)),
            aggregation="poe", kernel=kernel, noise=float(noise[i]),
        )  # fmt: skip
        only.mean_module.load_state_dict(mean.state_dict())
        assert_close(only.marginals(ends), gp.marginals(ends), rtol=1e-6, atol=1e-8)


def test_the_seed_fixes_every_number_and_workers_change_none(normal: Normal) -> None:
    X, y = surface(normal, 100)
    plan = ExpertPlan(points_per_expert=2, aggregation="rbcm", shared=False, max_iterations=3, seed=1)
    one, other = (fit_local_experts(X, y, plan, n_jobs=jobs).model for jobs in (1, 2))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kernel", [RBFKernel(), RQKernel(), MaternKernel(nu=0.5), ScaleKernel(MaternKernel(nu=1.5))])
def test_families_that_small_problems_know_equal_the_general_way(kernel, normal: Normal, monkeypatch) -> None:
    X, y = surface(normal, 50)
    model, X_new = local_experts(X, y, 4, kernel=kernel.double()), normal(6, 2)
    found = model.marginals(X_new)
    monkeypatch.setattr(expert_moments, "_SMALL", 0)
    assert_close(found, model.marginals(X_new), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("partition", ["kmeans", "tree", "random"])
def test_any_kernel_and_partition_will_do(partition: str, normal: Normal) -> None:
    X, y = surface(normal, 60)
    kernel = ScaleKernel(RBFKernel(active_dims=(0,))) + LinearKernel() + ScaleKernel(PeriodicKernel())
    plan = ExpertPlan(points_per_expert=20, partition=partition, kernel=kernel, max_iterations=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit_local_experts(X, y, plan).model
    assert float((model.marginals(X)[0] - y).square().mean()) < 0.1


# Edges and errors.


@every_rule
@pytest.mark.parametrize("case", ["one row an expert", "repeated rows", "constant target", "one place"])
def test_data_at_the_edge_give_finite_answers(rule: Aggregation, case: str, normal: Normal) -> None:
    X, y = surface(normal, 16)
    points = 4
    if case == "one row an expert":
        points = 1
    elif case == "repeated rows":
        X, y = X[:4].repeat(4, 1), y[:4].repeat(4)
    elif case == "constant target":
        y = torch.full_like(y, 3.0)
    else:
        X = X[:1].repeat(16, 1)
    plan = ExpertPlan(points_per_expert=points, aggregation=rule, max_iterations=20)
    model = fit_local_experts(X, y, plan).model
    mean, variance = model.marginals(torch.cat([X, X + 0.3]))
    assert bool(mean.isfinite().all())
    assert bool((variance > 0).all() & variance.isfinite().all())


def test_wrong_arguments_are_named(normal: Normal) -> None:
    X, y = surface(normal, 20)
    with pytest.raises(InputError, match="`aggregation` must be one of grbcm"):
        local_experts(X, y, 2, "mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`degree` must be at least 1"):
        local_experts(X, y, 2, "cpoe", degree=0)
    with pytest.raises(ShapeError, match=r"\(any, 20, any\)|any"):
        LocalExperts(X[:10], y[:10], local_experts(X, y, 2).layout)
    with pytest.raises(ShapeError, match=r"batch shape \(\) or \(2,\)"):
        local_experts(X, y, 2, "rbcm", kernel=RBFKernel(batch_shape=torch.Size([3])))
    with pytest.raises(InputError, match="share hyperparameters"):
        local_experts(X, y, 2, "grbcm", kernel=RBFKernel(batch_shape=torch.Size([2])))
    with pytest.raises(UnsupportedKernelError, match="hyperparameters of their own"):
        local_experts(X, y, 2, "rbcm", kernel=PeriodicKernel(batch_shape=torch.Size([2])))
    with pytest.raises(InputError, match="`points_per_expert`"):
        ExpertPlan(points_per_expert=0)
    with pytest.raises(InputError, match="`partition`"):
        ExpertPlan(partition="ball")
    with pytest.raises(ShapeError, match=r"\(m, d\)"):
        local_experts(X, y, 2).marginals(X.unsqueeze(0))
