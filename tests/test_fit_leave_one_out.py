"""Fine-tuning on the leave-one-out likelihood: its value, its gradient, and that it only climbs."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.data import simulate_two_regimes
from gpmoe.errors import InputError
from gpmoe.features import FeatureNetwork, deep_kernels
from gpmoe.inference import fit_mixture
from gpmoe.inference.fit_leave_one_out import fit_leave_one_out, leave_one_out_log_likelihood
from gpmoe.inference.marginal_likelihood import log_prior
from gpmoe.models import ExactGP, MixtureOfExperts
from gpmoe.models.null_expert import NullExpert


def fitted(gate: str = "softmax", n: int = 50, seed: int = 0) -> MixtureOfExperts:
    X, y, _ = simulate_two_regimes(n, seed=seed)
    moe = MixtureOfExperts(torch.from_numpy(X), torch.from_numpy(y), n_experts=2, gate=gate)
    fit_mixture(moe, n_restarts=1, seed=0)
    return moe


def value(moe: MixtureOfExperts) -> Tensor:
    return leave_one_out_log_likelihood(moe) + moe.gate.log_prior() + log_prior(moe)


def test_the_objective_is_the_score_of_the_model_left_out() -> None:
    moe = fitted()
    assert_close(
        float(leave_one_out_log_likelihood(moe).detach()), float(moe.leave_one_out().log_prob(moe.y.numpy()).sum())
    )


def test_one_expert_is_predicted_by_fits_without_the_point(table: tuple[Tensor, Tensor]) -> None:
    X, y = table
    moe = MixtureOfExperts(X, y, n_experts=1, noise=0.1)
    total = 0.0
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        posterior = ExactGP(X[others], y[others], noise=0.1).posterior(X[i : i + 1], observation_noise=True)
        total += float(torch.distributions.Normal(posterior.mean, posterior.variance.sqrt()).log_prob(y[i]).detach())
    assert_close(float(leave_one_out_log_likelihood(moe).detach()), total, rtol=1e-9, atol=1e-9)


def test_a_point_of_no_responsibility_is_predicted_by_the_others_and_leaves_finite_slopes() -> None:
    moe = fitted(n=20)
    moe.set_responsibilities(torch.nn.functional.one_hot(moe.responsibilities.argmax(-1), 2).double())
    assert_close(
        float(leave_one_out_log_likelihood(moe).detach()), float(moe.leave_one_out().log_prob(moe.y.numpy()).sum())
    )
    value(moe).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in moe.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("deep", [False, True])
def test_the_gradient_is_that_of_differences(deep: bool) -> None:
    moe = fitted(n=20)
    if deep:
        kernels = deep_kernels(FeatureNetwork(1, [3]), 2)
        r, gate = moe.responsibilities, moe.gate
        moe = MixtureOfExperts(moe.X, moe.y, n_experts=2, kernel=kernels, gate=gate)
        moe.set_responsibilities(r)
    moe.zero_grad()
    value(moe).backward()
    for parameter in moe.parameters():
        flat, slope = parameter.data.view(-1), parameter.grad.reshape(-1)
        for i in range(len(flat)):
            kept, values = float(flat[i]), []
            for step in (1e-5, -1e-5):
                flat[i] = kept + step
                values.append(float(value(moe).detach()))
            flat[i] = kept
            assert_close(float(slope[i]), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["softmax", "constant", "gp", "neural", "gaussian_mixture"])
def test_fine_tuning_never_ends_below_its_start(gate: str) -> None:
    moe = fitted(gate, n=40)
    before, wanted = float(value(moe).detach()), [parameter.requires_grad for parameter in moe.parameters()]
    responsibilities = moe.responsibilities.clone()
    report = fit_leave_one_out(moe, max_iterations=15)
    assert_close(report.objective_trace[0], before)
    assert (np.diff(report.objective_trace) > -1e-9).all()
    assert_close(report.objective_trace[-1], float(value(moe).detach()), rtol=1e-6, atol=1e-6)
    assert torch.equal(moe.responsibilities, responsibilities)
    assert [parameter.requires_grad for parameter in moe.parameters()] == wanted


def test_fine_tuning_mends_a_mixture_of_wrong_noise() -> None:
    moe = fitted(n=60)
    for expert in moe.all_experts:
        expert.likelihood.noise = 4 * expert.likelihood.noise.detach()
    before = float(leave_one_out_log_likelihood(moe).detach())
    fit_leave_one_out(moe)
    assert float(leave_one_out_log_likelihood(moe).detach()) > before + 10


def test_experts_of_another_kind_are_refused(table: tuple[Tensor, Tensor]) -> None:
    X, y = table
    moe = MixtureOfExperts(X, y, experts=[ExactGP(X, y), NullExpert(X, y)], gate="gp")
    moe.gate.requires_grad_(True)
    with pytest.raises(InputError, match="expert 1 is a NullExpert"):
        fit_leave_one_out(moe)
    assert all(parameter.requires_grad for parameter in moe.gate.parameters())  # refused before anything moves
    fixed = MixtureOfExperts(X, y, experts=[ExactGP(X, y, noise=torch.full_like(y, 0.1))])
    with pytest.raises(InputError, match="FixedNoise"):
        leave_one_out_log_likelihood(fixed)


def test_a_frozen_mixture_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"call `model_\.requires_grad_\(True\)` first"):
        fit_leave_one_out(fitted(n=20).requires_grad_(False))
