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

One component is the intrinsic model, several are the linear model. Missing cells are no rows of C: they are never
imputed. Four exact ways lead to C⁻¹ and log |C|; `plan_tasks` takes the cheapest.

Source: Bonilla, Chai and Williams (2008), Multi-task Gaussian Process Prediction; Álvarez, Rosasco and Lawrence (2012),
    Kernels for Vector-Valued Functions, sec. 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.constraints import GreaterThan, Positive
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.kernels.coregionalisation import Coregionalisation, FreeCoregionalisation
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.linalg import lapack
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.coregionalised_cells import CoregionalisedCells, cells_log_likelihood
from gpmoe.linalg.coregionalised_filter import CoregionalisedFilter, filter_log_likelihood
from gpmoe.linalg.coregionalised_grid import factorised_grid, grid_log_likelihood
from gpmoe.linalg.factorisation import Workspace
from gpmoe.linalg.latent_kronecker import LatentKronecker
from gpmoe.linalg.latent_kronecker import plan as plan_grid
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.models.exact_gp import evaluating
from gpmoe.models.gaussian_model import ConditionedGP, LearnableModel, expect_inputs
from gpmoe.shapes import expect_finite, expect_floating, expect_shape

_BLOCK = 2**22  # entries of a block of covariances with new points: 32 MB in float64
_FILTER_COST = 150.0  # operations of a factorisation that take as long as one entry of a filter's state, per row
_COLUMNS = 100  # right-hand sides that predictions are reckoned to have
_LEAST_NOISE = 1e-6

TaskMethod = Literal["eigenbasis", "complement", "dense", "filter"]


class TaskSolver(Protocol):
    """What a factorised covariance of the observed cells can do."""

    jitter: float

    def solve(self, rows: Tensor) -> Tensor:
        """C⁻¹ of each row, ``(c, M)``."""

    def quadratic(self, rows: Tensor) -> Tensor:
        """b' C⁻¹ b of each row b, ``(c,)``."""


@dataclass(frozen=True)
class TaskPlan:
    """How a table of tasks is solved, and why.

    Attributes:
        method: "eigenbasis" (Kronecker, complete tables of the intrinsic model), "complement" (latent Kronecker, few
            missing cells of the intrinsic model), "dense", or "filter" (Matérn kernels of one input).
        prediction: how predictions are solved: as the likelihood, but by a dense factor beside the filter where that
            costs less than filtering a hundred right-hand sides.
        flops: of each way that could be taken, for one likelihood and gradient.
        reason: in words.
    """

    method: TaskMethod
    prediction: TaskMethod
    flops: dict[str, float]
    reason: str

    def __str__(self) -> str:
        later = "" if self.prediction == self.method else f", predictions {self.prediction}"
        return f"{self.method}{later} ({self.reason})"


