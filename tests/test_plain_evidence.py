"""The written-out evidence equals the one that autograd differentiates, value and gradient."""

import numpy as np
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, RQKernel, ScaleKernel

from gpmoe.inference import log_marginal_likelihood
from gpmoe.inference.fit import Climber
from gpmoe.inference.plain_evidence import plain_evidence
from gpmoe.inference.vbem import expert_evidence
from gpmoe.models import ExactGP

KERNELS = {
    "default": lambda: None,
    "rq": lambda: ScaleKernel(RQKernel(ard_num_dims=2)),
    "rbf": lambda: ScaleKernel(RBFKernel()),
    "matern12": lambda: ScaleKernel(MaternKernel(0.5, ard_num_dims=2)),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_value_and_gradient_equal_those_of_autograd(kernel: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    X, y, w = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((40, 2), (40,), (40,)))
    gp = ExactGP(X, y, kernel=KERNELS[kernel](), weights=w if weighted else None)
    objective = expert_evidence if weighted else log_marginal_likelihood
    by_autograd, plain = Climber(gp, objective), Climber(gp, objective, plain_evidence(gp))
    assert plain.plain is not None
    x = by_autograd.coordinates.read() + 0.1
    (wanted, gradient), (got, slopes) = by_autograd._loss_and_gradient(x), plain._loss_and_gradient(x)
    assert got == pytest.approx(wanted, rel=1e-10)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-9, atol=1e-10)


def test_a_kernel_that_is_not_written_out_is_left_to_autograd() -> None:
    X = torch.rand(5, 2, dtype=torch.float64)
    assert plain_evidence(ExactGP(X, X[:, 0], kernel=ScaleKernel(LinearKernel()))) is None
