"""Multi-task Gaussian processes: linear models of coregionalisation, exact, with targets missing anywhere.

    f_t(x) = c_t + Σ_q g_qt(x),   cov(g_qt(x), g_qt'(x')) = B_q[t, t'] k_q(x, x'),   y = f_t(x) + ε,   ε ~ N(0, σ_t²)

| symbol | name in code | shape |
|---|---|---|
| inputs of the table, its targets (NaN where missing) | `sites`, `Y` | (n, d), (n, T) |
| input and task of each of M observed cells | `cells` | (2, M) |
| the same as rows (x, t) | `X` | (M, d + 1) |
| k_q, B_q | `kernels`, `coregionalisations` | Q of each |
| c, σ² | `constants`, `noise()` | (T,) |
| C of the observed cells; α = C⁻¹ (y - c) | `alpha` | (M,) |

One component is the intrinsic model, several are the linear model. Kernels of rows (x, t), such as convolved and
spectral ones, stand for B_q k_q where tasks differ by more than a factor. Missing cells are no rows of C: they are
never imputed. Four exact ways lead to C⁻¹ and log |C|; `plan_tasks` takes the cheapest.

Source: Bonilla, Chai and Williams (2008), Multi-task Gaussian Process Prediction; Álvarez, Rosasco and Lawrence (2012),
    Kernels for Vector-Valued Functions, sec. 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.kernels.coregionalisation import Coregionalisation
from gpmoe.kernels.task_rows import TaskRowKernel, tasks_of
from gpmoe.linalg import lapack
from gpmoe.linalg.coregionalised_cells import CoregionalisedCells, cells_log_likelihood
from gpmoe.linalg.coregionalised_filter import CoregionalisedFilter, filter_log_likelihood
from gpmoe.linalg.coregionalised_grid import factorised_grid, grid_log_likelihood
from gpmoe.linalg.coregionalised_smoother import smoothed_marginals
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.latent_kronecker import LatentKronecker
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import evaluating
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs
from gpmoe.models.gaussian_noise import task_noise
from gpmoe.models.task_plan import matern_orders, plan_tasks
from gpmoe.models.task_starts import default_kernels, free_coregionalisations
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

_BLOCK = 2**22  # entries of a block of covariances with new points: 32 MB in float64


class TaskSolver(Protocol):
    """What a factorised covariance of the observed cells can do."""

    jitter: float

    def solve(self, rows: Tensor) -> Tensor:
        """C⁻¹ of each row, ``(c, M)``."""

    def quadratic(self, rows: Tensor) -> Tensor:
        """b' C⁻¹ b of each row b, ``(c,)``."""


@dataclass(frozen=True)
class TaskFactor:
    """The cached solver and weights, and the parameters they belong to."""

    solver: TaskSolver
    alpha: Tensor
    parameters: Tensor


