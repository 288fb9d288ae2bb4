"""Gaussian process regression on a grid, complete or with missing cells.

| symbol | name in code | shape |
|---|---|---|
| X_j, points of axis j | `axes[j]` | (n_j, d_j) |
| y, the observed cells | `y` | (M,) |
| K_j = k_j(X_j, X_j) | `factors[j]` | (n_j, n_j) |
| C = R (K_1 ⊗ … ⊗ K_k) R' + noise·I, R picks observed cells | | (M, M), never formed but by "dense" |
| α = C⁻¹ (y - m) | `alpha` | (M,) |
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import IndexKernel, Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError, NotConvergedWarning, ShapeError, SolverWarning
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg import lapack
from gpmoe.linalg.complement import Complement, Iterative
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.grid_cells import CellCovariance
from gpmoe.linalg.kronecker import KroneckerEigen, along_axes, outer
from gpmoe.linalg.latent_kronecker import GridReport, LatentKronecker
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import evaluating
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

_BLOCK = 2**23  # entries of a block of covariances with new points: 64 MB in float64


@dataclass(frozen=True)
class GridFactor:
    """The cached solver and weights, the parameters they belong to, and what was added to a diagonal."""

    solver: Complement | CellCovariance
    alpha: Tensor
    parameters: Tensor
    jitter: float


class KroneckerGP(LearnableModel):
    """A Gaussian process whose kernel is a product over groups of inputs, on data that lie on a grid.

    f ~ GP(m, k_1 · … · k_k), y = f + ε at observed cells, ε ~ N(0, noise). With a task axis and a GPyTorch
    `IndexKernel` on it this is the intrinsic coregionalisation model.

    Args:
        axes: the points of each axis, ``(n_j, d_j)``, float64 or float32; a cell's input is their concatenation.
        Y: targets on the grid, ``(n_1, …, n_k)``, NaN where missing.
        kernels: a GPyTorch kernel for each axis, on its own columns. None for Matérn-5/2 with a lengthscale per
            column on each, an outputscale on the first.
        mean: any GPyTorch mean of the concatenated inputs; a learned constant if None.
        noise: the noise variance: None to learn it (at least 1e-6), a number to fix it, or a GPyTorch
            `GaussianLikelihood`.
        method: "auto" for the cheapest exact way unless none is affordable, else one of
            `linalg.latent_kronecker.Method`; the report says which.
        iterative: tolerance and probes of the iterative way.

    Attributes:
        kernels, mean_module, likelihood: the GPyTorch parts.
        observed: bool ``(n_1, …, n_k)``.
        X: inputs of the observed cells, ``(M, d)``, last axis fastest.
        y: their targets, ``(M,)``.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if axes, Y and kernels don't fit each other.

    Warns:
        SolverWarning: if "auto" goes iterative.
        NotConvergedWarning: in predictions, if an iterative solve missed its tolerance.

    Example:
        >>> import torch
        >>> time = torch.linspace(0, 6, 20, dtype=torch.float64).unsqueeze(-1)
        >>> place = torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(-1)
        >>> Y = time.sin() + place.mT
        >>> Y[3, 1] = float("nan")
        >>> gp = KroneckerGP([time, place], Y, noise=1e-4)
        >>> missing = torch.cat([time[3], place[1]]).unsqueeze(0)
        >>> bool((gp.posterior(missing).mean - time[3].sin() - place[1]).abs() < 0.05)
        True
        >>> print(gp.report)
        complement
    """

    X: Tensor
    y: Tensor
    observed: Tensor
    cells: Tensor
    likelihood: GaussianLikelihood
    mean_module: Mean

    def __init__(
        self,
        axes: Sequence[Tensor],
        Y: Tensor,
        *,
        kernels: Sequence[Kernel] | None = None,
        mean: Mean | None = None,
        noise: float | GaussianLikelihood | None = None,
        method: str = "auto",
        iterative: Iterative | None = None,
    ) -> None:
        super().__init__()
        _check_data(axes, Y, kernels)
        self.register_buffer("observed", ~Y.isnan())
        self.register_buffer("cells", self.observed.nonzero().T.contiguous())
        self.register_buffer("y", Y[self.observed])
        for j, axis in enumerate(axes):
            self.register_buffer(f"axis_{j}", axis)
        self.register_buffer("X", self.inputs_of(axes, self.cells))
        kernels = _default_kernels(axes) if kernels is None else kernels
        self.kernels = torch.nn.ModuleList(kernel.to(Y) for kernel in kernels)
        self.mean_module = (ConstantMean() if mean is None else mean).to(Y)
        self.likelihood = _likelihood(noise).to(Y) if not isinstance(noise, float | int) else _fixed(float(noise), Y)
        self.grid = LatentKronecker(self.observed, method=method, iterative=iterative)
        if method == "auto" and self.grid.plan.method == "iterative":
            text = f"solved iteratively, to a relative residual of {self.grid.iterative.tolerance:.0e}: "
            warnings.warn(text + self.grid.plan.reason, SolverWarning, stacklevel=2)
        self._factor: GridFactor | None = None

    @staticmethod
    def inputs_of(axes: Sequence[Tensor], cells: Tensor) -> Tensor:
        """Concatenated inputs ``(M, d)`` of cells ``(k, M)``."""
        return torch.cat([axis[a] for axis, a in zip(axes, cells, strict=True)], dim=-1)

    @property
    def axes(self) -> list[Tensor]:
        """Points of each axis, ``(n_j, d_j)``."""
        return [self.get_buffer(f"axis_{j}") for j in range(self.observed.dim())]

    @property
    def batch_shape(self) -> torch.Size:
        """None."""
        return torch.Size([])

    @property
    def report(self) -> GridReport:
        """How the last likelihood, factor or prediction was computed, and with what residual."""
        return self.grid.report

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KroneckerGP":
        """Move to another device or precision, the grid's own tensor with the rest."""
        super()._apply(fn, recurse)
        self.grid.observed = self.observed
        self.grid.workspace = Workspace()
        self._factor = None
        return self

    def _remember(self, solver: Complement | CellCovariance, what: str) -> None:
        """Take what a solver did into the report, and warn once if it did not get there."""
        self.grid.remember(solver)
        if not self.report.converged:
            text = (
                f"{what}: the solve stopped after {self.report.steps} steps at a relative residual of "
                f"{self.report.residual:.1e}. Remedies: more steps or a larger noise variance; an exact `method`."
            )
            warnings.warn(text, NotConvergedWarning, stacklevel=3)

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the factor behind; it is computed again when needed."""
        return {**self.__dict__, "_factor": None}

    def noise(self) -> Tensor:
        """Noise variance, ``()``."""
        return self.likelihood.noise.reshape(())

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(1,)``."""
        return self.noise().reshape(1)

    def factors(self) -> list[Tensor]:
        """K_j ``(n_j, n_j)``, differentiable."""
        return [axis_covariance(kernel, x, x) for kernel, x in zip(self.kernels, self.axes, strict=True)]

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X), ``()``, nats, differentiable once; an estimate if the plan is iterative, see `report`."""
        return self.grid.log_likelihood(self.factors(), self.y - self.mean_module(self.X), self.noise())

    def factor(self) -> GridFactor:
        """The solver and weights at the present parameters, computed once for them."""
        parts = [*self.kernels, self.mean_module, self.likelihood]
        everything = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        parameters = torch.cat([self.y[:0], *(tensor.detach().reshape(-1).to(self.y) for tensor in everything)])
        if self._factor is None or not torch.equal(self._factor.parameters, parameters):
            with torch.no_grad(), evaluating(self):
                solver = self.grid.factorise(self.factors(), self.noise())
                alpha = solver.solve((self.y - self.mean_module(self.X)).unsqueeze(0))[0]
            self._factor = GridFactor(solver, alpha, parameters, solver.jitter)
            self.grid.remember(solver)
        return self._factor

    def jitter_needed(self) -> float:
        """See `LearnableModel.jitter_needed`."""
        return self.factor().jitter

    @property
    def solved_by(self) -> str:
        """The way that the plan takes, for reports."""
        return f"{self.report} by {lapack.provider()}"

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`."""
        expect_inputs(X, self.X)
        factor = self.factor()
        with evaluating(self):
            parts = self._split(X)
            K_new = self._with_cells(parts)
            V: Tensor = _Solve.apply(K_new, factor.solver)
            prior = [axis_covariance(kernel, x, x) for kernel, x in zip(self.kernels, parts, strict=True)]
            mean = self.mean_module(X) + K_new @ factor.alpha
            covariance = torch.stack(torch.broadcast_tensors(*prior)).prod(0) - K_new @ V.mT
        self._remember(factor.solver, "posterior")
        return mean, 0.5 * (covariance + covariance.mT)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function at each new point ``(m, d)``, in bounded memory.

        Returns:
            Mean and variance, ``(m,)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        expect_shape("X", X, ndim=2)
        factor = self.factor()
        rows = max(32, _BLOCK // self.observed.numel())
        mean, variance = torch.empty_like(X[:, 0]), torch.empty_like(X[:, 0])
        with torch.no_grad(), evaluating(self):
            for start in range(0, len(X), rows):
                block = slice(start, start + rows)
                parts = self._split(X[block])
                K_new = self._with_cells(parts)
                prior = self._prior_variance(parts)
                mean[block] = self.mean_module(X[block]) + K_new @ factor.alpha
                left = prior - factor.solver.quadratic(K_new)
                variance[block] = torch.maximum(left, prior * torch.finfo(X.dtype).eps)
        self._remember(factor.solver, "posterior")
        return mean, variance

    def grid_marginals(self, axes: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function on a grid of new points.

        Args:
            axes: points ``(q_j, d_j)`` of each axis; those of the data if None.

        Returns:
            ``(q_1, …, q_k)`` each. Where every cell is observed both cost O(N Σ n_j); else the variance costs a solve
            for each point.
        """
        axes = self._checked_axes(axes)
        factor = self.factor()
        with torch.no_grad(), evaluating(self):
            cross = self._cross(axes)
            shape = [len(axis) for axis in axes]
            every = torch.ones(shape, dtype=torch.bool, device=self.y.device).nonzero().T
            X = self.inputs_of(axes, every)
            if self.grid.plan.method != "eigenbasis" or not isinstance(factor.solver, Complement):
                mean, variance = self.marginals(X)
                return mean.view(shape), variance.view(shape)
            mean = self.mean_module(X).view(shape) + along_axes(cross, self._on_grid(factor.alpha))
            squares = [(K @ Q).square() for K, Q in zip(cross, factor.solver.basis.vectors, strict=True)]
            prior = outer([axis_variance(kernel, x) for kernel, x in zip(self.kernels, axes, strict=True)])
            variance = prior - along_axes(squares, 1 / factor.solver.D)
        return mean, torch.maximum(variance, prior * torch.finfo(prior.dtype).eps)

    def sample_grid(
        self, n_samples: int, axes: Sequence[Tensor] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Joint posterior samples of the latent function on a grid, by Matheron's rule.

        f(X_new) + k(X_new, X) C⁻¹ (y - f(X) - ε) for a joint prior draw f and noise ε: one solve a sample.

        Args:
            n_samples: how many.
            axes: points ``(q_j, d_j)`` of each axis; those of the data if None.
            generator: of the random numbers.

        Returns:
            ``(n_samples, q_1, …, q_k)``.

        Source: Wilson et al. (2021), Pathwise Conditioning of Gaussian Processes, eq. 13.
        """
        new = self._checked_axes(axes)
        factor = self.factor()
        with torch.no_grad(), evaluating(self):
            union = [torch.cat([x, z]) for x, z in zip(self.axes, new, strict=True)]
            joint = [axis_covariance(kernel, u, u) for kernel, u in zip(self.kernels, union, strict=True)]
            draw = KroneckerEigen.of(joint).sample(n_samples, self.y.new_zeros(()), generator)
            at_data, at_new = draw, draw
            for j, x in enumerate(self.axes):
                at_data = at_data.narrow(j + 1, 0, len(x))
                at_new = at_new.narrow(j + 1, len(x), len(new[j]))
            shape = (n_samples, len(self.y))
            noise = torch.randn(shape, generator=generator, dtype=self.y.dtype, device=self.y.device)
            gap = self.y - self.mean_module(self.X) - at_data[:, self.observed] - noise * self.noise().sqrt()
            update = along_axes(self._cross(new), self._on_grid(factor.solver.solve(gap)))
            every = torch.ones(at_new.shape[1:], dtype=torch.bool, device=self.y.device).nonzero().T
            mean = self.mean_module(self.inputs_of(new, every)).view(at_new.shape[1:])
        self._remember(factor.solver, "posterior samples")
        return mean + at_new + update

    def _split(self, X: Tensor) -> list[Tensor]:
        return list(X.split([axis.shape[-1] for axis in self.axes], dim=-1))

    def _cross(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """k_j(x_j, X_j), ``(*batch, q, n_j)``."""
        known = zip(self.kernels, parts, self.axes, strict=True)
        return [axis_covariance(kernel, x, axis) for kernel, x, axis in known]

    def _with_cells(self, parts: Sequence[Tensor]) -> Tensor:
        """Covariance of new points with the observed cells, ``(*batch, q, M)``."""
        return outer(self._cross(parts))[..., self.observed]

    def _prior_variance(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([axis_variance(kernel, x) for kernel, x in zip(self.kernels, parts, strict=True)]).prod(0)

    def _on_grid(self, values: Tensor) -> Tensor:
        """Values of observed cells ``(*lead, M)`` on the grid, zero at missing ones."""
        grid = values.new_zeros(*values.shape[:-1], *self.observed.shape)
        grid[..., self.observed] = values
        return grid

    def _checked_axes(self, axes: Sequence[Tensor] | None) -> list[Tensor]:
        if axes is None:
            return self.axes
        if len(axes) != len(self.axes):
            raise ShapeError(f"`axes` must have {len(self.axes)} parts, as the model has; got {len(axes)}.")
        for new, axis in zip(axes, self.axes, strict=True):
            expect_inputs(new, axis)
            expect_shape("axes", new, ndim=2)
        return list(axes)


def axis_covariance(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """k(x1, x2) as a matrix, ``(*batch, n, m)``; an `IndexKernel`'s by indexing, for GPyTorch takes sparse products."""
    if type(kernel) is not IndexKernel or kernel.batch_shape:
        return dense_covariance(kernel, x1, x2)
    B = kernel.covar_factor @ kernel.covar_factor.mT + torch.diag_embed(kernel.var)
    i, j = (x.squeeze(-1).long() for x in (x1, x2))
    picked: Tensor = B[i.unsqueeze(-1), j.unsqueeze(-2)]
    return picked


def axis_variance(kernel: Kernel, x: Tensor) -> Tensor:
    """k(x_i, x_i), ``(n,)``, for x ``(n, d)``."""
    if type(kernel) is IndexKernel and not kernel.batch_shape:
        return (kernel.covar_factor.square().sum(-1) + kernel.var)[x.squeeze(-1).long()]
    return kernel(x, diag=True)


class _Solve(torch.autograd.Function):
    """C⁻¹ of rows ``(*batch, q, M)``; symmetric, so its backward pass is itself."""

    @staticmethod
    def forward(ctx: Any, B: Tensor, solver: Complement | CellCovariance) -> Tensor:
        ctx.solver = solver
        return solver.solve(B.reshape(-1, B.shape[-1])).view(B.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solver.solve(grad.reshape(-1, grad.shape[-1])).view(grad.shape), None


def _check_data(axes: Sequence[Tensor], Y: Tensor, kernels: Sequence[Kernel] | None) -> None:
    expect_floating("Y", Y)
    for j, axis in enumerate(axes):
        expect_floating(f"axes[{j}]", axis, like=Y)
        expect_shape(f"axes[{j}]", axis, ndim=2, last=(-1, -1))
        expect_finite(f"axes[{j}]", axis)
    sizes = tuple(len(axis) for axis in axes)
    if not sizes or tuple(Y.shape) != sizes:
        raise ShapeError(f"`Y` must have one dimension for each axis, {sizes}; got {tuple(Y.shape)}.")
    if bool(Y.isinf().any()):
        raise NonFiniteError("`Y` has infinite entries; they must be finite, or NaN where a cell is missing.")
    if not bool((~Y.isnan()).any()):
        raise ShapeError(f"`Y` of shape {tuple(Y.shape)} has no observed cell; at least one must not be NaN.")
    if kernels is not None and len(kernels) != len(axes):
        raise InputError(f"`kernels` must have one kernel for each of {len(axes)} axes; got {len(kernels)}.")


def _default_kernels(axes: Sequence[Tensor]) -> list[Kernel]:
    """A scaled Matérn-5/2 first; further ones without a scale, which the product could not tell apart."""
    scaled = [dimension_scaled_matern(axis.shape[-1]) for axis in axes]
    return [scaled[0], *(kernel.base_kernel for kernel in scaled[1:])]


def _likelihood(noise: GaussianLikelihood | None) -> GaussianLikelihood:
    if noise is None:
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(1e-6))
        likelihood.noise = 0.1
        return likelihood
    if type(noise) is not GaussianLikelihood or noise.noise.numel() != 1:
        raise InputError(
            f"`noise` must be one variance for all cells: None, a number or a GaussianLikelihood; got {type(noise)}."
        )
    return noise


def _fixed(noise: float, like: Tensor) -> GaussianLikelihood:
    """A likelihood whose noise variance is not learned."""
    if not 0 < noise < float("inf"):
        raise InputError(f"`noise` is a variance and must be positive and finite; got {noise}.")
    likelihood = GaussianLikelihood(noise_constraint=Positive()).to(like)
    likelihood.noise = noise
    return likelihood.requires_grad_(False)
