"""What gates made of Gaussian processes share: their data, their share in the bound, their files."""

import math
from abc import abstractmethod
from typing import Any, Self

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor

from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg.factorisation import Workspace


class LatentGate(gpytorch.Module):
    """A gate whose latent functions have a variational posterior, so that the bound integrates over them.

    Args:
        n_experts: k.
        n_features: d.
        kernel: a GPyTorch kernel, shared by the functions; `smooth_kernel` if None.

    Attributes:
        X, responsibilities: those of the last `fit_step`, ``(n, d)`` and ``(n, k)``.
    """

    X: Tensor
    responsibilities: Tensor

    def __init__(self, n_experts: int, n_features: int, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.kernel = (smooth_kernel(n_features) if kernel is None else kernel).double()
        self.register_buffer("X", torch.zeros(0, n_features, dtype=torch.float64))
        self.register_buffer("responsibilities", torch.zeros(0, n_experts, dtype=torch.float64))
        self._workspace = Workspace()

    @abstractmethod
    def expected_log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""

    @abstractmethod
    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`."""

    def log_prior(self) -> Tensor:
        """-KL(q || p) of the latent functions at the last `fit_step`, a scalar in nats."""
        expected = self.responsibilities * self.expected_log_probs(self.X)
        return self.bound(self.X, self.responsibilities) - expected.sum()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """Zero: the bound integrates over the gate already."""
        return X.new_zeros(())

    def description(self) -> dict[str, Any]:
        """The arguments that make such a gate."""
        d = self.X.shape[-1]
        return {"n_experts": self.n_experts, "n_features": d, "kernel": describe_kernel(self.kernel)}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `description`."""
        sizes = {name: int(description[name]) for name in ("n_experts", "n_features")}
        return cls(**sizes, kernel=build_kernel(description["kernel"]))


def smooth_kernel(n_features: int) -> Kernel:
    """Matérn-5/2 of one lengthscale about √d, and logits that may be large."""
    prior = LogNormalPrior(0.5 * math.log(n_features), 0.75)
    matern = MaternKernel(nu=2.5, lengthscale_prior=prior, lengthscale_constraint=Positive())
    matern.lengthscale = math.sqrt(n_features)
    kernel = ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 0.15))
    kernel.outputscale = 10.0
    return kernel
