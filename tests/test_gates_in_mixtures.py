"""Every gate in a mixture of GPs under variational EM: the bound rises, and regimes are found."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import Tensor

from gpmoe.gates.dirichlet_process import DirichletProcessGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.gaussian_mixture import GaussianMixtureGate
from gpmoe.gates.global_local import GlobalLocalGate
from gpmoe.gates.gp_probit import GPProbitGate
from gpmoe.gates.gp_softmax import GPSoftmaxGate
from gpmoe.gates.uncertainty_router import UncertaintyRouter
from gpmoe.inference.solver import Cholesky
from gpmoe.inference.vbem import run_em
from gpmoe.models.mixture_of_experts import MixtureOfExperts

GATES: dict[str, Callable[[int], Gate]] = {
    "gaussian": lambda k: GaussianMixtureGate(k, 1),
    "process": DirichletProcessGate,
    "process of inputs": lambda k: DirichletProcessGate(k, 1),
    "gp softmax": lambda k: GPSoftmaxGate(k, 1),
    "gp probit": lambda k: GPProbitGate(1),
    "router": lambda k: UncertaintyRouter(k, 1, width=4, passes=8),
}


@pytest.fixture
def regimes(normal) -> tuple[Tensor, Tensor]:
    """Sixty rows, flat and quiet on the left, steep and loud on the right."""
    X = torch.linspace(-1.5, 1.5, 60, dtype=torch.float64).unsqueeze(-1)
    quiet, loud = 0.05 * normal(60), 3 * X[:, 0] - 1 + 0.5 * normal(60)
    return X, torch.where(X[:, 0] < 0, quiet, loud)


@pytest.mark.parametrize("name", GATES)
def test_the_bound_never_falls_and_the_regimes_are_found(name: str, regimes: tuple[Tensor, Tensor]) -> None:
    X, y = regimes
    moe = MixtureOfExperts(X, y, n_experts=2, gate=GATES[name](2))
    left = (X[:, 0] < 0.2).double()
    moe.set_responsibilities(0.1 + 0.8 * torch.stack([left, 1 - left], -1))
    trace = run_em(moe, Cholesky(), 15, 0.0).trace
    assert bool((np.diff(trace) > -1e-6).all())
    if name != "process":  # whose proportions are the same everywhere
        probs = moe.gate_probs(torch.tensor([[-1.0], [1.0]], dtype=torch.float64)).detach()
        assert float(probs[0, 0]) > 0.7
        assert float(probs[1, 1]) > 0.7


def test_a_mixture_of_too_many_experts_lets_some_go(regimes: tuple[Tensor, Tensor]) -> None:
    X, y = regimes
    gate = DirichletProcessGate(4)
    moe = MixtureOfExperts(X, y, n_experts=4, gate=gate)
    quarters = torch.nn.functional.one_hot(torch.arange(60) // 15, 4)
    moe.set_responsibilities(0.04 + 0.84 * quarters.double())
    run_em(moe, Cholesky(), 60, 1e-3)
    assert gate.n_in_use == 2


def test_groups_of_different_functions_get_experts_of_their_own(normal) -> None:
    x, group = normal(90), torch.arange(90) % 3
    y = torch.where(group == 2, -x, x) + 0.1 * normal(90)  # groups 0 and 1 follow the common line, group 2 does not
    X = torch.stack([x, group.double()], -1)
    kernel = ScaleKernel(RBFKernel(active_dims=(0,))).double()
    moe = MixtureOfExperts(X, y, n_experts=4, kernel=kernel, noise=0.02, gate=GlobalLocalGate(3, column=1))
    start = torch.zeros(90, 4, dtype=torch.float64)
    start[:, 0] = 0.8
    start[torch.arange(90), 1 + group] = 0.2
    moe.set_responsibilities(start)
    trace = run_em(moe, Cholesky(), 25, 0.0).trace
    assert bool((np.diff(trace) > -1e-6).all())
    share = moe.gate_probs(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64))[:, 0]
    assert float(share[2]) < 0.5 < float(share[:2].min())
