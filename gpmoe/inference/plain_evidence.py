"""The evidence of the default GP without autograd: what an optimiser on few points spends its time on.

For a scaled RBF, Matérn or rational quadratic kernel, a constant mean and Gaussian noise, value and gradient are
written out. The numbers are those of `ExactGP.log_marginal_likelihood`, and so is the pass over the data; what falls
away is a few milliseconds of small tensors, which is most of the cost below some 300 points.

| symbol | name in code | shape |
|---|---|---|
| v = (lengthscales, outputscale, α, noise, mean) | `v` | (lengthscales + 4,) |
| those entries of v that are learned, in the order of the model's parameters | `learned` | |
| d log p / dv | `slope` | as v |
"""

import math
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.linalg import fused, lapack
from gpmoe.linalg.compiler import AVAILABLE, njit
from gpmoe.linalg.factorisation import cholesky_with_jitter_
from gpmoe.linalg.stationary import MATERN_FAMILY
from gpmoe.models.exact_gp import ExactGP

Vector = NDArray[np.float64]

_LOG_2_PI = math.log(2 * math.pi)
_NO_PRIOR, _GAMMA, _LOG_NORMAL, _NORMAL = range(4)
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_COMPILED)
def _unpack(v, X, y, weights, Z, scale, shape, residual, noise):  # type: ignore[no-untyped-def]
    """Scaled inputs, kernel parameters, residual and noise per point from v."""
    count = len(v) - 4
    for d in range(len(Z)):
        inverse = 1.0 / v[d if count > 1 else 0]
        for i in range(len(y)):
            Z[d, i] = X[d, i] * inverse
    scale[0], shape[0] = v[count], v[count + 1]
    for i in range(len(y)):
        residual[i] = y[i] - v[count + 3]
        noise[i] = v[count + 2] / weights[i]


@njit(**_COMPILED)
def _log_density(C, alpha, residual):  # type: ignore[no-untyped-def]
    """log N(residual | 0, L L') for the factor in C and α."""
    total = len(alpha) * _LOG_2_PI
    for i in range(len(alpha)):
        total += alpha[i] * residual[i] + 2.0 * math.log(C[i, i])
    return -0.5 * total


@njit(**_COMPILED)
def _slope(v, Z, weights, alpha, W, dZ, d_shape, d_scale, slope):  # type: ignore[no-untyped-def]
    """d log p / dv from W = C⁻¹ and the fused gradient; returns what weights add to the value.

    That is ½ sum[(1 - w) log 2πσ² - log w], which makes the evidence that of observations raised to their weights.
    """
    count = len(v) - 4
    slope[:] = 0.0
    for d in range(len(Z)):
        at = d if count > 1 else 0
        slope[at] -= np.dot(dZ[d], Z[d]) / v[at]
    slope[count], slope[count + 1] = d_scale[0], d_shape[0]
    noise, missing, logs = v[count + 2], 0.0, 0.0
    for i in range(len(alpha)):
        slope[count + 2] += 0.5 * (alpha[i] * alpha[i] - W[i, i]) / weights[i]
        slope[count + 3] += alpha[i]
        missing += 1.0 - weights[i]
        logs += math.log(weights[i])
    slope[count + 2] += 0.5 * missing / noise
    return 0.5 * (missing * (_LOG_2_PI + math.log(noise)) - logs)


@njit(**_COMPILED)
def _log_priors(v, kind, first, second, slope):  # type: ignore[no-untyped-def]
    """Sum of the log priors of v, whose slopes are added to `slope`."""
    total = 0.0
    for i in range(len(v)):
        a, b = first[i], second[i]
        if kind[i] == _GAMMA:
            total += a * math.log(b) - math.lgamma(a) + (a - 1.0) * math.log(v[i]) - b * v[i]
            slope[i] += (a - 1.0) / v[i] - b
        elif kind[i] == _LOG_NORMAL:
            u = math.log(v[i])
            total -= math.log(b) + 0.5 * _LOG_2_PI + u + 0.5 * ((u - a) / b) ** 2
            slope[i] -= (1.0 + (u - a) / (b * b)) / v[i]
        elif kind[i] == _NORMAL:
            total -= math.log(b) + 0.5 * _LOG_2_PI + 0.5 * ((v[i] - a) / b) ** 2
            slope[i] -= (v[i] - a) / (b * b)
    return total


