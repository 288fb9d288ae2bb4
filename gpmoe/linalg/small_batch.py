"""Thousands of small exact Gaussian processes of different sizes at once.

| symbol | name in code | shape |
|---|---|---|
| X, y of all problems, one after another | `X`, `y` | (total, d), (total,) |
| where each problem begins | `offsets` | (B + 1,) |
| scaled inputs, transposed | `Z` | (d, total) |
| C = s k(r²) + diag(noise) of one problem, its inverse | `A` | see `small_dense` |
| α = C⁻¹(y - m) | `alpha` | (total,) |

    log p(y) = -½ (α'(y - m) + log|C| + n log 2π),     d log p / dC = ½ (αα' - C⁻¹)

One compiled pass (Numba; float64, CPU) goes through the problems, each in the cache of its core, and leaves value and
gradient; threads are plain Python threads around it, as in `fused`, and results don't depend on their number. Anything
else, float32, other devices or no Numba, takes padded batches of problems of similar size through torch.

Source: Rasmussen and Williams (2006), eq. 2.25-2.26, 5.8-5.9.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import DifferentiationError, InputError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gpmoe.linalg import fused
from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import AVAILABLE, njit
from gpmoe.linalg.ragged import Ragged
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

Family = Literal["rbf", "matern12", "matern32", "matern52", "rational_quadratic"]

_LOG_2_PI = math.log(2 * math.pi)
_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_TORCH_JITTERS = {torch.float64: dense.JITTERS, torch.float32: (0.0, 1e-6, 1e-5, 1e-4, 1e-3)}

Array = NDArray[np.float64]


class SmallGPs:
    """B Gaussian processes, each with its own rows, on hyperparameters of their own or shared by all.

    Args:
        X: inputs of all problems, one after another, ``(total, d)``, float64 or float32.
        y: targets, ``(total,)``.
        offsets: integers ``(B + 1,)`` from 0 to total: problem b has the rows ``offsets[b]:offsets[b + 1]``. A problem
            may have none.
        family: "rbf", "matern12", "matern32", "matern52" or "rational_quadratic".
        lengthscale: ``(d,)`` or ``(1,)`` for all problems, ``(B, d)`` or ``(B, 1)`` for each.
        outputscale: the latent function's prior variance, ``()`` or ``(B,)``.
        noise: the noise variance, ``()`` or ``(B,)``.
        mean: the prior mean, ``()`` or ``(B,)``; 0 if None.
        shape: the rational quadratic's α, ``()`` or ``(B,)``; only for that family.
        weights: how many observations each row stands for, ``(total,)``, positive: its noise variance is divided by
            its weight. One each if None.

    Every tensor may carry a gradient, and every result backpropagates (once) to those that do.

    Attributes:
        jitter: what the last evaluation added to each problem's diagonal to make it positive definite, ``(B,)``;
            zeros as a rule.

    Raises:
        ShapeError, DtypeError, NonFiniteError, InputError: if the arguments don't fit each other.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> one, noise = X.new_ones(1), X.new_tensor([1e-4, 1e-2]).requires_grad_()
        >>> gps = SmallGPs(X, X.sin().squeeze(-1), torch.tensor([0, 18, 30]), lengthscale=one, noise=noise)
        >>> value = gps.log_marginal_likelihood()
        >>> value.sum().backward()
        >>> value.shape, noise.grad.shape
        (torch.Size([2]), torch.Size([2]))
        >>> mean, variance = gps.posterior(X[:2] + 0.1, torch.tensor([0, 2, 2]))
        >>> bool((mean - (X[:2, 0] + 0.1).sin()).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        offsets: Tensor,
        *,
        lengthscale: Tensor,
        noise: Tensor,
        outputscale: Tensor | None = None,
        mean: Tensor | None = None,
        shape: Tensor | None = None,
        family: Family = "matern52",
        weights: Tensor | None = None,
    ) -> None:
        _check_data(X, y, weights)
        self.X, self.y, self.weights = X, y, weights
        self.ragged = Ragged.of(offsets, rows=len(y), device=X.device)
        self.family = _family(family, shape)
        count = len(self.ragged)
        self.lengthscale = _lengthscales(lengthscale, X, count)
        self.noise = _each("noise", noise, X, count, positive=True)
        self.outputscale = _each("outputscale", X.new_ones(()) if outputscale is None else outputscale, X, count, True)
        self.shape = _each("shape", X.new_ones(()) if shape is None else shape, X, count, True)
        self.mean = _each("mean", X.new_zeros(()) if mean is None else mean, X, count)
        self.jitter: Array = np.zeros(count)

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X) of each problem, exact; ``(B,)``, nats, 0 for a problem without rows.

        Raises:
            NotPositiveDefiniteError, NonFiniteError: naming the first problem that can't be factorised.
        """
        problem = _Problem(self.ragged, self.family)
        parts = (self._scaled(self.X, self.ragged), self.shape, self.outputscale, *self._observations())
        value = _Likelihood.apply(*parts, problem) if problem.compiled(self.X) else _padded_likelihood(parts, problem)
        self.jitter = problem.jitter
        return value

    def posterior(self, X_new: Tensor, new_offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of each problem's latent function at new inputs of its own.

        Args:
            X_new: new inputs of all problems, one after another, ``(total_new, d)``.
            new_offsets: ``(B + 1,)``, as `offsets`.

        Returns:
            Mean and variance of p(f | data), ``(total_new,)`` each; add a problem's noise for p(y | data).
        """
        expect_floating("X_new", X_new, like=self.X)
        expect_shape("X_new", X_new, ndim=2, last=(self.X.shape[-1],))
        expect_finite("X_new", X_new)
        new = Ragged.of(new_offsets, rows=len(X_new), device=X_new.device, name="new_offsets")
        if len(new) != len(self.ragged):
            raise ShapeError(f"`new_offsets` must have {len(self.ragged) + 1} entries, as `offsets`; got {len(new) + 1}.")
        problem = _Problem(self.ragged, self.family, new)
        parts = (self._scaled(self.X, self.ragged), self.shape, self.outputscale, *self._observations())
        Z_new = self._scaled(X_new, new)
        posterior = _Posterior.apply if problem.compiled(self.X) else _padded_posterior
        shift, variance = posterior(Z_new, *parts, problem)
        self.jitter = problem.jitter
        return self.mean[new.owner] + shift, variance

    def _scaled(self, X: Tensor, ragged: Ragged) -> Tensor:
        """Centred and scaled inputs, ``(d, rows)``; centring keeps the lengthscale's gradient free of cancellation."""
        detached, owner = self.X.detach(), self.ragged.owner
        center = detached.new_zeros(len(self.ragged), X.shape[-1]).index_add_(0, owner, detached)
        center /= torch.bincount(owner, minlength=len(self.ragged)).clamp_min(1).unsqueeze(-1)
        scaled = (X - center[ragged.owner]) / self.lengthscale[ragged.owner]
        return scaled.mT.contiguous()

    def _observations(self) -> tuple[Tensor, Tensor]:
        """Residual and noise variance of each row."""
        owner = self.ragged.owner
        noise = self.noise[owner]
        return self.y - self.mean[owner], noise if self.weights is None else noise / self.weights


