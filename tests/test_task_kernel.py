"""Kernels of rows (x, task): single models become multi-task ones, as experts of a mixture too."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor

import gpmoe
from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.errors import InputError, UnsupportedKernelError
from gpmoe.gates.multi_gate import MultiGate
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.inference.vbem import fit_mixture
from gpmoe.kernels import (
    ConvolvedTaskKernel,
    FreeCoregionalisation,
    OutlierTaskGate,
    SpectralTaskKernel,
    TaskKernel,
)
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.models import ExactGP, MixtureOfExperts
from gpmoe.models.multitask_gp import MultitaskGP


def number(value: Tensor) -> float:
    """A 0-dimensional tensor as a number, without its gradient."""
    return float(value.detach())


def make_kernel(T: int = 3, seed: int = 0) -> TaskKernel:
    kernel = TaskKernel(MaternKernel(nu=2.5), FreeCoregionalisation(T, rank=2)).double()
    generator = torch.Generator().manual_seed(seed)
    kernel.tasks.mixing.data += torch.randn(T, 2, generator=generator, dtype=torch.float64)
    return kernel


def rows(n: int = 12, T: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.cat([x, torch.randint(T, (n, 1), generator=generator).double()], -1)


def test_the_covariance_is_that_of_a_double_loop() -> None:
    kernel, X = make_kernel(), rows()
    B, K = kernel.tasks(), kernel(X).to_dense()
    for i, a in enumerate(X):
        for j, b in enumerate(X):
            k = kernel.base_kernel(a[None, :-1], b[None, :-1]).to_dense()[0, 0]
            assert number(K[i, j]) == pytest.approx(number(k * B[int(a[-1]), int(b[-1])]))
    assert torch.allclose(kernel(X, diag=True), K.diagonal())
    assert torch.allclose(kernel(torch.stack([X, X.flip(0)])).to_dense()[1], K.flip(0, 1))
    assert bool((torch.linalg.eigvalsh(K) > -1e-10).all())
    assert torch.equal(copy.deepcopy(kernel)(X).to_dense(), K)
    with pytest.raises(InputError, match="must be a task, 0 to 2"):
        kernel(X + 0.5).to_dense()


def test_gradients_are_those_of_finite_differences() -> None:
    kernel, X = make_kernel(), rows(5)

    def covariance(x: Tensor) -> Tensor:
        return kernel(torch.cat([x, X[:, -1:]], -1)).to_dense()

    assert torch.autograd.gradcheck(covariance, (X[:, :-1].clone().requires_grad_(),))


def test_an_exact_gp_with_it_is_the_intrinsic_model() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    Y = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    Y[2, 1] = Y[5, 0] = float("nan")
    kernel = make_kernel()
    many = MultitaskGP(x, Y, kernels=[kernel.base_kernel], coregionalisations=[kernel.tasks], noise=0.2)
    many.constants.data[:] = 0.3
    one = ExactGP(many.X, many.y, kernel=kernel, noise=0.2)
    one.mean_module.initialize(constant=0.3)
    assert number(one.log_marginal_likelihood()) == pytest.approx(number(many.log_marginal_likelihood()))
    for found, expected in zip(one.marginals(rows()), many.marginals(rows()), strict=True):
        assert torch.allclose(found, expected)


def test_experts_of_a_mixture_take_several_tasks() -> None:
    """Two tasks switch together at x = 0; where one is hidden, the other tells its experts about it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 60, dtype=torch.float64)
    f = torch.where(x < 0, (6 * x).sin(), 0.3 * x + 1.5)
    truth = torch.stack([f, 1 - f], -1)
    Y = truth + 0.05 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    hidden = (x > -1.2) & (x < -0.8)
    X = torch.stack([x.repeat(2), torch.arange(2.0).repeat_interleave(60).double()], -1)
    kept = ~torch.cat([torch.zeros_like(hidden), hidden])
    X_train, y = X[kept], Y.mT.reshape(-1)[kept]

    def expert() -> ExactGP:
        tasks = FreeCoregionalisation(2)
        tasks.start_at(torch.tensor([[1.0, -0.9], [-0.9, 1.0]]))
        return ExactGP(X_train, y, kernel=TaskKernel(RBFKernel().double(), tasks))

    gate = MultiGate([SoftmaxGate(2, 1), SoftmaxGate(2, 1)], column=1)
    moe = MixtureOfExperts(X_train, y, experts=[expert(), expert()], gate=gate)
    report = fit_mixture(moe, n_restarts=2, seed=0)
    trace = torch.tensor(report.objective_trace)
    assert bool((trace.diff() > -1e-6 * trace.abs().max()).all())
    predictive = moe.predictive(X[~kept])
    error = torch.from_numpy(predictive.mean) - truth[hidden, 1]
    assert number(error.square().mean().sqrt()) < 0.25


KERNELS: dict[str, Callable[[], Kernel]] = {
    "intrinsic": lambda: TaskKernel(MaternKernel(nu=1.5), FreeCoregionalisation(2, rank=2)).double(),
    "gated": lambda: TaskKernel(RBFKernel(), OutlierTaskGate(3)).double(),
    "convolved": lambda: ConvolvedTaskKernel(FreeCoregionalisation(2), n_inputs=1),
    "sum": lambda: SpectralTaskKernel(2, 1) + TaskKernel(RBFKernel(), FreeCoregionalisation(2, rank=0)).double(),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_description_makes_the_kernel_again(name: str) -> None:
    kernel = KERNELS[name]()
    description = json.loads(json.dumps(describe_kernel(kernel)))
    again = build_kernel(description)
    assert describe_kernel(again) == description
    again.load_state_dict(kernel.state_dict())
    X = rows(T=2)[:, 1:]
    assert torch.equal(again(X).to_dense(), kernel(X).to_dense())


def test_priors_of_ones_own_are_refused_by_files() -> None:
    kernel = ConvolvedTaskKernel(FreeCoregionalisation(2), n_inputs=1)
    kernel.register_constraint("raw_lengthscales", GreaterThan(0.1))
    with pytest.raises(UnsupportedKernelError, match="of its own"):
        describe_kernel(kernel)


def test_a_mixture_of_multi_task_experts_comes_back_from_its_file(tmp_path: Path) -> None:
    X = rows(40, T=2)[:, 1:]
    y = (3 * X[:, 0]).sin() + X[:, 1]
    expert = GPRegressor(TaskKernel(RBFKernel(), FreeCoregionalisation(2)), noise=0.01, scale=None)
    gate = MultiGate([SoftmaxGate(2, 1), SoftmaxGate(2, 1)], column=1)
    model = MixtureOfExpertsRegressor(2, expert, gate, random_state=0).fit(X.numpy(), y.numpy())
    model.save(tmp_path / "model.gpmoe")
    again = gpmoe.load(tmp_path / "model.gpmoe")
    assert (again.predict(X.numpy()) == model.predict(X.numpy())).all()
