"""Posteriors of many experts, each at the points that ask it, without a loop over points.

| symbol | name in code | shape |
|---|---|---|
| new points, experts that answer for each | `X_new`, `experts` | (q, d), (q, k) |
| pairs sorted by expert; those asked | `order`; `asked` | (q k,); (e,) |

Small experts with a kernel that `SmallGPs` knows are factorised, and asked little, in one compiled pass; others one
after another, by LAPACK.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, RQKernel, ScaleKernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import UnsupportedKernelError
from gpmoe.linalg import fused, lapack
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.small_batch import Family, SmallGPs
from gpmoe.linalg.stationary import Packed, fill_covariance, pack, stationary_terms

Indices = NDArray[np.int64]

_SMALL = 400  # rows above which LAPACK on one expert after another is faster
_FEW = 4  # questions an expert above which it is, too


@dataclass(frozen=True)
class Hyperparameters:
    """Kernel, mean and noise in the form that `SmallGPs` takes; each for all experts, or with a leading M.

    Attributes:
        kernel: the GPyTorch kernel itself.
        mean, noise: ``()`` or ``(M,)``.
    """

    kernel: Kernel
    mean: Tensor
    noise: Tensor

    @property
    def shared(self) -> bool:
        """Whether all experts have the same."""
        return not self.kernel.batch_shape

    def single(self, expert: int) -> tuple[Kernel, Tensor, Tensor]:
        """Kernel, noise variance and mean of one expert."""
        if self.shared:
            return self.kernel, self.noise, self.mean
        return self.kernel[expert], self.noise[expert], self.mean[expert]

    def of(self, experts: Indices) -> dict[str, Tensor | Family | None] | None:
        """Arguments of `SmallGPs` for some experts; None for a kernel that it does not know."""
        base, scale = self.kernel, None
        if type(base) is ScaleKernel and base.active_dims is None:
            base, scale = base.base_kernel, base.outputscale
        families: dict[float, Family] = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}
        family: Family | None = {RBFKernel: "rbf", RQKernel: "rational_quadratic"}.get(type(base))  # type: ignore[assignment]
        family = families.get(base.nu) if type(base) is MaternKernel else family
        if family is None or base.active_dims is not None:
            return None
        own = self._choose(experts)
        lengthscale = base.lengthscale.squeeze(-2)
        lengthscale = lengthscale.expand(*self.kernel.batch_shape, lengthscale.shape[-1])
        return {
            "family": family,
            "lengthscale": own(lengthscale),
            "outputscale": None if scale is None else own(scale),
            "shape": own(base.alpha.squeeze(-1)) if family == "rational_quadratic" else None,
            "noise": own(self.noise),
            "mean": own(self.mean),
        }

    def _choose(self, experts: Indices) -> Callable[[Tensor], Tensor]:
        index = torch.from_numpy(np.ascontiguousarray(experts))
        return lambda tensor: tensor if self.shared else tensor[index]


def expect_supported(hyper: Hyperparameters) -> None:
    """Raise UnsupportedKernelError for experts with kernels of their own that `SmallGPs` does not know."""
    if not hyper.shared and hyper.of(np.zeros(1, dtype=np.int64)) is None:
        raise UnsupportedKernelError(
            "experts with hyperparameters of their own take an RBF, Matérn or rational quadratic kernel, scaled or "
            f"not; got {type(hyper.kernel).__name__}. Let them share hyperparameters."
        )


def log_likelihoods(X: Tensor, y: Tensor, offsets: Tensor, hyper: Hyperparameters) -> tuple[Tensor, float]:
    """log N(y_i | m, K_i + σ²I) of each expert ``(M,)``, nats, differentiable once, and the most jitter any needed.

    Args:
        X, y: rows of all experts, one after another, ``(n, d)`` and ``(n,)``.
        offsets: ``(M + 1,)``.
        hyper: of the experts.
    """
    sizes = offsets.diff()
    arguments = hyper.of(np.arange(len(sizes)))
    if arguments is not None and (not hyper.shared or int(sizes.max()) <= _SMALL):
        gps = SmallGPs(X, y, offsets, **arguments)  # type: ignore[arg-type]
        return gps.log_marginal_likelihood(), float(gps.jitter.max(initial=0.0))
    workspace, values, jitter = Workspace(), [], 0.0
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        noise = hyper.noise.expand(stop - start)
        part = gaussian_log_likelihood(
            hyper.kernel, X[start:stop], y[start:stop] - hyper.mean, noise, workspace=workspace
        )
        values.append(part)
        jitter = max(jitter, workspace.jitter)
    return torch.stack(values), jitter


def moments(
    X: Tensor,
    y: Tensor,
    rows: Indices,
    offsets: Indices,
    hyper: Hyperparameters,
    asked: Indices,
    questions: "Questions",
) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of the latent function by each expert at each point that asks it.

    Args:
        X, y: training rows, ``(n, d)`` and ``(n,)``.
        rows, offsets: rows of the experts that are asked, one after another, and where each one's begin.
        hyper: of all experts.
        asked: the numbers of those experts, ``(e,)``.
        questions: who asks them.

    Returns:
        ``(q, k)`` each.
    """
    arguments = hyper.of(asked)
    index = torch.from_numpy(rows)
    few = questions.offsets[-1] <= _FEW * len(asked) and int(np.diff(offsets).max()) <= _SMALL
    if arguments is not None and few:
        gps = SmallGPs(X[index], y[index], torch.from_numpy(offsets), **arguments)  # type: ignore[arg-type]
        mean, variance = gps.posterior(questions.points(), torch.from_numpy(questions.offsets))
        return questions.answer(mean), questions.answer(variance)
    groups = index.split(np.diff(offsets).tolist())
    at_once = hyper.shared and not questions.points().requires_grad
    terms = stationary_terms(hyper.kernel, X[index], questions.points()) if at_once else None
    if terms is not None:
        pieces = _packed_posteriors(pack(terms), y[index] - hyper.mean, hyper, offsets, questions)
    else:
        pieces = [
            _one_posterior(X[part], y[part], hyper, int(expert), points)
            for expert, part, points in zip(asked, groups, questions.by_expert(), strict=True)
        ]
    mean, variance = (torch.cat(part) for part in zip(*pieces, strict=True))
    return questions.answer(mean), questions.answer(variance)


