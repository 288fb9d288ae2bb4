"""A mixture of GPs over random partitions of the input space, weighted by their marginal likelihood.

    p(y | X) = 1/V sum_v prod_l N(y_l; m, K_l + σ² I)       l: the leaves of partition v
    p(y* | x*, data) = sum_v w_v N(y*; μ_v(x*), s_v(x*) + σ²),  w_v ∝ prod_l N(y_l; m, K_l + σ² I)

| symbol | name in code | shape |
|---|---|---|
| log prod_l N(y_l; m, K_l + σ² I) | `log_evidences()` | (V,) |
| w | `weights()` | (V,) |

Functions of different leaves are independent, so a jump costs nothing where a partition splits at it. All partitions
share the hyperparameters. Inference is exact: the posterior over partitions and functions is closed form.

Source: Trapp, Peharz, Pernkopf and Rasmussen (2020), Deep Structured Mixtures of Gaussian Processes, with one sum node;
the prediction is the mixture itself, not its moments.
"""

import math
from typing import Any, cast

import gpytorch
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import UnsupportedKernelError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.small_batch import Family, SmallGPs
from gpmoe.models.exact_gp import ExactGP, expect_data
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.gaussian_noise import gaussian_noise
from gpmoe.models.random_partitions import RandomPartitions

_LEAST_WEIGHT = 1e-9  # partitions of less weight are left out of predictions
_FAMILIES: dict[float, Family] = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}