@dataclass
class _Problem:
    """What is no tensor in a call, and the jitter that comes back from it."""

    ragged: Ragged
    family: int
    new: Ragged | None = None

    def __post_init__(self) -> None:
        self.jitter: Array = np.zeros(len(self.ragged))

    @staticmethod
    def compiled(X: Tensor) -> bool:
        """Whether the compiled pass takes these tensors."""
        return AVAILABLE and X.dtype == torch.float64 and X.device.type == "cpu"

    def run(self, function: Any, *arguments: Any) -> None:
        """Call a compiled pass on all threads, then see whether every problem had a factor."""
        cost = int((self.ragged.sizes.astype(float) ** 2).sum()) + 1
        order, offsets = self.ragged.order, self.ragged.offsets
        fused._run(function, cost, order, offsets, np.array([self.family]), *arguments, self.jitter)
        check_factors(self.jitter, self.ragged)


def check_factors(jitter: Array, ragged: Ragged) -> None:
    """Raise if a compiled pass left NaN for a problem's jitter.

    Raises:
        NotPositiveDefiniteError: naming the first such problem.
    """
    failed = np.flatnonzero(np.isnan(jitter))
    if len(failed):
        first = int(failed[0])
        raise NotPositiveDefiniteError(
            f"the covariances of {len(failed)} of {len(jitter)} problems, the first of them problem {first} with "
            f"{ragged.sizes[first]} rows, are not positive definite at a relative jitter of {dense.JITTERS[-1]:.0e}.\n"
            "Usual causes, most likely first: repeated rows of X in one problem (merge them); a noise variance near "
            "zero (raise it); a hyperparameter that is not finite."
        )


