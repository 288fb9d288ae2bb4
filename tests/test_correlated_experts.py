"""The correlated product of experts against its dense joint density."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from gpmoe.models.clique_tree import CliqueTree, clique_tree
from gpmoe.models.correlated_experts import correlated_experts
from gpmoe.models.exact_gp import ExactGP

Normal = Callable[..., Tensor]
SIZES = (4, 6, 5, 1, 7, 5)
NOISE = 0.05


class Data:
    def __init__(self, normal: Normal) -> None:
        self.X, self.y, self.X_new = normal(sum(SIZES), 2), normal(sum(SIZES)), normal(5, 2)
        self.offsets = torch.tensor([0, *np.cumsum(SIZES)])
        self.centers = torch.stack([part.mean(0) for part in self.X.split(list(SIZES))]).numpy()
        self.kernel = ScaleKernel(MaternKernel(nu=2.5)).double().requires_grad_(False)
        self.kernel.outputscale = 1.7

    def K(self, a: Tensor, b: Tensor) -> Tensor:
        return self.kernel(a, b).to_dense()

    def rows(self, block: int) -> list[int]:
        return list(range(int(self.offsets[block]), int(self.offsets[block + 1])))


def dense_prior(data: Data, tree: CliqueTree) -> Tensor:
    """Covariance of u under q(u) = Π p(u_k | u_π(k)), by inverting the product of its conditional densities."""
    n = len(data.y)
    A = data.K(data.X, data.X) + 0.1 * NOISE * torch.eye(n).double()
    precision = torch.zeros(n, n).double()
    for clique in tree.cliques:
        own = data.rows(tree.order[clique[-1]])
        before = [row for place in clique[:-1] for row in data.rows(tree.order[place])]
        F = torch.linalg.solve(A[before][:, before], A[before][:, own]).mT
        Q = A[own][:, own] - F @ A[before][:, own]
        T = torch.zeros(len(own), n).double()
        T[:, own] = torch.eye(len(own)).double()
        T[:, before] = -F
        precision += T.mT @ torch.linalg.solve(Q, T)
    return torch.linalg.inv(precision)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_sweeps_give_the_posterior_and_evidence_of_the_dense_joint_density(degree: int, normal: Normal) -> None:
    data = Data(normal)
    tree = clique_tree(data.centers, degree)
    found = correlated_experts(data.kernel, data.X, data.y, NOISE, data.offsets, tree)
    prior, n = dense_prior(data, tree), len(data.y)
    C = prior + 0.9 * NOISE * torch.eye(n).double()
    evidence = MultivariateNormal(torch.zeros(n).double(), C).log_prob(data.y)
    assert found.log_evidence == pytest.approx(float(evidence), rel=1e-9)
    mean = prior @ torch.linalg.solve(C, data.y)
    covariance = prior - prior @ torch.linalg.solve(C, prior)
    for position, k in enumerate(tree.answering):
        rows = [row for place in tree.cliques[k] for row in data.rows(tree.order[place])]
        A = data.K(data.X[rows], data.X[rows]) + 0.1 * NOISE * torch.eye(len(rows)).double()
        H = torch.linalg.solve(A, data.K(data.X[rows], data.X_new)).mT
        wanted = H @ mean[rows]
        joint = data.K(data.X_new, data.X_new) - H @ (A - covariance[rows][:, rows]) @ H.mT
        got = found.posterior(data.kernel, data.X, position, data.X_new)
        assert_close(got[0], wanted, rtol=1e-8, atol=1e-9)
        assert_close(got[1], joint.diagonal(), rtol=1e-8, atol=1e-9)
        assert_close(found.covariance(data.kernel, data.X, position, data.X_new), joint, rtol=1e-8, atol=1e-9)


def test_the_prior_keeps_the_process_within_every_clique(normal: Normal) -> None:
    data = Data(normal)
    tree = clique_tree(data.centers, 3)
    prior = dense_prior(data, tree)
    for k in tree.answering:
        rows = [row for place in tree.cliques[k] for row in data.rows(tree.order[place])]
        wanted = data.K(data.X[rows], data.X[rows]) + 0.1 * NOISE * torch.eye(len(rows)).double()
        assert_close(prior[rows][:, rows], wanted, rtol=1e-8, atol=1e-9)


def test_fully_correlated_experts_are_the_exact_process(normal: Normal) -> None:
    data = Data(normal)
    tree = clique_tree(data.centers, len(SIZES))
    found = correlated_experts(data.kernel, data.X, data.y, NOISE, data.offsets, tree)
    gp = ExactGP(data.X, data.y, kernel=data.kernel, noise=NOISE)
    assert found.log_evidence == pytest.approx(gp.log_marginal_likelihood().item(), rel=1e-10)
    assert_close(found.posterior(data.kernel, data.X, 0, data.X_new), gp.marginals(data.X_new), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("noise", [1e-6, 10.0])
def test_smooth_kernels_repeated_rows_and_little_noise_need_no_jitter(noise: float) -> None:
    X = torch.linspace(0, 1, 40).double().repeat_interleave(3).unsqueeze(-1)
    y = (6 * X[:, 0]).sin()
    kernel = ScaleKernel(RBFKernel()).double().requires_grad_(False)
    offsets = torch.arange(0, 121, 30)
    tree = clique_tree(X[15::30].numpy(), 2)
    found = correlated_experts(kernel, X, y, noise, offsets, tree)
    mean, variance = found.posterior(kernel, X, 0, X[:5])
    assert bool(mean.isfinite().all())
    assert bool((variance > 0).all())
    if noise < 1:
        assert_close(mean, y[:5], rtol=0, atol=5e-3)


def test_correlation_brings_predictions_nearer_to_the_exact_process(normal: Normal) -> None:
    X = torch.linspace(0, 10, 200).double().unsqueeze(-1)
    y = X[:, 0].sin() + 0.3 * normal(200)
    kernel = ScaleKernel(RBFKernel()).double().requires_grad_(False)
    kernel.base_kernel.lengthscale = 1.5
    gp = ExactGP(X, y, kernel=kernel, noise=0.09)
    X_new = torch.linspace(0.02, 9.98, 57).double().unsqueeze(-1)
    wanted, offsets = gp.marginals(X_new)[0], torch.arange(0, 201, 20)
    errors = []
    for degree in (1, 2, 3):
        tree = clique_tree(X[10::20].numpy(), degree)
        found = correlated_experts(kernel, X, y, 0.09, offsets, tree)
        each = torch.stack([torch.stack(found.posterior(kernel, X, i, X_new)) for i in range(len(found.cliques))])
        surest = each[:, 1].argmin(0)
        errors.append(float((each[surest, 0, torch.arange(57)] - wanted).square().mean().sqrt()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
