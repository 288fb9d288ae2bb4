"""The two-filter smoother against dense algebra."""

import pytest
import torch
from gpytorch.kernels import MaternKernel
from torch import Tensor

from gpmoe.linalg.coregionalised_smoother import smoothed_marginals

NU = {1: 0.5, 2: 1.5, 3: 2.5}


def problem(orders: list[int], T: int = 3, n: int = 25, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(len(orders), T, 2, generator=generator, dtype=torch.float64)
    B = W @ W.mT + 0.1 * torch.eye(T, dtype=torch.float64)
    rates = torch.rand(len(orders), generator=generator, dtype=torch.float64) + 0.5
    time = torch.rand(n, generator=generator, dtype=torch.float64).mul(40).round() / 8  # some times are met twice
    task = torch.randint(T, (n,), generator=generator)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    return B, rates, torch.tensor([0.1, 0.01, 0.3][:T], dtype=torch.float64), y, time, task


def covariance(
    B: Tensor, rates: Tensor, orders: list[int], x: tuple[Tensor, Tensor], z: tuple[Tensor, Tensor]
) -> Tensor:
    total = torch.zeros(len(x[0]), len(z[0]), dtype=torch.float64)
    for b, rate, order in zip(B, rates, orders, strict=True):
        kernel = MaternKernel(nu=NU[order]).double()
        kernel.lengthscale = (2 * order - 1) ** 0.5 / rate
        total += kernel(x[0][:, None], z[0][:, None]).to_dense().detach() * b[x[1]][:, z[1]]
    return total


@pytest.mark.parametrize("orders", [[1], [2], [3], [3, 1], [2, 3, 3]], ids=str)
def test_the_moments_are_those_of_dense_algebra(orders: list[int]) -> None:
    B, rates, noise, y, time, task = problem(orders)
    new = torch.cat([torch.linspace(-1, 6, 9, dtype=torch.float64), time[:4], time[:1]]).flip(0)
    mean, variance = smoothed_marginals(B, rates, noise, y, time, task, new, orders)
    C = covariance(B, rates, orders, (time, task), (time, task)) + torch.diag(noise[task])
    for t in range(3):
        at = (new, torch.full_like(new, t).long())
        K = covariance(B, rates, orders, at, (time, task))
        explained = (K * torch.linalg.solve(C, K.mT).mT).sum(-1)
        assert torch.allclose(mean[:, t], K @ torch.linalg.solve(C, y), atol=1e-10)
        assert torch.allclose(variance[:, t], B[:, t, t].sum() - explained, atol=1e-10)


def test_far_from_all_cells_the_prior_is_left() -> None:
    B, rates, noise, y, time, task = problem([3])
    mean, variance = smoothed_marginals(B, rates, noise, y, time, task, time.new_tensor([-1e4, 1e4]), [3])
    assert torch.allclose(mean, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.allclose(variance, B[0].diagonal().expand(2, 3))


def test_small_noise_and_nearly_equal_tasks_keep_their_digits() -> None:
    B = torch.ones(1, 2, 2, dtype=torch.float64) + 1e-6 * torch.eye(2, dtype=torch.float64)
    time = torch.linspace(0, 1, 200, dtype=torch.float64)
    task = torch.arange(200) % 2
    rates, noise, y = torch.ones(1).double(), torch.full((2,), 1e-4).double(), time.sin()
    mean, variance = smoothed_marginals(B, rates, noise, y, time, task, time[:50] + 1e-3, [3])
    C = covariance(B, rates, [3], (time, task), (time, task)) + torch.diag(noise[task])
    K = covariance(B, rates, [3], (time[:50] + 1e-3, task[:50] * 0), (time, task))
    assert torch.allclose(mean[:, 0], K @ torch.linalg.solve(C, y), atol=1e-8)
    explained = (K * torch.linalg.solve(C, K.mT).mT).sum(-1)
    assert torch.allclose(variance[:, 0], B[0, 0, 0] - explained, atol=1e-9)