def plan_tasks(
    n: int, n_tasks: int, observed: int, *, n_components: int, orders: Sequence[int] | None = None, method: str = "auto"
) -> TaskPlan:
    """Choose the cheapest exact way.

    Args:
        n, n_tasks, observed: n, T and M.
        n_components: Q; one allows Kronecker algebra.
        orders: 1, 2 or 3 for the Matérn-1/2, -3/2 and -5/2 of one input that each component has; None for others.
        method: "auto", or one of `TaskMethod`.

    Raises:
        InputError: for another word, or a way that the model rules out.

    Example:
        >>> plan_tasks(300, 4, 1200, n_components=1).method
        'eigenbasis'
        >>> plan_tasks(300, 4, 1190, n_components=2).method
        'dense'
    """
    flops = {"dense": 2.0 * float(observed) ** 3 + 120.0 * n_components * float(observed) ** 2}
    if n_components == 1:
        grid = plan_grid((n, n_tasks), observed).flops
        flops |= {name: grid[name] for name in ("eigenbasis", "complement") if name in grid}
    if orders is not None:
        flops["filter"] = _FILTER_COST * observed * float(n_tasks * sum(orders)) ** 2
    if method not in ("auto", *get_args(TaskMethod)):
        raise InputError(f"`method` must be 'auto' or one of {', '.join(get_args(TaskMethod))}; got {method!r}.")
    if method != "auto" and method not in flops:
        raise InputError(
            f"{method!r} does not fit {observed} of {n * n_tasks} cells, {n_components} components and these kernels; "
            f"{', '.join(flops)} do. 'eigenbasis' takes complete tables and one component, 'complement' one component "
            "and missing cells, 'filter' isotropic Matérn kernels of one input on the CPU, with Numba installed."
        )
    best = min(flops, key=lambda name: flops[name]) if method == "auto" else method
    factor = method == "auto" and best == "filter" and flops["dense"] < _COLUMNS * flops["filter"]
    of = "every cell" if observed == n * n_tasks else f"{observed} of {n * n_tasks} cells"
    later = "dense" if factor else best
    return TaskPlan(cast(TaskMethod, best), cast(TaskMethod, later), flops, f"{of}, components: {n_components}")


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
            a lengthscale per input, the first starting as in `ExactGP` and each further one four times shorter.
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
        if coregionalisations is None:
            coregionalisations = [FreeCoregionalisation(T, rank=rank) for _ in kernels]
            correlation = pairwise_correlation(Y) / len(kernels)
            for each in coregionalisations:
                each.start_at(correlation)
        if len(kernels) != len(coregionalisations) or not kernels:
            raise InputError(
                f"`kernels` and `coregionalisations` must be as many, at least one; got {len(kernels)} and "
                f"{len(coregionalisations)}."
            )
        self.kernels = torch.nn.ModuleList(kernel.to(X) for kernel in kernels)
        self.coregionalisations = torch.nn.ModuleList(each.to(X) for each in coregionalisations)
        self.constants = Parameter(Y.nanmean(0))
        self.likelihood = _likelihood(noise, T).to(X)
        self.orders = _matern_orders(self.kernels, X)
        self.plan = plan_tasks(n, T, len(self.y), n_components=len(kernels), orders=self.orders, method=method)
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
        """B, ``(Q, T, T)``."""
        return torch.stack([each() for each in self.coregionalisations])

    def new_noise(self) -> Tensor:
        """The mean noise variance over tasks, ``(1,)``; see `noise_variance` for one task's."""
        return self.noise().mean().reshape(1)

    def noise_variance(self, X: Tensor) -> Tensor:
        """Noise variance of the tasks of rows (x, t) ``(*batch, q, d + 1)``, ``(*batch, q)``."""
        return self.noise()[self._tasks(X)]

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
        K = [dense_covariance(kernel, self.sites, self.sites) for kernel in self.kernels]
        if self.grid is not None:
            return grid_log_likelihood(self.grid, K[0], B[0], noise, residual, self.cells[1])
        return cells_log_likelihood(K, B, noise, residual, self.cells, self.workspace)

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
        K = [dense_covariance(kernel, self.sites, self.sites) for kernel in self.kernels]
        if self.grid is not None:
            return factorised_grid(self.grid, K[0], B[0], noise, self.cells[1])
        return CoregionalisedCells(K, B, noise, self.cells)

    def jitter_needed(self) -> float:
        """See `LearnableModel.jitter_needed`."""
        return self.factor().solver.jitter

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`, for rows (x, t)."""
        expect_inputs(X, self.X)
        tasks, factor = self._tasks(X), self.factor()
        with evaluating(self):
            K_new = self._with_cells(X, tasks)
            V: Tensor = _Solve.apply(K_new, factor.solver)
            prior = self._covariance(X[..., :-1], tasks, X[..., :-1], tasks)
            covariance = prior - K_new @ V.mT
        return self.constants[tasks] + K_new @ factor.alpha, 0.5 * (covariance + covariance.mT)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent functions at rows (x, t) ``(m, d + 1)``, in bounded memory.

        Returns:
            ``(m,)`` each. Not differentiable.
        """
        expect_inputs(X, self.X)
        expect_shape("X", X, ndim=2)
        tasks, factor = self._tasks(X), self.factor()
        mean, variance = torch.empty_like(X[:, 0]), torch.empty_like(X[:, 0])
        with torch.no_grad(), evaluating(self):
            B, constants = self.coregionalisation(), self.constants
            scales = torch.stack([kernel(X[:, :-1], diag=True) for kernel in self.kernels])
            prior = (scales * B[:, tasks, tasks]).sum(0)
            for rows in torch.arange(len(X)).split(max(32, _BLOCK // len(self.y))):
                K_new = self._with_cells(X[rows], tasks[rows])
                mean[rows] = constants[tasks[rows]] + K_new @ factor.alpha
                variance[rows] = prior[rows] - factor.solver.quadratic(K_new)
        return mean, torch.maximum(variance, prior * torch.finfo(X.dtype).eps)

    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GPyTorchPosterior:
        """See `GaussianModel.posterior`, for rows (x, t); noise is that of each row's task."""
        noise = self.noise_variance(X).unsqueeze(-1) if observation_noise is True else observation_noise
        return super().posterior(X, output_indices, noise, posterior_transform)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> ConditionedGP:
        """See `GaussianModel.condition_on_observations`, for rows (x, t)."""
        each = self.noise_variance(X).unsqueeze(-1) if noise is None else noise
        return super().condition_on_observations(X, Y, each)

    def _tasks(self, X: Tensor) -> Tensor:
        """The task of each row (x, t), int64 ``(*batch, q)``."""
        tasks = X[..., -1].detach().long()
        if bool((tasks != X[..., -1]).any()) or bool(((tasks < 0) | (tasks >= self.n_tasks)).any()):
            raise InputError(
                f"the last column of `X` must be a task, 0 to {self.n_tasks - 1}; got values from "
                f"{float(X[..., -1].detach().min())} to {float(X[..., -1].detach().max())}."
            )
        return tasks

    def _with_cells(self, X: Tensor, tasks: Tensor) -> Tensor:
        """Covariance of rows (x, t) with the observed cells, ``(*batch, q, M)``."""
        return self._covariance(X[..., :-1], tasks, self.sites, self.cells[1], self.cells[0])

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


def default_kernels(d: int, n_components: int) -> list[Kernel]:
    """Matérn-5/2 for inputs of unit variance, each starting four times shorter than the one before.

    Raises:
        InputError: for less than one component.
    """
    if n_components < 1:
        raise InputError(f"`n_components` must be at least 1; got {n_components}.")
    kernels: list[Kernel] = [dimension_scaled_matern(d).base_kernel for _ in range(n_components)]
    for q, kernel in enumerate(kernels):
        kernel.lengthscale = math.sqrt(d) / 4**q
    return kernels


def pairwise_correlation(Y: Tensor) -> Tensor:
    """Correlations of tasks over the rows that both have, made positive semidefinite: where a fit starts.

    Args:
        Y: ``(n, T)``, NaN where missing.

    Returns:
        ``(T, T)`` of unit diagonal; 0 for pairs with fewer than three rows in common.
    """
    T = Y.shape[1]
    R = torch.eye(T, dtype=Y.dtype, device=Y.device)
    for i in range(T):
        for j in range(i):
            both = Y[:, [i, j]]
            both = both[~both.isnan().any(1)]
            both = both - both.mean(0)
            spread = both.square().sum(0)
            if len(both) > 2 and bool((spread > 0).all()):
                R[i, j] = R[j, i] = (both[:, 0] @ both[:, 1]) / spread.prod().sqrt()
    values, vectors = torch.linalg.eigh(R)
    R = (vectors * values.clamp_min(1e-3)) @ vectors.mT
    scale = R.diagonal().rsqrt()
    return R * scale * scale.unsqueeze(-1)


def _matern_orders(kernels: torch.nn.ModuleList, X: Tensor) -> tuple[int, ...] | None:
    """ν + ½ of each kernel if all are such as the filter takes: plain Matérn of one input, float64 on the CPU."""
    fits = AVAILABLE and X.shape[-1] == 1 and X.dtype == torch.float64 and X.device.type == "cpu"
    known = {0.5: 1, 1.5: 2, 2.5: 3}
    plain: list[Any] = [k for k in kernels if type(k) is MaternKernel and not k.batch_shape]
    orders = [known[k.nu] for k in plain if k.nu in known]
    return tuple(orders) if fits and len(orders) == len(kernels) else None


def _likelihood(noise: float | Tensor | None, T: int) -> GaussianLikelihood:
    if noise is None:
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(_LEAST_NOISE), batch_shape=torch.Size([T]))
        likelihood = likelihood.double()
        likelihood.noise = torch.full((T, 1), 0.1, dtype=torch.float64)
        return likelihood
    variances = torch.as_tensor(noise, dtype=torch.float64)
    if variances.shape not in ((), (T,)) or not bool(((variances > 0) & variances.isfinite()).all()):
        raise InputError(
            f"`noise` is a variance, positive and finite, one or one for each of {T} tasks; got shape "
            f"{tuple(variances.shape)}, minimum {float(variances.min())}."
        )
    likelihood = GaussianLikelihood(noise_constraint=Positive(), batch_shape=torch.Size([T])).double()
    likelihood.noise = variances.expand(T).reshape(T, 1)
    return likelihood.requires_grad_(False)


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