@njit(**_COMPILED)
def _memory(longest, d):  # type: ignore[no-untyped-def]
    """Buffers for problems of up to `longest` rows."""
    m = dense.padded(longest)
    pairs = dense.pairs_of(m)
    square = (np.empty(m * m), np.empty(m * m), np.empty(32))
    leaves = (np.empty(pairs), np.empty((1, pairs)), np.empty((1, pairs)), np.empty((1, pairs)))
    return square, leaves, np.empty(d * m), np.empty(d * m), np.empty(pairs), np.empty((2, m))


@njit(**_COMPILED)
def _factorise(Z, start, n, family, shape, scale, noise, memory):  # type: ignore[no-untyped-def]
    """U of one problem in the buffers; returns its scaled inputs and the jitter, NaN if there is no factor."""
    (A, _, tile), (r2, k, slope, shape_slope), z, _, _, _ = memory
    d, m = len(Z), dense.padded(n)
    local = z[: d * m].reshape(d, m)
    for row in range(d):
        local[row, :n] = Z[row, start : start + n]
        local[row, n:] = 0.0
    rows, leaves = np.array([0, d]), np.array([0, 1])
    dense.evaluate_leaves(local, m, rows, family, shape, r2, k, slope, shape_slope)
    jitter, diagonal = 0.0, 0.0
    for relative in dense.JITTERS:
        jitter = relative * diagonal
        diagonal = dense.assemble(k, leaves, scale, noise[start : start + n], jitter, n, m, A)
        if dense.factorise(A, m, tile):
            return local, jitter
    return local, np.nan


@njit(**_COMPILED)
def _solve(A, n, m, b, x):  # type: ignore[no-untyped-def]
    x[:n] = b
    dense.solve_forward(A, n, m, x)
    dense.solve_backward(A, n, m, x)


@njit(**_COMPILED)
def _likelihoods(  # type: ignore[no-untyped-def]
    first, step, order, offsets, family, Z, shape, scale, residual, noise, with_gradient,
    value, dZ, dshape, dscale, alpha, dnoise, jitter,
):  # fmt: skip
    """log p(y) of each problem and, if wanted, its gradient."""
    if len(order) == 0:
        return
    memory = _memory(offsets[order[0] + 1] - offsets[order[0]], len(Z))
    (A, T, tile), (_, k, slope, shape_slope), _, dz, w, vectors = memory
    for at in range(first, len(order), step):
        b = order[at]
        start, n = offsets[b], offsets[b + 1] - offsets[b]
        if n == 0:
            continue
        m = dense.padded(n)
        local, jitter[b] = _factorise(Z, start, n, family, shape[b : b + 1], scale[b : b + 1], noise, memory)
        if np.isnan(jitter[b]):
            continue
        a, r = alpha[start : start + n], residual[start : start + n]
        _solve(A, n, m, r, a)
        total = n * _LOG_2_PI
        for i in range(n):
            total += a[i] * r[i] + 2.0 * math.log(A[i * m + i])
        value[b] = -0.5 * total
        if with_gradient:
            dense.invert_factor(A, m, T, tile)
            dense.invert(A, m, T, tile)
            _likelihood_weights(A, a, n, m, w, dnoise[start : start + n])
            _pull_back(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale)