class PlainEvidence:
    """log evidence plus log priors of one model, as a function of its learned parameters' values.

    Made by `plain_evidence`, which knows for which models it is right. The model's data may be replaced between
    calls, its fixed parameters may not.
    """

    def __init__(self, gp: ExactGP, family: int, v: Vector, learned: NDArray[np.intp], priors: "_Priors") -> None:
        self.gp = gp
        self.v = v
        self.learned = learned
        self.priors = priors
        self._scale, self._shape = np.ones(1), np.ones(1)
        d = gp.X.shape[-1]
        self._packed = (np.array([0, d]), np.array([family]), self._shape, np.array([0, 1]), self._scale)
        self._data: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __call__(self, values: Vector) -> tuple[float, Vector]:
        """Value and slopes at the values of the learned parameters, one raveled after another.

        Raises:
            NotPositiveDefiniteError, NonFiniteError: as the likelihood does.
        """
        self.set(values)
        v = self.v
        C, alpha = self._factorise()
        value = _log_density(C.numpy(), alpha, self._residual)
        lapack.inverse_from_cholesky_(C)
        W, slope = C.numpy(), np.empty_like(v)
        gradient = fused.gradient(alpha, W, self._Z, self._packed)
        value += _slope(v, self._Z, self._weights, alpha, W, *gradient, slope)
        value += _log_priors(v, *self.priors, slope)
        return value, slope[self.learned]

    def set(self, values: Vector) -> None:
        """Take values of the learned parameters."""
        self.v[self.learned] = values

    @property
    def noise(self) -> float:
        """Noise variance at the present values."""
        return float(self.v[-2])

    def marginals(self, X: Tensor) -> tuple[Vector, Vector]:
        """Posterior mean and variance of the latent function at ``(m, d)`` points, ``(m,)``, as `ExactGP.marginals`.

        Taken at the present values.
        """
        C, alpha = self._factorise()
        n, count = len(alpha), len(self.v) - 4
        Z_new = np.ascontiguousarray(((X.numpy() - self._center) / self.v[:count]).T)
        K = np.empty((len(X), n))
        fused.assemble(Z_new, self._Z, self._packed, K)
        mean = self.v[-1] + K @ alpha
        V = lapack.solve_triangular(C, torch.from_numpy(K).mT, overwrite=True).numpy()
        variance = self._scale[0] - np.einsum("ij,ij->j", V, V)
        return mean, np.maximum(variance, self._scale[0] * np.finfo(np.float64).eps)

    def _factorise(self) -> tuple[Tensor, Vector]:
        """L in the model's workspace, and α."""
        gp = self.gp
        self._refresh()
        _unpack(self.v, self._X, self._y, self._weights, self._Z, self._scale, self._shape, self._residual, self._noise)

        def fill(C: Tensor) -> None:
            fused.assemble(self._Z, None, self._packed, C.numpy())
            lapack.diagonal(C).add_(self._noise_tensor)

        gp.forget_factor()
        C = gp.workspace.matrix(len(self._y), like=gp.X)
        gp.workspace.jitter = cholesky_with_jitter_(fill, C)
        return C, lapack.cholesky_solve(C, self._residual_tensor).numpy()

    def _refresh(self) -> None:
        """Take the model's data as arrays if they have been replaced."""
        gp = self.gp
        if self._data is not None and all(a is b for a, b in zip(self._data, (gp.X, gp.y, gp.weights), strict=True)):
            return
        self._data = gp.X, gp.y, gp.weights
        X = gp.X.numpy()
        self._center = X.mean(0)
        self._X = np.ascontiguousarray((X - self._center).T)
        self._y = gp.y.numpy()
        self._weights = np.ones(len(X)) if gp.weights is None else gp.weights.contiguous().numpy()
        self._Z, self._residual, self._noise = np.empty_like(self._X), np.empty(len(X)), np.empty(len(X))
        self._residual_tensor, self._noise_tensor = torch.from_numpy(self._residual), torch.from_numpy(self._noise)


