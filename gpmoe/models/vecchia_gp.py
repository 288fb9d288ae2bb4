"""Gaussian process regression for many points in few dimensions, each given its nearest neighbours alone.

| symbol | name in code | shape |
|---|---|---|
| X, y | `X`, `y` | (n, d), (n,) |
| max-min order of the rows | `order` | (n,) |
| nearest rows among those before, in that order | `neighbours` | (n, m) |
"""

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.neighbours import maximin_order, nearest_rows, previous_neighbours
from gpmoe.linalg.stationary import dense_covariance, selected_terms
from gpmoe.linalg.vecchia import vecchia_log_likelihood, vecchia_marginals
from gpmoe.linalg.vecchia_blocked import conditioning_factor
from gpmoe.models.exact_gp import Noise, evaluating, expect_data, make_likelihood
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs

_MOST_JOINT = 4096  # rows that a joint posterior may be conditioned on
_BLOCK = 2**16  # new points at a time


class VecchiaGP(LearnableModel):
    """A Gaussian process whose likelihood conditions each observation on its nearest neighbours among those before it.

    log p(y) ~ sum_i log p(y_i | y_c(i)), with rows in max-min order and c(i) the `n_neighbours` nearest previous rows:
    a proper joint density of y whose cost grows like n, exact where every previous row is a neighbour. Noise is part
    of the covariance ("response" Vecchia).

    Good for one to about five inputs that matter (maps, images, time and space) and any number of rows from some
    thousands on. More neighbours come nearer to the exact likelihood: on 1,500 rows of a smooth surface in two
    dimensions with a noise variance of 0.04, the value was 12 nats off with 30, 1.5 with 60 and 0.4 with 120; smooth
    kernels and much noise ask for more, since information then comes from far away. Not for d >= 8: neighbours are
    all far away there, and the likelihood falls short by hundreds of nats (on 5,000 rows in 8 dimensions with 20
    neighbours by 438); use `ExactGP` or a sparse model. Below some 5,000 rows `ExactGP` is affordable, and exact.

    Order and neighbours are chosen once, by distance in inputs scaled by the lengthscales of the moment, and held
    through a fit, so that its objective is smooth. Where a fit moves lengthscales of different inputs far apart,
    call `choose_neighbours` after it and fit again.

    Args:
        X: inputs, ``(n, d)``, float64 (compiled) or float32.
        y: targets, ``(n,)``.
        kernel: any GPyTorch kernel without batch dimensions; Matérn-5/2 with a lengthscale per input if None.
        mean: any GPyTorch mean; a learned constant if None.
        noise: as in `ExactGP`: None to learn a variance, a number or ``(n,)`` to fix it, or a GPyTorch likelihood.
        n_neighbours: how many earlier rows each row is conditioned on, and training rows each prediction.

    Attributes:
        covar_module, mean_module, likelihood: the GPyTorch parts, as they were passed in.
        order, neighbours: see the table above; neighbours are counted in that order, -1 where there are fewer.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other.
        InputError: if `n_neighbours` is less than 1.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 6, 200, dtype=torch.float64).unsqueeze(-1)
        >>> gp = VecchiaGP(X, X.sin().squeeze(-1), noise=1e-4, n_neighbours=10)
        >>> mean, variance = gp.marginals(X[:3] + 0.01)
        >>> bool((mean - (X[:3, 0] + 0.01).sin()).abs().max() < 0.01)
        True
    """

    X: Tensor
    y: Tensor
    order: Tensor
    neighbours: Tensor
    likelihood: GaussianLikelihood | FixedNoiseGaussianLikelihood
    mean_module: Mean
    covar_module: Kernel

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        noise: Noise = None,
        n_neighbours: int = 30,
    ) -> None:
        super().__init__()
        expect_data(X, y, None)
        if X.dim() != 2 or y.dim() != 1:
            raise ShapeError(f"`X` and `y` must be (n, d) and (n,); got {tuple(X.shape)} and {tuple(y.shape)}.")
        if n_neighbours < 1:
            raise InputError(f"`n_neighbours` must be at least 1; got {n_neighbours}.")
        self.n_neighbours = n_neighbours
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.covar_module = (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        if self.covar_module.batch_shape:
            raise ShapeError(f"`kernel` must have no batch dimensions; got {tuple(self.covar_module.batch_shape)}.")
        self.mean_module = (ConstantMean() if mean is None else mean).to(X)
        self.likelihood = make_likelihood(noise, y).to(X)
        self.workspace = Workspace()
        self.register_buffer("order", None, persistent=False)
        self.register_buffer("neighbours", None, persistent=False)
        self.choose_neighbours()

    @property
    def batch_shape(self) -> torch.Size:
        """None: ``()``."""
        return torch.Size()

    @property
    def solved_by(self) -> str:
        """The approximation in words, for reports."""
        return f"Vecchia with {self.neighbours.shape[-1]} neighbours"

    def extra_repr(self) -> str:
        """What `repr` says beside the parts."""
        return f"n={len(self.y)}, n_neighbours={self.n_neighbours}"

    def choose_neighbours(self) -> None:
        """Choose order and neighbours anew, by distance in inputs scaled by the present lengthscales."""
        Z = self._scaled(self.X)[0]
        order = maximin_order(Z)
        self.order = torch.from_numpy(order).to(self.X.device)
        self.neighbours = torch.from_numpy(previous_neighbours(Z[order], self.n_neighbours))

    def _scaled(self, X_new: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Training and new inputs in which the kernel is a function of distance; as they are if there are none."""
        with torch.no_grad():
            terms = selected_terms(self.covar_module, self.X, X_new)
            pairs = [(self.X, X_new)]
            if terms is not None:
                pairs = [(leaf.Z1, leaf.Z2) for term in terms for leaf in term.leaves if leaf.Z2 is not None]
            old, new = (torch.cat(parts, -1).double().cpu().numpy() for parts in zip(*pairs, strict=True))
        return np.ascontiguousarray(old), np.ascontiguousarray(new)

    def noise(self) -> Tensor:
        """Noise variance of each training point, ``(n,)``."""
        noise: Tensor = self.likelihood.noise
        return noise.expand(self.y.shape)

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(1,)``: the mean over the training points where they differ."""
        noise: Tensor = self.likelihood.noise
        return noise.mean(-1, keepdim=True)

    def log_marginal_likelihood(self) -> Tensor:
        """Vecchia's log p(y | X), differentiable once; a scalar, nats."""
        X, residual, noise = self._in_order()
        neighbours = self.neighbours.numpy()
        return vecchia_log_likelihood(self.covar_module, X, residual, noise, neighbours, workspace=self.workspace)

    def _in_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, residuals and noise variances in the order of `order`."""
        X = self.X[self.order]
        return X, self.y[self.order] - self.mean_module(X), self.noise()[self.order]

    def jitter_needed(self) -> float:
        """The most that any row's covariance needs on its diagonal to have a factor, at the present parameters."""
        with torch.no_grad(), evaluating(self):
            self.log_marginal_likelihood()
        return self.workspace.jitter

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function at each new point, given its nearest training rows.

        Args:
            X: ``(m, d)``; any number of points, in bounded memory.

        Returns:
            Mean and variance, ``(m,)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        if X.dim() != 2:
            raise ShapeError(f"`X` must have shape (m, d); got {tuple(X.shape)}.")
        old, new = self._scaled(X)
        mean, variance = X.new_empty(len(X)), X.new_empty(len(X))
        with torch.no_grad(), evaluating(self):
            residual, noise = self.y - self.mean_module(self.X), self.noise()
            for start in range(0, len(X), _BLOCK):
                rows = slice(start, start + _BLOCK)
                near = nearest_rows(old, new[rows], self.n_neighbours)
                shift, variance[rows] = vecchia_marginals(self.covar_module, self.X, residual, noise, X[rows], near)
                mean[rows] = self.mean_module(X[rows]) + shift
        return mean, variance

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Joint posterior of q new points given the nearest training rows of all q together.

        For q = 1 these are the marginals. For more, each point also sees the others' neighbours. Neighbours are held
        when it is differentiated in X.

        Args:
            X: ``(*batch, q, d)``.

        Returns:
            Mean ``(*batch, q)`` and covariance ``(*batch, q, q)``, differentiable in X.

        Raises:
            InputError: if the q points have more than 4,096 neighbours; `marginals` takes any number of points.
        """
        expect_inputs(X, self.X)
        index = self._together(X)
        batch = X.shape[:-2]
        with evaluating(self):
            with torch.no_grad():
                residual = self.y - self.mean_module(self.X)
                flat = index.reshape(-1, index.shape[-1])
                L, r, _ = conditioning_factor(self.covar_module, self.X, residual, self.noise(), flat)
                L, r = L.reshape(*batch, *L.shape[-2:]), r.reshape(*batch, -1)
            K_new = dense_covariance(self.covar_module, X, self.X[index.clamp_min(0)])
            K_new = torch.where((index >= 0).unsqueeze(-2), K_new, 0.0)
            half = torch.linalg.solve_triangular(L, torch.cat([r.unsqueeze(-1), K_new.mT], -1), upper=False)
            V = half[..., 1:]
            mean = self.mean_module(X) + (V.mT @ half[..., :1]).squeeze(-1)
            covariance = dense_covariance(self.covar_module, X, X) - V.mT @ V
        return mean.expand(covariance.shape[:-1]), covariance

    def _together(self, X: Tensor) -> Tensor:
        """The neighbours of each batch's points, each once, others -1: ``(*batch, at most q m)``."""
        old, new = self._scaled(X.detach().reshape(-1, X.shape[-1]))
        near = nearest_rows(old, new, self.n_neighbours).reshape(*X.shape[:-2], -1)
        near = np.sort(near, -1)
        near[..., 1:][near[..., 1:] == near[..., :-1]] = -1
        near = near[near >= 0] if near.ndim == 1 else near
        if near.shape[-1] > _MOST_JOINT:
            raise InputError(
                f"the joint posterior of {X.shape[-2]} points would be conditioned on {near.shape[-1]} training rows, "
                f"more than {_MOST_JOINT}; ask for fewer points at a time, or for `marginals(X)`."
            )
        return torch.from_numpy(near.astype(np.int64)).to(X.device)
