"""The evidence of the default GP without autograd: what an optimiser on few points spends its time on.

For a scaled RBF, Matérn or rational quadratic kernel, a constant mean and Gaussian noise, value and gradient
are written out in NumPy. The numbers are those of `ExactGP.log_marginal_likelihood`, and so is the pass over the data;
what falls away is a few milliseconds of small tensors, which is most of the cost below some 300 points.

| symbol | name in code |
|---|---|
| v = (lengthscales, outputscale, α, noise, mean), those that are there and learned | `values` |
| d log p / dv | `slopes` |
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gpytorch.kernels import MaternKernel, RBFKernel, RQKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from numpy.typing import NDArray
from torch.nn import Parameter

from gpmoe.linalg import fused, lapack
from gpmoe.linalg.factorisation import cholesky_with_jitter_
from gpmoe.linalg.stationary import MATERN_FAMILY
from gpmoe.models.exact_gp import ExactGP

Vector = NDArray[np.float64]
LogPrior = Callable[[Vector], tuple[float, Vector]]

_LOG_2_PI = math.log(2 * math.pi)


class _Slot(NamedTuple):
    """A learned parameter: where its value lies in the vector, and its log prior if it has one."""

    parameter: Parameter
    part: str
    log_prior: LogPrior | None


class PlainEvidence:
    """log evidence plus log priors of one model, as a function of its parameters' values.

    Made by `plain_evidence`, which knows for which models it is right.
    """

    def __init__(self, gp: ExactGP, family: int, slots: list[_Slot]) -> None:
        self.gp = gp
        self.family = np.array([family])
        self.slots = slots
        self.parameters = [slot.parameter for slot in slots]

    def __call__(self, values: list[Vector]) -> tuple[float, list[Vector]]:
        """Value and slopes at the values of `parameters`, each raveled.

        Raises:
            NotPositiveDefiniteError, NonFiniteError: as the likelihood does.
        """
        given = dict(zip((slot.part for slot in self.slots), values, strict=True))
        value, slope = self._evidence(given)
        slopes = []
        for slot, v in zip(self.slots, values, strict=True):
            log_prior, its_slope = (0.0, 0.0) if slot.log_prior is None else slot.log_prior(v)
            value += float(np.sum(log_prior))
            slopes.append(slope[slot.part] + its_slope)
        return value, slopes

    def _part(self, given: dict[str, Vector], part: str, fixed: Any) -> Vector:
        """A learned value, or that of a fixed parameter."""
        return given[part] if part in given else fixed().detach().numpy().reshape(-1)

    def _evidence(self, given: dict[str, Vector]) -> tuple[float, dict[str, Vector]]:
        gp = self.gp
        base = gp.covar_module.base_kernel
        X, y = gp.X.numpy(), gp.y.numpy()
        lengthscale = self._part(given, "lengthscale", lambda: base.lengthscale)
        scale = self._part(given, "outputscale", lambda: gp.covar_module.outputscale)
        noise = self._part(given, "noise", lambda: gp.likelihood.noise)
        shape = (
            self._part(given, "alpha", lambda: base.alpha) if self.family[0] == fused.RATIONAL_QUADRATIC else np.ones(1)
        )
        mean = self._part(given, "mean", lambda: gp.mean_module.constant)
        weights = np.ones(len(y)) if gp.weights is None else gp.weights.numpy()

        Z = np.ascontiguousarray(((X - X.mean(0)) / lengthscale).T)
        packed = (np.array([0, len(Z)]), self.family, shape, np.array([0, 1]), scale)
        C = gp.workspace.matrix(len(y), like=gp.X)
        per_point = torch.from_numpy(noise / weights)

        def fill(C: torch.Tensor) -> None:
            fused.assemble(Z, None, packed, C.numpy())
            lapack.diagonal(C).add_(per_point)

        gp.forget_factor()
        gp.workspace.jitter = cholesky_with_jitter_(fill, C)
        residual = y - mean
        alpha = lapack.cholesky_solve(C, torch.from_numpy(residual)).numpy()
        diagonal = C.numpy().diagonal()  # a view: first of the factor, below of the inverse
        value = -0.5 * (float(alpha @ residual) + 2 * float(np.log(diagonal).sum()) + len(y) * _LOG_2_PI)
        lapack.inverse_from_cholesky_(C)
        dZ, d_shape, d_scale = fused.gradient(alpha, C.numpy(), Z, packed)
        d_noise = float((0.5 * (alpha * alpha - diagonal) / weights).sum())
        value, d_noise = _with_weights(value, d_noise, float(noise[0]), weights)
        along = -(dZ * Z).sum(1) / lengthscale
        slope = {
            "lengthscale": along if len(lengthscale) > 1 else along.sum(keepdims=True),
            "outputscale": d_scale,
            "alpha": d_shape,
            "noise": np.array([d_noise]),
            "mean": alpha.sum(keepdims=True),
        }
        return value, slope


def _with_weights(value: float, d_noise: float, noise: float, weights: Vector) -> tuple[float, float]:
    """Add ½ sum[(1 - w) log 2πσ² - log w], which makes the evidence that of observations raised to their weights."""
    missing = float((1 - weights).sum())
    value += 0.5 * (missing * (_LOG_2_PI + math.log(noise)) - float(np.log(weights).sum()))
    return value, d_noise + 0.5 * missing / noise


def plain_evidence(gp: ExactGP) -> PlainEvidence | None:
    """The written-out evidence of a model, None for a model that it does not cover.

    For a model with weights it is the evidence of `vbem.expert_evidence`.
    """
    kernel = gp.covar_module
    if type(kernel) is not ScaleKernel or type(kernel.base_kernel) not in (RBFKernel, MaternKernel, RQKernel):
        return None
    base = kernel.base_kernel
    family = {RBFKernel: fused.RBF, RQKernel: fused.RATIONAL_QUADRATIC, MaternKernel: None}[type(base)]
    family = MATERN_FAMILY.get(base.nu) if family is None else family
    plain_parts = type(gp.mean_module) is ConstantMean and type(gp.likelihood) is GaussianLikelihood
    whole = gp.X.dtype == torch.float64 and gp.X.device.type == "cpu" and not gp.batch_shape
    if family is None or not plain_parts or not whole or kernel.active_dims is not None or base.active_dims is not None:
        return None
    parts = {
        "lengthscale": base.raw_lengthscale,
        "outputscale": kernel.raw_outputscale,
        "mean": gp.mean_module.raw_constant,
    }
    parts["noise"] = gp.likelihood.noise_covar.raw_noise
    if type(base) is RQKernel:
        parts["alpha"] = base.raw_alpha
    log_priors = _log_priors(gp, {id(parameter): part for part, parameter in parts.items()})
    learned = {id(parameter) for parameter in gp.parameters() if parameter.requires_grad}
    if log_priors is None or not learned <= {id(parameter) for parameter in parts.values()}:
        return None
    slots = [_Slot(p, part, log_priors.get(part)) for part, p in parts.items() if p.requires_grad]
    return PlainEvidence(gp, family, slots)


def _log_priors(gp: ExactGP, part_of: dict[int, str]) -> dict[str, LogPrior] | None:
    """The log prior of each part, None if there is one that is not written out here."""
    found: dict[str, LogPrior] = {}
    priors: Any = gp.named_priors
    for name, module, prior, _, _ in priors():
        short = name.rsplit(".", 1)[-1].removesuffix("_prior")
        parameter = getattr(module, f"raw_{short}", None)
        part = part_of.get(id(parameter))
        log_prior = _log_prior(prior)
        if part is None or log_prior is None or part in found:
            return None
        found[part] = log_prior
    return found


def _log_prior(prior: Any) -> LogPrior | None:
    """log density and slope of a prior, each summed or given per value."""
    if type(prior) is GammaPrior:
        a, b = float(prior.concentration), float(prior.rate)
        constant = a * math.log(b) - math.lgamma(a)
        return lambda v: (float(((a - 1) * np.log(v) - b * v + constant).sum()), (a - 1) / v - b)
    if type(prior) is LogNormalPrior:
        m, s = float(prior.base_dist.loc), float(prior.base_dist.scale)
        constant = -math.log(s) - 0.5 * _LOG_2_PI

        def log_normal(v: Vector) -> tuple[float, Vector]:
            u = np.log(v)
            return float((constant - u - 0.5 * ((u - m) / s) ** 2).sum()), -(1 + (u - m) / s**2) / v

        return log_normal
    if type(prior) is NormalPrior:
        m, s = float(prior.loc), float(prior.scale)
        constant = -math.log(s) - 0.5 * _LOG_2_PI
        return lambda v: (float((constant - 0.5 * ((v - m) / s) ** 2).sum()), (m - v) / s**2)
    return None