_Priors = tuple[NDArray[np.int64], Vector, Vector]  # for each entry of v the kind of its prior and two parameters


def plain_evidence(gp: ExactGP) -> PlainEvidence | None:
    """The written-out evidence of a model, None for a model that it does not cover, and where Numba is absent.

    For a model with weights it is the evidence of `vbem.expert_evidence`.
    """
    kernel = gp.covar_module
    if (
        not AVAILABLE
        or type(kernel) is not ScaleKernel
        or type(kernel.base_kernel) not in (RBFKernel, MaternKernel, RQKernel)
    ):
        return None
    base = kernel.base_kernel
    family = {RBFKernel: fused.RBF, RQKernel: fused.RATIONAL_QUADRATIC, MaternKernel: None}[type(base)]
    family = MATERN_FAMILY.get(base.nu) if family is None else family
    plain_parts = type(gp.mean_module) is ConstantMean and type(gp.likelihood) is GaussianLikelihood
    whole = gp.X.dtype == torch.float64 and gp.X.device.type == "cpu" and not gp.batch_shape
    if family is None or not plain_parts or not whole or kernel.active_dims is not None or base.active_dims is not None:
        return None
    count = base.lengthscale.numel()
    place = {
        id(base.raw_lengthscale): range(count),
        id(kernel.raw_outputscale): [count],
        id(gp.likelihood.noise_covar.raw_noise): [count + 2],
        id(gp.mean_module.raw_constant): [count + 3],
    }
    values = [base.lengthscale, kernel.outputscale, gp.likelihood.noise, gp.mean_module.constant]
    alpha = gp.X.new_ones(1)
    if type(base) is RQKernel:
        place[id(base.raw_alpha)] = [count + 1]
        alpha = base.alpha
    v = torch.cat([part.detach().reshape(-1) for part in [*values[:2], alpha, *values[2:]]]).numpy().copy()
    learned = [parameter for parameter in gp.parameters() if parameter.requires_grad]
    priors = _priors(gp, place, len(v))
    if priors is None or any(id(parameter) not in place for parameter in learned):
        return None
    order = np.array([at for parameter in learned for at in place[id(parameter)]], dtype=np.intp)
    return PlainEvidence(gp, family, v, order, priors)


def _priors(gp: ExactGP, place: dict[int, Any], size: int) -> _Priors | None:
    """The priors of v, None if there is one that is not written out here."""
    kind, first, second = np.zeros(size, dtype=np.int64), np.zeros(size), np.zeros(size)
    named_priors: Any = gp.named_priors
    for name, module, prior, _, _ in named_priors():
        short = name.rsplit(".", 1)[-1].removesuffix("_prior")
        at = place.get(id(getattr(module, f"raw_{short}", None)))
        form = _form(prior)
        if at is None or form is None or kind[at].any():
            return None
        kind[at], first[at], second[at] = form
    return kind, first, second


def _form(prior: Any) -> tuple[int, float, float] | None:
    """The kind of a prior and its two parameters, if they are numbers."""
    parts = {
        GammaPrior: lambda: (_GAMMA, prior.concentration, prior.rate),
        LogNormalPrior: lambda: (_LOG_NORMAL, prior.base_dist.loc, prior.base_dist.scale),
        NormalPrior: lambda: (_NORMAL, prior.loc, prior.scale),
    }.get(type(prior))
    if parts is None:
        return None
    kind, first, second = parts()
    return (kind, float(first), float(second)) if first.numel() == 1 and second.numel() == 1 else None