@njit(**_COMPILED)
def _likelihood_weights(C_inverse, a, n, m, w, dnoise):  # type: ignore[no-untyped-def]
    """Weights of `small_dense.pull_back` for ½(αα' - C⁻¹), and the gradient for each row's noise."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        line, others, inverse = w[at : at + m - begin], a[begin:n], C_inverse[i * m + begin : i * m + m]
        line[:] = 0.0
        for j in range(i - begin, n - begin):
            line[j] = a[i] * others[j] - inverse[j]
        line[i - begin] *= 0.5
        dnoise[i] = line[i - begin]
        at += m - begin


@njit(**_COMPILED)
def _pull_back(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale):  # type: ignore[no-untyped-def]
    """Chain a problem's weights to its rows of dZ, its shape and its scale."""
    _, (g, k, slope, shape_slope), _, dz, _, _ = memory
    d = len(local)
    change = dz[: d * m].reshape(d, m)
    change[:] = 0.0
    rows, leaves = np.array([0, d]), np.array([0, 1])
    dense.pull_back(
        w, n, m, local, rows, family, leaves, scale[b : b + 1], k, slope, shape_slope, g,
        change, dshape[b : b + 1], dscale[b : b + 1],
    )  # fmt: skip
    for row in range(d):
        for i in range(n):
            dZ[row, start + i] += change[row, i]


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, Z: Tensor, shape: Tensor, scale: Tensor, residual: Tensor, noise: Tensor, problem: _Problem) -> Tensor:
        arrays = [part.detach().contiguous().numpy() for part in (Z, shape, scale, residual, noise)]
        value = np.zeros(len(problem.ragged))
        gradients = [np.zeros_like(array) for array in arrays]
        wanted = any(ctx.needs_input_grad)
        problem.run(_likelihoods, *arrays, wanted, value, *gradients)
        if wanted:
            np.negative(gradients[3], out=gradients[3])  # d/d residual is -α
            ctx.gradients, ctx.owner = [torch.from_numpy(array) for array in gradients], problem.ragged.owner
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _expect_first_order()
        each_row = grad[ctx.owner]
        factors = (each_row, grad, grad, each_row, each_row)
        return *(g * factor for g, factor in zip(ctx.gradients, factors, strict=True)), None


@njit(**_COMPILED)
def _new_pair(local, n, z_new, j, family, shape, vectors):  # type: ignore[no-untyped-def]
    """k, dk/dr2 and dk/dα of new point j with a problem's n rows; z_new is (d, total_new)."""
    r2, k, slope, shape_slope = vectors
    r2[:n] = 0.0
    for row in range(len(local)):
        z, others = z_new[row, j], local[row]
        for i in range(n):
            r2[i] += (z - others[i]) ** 2
    fused._leaf_and_slope(family[0], shape, r2, n, k, slope, shape_slope)