class TreeMixture(gpytorch.Module):
    """Exact GPs on the leaves of V random trees, mixed by the evidence of the trees.

    Args:
        X: ``(n, d)``, float64, about unit variance.
        y: ``(n,)``.
        partitions: of the input space.
        kernel: a `ScaleKernel` of a Matérn or RBF kernel for all leaves; `dimension_scaled_matern` if None.
        noise: the noise variance, fixed; learned, at least 1e-6, if None.

    Attributes:
        covar_module, mean_module, likelihood: shared by all leaves.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.
        UnsupportedKernelError: for another kernel.

    Example:
        >>> X = torch.linspace(0, 1, 40, dtype=torch.float64).unsqueeze(-1)
        >>> y = (X.squeeze(-1) > 0.5).double()
        >>> trees = TreeMixture(X, y, RandomPartitions.draw(X, 8, leaf_size=10, seed=0))
        >>> trees.predictive(X[:3])
        Predictive(mixture of 8 Gaussians, n=3)
    """

    X: Tensor
    y: Tensor
    covar_module: ScaleKernel

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        partitions: RandomPartitions,
        *,
        kernel: Kernel | None = None,
        noise: float | None = None,
    ) -> None:
        super().__init__()
        expect_data(X, y, None)
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.covar_module = cast(
            ScaleKernel, (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        )
        self.family = _family(self.covar_module)
        self.mean_module = ConstantMean().to(X)
        self.likelihood = gaussian_noise(noise).to(X)
        self.partitions = partitions
        leaves = partitions.route(X)
        self._order = torch.argsort(leaves, dim=-1, stable=True).reshape(-1)  # rows of all trees, leaf after leaf
        self._offsets = _offsets(leaves.reshape(-1), partitions.n_leaves)
        self._tree = partitions.tree_of_leaves()

    @property
    def n_partitions(self) -> int:
        """V."""
        return len(self.partitions)

    def leaves(self) -> SmallGPs:
        """The GPs of all leaves of all partitions, at the present hyperparameters."""
        kernel = self.covar_module
        return SmallGPs(
            self.X[self._order],
            self.y[self._order],
            self._offsets,
            lengthscale=kernel.base_kernel.lengthscale.reshape(-1),
            outputscale=kernel.outputscale.reshape(()),
            noise=self.likelihood.noise.reshape(()),
            mean=self.mean_module.constant.reshape(()),
            family=self.family,
        )

    def jitter_needed(self) -> float:
        """The most that a leaf's covariance needs on its diagonal to have a factor; 0 as a rule."""
        leaves = self.leaves()
        with torch.no_grad():
            leaves.log_marginal_likelihood()
        return float(leaves.jitter.max())

    def log_evidences(self) -> Tensor:
        """log p(y | X, partition v), exact, ``(V,)``, nats; differentiable once in the hyperparameters."""
        of_leaves = self.leaves().log_marginal_likelihood()
        return of_leaves.new_zeros(self.n_partitions).index_add(0, self._tree, of_leaves)

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X), the partitions summed out; a scalar in nats, differentiable once."""
        return self.log_evidences().logsumexp(-1) - math.log(self.n_partitions)

    def weights(self) -> Tensor:
        """Posterior probability of each partition, ``(V,)``."""
        with torch.no_grad():
            return self.log_evidences().softmax(-1)

    def predictive(self, X: Tensor, *, include_noise: bool = True) -> Predictive:
        """The mixture over partitions at each new point.

        Partitions of a weight below 1e-9 are left out.

        Args:
            X: ``(m, d)``.
            include_noise: p(y | data) if True, p(f | data) if not.

        Returns:
            A mixture of as many Gaussians as partitions have weight.
        """
        expect_inputs(X, self.X)
        weights = self.weights()
        kept = torch.nonzero(weights > _LEAST_WEIGHT).squeeze(-1)
        with torch.no_grad():
            leaves = self.partitions.route(X)[kept].reshape(-1)
            order = torch.argsort(leaves, stable=True)
            rows = torch.arange(len(X)).repeat(len(kept))[order]
            mean, variance = torch.empty_like(leaves, dtype=X.dtype), torch.empty_like(leaves, dtype=X.dtype)
            mean[order], variance[order] = self.leaves().posterior(X[rows], _offsets(leaves, self.partitions.n_leaves))
            if include_noise:
                variance = variance + self.likelihood.noise
        shape = (len(kept), len(X))
        w = (weights[kept] / weights[kept].sum()).expand(len(X), -1)
        return Predictive.mixture(w.numpy(), mean.reshape(shape).mT.numpy(), variance.reshape(shape).mT.numpy())

    def latent(self, X: Tensor, partition: int) -> tuple[Tensor, Tensor]:
        """Joint posterior of the latent function under one partition.

        Args:
            X: ``(m, d)``.
            partition: v.

        Returns:
            Mean ``(m,)`` and covariance ``(m, m)``, zero between leaves. Not differentiable.
        """
        expect_inputs(X, self.X)
        mean, covariance = X.new_zeros(len(X)), X.new_zeros(len(X), len(X))
        leaves = self.partitions.route(X)[partition]
        with torch.no_grad():
            for leaf in leaves.unique():
                rows = torch.nonzero(leaves == leaf).squeeze(-1)
                gp = self._gp_of(int(leaf))
                mean[rows], covariance[rows.unsqueeze(-1), rows] = gp.latent(X[rows])
        return mean, covariance

    def covariance(self, X: Tensor) -> Tensor:
        """Covariance of the latent function over partitions and within them, ``(m, m)``, for X ``(m, d)``."""
        weights = self.weights()
        kept = torch.nonzero(weights > _LEAST_WEIGHT).squeeze(-1)
        share = weights[kept] / weights[kept].sum()
        joint = [self.latent(X, int(v)) for v in kept]
        means = torch.stack([mean for mean, _ in joint])
        centred = means - share @ means
        within = sum((w * covariance for w, (_, covariance) in zip(share, joint, strict=True)), torch.zeros(()))
        return within + centred.mT @ (share.unsqueeze(-1) * centred)

    def draw(self, X: Tensor, n_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Joint samples of new observations, ``(n_samples, m)``: a partition by its weight, then its function."""
        chosen = torch.multinomial(self.weights(), n_samples, replacement=True, generator=generator)
        samples = torch.randn(n_samples, len(X), generator=generator, dtype=X.dtype)
        for v in chosen.unique():
            mean, covariance = self.latent(X, int(v))
            L = torch.linalg.cholesky(covariance + self.likelihood.noise.detach() * torch.eye(len(X), dtype=X.dtype))
            samples[chosen == v] = mean + samples[chosen == v] @ L.mT
        return samples

    def _gp_of(self, leaf: int) -> ExactGP:
        rows = self._order[self._offsets[leaf] : self._offsets[leaf + 1]]
        return ExactGP(
            self.X[rows], self.y[rows], kernel=self.covar_module, mean=self.mean_module, noise=self.likelihood
        )


def _offsets(leaves: Tensor, count: int) -> Tensor:
    """Where each leaf begins in rows sorted by leaf, ``(count + 1,)``."""
    return torch.cat([leaves.new_zeros(1), torch.bincount(leaves, minlength=count).cumsum(0)])


def _family(kernel: Kernel) -> Family:
    base: Any = kernel.base_kernel if isinstance(kernel, ScaleKernel) else None
    if type(base) is RBFKernel and base.active_dims is None:
        return "rbf"
    if type(base) is MaternKernel and base.active_dims is None:
        return _FAMILIES[base.nu]
    raise UnsupportedKernelError(
        "`kernel` must be a ScaleKernel of a MaternKernel or an RBFKernel on all inputs; got "
        f"{type(kernel).__name__}{'' if base is None else f' of {type(base).__name__}'}."
    )
