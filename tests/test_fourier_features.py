"""Sample functions of a prior, and likelihood gradients made of them."""

from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from torch import Tensor

from gpmoe.errors import UnsupportedKernelError
from gpmoe.inference.solver import ConjugateGradients
from gpmoe.linalg.fourier_features import draw_prior_paths
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.pathwise_likelihood import PathwiseLikelihood
from gpmoe.linalg.quadratic_forms import quadratic_forms

KERNELS: dict[str, Callable[[], Kernel]] = {
    "RBF": lambda: RBFKernel(ard_num_dims=2),
    "Matérn-1/2": lambda: MaternKernel(nu=0.5),
    "Matérn-3/2": lambda: MaternKernel(nu=1.5),
    "Matérn-5/2": lambda: ScaleKernel(MaternKernel(nu=2.5)),
    "rational quadratic": lambda: RQKernel(),
    "periodic": lambda: PeriodicKernel(),
    "sum": lambda: ScaleKernel(RBFKernel()) + MaternKernel(nu=1.5, active_dims=(1,)),
    "product": lambda: RBFKernel(active_dims=(0,)) * MaternKernel(nu=2.5, active_dims=(1,)),
}


@pytest.mark.parametrize("name", list(KERNELS))
def test_paths_have_the_covariance_of_the_kernel(name: str, normal: Callable[..., Tensor]) -> None:
    kernel, X = KERNELS[name]().double(), normal(6, 2)
    paths = 8000
    generator = torch.Generator().manual_seed(0)
    values = draw_prior_paths(kernel, X, paths=paths, features=16, generator=generator).values(X)
    K = kernel(X).to_dense().detach()
    pairs = values[:, None] * values[None]
    error = pairs.std(-1) / paths**0.5
    assert bool(((pairs.mean(-1) - K).abs() < 4.5 * error).all())


def test_a_path_is_one_function_wherever_it_is_asked(normal: Callable[..., Tensor]) -> None:
    kernel, X = MaternKernel(nu=2.5).double(), normal(40, 2)
    paths = draw_prior_paths(kernel, X, paths=3, generator=torch.Generator().manual_seed(0))
    whole = paths.values(X)
    torch.testing.assert_close(paths.values(X[7:9]), whole[7:9], atol=1e-9, rtol=0)
    kernel.lengthscale = kernel.lengthscale.detach() * 1.001  # and moves little with hyperparameters
    assert float((paths.values(X) - whole).abs().max()) < 0.1


def test_a_kernel_without_a_spectrum_is_refused() -> None:
    with pytest.raises(UnsupportedKernelError, match="LinearKernel"):
        draw_prior_paths(LinearKernel().double(), torch.zeros(2, 1).double(), paths=1)


@pytest.mark.parametrize("memory", [2e9, 0.0], ids=["fused", "blocked"])
def test_quadratic_forms_have_the_gradient_of_dense_ones(normal: Callable[..., Tensor], memory: float) -> None:
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)).double()
    X, V, weights = normal(30, 2).requires_grad_(), normal(30, 3), torch.tensor([0.5, -1.0, 2.0]).double()
    wanted = [X, *kernel.parameters()]
    value = quadratic_forms(kernel, X, V, weights, memory=memory)
    dense = ((V * (kernel(X).to_dense() @ V)).sum(0) * weights).sum()
    torch.testing.assert_close(value, dense)
    for ours, theirs in zip(torch.autograd.grad(value, wanted), torch.autograd.grad(dense, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)


def test_the_pathwise_gradient_is_the_exact_one_on_average(normal: Callable[..., Tensor]) -> None:
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)).double()
    X, residual = normal(60, 2), normal(60)
    noise = torch.full((60,), 0.2, dtype=torch.float64, requires_grad=True)
    wanted = [noise, *kernel.parameters()]
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(
        gaussian_log_likelihood(kernel, X, residual, noise), wanted
    )])  # fmt: skip
    draws = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        likelihood = PathwiseLikelihood(kernel, X, solver=ConjugateGradients(), generator=generator)
        surrogate = likelihood.surrogate(residual, noise, tolerance=1e-6)
        draws.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, wanted)]))
    sample = torch.stack(draws)
    error = sample.std(0) / len(draws) ** 0.5
    assert bool(((sample.mean(0) - exact).abs() < 4.5 * error).all())


def test_the_next_step_starts_warm(normal: Callable[..., Tensor]) -> None:
    kernel = ScaleKernel(MaternKernel(nu=2.5)).double()
    X, residual, noise = normal(200, 2), normal(200), torch.full((200,), 0.1, dtype=torch.float64)
    solver = ConjugateGradients(preconditioner_rank=5)
    likelihood = PathwiseLikelihood(kernel, X, solver=solver, generator=torch.Generator().manual_seed(0))
    iterations = []
    for factor in (1.0, 1.001):
        kernel.outputscale = factor
        likelihood.surrogate(residual, noise, tolerance=1e-2)
        assert likelihood.solution is not None
        iterations.append(likelihood.solution.iterations)
    assert iterations[1] < 0.5 * iterations[0]