@njit(**_COMPILED)
def _posteriors(  # type: ignore[no-untyped-def]
    first, step, order, offsets, family, new_offsets, Z_new, Z, shape, scale, residual, noise,
    with_gradient, g_mean, g_variance, mean, variance, dZ_new, dZ, dshape, dscale, dresidual, dnoise, jitter,
):  # fmt: skip
    """Mean and variance of the latent function at each new point, or the gradient of sums of them with weights."""
    if len(order) == 0:
        return
    longest = max(offsets[order[0] + 1] - offsets[order[0]], 1)
    memory = _memory(longest, len(Z))
    (A, _, _), _, _, _, w, _ = memory
    room = np.empty((6, dense.padded(longest)))
    vectors = (room[0], room[1], room[2], room[3])
    for at in range(first, len(order), step):
        b = order[at]
        start, n = offsets[b], offsets[b + 1] - offsets[b]
        m = dense.padded(n)
        s, q = scale[b], new_offsets[b + 1] - new_offsets[b]
        if q == 0:
            continue
        local, jitter[b] = _factorise(Z, start, n, family, shape[b : b + 1], scale[b : b + 1], noise, memory)
        if np.isnan(jitter[b]):
            continue
        alpha, h = room[4, :n], room[5]
        _solve(A, n, m, residual[start : start + n], alpha)
        w[: dense.pairs_of(m)] = 0.0
        for j in range(new_offsets[b], new_offsets[b + 1]):
            _new_pair(local, n, Z_new, j, family, shape[b], vectors)
            h[:n] = s * vectors[1][:n]
            dense.solve_forward(A, n, m, h)
            if not with_gradient:
                total, explained = 0.0, 0.0
                for i in range(n):
                    total += s * vectors[1][i] * alpha[i]
                    explained += h[i] * h[i]
                mean[j], variance[j] = total, max(s - explained, 2.2e-16 * s)
                continue
            dense.solve_backward(A, n, m, h)
            gm, gv = g_mean[j], g_variance[j]
            dscale[b] += gv
            _add_posterior_weights(w, h, alpha, n, m, gm, gv)
            for i in range(n):
                dresidual[start + i] += gm * h[i]
                h[i] = gm * alpha[i] - 2.0 * gv * h[i]  # the gradient for K(x_i, x_j)
                dscale[b] += h[i] * vectors[1][i]
                if family[0] == 4:
                    dshape[b] += s * h[i] * vectors[3][i]
            _pull_back_new(local, n, start, Z_new, j, s, h, vectors[2], dZ_new, dZ)
        if with_gradient:
            _close_weights(w, n, m, dnoise[start : start + n])
            _pull_back(w, n, m, local, start, family, scale, b, memory, dZ, dshape, dscale)


@njit(**_COMPILED)
def _pull_back_new(local, n, start, Z_new, j, s, g, slope, dZ_new, dZ):  # type: ignore[no-untyped-def]
    """Chain the gradient for a new point's covariances to its inputs and the problem's."""
    for row in range(len(local)):
        total = 0.0
        for i in range(n):
            t = 2.0 * s * g[i] * slope[i] * (Z_new[row, j] - local[row, i])
            total += t
            dZ[row, start + i] -= t
        dZ_new[row, j] += total