class MultitaskGP(LearnableModel):
    """An exact Gaussian process over T tasks that share inputs or not, by a linear model of coregionalisation.

    As a BoTorch model it has one output, whose inputs are rows (x, t) with the task, 0 to T - 1, last.

    Args:
        X: inputs, ``(n, d)``, float64.
        Y: targets, ``(n, T)``, NaN where missing; every task has at least one. Tasks of about unit variance suit the
            default priors.
        kernels: a GPyTorch kernel for each component; its scale is the coregionalisation's. None for Matérn-5/2 with
            a lengthscale per input, the first starting as in `ExactGP` and each further one four times shorter. Or
            kernels of rows (x, t), `TaskRowKernel`s, as they are: then there are no coregionalisations.
        n_components: Q, where no kernels are given.
        rank: of each coregionalisation, where none are given.
        coregionalisations: one for each component; `FreeCoregionalisation` of the rank if None.
        noise: noise variance of each task: None to learn them (at least 1e-6), a number or ``(T,)`` to fix them.
        method: see `plan_tasks`.

    Attributes:
        X, y: the observed cells as rows ``(M, d + 1)`` and targets ``(M,)``.
        plan: how the model is solved.

    Raises:
        ShapeError, DtypeError, NonFiniteError, InputError: if the parts don't fit each other.

    Example:
        >>> import torch
        >>> x = torch.linspace(0, 6, 25, dtype=torch.float64).unsqueeze(-1)
        >>> Y = torch.cat([x.sin(), 2 * x.sin()], dim=-1)
        >>> Y[10:15, 1] = float("nan")
        >>> gp = MultitaskGP(x, Y, noise=1e-4)
        >>> missing = torch.cat([x[12:13], torch.ones_like(x[:1])], dim=-1)
        >>> bool((gp.posterior(missing).mean - 2 * x[12].sin()).abs() < 0.3)
        True
    """

    X: Tensor
    y: Tensor
    sites: Tensor
    cells: Tensor
    observed: Tensor
    likelihood: GaussianLikelihood

    def __init__(
        self,
        X: Tensor,
        Y: Tensor,
        *,
        kernels: Sequence[Kernel] | None = None,
        n_components: int = 1,
        rank: int = 1,
        coregionalisations: Sequence[Coregionalisation] | None = None,
        noise: float | Tensor | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__()
        _check_data(X, Y)
        n, T = Y.shape
        self.n_tasks = T
        self.register_buffer("sites", X)
        self.register_buffer("observed", ~Y.isnan())
        self.register_buffer("cells", self.observed.nonzero().T.contiguous())
        self.register_buffer("X", torch.cat([X[self.cells[0]], self.cells[1].unsqueeze(-1).to(X)], dim=-1))
        self.register_buffer("y", Y[self.observed])
        if kernels is None:
            kernels = default_kernels(X.shape[-1], n_components)
        self.kernels = torch.nn.ModuleList(kernel.to(X) for kernel in kernels)
        self.joint = any(isinstance(kernel, TaskRowKernel) for kernel in self.kernels)
        if coregionalisations is None:
            coregionalisations = [] if self.joint else free_coregionalisations(Y, len(kernels), rank)
        _expect_parts(self.kernels, coregionalisations, T, joint=self.joint)
        self.coregionalisations = torch.nn.ModuleList(each.to(X) for each in coregionalisations)
        self.constants = Parameter(Y.nanmean(0))
        self.likelihood = task_noise(noise, T).to(X)
        self.orders = matern_orders(self.kernels, X)
        self.plan = plan_tasks(
            n, T, len(self.y), n_components=len(kernels), separable=not self.joint, orders=self.orders, method=method
        )
        grid = self.plan.method in ("eigenbasis", "complement")
        self.grid = LatentKronecker(self.observed, method=self.plan.method) if grid else None
        self.workspace = Workspace()
        self._factor: TaskFactor | None = None

    @property
    def batch_shape(self) -> torch.Size:
        """None."""
        return torch.Size([])

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the factor behind; it is computed again when needed."""
        return {**self.__dict__, "_factor": None}

    def noise(self) -> Tensor:
        """σ², the noise variance of each task, ``(T,)``."""
        return self.likelihood.noise.reshape(self.n_tasks)

    def coregionalisation(self) -> Tensor:
        """B, ``(Q, T, T)``; ones for kernels of rows (x, t)."""
        if self.joint:
            return self.sites.new_ones(len(self.kernels), self.n_tasks, self.n_tasks)
        return torch.stack([each() for each in self.coregionalisations])

    def new_noise(self) -> Tensor:
        """The mean noise variance over tasks, ``(1,)``; see `noise_variance` for one task's."""
        return self.noise().mean().reshape(1)

    def noise_variance(self, X: Tensor) -> Tensor:
        """Noise variance of the tasks of rows (x, t) ``(*batch, q, d + 1)``, ``(*batch, q)``."""
        return self.noise()[tasks_of(X, self.n_tasks)]

    @property
    def solved_by(self) -> str:
        """The way that the plan takes, for reports."""
        return f"{self.plan} by {lapack.provider()}"

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X), exact, ``()``, nats, differentiable once."""
        residual = self.y - self.constants[self.cells[1]]
        B, noise = self.coregionalisation(), self.noise()
        if self.plan.method == "filter":
            return filter_log_likelihood(B, self._rates(), noise, residual, *self._in_time())
        points, cells = self._points()
        K = [dense_covariance(kernel, points, points) for kernel in self.kernels]
        if self.grid is not None:
            return grid_log_likelihood(self.grid, K[0], B[0], noise, residual, self.cells[1])
        return cells_log_likelihood(K, B, noise, residual, cells, self.workspace)

    def factor(self) -> TaskFactor:
        """The solver and weights at the present parameters, computed once for them."""
        parameters = torch.cat([tensor.detach().reshape(-1) for tensor in self.parameters()])
        if self._factor is None or not torch.equal(self._factor.parameters, parameters):
            with torch.no_grad(), evaluating(self):
                solver = self._factorise()
                alpha = solver.solve((self.y - self.constants[self.cells[1]]).unsqueeze(0))[0]
            self._factor = TaskFactor(solver, alpha, parameters)
        return self._factor

    def _factorise(self) -> TaskSolver:
        B, noise = self.coregionalisation(), self.noise()
        if self.plan.prediction == "filter":
            time, task, orders = self._in_time()
            return CoregionalisedFilter(time, task, B, self._rates(), noise, orders)
        points, cells = self._points()
        K = [dense_covariance(kernel, points, points) for kernel in self.kernels]
        if self.grid is not None:
            return factorised_grid(self.grid, K[0], B[0], noise, self.cells[1])
        return CoregionalisedCells(K, B, noise, cells)

    def jitter_needed(self) -> float:
        """See `LearnableModel.jitter_needed`."""
        return self.factor().solver.jitter

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`, for rows (x, t)."""
        expect_inputs(X, self.X)
        tasks, factor = tasks_of(X, self.n_tasks), self.factor()
        with evaluating(self):
            K_new = self._with_cells(X, tasks)
            V: Tensor = _Solve.apply(K_new, factor.solver)
            prior = self._covariance(self._arguments(X), tasks, self._arguments(X), tasks)
            covariance = prior - K_new @ V.mT
        return self.constants[tasks] + K_new @ factor.alpha, 0.5 * (covariance + covariance.mT)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent functions at rows (x, t) ``(m, d + 1)``, in bounded memory.

        Returns:
            ``(m,)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        expect_shape("X", X, ndim=2)
        tasks = tasks_of(X, self.n_tasks)
        with torch.no_grad(), evaluating(self):
            prior = self._prior_variance(X, tasks)
            found = self._smoothed(X, tasks) if self.plan.prediction == "filter" else self._solved(X, tasks, prior)
        return self.constants.detach()[tasks] + found[0], found[1].maximum(prior * torch.finfo(X.dtype).eps)

    def _prior_variance(self, X: Tensor, tasks: Tensor) -> Tensor:
        scales = torch.stack([kernel(self._arguments(X), diag=True) for kernel in self.kernels])
        return (scales * self.coregionalisation()[:, tasks, tasks]).sum(0)

    def _smoothed(self, X: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, without the constants, and variance by two filters, ``(m,)`` each."""
        time, task, orders = self._in_time()
        model = (self.coregionalisation(), self._rates(), self.noise())
        moments = smoothed_marginals(*model, self.y - self.constants[task], time, task, X[:, 0], orders)
        rows = torch.arange(len(X))
        return moments[0][rows, tasks], moments[1][rows, tasks]

    def _solved(self, X: Tensor, tasks: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, without the constants, and variance by solves with the factor, ``(m,)`` each."""
        mean, variance, factor = torch.empty_like(prior), torch.empty_like(prior), self.factor()
        for rows in torch.arange(len(X)).split(max(32, _BLOCK // len(self.y))):
            K_new = self._with_cells(X[rows], tasks[rows])
            mean[rows] = K_new @ factor.alpha
            variance[rows] = prior[rows] - factor.solver.quadratic(K_new)
        return mean, variance

    def _points(self) -> tuple[Tensor, Tensor]:
        """Where kernels are evaluated, and which of these and which task each cell has."""
        if not self.joint:
            return self.sites, self.cells
        return self.X, torch.stack([torch.arange(len(self.y), device=self.y.device), self.cells[1]])

    def _arguments(self, X: Tensor) -> Tensor:
        """What kernels read of rows (x, t)."""
        return X if self.joint else X[..., :-1]

    def _with_cells(self, X: Tensor, tasks: Tensor) -> Tensor:
        """Covariance of rows (x, t) with the observed cells, ``(*batch, q, M)``."""
        points, cells = self._points()
        return self._covariance(self._arguments(X), tasks, points, cells[1], cells[0])

    def _covariance(
        self, x1: Tensor, tasks1: Tensor, x2: Tensor, tasks2: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """Σ_q k_q(x1, x2) B_q[tasks1, tasks2], with those columns of k_q taken that `columns` names, if given."""
        B = self.coregionalisation()
        total = x1.new_zeros(())
        for kernel, b in zip(self.kernels, B, strict=True):
            k = dense_covariance(kernel, x1, x2)
            k = k if columns is None else k[..., columns]
            total = total + k * b[tasks1.unsqueeze(-1), tasks2.unsqueeze(-2)]
        return total

    def _rates(self) -> Tensor:
        """sqrt(2ν)/lengthscale of each component, ``(Q,)``."""
        lengthscales = torch.cat([cast(MaternKernel, kernel).lengthscale.reshape(1) for kernel in self.kernels])
        roots = [math.sqrt(2 * order - 1) for order in self.orders or ()]
        return lengthscales.new_tensor(roots) / lengthscales

    def _in_time(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        return self.X[:, 0], self.cells[1], self.orders or ()


class _Solve(torch.autograd.Function):
    """C⁻¹ of rows ``(*batch, q, M)``; symmetric, so its backward pass is itself."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, solver: TaskSolver) -> Tensor:
        ctx.solver = solver
        return solver.solve(rows.reshape(-1, rows.shape[-1])).view(rows.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solver.solve(grad.reshape(-1, grad.shape[-1])).view(grad.shape), None


def _expect_parts(
    kernels: torch.nn.ModuleList, coregionalisations: Sequence[Coregionalisation], T: int, *, joint: bool
) -> None:
    wanted = 0 if joint else len(kernels)
    if len(coregionalisations) != wanted or not len(kernels):
        raise InputError(
            f"`kernels` and `coregionalisations` must be as many, at least one, and the latter none beside kernels of "
            f"rows (x, t); got {len(kernels)} and {len(coregionalisations)}."
        )
    sizes = [kernel.n_tasks if isinstance(kernel, TaskRowKernel) else None for kernel in kernels]
    if joint and sizes != [T] * len(kernels):
        raise InputError(
            f"each of `kernels` must be a kernel of rows (x, t) of {T} tasks where one is; got {sizes} tasks (None for "
            "a kernel of inputs alone: put it into a TaskKernel)."
        )


def _check_data(X: Tensor, Y: Tensor) -> None:
    expect_floating("X", X)
    expect_floating("Y", Y, like=X)
    expect_shape("X", X, ndim=2, last=(-1, -1))
    expect_shape("Y", Y, ndim=2, last=(len(X), -1))
    expect_finite("X", X)
    if 0 in (*X.shape, *Y.shape):
        raise ShapeError(f"`X` and `Y` must not be empty; got {tuple(X.shape)} and {tuple(Y.shape)}.")
    if bool(Y.isinf().any()):
        raise NonFiniteError("`Y` has infinite entries; they must be finite, or NaN where a target is missing.")
    empty = Y.isnan().all(0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"every task must have a target; columns {empty} of `Y` have none. Leave them out.")