def _packed_posteriors(
    packed: Packed, residual: Tensor, hyper: Hyperparameters, offsets: Indices, questions: "Questions"
) -> list[tuple[Tensor, Tensor]]:
    """Experts one after another on inputs that were scaled once for all."""
    assert packed.Z2 is not None
    Z, Z_new, arrays = packed.Z1.detach().numpy(), packed.Z2.detach().numpy(), packed.arrays()
    noise, level = hyper.noise.detach(), hyper.mean.detach()
    prior = float(packed.scale.detach().sum())  # each leaf is 1 at distance 0
    pieces = []
    for rows, asks in zip(_slices(offsets), _slices(questions.offsets), strict=True):
        z = np.ascontiguousarray(Z[:, rows])
        L, K = residual.new_empty(z.shape[1], z.shape[1]), residual.new_empty(asks.stop - asks.start, z.shape[1])

        def fill(C: Tensor, z: NDArray[np.float64] = z) -> None:
            fused.assemble(z, None, arrays, C.numpy())
            lapack.diagonal(C).add_(noise)

        cholesky_with_jitter_(fill, L)
        fused.assemble(np.ascontiguousarray(Z_new[:, asks]), z, arrays, K.numpy())
        mean = level + K @ lapack.cholesky_solve(L, residual[rows].detach())
        half = lapack.solve_triangular(L, K.mT, overwrite=True)
        variance = prior - torch.linalg.vector_norm(half, dim=0).square_()
        pieces.append((mean, variance.clamp_min_(torch.finfo(L.dtype).eps * prior)))
    return pieces


def _slices(offsets: Indices) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(offsets.tolist())]


def _one_posterior(X: Tensor, y: Tensor, hyper: Hyperparameters, expert: int, X_new: Tensor) -> tuple[Tensor, Tensor]:
    kernel, noise, level = hyper.single(expert)
    L = factor(X, kernel, noise)
    K = cross_covariance(kernel, X_new, X)
    mean = level + K @ lapack.cholesky_solve(L, (y - level).detach())
    prior = kernel(X_new, diag=True)
    half = torch.linalg.solve_triangular(L, K.mT, upper=False) if K.requires_grad else lapack.solve_triangular(L, K.mT)
    variance = prior - half.square().sum(0)
    return mean, torch.maximum(variance, torch.finfo(X.dtype).eps * prior)


def factor(X: Tensor, kernel: Kernel, noise: Tensor) -> Tensor:
    """Lower Cholesky factor of K(X, X) + σ²I, with as little jitter as it needs; not differentiable."""
    L = X.new_empty(len(X), len(X))

    def fill(C: Tensor) -> None:
        fill_covariance(kernel, X, None, C)
        lapack.diagonal(C).add_(noise)

    with torch.no_grad():
        cholesky_with_jitter_(fill, L)
    return L


class Questions:
    """Points and the experts that answer for them, sorted by expert.

    Args:
        X_new: ``(q, d)``.
        experts: ``(q, k)``.

    Attributes:
        asked: experts that any point asks, ``(e,)``.
        offsets: ``(e + 1,)``, where each one's questions begin.
    """

    def __init__(self, X_new: Tensor, experts: Indices) -> None:
        self._X_new, self._shape = X_new, experts.shape
        flat = experts.reshape(-1)
        order = np.argsort(flat, kind="stable")
        self.asked, counts = np.unique(flat, return_counts=True)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self._points = torch.from_numpy(order // experts.shape[1])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        self._back = torch.from_numpy(back)

    def points(self) -> Tensor:
        """The point of each question, ``(q k, d)``."""
        return self._X_new[self._points]

    def by_expert(self) -> list[Tensor]:
        """The points that ask each expert, ``(q_e, d)`` each."""
        return list(self.points().split(np.diff(self.offsets).tolist()))

    def answer(self, values: Tensor) -> Tensor:
        """Answers ``(q k,)`` as ``(q, k)``, where the questions came from."""
        return values[self._back].reshape(self._shape)