@njit(**_COMPILED)
def _add_posterior_weights(w, a, alpha, n, m, gm, gv):  # type: ignore[no-untyped-def]
    """Add dC of gm k'C⁻¹r - gv k'C⁻¹k for a = C⁻¹k: -½ gm (aα' + αa') + gv aa', a pair's two entries together."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        line, others, more = w[at : at + n - begin], alpha[begin:n], a[begin:n]
        by_alpha, by_a = -gm * a[i], 2.0 * gv * a[i] - gm * alpha[i]
        for j in range(n - begin):
            line[j] += by_alpha * others[j] + by_a * more[j]
        at += m - begin


@njit(**_COMPILED)
def _close_weights(w, n, m, dnoise):  # type: ignore[no-untyped-def]
    """Make accumulated weights those of `small_dense.pull_back`; the diagonal is the gradient for the noise."""
    at = 0
    for i in range(n):
        begin = i // 8 * 8
        w[at : at + i - begin] = 0.0
        w[at + i - begin] *= 0.5
        dnoise[i] += w[at + i - begin]
        at += m - begin


class _Posterior(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, Z_new: Tensor, Z: Tensor, shape: Tensor, scale: Tensor, residual: Tensor, noise: Tensor, problem: _Problem
    ) -> tuple[Tensor, Tensor]:
        assert problem.new is not None
        ctx.arrays = [part.detach().contiguous().numpy() for part in (Z_new, Z, shape, scale, residual, noise)]
        ctx.problem = problem
        none = np.zeros(0)
        mean, variance = np.zeros(Z_new.shape[-1]), np.zeros(Z_new.shape[-1])
        unused = (np.zeros((0, 0)), np.zeros((0, 0)), none, none, none, none)
        problem.run(_posteriors, problem.new.offsets, *ctx.arrays, False, none, none, mean, variance, *unused)
        return torch.from_numpy(mean), torch.from_numpy(variance)

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_variance: Tensor) -> tuple[Tensor | None, ...]:
        _expect_first_order()
        problem, none = ctx.problem, np.zeros(0)
        gradients = [np.zeros_like(array) for array in ctx.arrays]
        weights = (g_mean.contiguous().numpy(), g_variance.contiguous().numpy())
        problem.run(_posteriors, problem.new.offsets, *ctx.arrays, True, *weights, none, none, *gradients)
        return *(torch.from_numpy(gradient) for gradient in gradients), None


def _expect_first_order() -> None:
    if torch.is_grad_enabled():
        raise DifferentiationError("results can be differentiated once; leave out create_graph=True.")


def _padded_likelihood(parts: tuple[Tensor, ...], problem: _Problem) -> Tensor:
    """The likelihood in padded batches, by torch."""
    Z, shape, scale, residual, noise = parts
    value = Z.new_zeros(len(problem.ragged))
    for group in problem.ragged.size_classes():
        index, real = problem.ragged.rows_of(group)
        L = _padded_factor(Z, shape, scale, noise, group, problem)
        half = torch.linalg.solve_triangular(L, (residual[index] * real).unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        one = -0.5 * (half.square().sum(-1) + log_det + real.sum(-1).to(half) * _LOG_2_PI)
        value = value.index_put((torch.from_numpy(group).to(value.device),), one)
    check_factors(problem.jitter, problem.ragged)
    return value


def _padded_posterior(Z_new: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The posterior in padded batches, by torch."""
    Z, shape, scale, residual, noise, problem = rest
    mean, variance = torch.zeros_like(Z_new[0]), scale[problem.new.owner]
    for group in problem.ragged.size_classes():
        if not problem.new.sizes[group].any():
            continue
        index, real = problem.ragged.rows_of(group)
        index_new, real_new = problem.new.rows_of(group)
        L = _padded_factor(Z, shape, scale, noise, group, problem)
        K = _padded_covariance(Z.mT[index], Z_new.mT[index_new], shape, scale, group, problem.family) * real.unsqueeze(-1)
        right = torch.cat([(residual[index] * real).unsqueeze(-1), K], -1)
        half = torch.linalg.solve_triangular(L, right, upper=False)
        means, explained = (half[..., 1:] * half[..., :1]).sum(-2), half[..., 1:].square().sum(-2)
        prior = scale[torch.from_numpy(group).to(scale.device)].unsqueeze(-1)
        variances = (prior - explained).clamp_min(torch.finfo(Z.dtype).eps * float(prior.detach().min()))
        where = (index_new[real_new],)
        mean, variance = mean.index_put(where, means[real_new]), variance.index_put(where, variances[real_new])
    check_factors(problem.jitter, problem.ragged)
    return mean, variance


def _padded_covariance(
    z1: Tensor, z2: Tensor, shape: Tensor, scale: Tensor, group: NDArray[np.int64], family: int
) -> Tensor:
    """``(b, n, m)`` covariances of scaled inputs ``(b, n, d)`` and ``(b, m, d)``."""
    members = torch.from_numpy(group).to(z1.device)
    r2 = (z1.unsqueeze(-2) - z2.unsqueeze(-3)).square().sum(-1)
    r = r2.clamp_min(torch.finfo(r2.dtype).tiny).sqrt()  # no gradient at 0, where there is none to have
    each_shape = shape[members][:, None, None]
    s = math.sqrt({fused.MATERN12: 1, fused.MATERN32: 3, fused.MATERN52: 5}.get(family, 0)) * r
    k = {
        fused.RBF: lambda: (-0.5 * r2).exp(),
        fused.MATERN12: lambda: (-s).exp(),
        fused.MATERN32: lambda: (1 + s) * (-s).exp(),
        fused.MATERN52: lambda: (1 + s + s * s / 3) * (-s).exp(),
        fused.RATIONAL_QUADRATIC: lambda: (-each_shape * (r2 / (2 * each_shape)).log1p()).exp(),
    }[family]()
    return scale[members][:, None, None] * k


