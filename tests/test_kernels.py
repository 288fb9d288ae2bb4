"""The kernel contract, on our kernels and on GPyTorch's; and that the contract finds what is wrong."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpytorch import kernels as gpk
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior
from torch import Tensor

from gpmoe.kernels import FeatureKernel, dimension_scaled_matern
from gpmoe.testing import check_kernel


def of(kernel: Kernel, **values: float | list[float]) -> Kernel:
    """Set parameters by name."""
    for name, value in values.items():
        setattr(kernel, name, torch.as_tensor(value))
    return kernel


def network() -> torch.nn.Module:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    torch.set_rng_state(torch_state)
    return layers


def spectral_mixture() -> Kernel:
    kernel = gpk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=3)
    kernel.mixture_weights = torch.tensor([0.4, 0.8])
    kernel.mixture_means = torch.tensor([[[0.1, 0.2, 0.3]], [[0.5, 0.1, 0.2]]])
    kernel.mixture_scales = torch.tensor([[[0.1, 0.3, 0.2]], [[0.2, 0.1, 0.1]]])
    return kernel


MAKERS: dict[str, Callable[[], Kernel]] = {
    "rbf": lambda: of(gpk.RBFKernel(ard_num_dims=3), lengthscale=[0.5, 1.0, 2.0]),
    "matern12": lambda: gpk.MaternKernel(nu=0.5),
    "matern32": lambda: gpk.MaternKernel(nu=1.5, ard_num_dims=3),
    "matern52": lambda: gpk.MaternKernel(nu=2.5, active_dims=(0, 2)),
    "rq": lambda: of(gpk.RQKernel(ard_num_dims=3), alpha=0.7),
    "periodic": lambda: of(gpk.PeriodicKernel(active_dims=(1,)), period_length=1.7, lengthscale=0.8),
    "prior": lambda: gpk.ScaleKernel(gpk.RBFKernel(lengthscale_prior=GammaPrior(3.0, 6.0)), GammaPrior(2.0, 1.0)),
    "sum": lambda: gpk.ScaleKernel(gpk.RBFKernel() + gpk.MaternKernel(nu=1.5, active_dims=(1,))),
    "product": lambda: gpk.RBFKernel(active_dims=(0,)) * gpk.PeriodicKernel(active_dims=(1,)) * gpk.RQKernel(),
    "linear": lambda: gpk.LinearKernel(),
    "polynomial": lambda: gpk.PolynomialKernel(power=2),
    "cosine": lambda: of(gpk.CosineKernel(active_dims=(0,)), period_length=2.0),
    "piecewise": lambda: of(gpk.PiecewisePolynomialKernel(q=2, ard_num_dims=3), lengthscale=[3.0, 3.0, 4.0]),
    "spectral mixture": spectral_mixture,
    "dimension scaled": lambda: dimension_scaled_matern(3),
    "dimension scaled 1/2": lambda: dimension_scaled_matern(3, nu=0.5),
    "features": lambda: FeatureKernel(network(), gpk.RBFKernel(ard_num_dims=2)),
    "scaled features": lambda: gpk.ScaleKernel(FeatureKernel(network(), gpk.MaternKernel(nu=2.5))),
    "features of a generic kernel": lambda: FeatureKernel(network(), gpk.LinearKernel()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_kernel_keeps_the_contract(name: str) -> None:
    check_kernel(MAKERS[name], 3)


def test_contract_refuses_the_cosine_of_a_distance_in_three_dimensions() -> None:
    with pytest.raises(AssertionError, match="positive semi-definite"):  # it is a covariance in one dimension only
        check_kernel(gpk.CosineKernel, 3)


def test_contract_accepts_a_formula() -> None:
    check_kernel(lambda: gpk.MaternKernel(nu=0.5), 2, formula=lambda x, y: (-(x - y).norm() / math.log(2)).exp())


def test_contract_reports_a_kernel_that_differs_from_its_formula() -> None:
    with pytest.raises(AssertionError, match="double loop over pairs"):
        check_kernel(gpk.RBFKernel, 2, formula=lambda x, y: (-(x - y).square().sum()).exp())


class Broken(Kernel):
    """A Gaussian kernel with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        if fault == "must pickle":
            self.hidden = lambda: None

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            value = (-(x1 - x2).square().sum(-1)).exp()
            return 2 * value if self.fault == "diagonal of" else value
        if self.fault == "change its inputs":
            x1 += 1
        difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
        if self.fault == "finite differences":
            difference = difference.detach() + 0 * difference
        value = (-difference.square().sum(-1)).exp()
        if self.fault == "must be symmetric":
            return value * (1 + difference[..., 0])
        if self.fault == "positive semi-definite":
            return 1 - value
        if self.fault == "a batch must equal" and value.dim() > 2:
            return value.flip(0)
        return value.double() if self.fault == "float32 matrix" else value


FAULTS = [
    "diagonal of",
    "finite differences",
    "must be symmetric",
    "positive semi-definite",
    "float32 matrix",
    "must pickle",
    "change its inputs",
    "a batch must equal",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_contract_finds_a_fault_and_names_it(fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_kernel(lambda: Broken(fault), 2)


def test_contract_accepts_the_kernel_without_the_fault() -> None:
    check_kernel(lambda: Broken("none"), 2)


def test_rational_quadratic_tends_to_the_gaussian_kernel(normal: Callable[..., Tensor]) -> None:
    X = normal(9, 2)
    smooth = gpk.RBFKernel().double()(X).to_dense()
    distances = [
        (of(gpk.RQKernel().double(), alpha=alpha)(X).to_dense() - smooth).abs().max().item()
        for alpha in (1e2, 1e4, 1e6)
    ]
    assert distances[2] < 1e-6
    assert distances[0] / distances[1] == pytest.approx(100, rel=0.1)  # the first-order term is r⁴ exp(-r²/2) / (8 α)


def test_dimension_scaled_prior_lets_the_median_lengthscale_grow_with_the_root_of_d() -> None:
    medians = [dimension_scaled_matern(d).base_kernel.lengthscale_prior.icdf(torch.tensor(0.5)) for d in (1, 4, 100)]
    assert torch.stack(medians).tolist() == pytest.approx([math.e, 2 * math.e, 10 * math.e], rel=1e-5)


def test_feature_kernel_is_its_base_kernel_on_the_features(normal: Callable[..., Tensor]) -> None:
    X, X_new = normal(6, 3), normal(4, 3)
    body = network().double()
    base = gpk.MaternKernel(nu=1.5).double()
    kernel = FeatureKernel(body, base)
    torch.testing.assert_close(
        kernel(X, X_new).to_dense(), base(body(X), body(X_new)).to_dense(), rtol=1e-12, atol=1e-12
    )