def _padded_factor(
    Z: Tensor, shape: Tensor, scale: Tensor, noise: Tensor, group: NDArray[np.int64], problem: _Problem
) -> Tensor:
    """Cholesky factors of a group, ``(b, n, n)``, identity where there are no rows."""
    index, real = problem.ragged.rows_of(group)
    z = Z.mT[index]
    both = real.unsqueeze(-1) & real.unsqueeze(-2)
    C = _padded_covariance(z, z, shape, scale, group, problem.family) * both
    C = C + torch.diag_embed(torch.where(real, noise[index], 1.0))
    L, info = torch.linalg.cholesky_ex(C)
    diagonal = (C.detach().diagonal(dim1=-2, dim2=-1) * real).sum(-1) / real.sum(-1)
    jitter = torch.zeros_like(diagonal)
    for relative in _TORCH_JITTERS[Z.dtype][1:]:
        if not bool(info.any()):
            break
        jitter = torch.where(info > 0, relative * diagonal, jitter)
        L, info = torch.linalg.cholesky_ex(C + torch.diag_embed(jitter.unsqueeze(-1).expand(real.shape)))
    failed = (info > 0) | ~L.detach().diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    problem.jitter[group] = torch.where(failed, torch.nan, jitter).cpu().double().numpy()
    return L


def _check_data(X: Tensor, y: Tensor, weights: Tensor | None) -> None:
    expect_floating("X", X)
    expect_shape("X", X, ndim=2, last=(-1, -1))
    expect_finite("X", X)
    for name, tensor in (("y", y), ("weights", weights)):
        if tensor is not None:
            expect_floating(name, tensor, like=X)
            expect_shape(name, tensor, ndim=1, last=(len(X),))
            expect_finite(name, tensor)
    if weights is not None and not bool((weights > 0).all()):
        raise InputError(f"`weights` must be positive; got a minimum of {float(weights.min())}.")


def _family(family: Family, shape: Tensor | None) -> int:
    known = get_args(Family)
    if family not in known:
        raise InputError(f"`family` must be one of {', '.join(known)}; got {family!r}.")
    if (shape is None) != (family != "rational_quadratic"):
        raise InputError(f'`shape` belongs to family "rational_quadratic" and to no other; the family is {family!r}.')
    return known.index(family)


def _lengthscales(lengthscale: Tensor, X: Tensor, count: int) -> Tensor:
    """``(B, d)`` of any form that the class takes."""
    expect_floating("lengthscale", lengthscale, like=X)
    d = X.shape[-1]
    if lengthscale.dim() not in (1, 2) or lengthscale.shape[-1] not in (1, d) or lengthscale.shape[:-1] not in ((), (count,)):
        raise ShapeError(
            f"`lengthscale` must have shape ({d},), (1,), ({count}, {d}) or ({count}, 1); got {tuple(lengthscale.shape)}."
        )
    _expect_positive("lengthscale", lengthscale)
    return lengthscale.expand(count, d)


def _each(name: str, tensor: Tensor, X: Tensor, count: int, positive: bool = False) -> Tensor:
    """``(B,)`` of a number for all problems or one for each."""
    expect_floating(name, tensor, like=X)
    if tensor.shape not in ((), (count,)):
        raise ShapeError(f"`{name}` must have shape () or ({count},); got {tuple(tensor.shape)}.")
    if positive:
        _expect_positive(name, tensor)
    return tensor.expand(count)


def _expect_positive(name: str, tensor: Tensor) -> None:
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise InputError(f"`{name}` must be positive and finite; got a minimum of {float(tensor.min())}.")
