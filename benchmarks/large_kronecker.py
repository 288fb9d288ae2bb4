"""Grids: likelihood and gradient of a multi-task GP, complete and with missing cells, and of a three-factor grid."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, NamedTuple

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.kernels import IndexKernel, Kernel, MaternKernel, MultitaskKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood, MultitaskGaussianLikelihood
from gpytorch.means import ConstantMean, MultitaskMean
from torch import Tensor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import gpytorch_cholesky, noise_model
from benchmarks.tables import against, duration, number, verdict

COMPLETE, MISSING, GRID, GROWTH, MEMORY = "icm complete", "icm missing", "grid", "growth", "grid memory"
NOISE, LENGTHSCALE = 0.1, 0.5
BARS = {  # times faster than that library
    (COMPLETE, "GPyTorch MultitaskKernel"): 1.0,
    (COMPLETE, "BoTorch KroneckerMultiTaskGP, structured"): 1.0,
    (COMPLETE, "BoTorch LatentKroneckerGP"): 1.0,
    (MISSING, "GPyTorch Hadamard, Cholesky"): 8.0,
}
SECONDS, BYTES = 2.0, 200e6
SIZES = {2: ((300, 600, 1200), (30, 60)), 3: ((60, 100, 160), (8, 12))}


class ICM(NamedTuple):
    """Inputs ``(n, 2)``, targets ``(n, tasks)`` with NaN where missing, the task covariance's root and diagonal."""

    X: Tensor
    Y: Tensor
    root: Tensor
    diagonal: Tensor


@cache
def icm(n: int, tasks: int, missing: float) -> ICM:
    """A draw of f ~ Matérn-5/2 x B with noise."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    X = torch.rand(n, 2, dtype=torch.float64, generator=generator)
    root, diagonal = draw(tasks, 2), torch.full((tasks,), 0.1, dtype=torch.float64)
    with torch.no_grad():
        K = matern()(X).to_dense() + 1e-9 * torch.eye(n, dtype=torch.float64)
        B = root @ root.mT + torch.diag(diagonal)
        Y = torch.linalg.cholesky(K) @ draw(n, tasks) @ torch.linalg.cholesky(B).mT + NOISE**0.5 * draw(n, tasks)
    Y[torch.rand(n, tasks, generator=generator) < missing] = float("nan")
    return ICM(X, Y, root, diagonal)


def matern(d: int = 2) -> MaternKernel:
    kernel = MaternKernel(nu=2.5, ard_num_dims=d).double()
    kernel.lengthscale = LENGTHSCALE
    return kernel


def task_kernel(p: ICM, kind: type[IndexKernel] = IndexKernel) -> IndexKernel:
    kernel = kind(num_tasks=len(p.root), rank=2).double()
    kernel.covar_factor.data = p.root.clone()
    kernel.var = p.diagonal
    return kernel


class DenseIndexKernel(IndexKernel):  # type: ignore[misc]
    """By indexing, for GPyTorch's interpolation would dominate a small factor's time."""

    def forward(self, i1: Tensor, i2: Tensor, **params: Any) -> Tensor:
        return self._eval_covar_matrix()[i1.long().squeeze(-1)][:, i2.long().squeeze(-1)]


def step_of(model: torch.nn.Module, value: Callable[[], Tensor], settings: Callable[[], ExitStack]) -> Run:
    """One log likelihood, in nats over all data, and its gradient."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        with settings():
            total = value()
            total.backward()
        return float(total.detach())

    return Run(step, lambda total: {"objective": total})


def structured() -> ExitStack:
    """GPyTorch's own defaults, which importing BoTorch changes."""
    stack = ExitStack()
    stack.enter_context(gpytorch.settings.fast_computations(True, True, True))
    stack.enter_context(gpytorch.settings.max_cholesky_size(800))
    return stack


# gpmoe


def gpmoe_icm(n: int, tasks: int, missing: float, method: str = "auto") -> Run:
    from gpmoe.linalg.complement import Iterative
    from gpmoe.models.kronecker_gp import KroneckerGP

    p = icm(n, tasks, missing)
    kernels = [task_kernel(p), matern()]
    axes = [torch.arange(tasks, dtype=torch.float64).unsqueeze(-1), p.X]
    likelihood = noise_model(NOISE)
    how = Iterative(tolerance=1e-2, probes=10)  # LatentKroneckerGP's tolerance and number of probes
    gp = KroneckerGP(axes, p.Y.mT.contiguous(), kernels=kernels, noise=likelihood, method=method, iterative=how)

    def figures(total: float) -> Figures:
        report = gp.report
        gradient = [float(kernels[1].raw_lengthscale.grad.sum()), float(kernels[0].covar_factor.grad.sum())]
        return {
            "objective": total,
            "method": report.method,
            "residual": report.residual,
            "standard_error": report.standard_error,
            "gradient": gradient,
        }

    return step_of(gp, gp.log_marginal_likelihood, ExitStack)._replace(figures=figures)


# Peers


class MultitaskModel(gpytorch.models.ExactGP):  # type: ignore[misc]
    """GPyTorch's multi-task tutorial."""

    def __init__(self, X: Tensor, Y: Tensor, likelihood: MultitaskGaussianLikelihood, kernel: Kernel) -> None:
        super().__init__(X, Y, likelihood)
        self.mean_module = MultitaskMean(ConstantMean(), num_tasks=Y.shape[-1])
        self.covar_module = kernel

    def forward(self, X: Tensor) -> MultitaskMultivariateNormal:
        return MultitaskMultivariateNormal(self.mean_module(X), self.covar_module(X))


def multitask_likelihood(tasks: int) -> MultitaskGaussianLikelihood:
    likelihood = MultitaskGaussianLikelihood(num_tasks=tasks, rank=0, has_task_noise=False).double()
    likelihood.noise = NOISE
    return likelihood


def exact_mll(model: Any, inputs: list[Tensor], count: int) -> Callable[[], Tensor]:
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    return lambda: mll(model(*inputs), model.train_targets) * count


def set_tasks(kernel: MultitaskKernel, p: ICM) -> None:
    kernel.data_covar_module.lengthscale = LENGTHSCALE
    kernel.task_covar_module.covar_factor.data = p.root.clone()
    kernel.task_covar_module.var = p.diagonal


def gpytorch_multitask(n: int, tasks: int, missing: float) -> Run:
    p = icm(n, tasks, missing)
    kernel = MultitaskKernel(MaternKernel(nu=2.5, ard_num_dims=2), num_tasks=tasks, rank=2).double()
    set_tasks(kernel, p)
    model = MultitaskModel(p.X, p.Y, multitask_likelihood(tasks), kernel).double().train()
    return step_of(model, exact_mll(model, [p.X], p.Y.numel()), structured)


def botorch_multitask(n: int, tasks: int, missing: float) -> Run:
    from botorch.models.multitask import KroneckerMultiTaskGP

    p = icm(n, tasks, missing)
    model = KroneckerMultiTaskGP(
        p.X,
        p.Y,
        likelihood=multitask_likelihood(tasks),
        data_covar_module=matern(),
        rank=2,
        input_transform=None,
        outcome_transform=None,
    ).train()
    set_tasks(model.covar_module, p)
    return step_of(model, exact_mll(model, [p.X], p.Y.numel()), structured)


def botorch_latent(n: int, tasks: int, missing: float) -> Run:
    from botorch.models.latent_kronecker_gp import LatentKroneckerGP

    p = icm(n, tasks, missing)
    model = LatentKroneckerGP(
        p.X,
        torch.arange(tasks, dtype=torch.float64).unsqueeze(-1),
        p.Y,
        likelihood=noise_model(NOISE),
        covar_module_X=matern(),
        covar_module_T=task_kernel(p, DenseIndexKernel),
        outcome_transform=None,
    ).train()

    def settings() -> ExitStack:
        stack: ExitStack = model.use_iterative_methods()  # its documented way, tolerance 0.01
        stack.enter_context(gpytorch.settings.max_cholesky_size(1))  # makes it really iterative
        return stack

    run = step_of(model, exact_mll(model, [p.X], int(p.Y.isfinite().sum())), settings)

    def figures(total: float) -> Figures:
        with torch.no_grad(), settings():
            covariance = model.likelihood(model(p.X)).lazy_covariance_matrix
            y = model.train_targets
            solution = covariance.solve(y.unsqueeze(-1)).squeeze(-1)
            residual = float((covariance.to_dense() @ solution - y).norm() / y.norm())
        return {"objective": total, "residual": residual}

    return run._replace(figures=figures)


class HadamardModel(gpytorch.models.ExactGP):  # type: ignore[misc]
    """GPyTorch's tutorial for tasks observed at different inputs."""

    def __init__(self, inputs: tuple[Tensor, Tensor], y: Tensor, p: ICM, likelihood: GaussianLikelihood) -> None:
        super().__init__(inputs, y, likelihood)
        self.mean_module = ConstantMean()
        self.data_kernel, self.task_kernel = matern(), task_kernel(p)

    def forward(self, X: Tensor, task: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.data_kernel(X).mul(self.task_kernel(task)))


def gpytorch_hadamard(n: int, tasks: int, missing: float) -> Run:
    p = icm(n, tasks, missing)
    row, task = p.Y.isfinite().nonzero(as_tuple=True)
    inputs, y = (p.X[row], task.unsqueeze(-1)), p.Y[row, task]
    model = HadamardModel(inputs, y, p, noise_model(NOISE)).double().train()
    return step_of(model, exact_mll(model, list(inputs), len(y)), gpytorch_cholesky)


# A product of axes


def grid_model(sizes: tuple[int, ...]) -> Any:
    from gpmoe.models.kronecker_gp import KroneckerGP

    axes = [torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(-1) for n in sizes]
    kernels: list[Kernel] = [matern(1) for _ in sizes]
    kernels[0] = ScaleKernel(kernels[0]).double()
    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(sizes, dtype=torch.float64, generator=generator)
    return KroneckerGP(axes, Y, kernels=kernels, noise=noise_model(NOISE))


def grid_step(k: int, n: int) -> Run:
    gp = grid_model((n,) * k)
    return step_of(gp, gp.log_marginal_likelihood, ExitStack)


def grid_memory(k: int, n: int) -> Run:
    run = grid_step(k, n)
    grid_step(k, 4).step()  # what is loaded once
    return run


LIBRARIES: dict[str, dict[str, Callable[..., Run]]] = {
    COMPLETE: {
        "gpmoe": gpmoe_icm,
        "GPyTorch MultitaskKernel": gpytorch_multitask,
        "BoTorch KroneckerMultiTaskGP, structured": botorch_multitask,
        "BoTorch LatentKroneckerGP": botorch_latent,
    },
    MISSING: {
        "gpmoe": gpmoe_icm,
        "gpmoe, dense": partial(gpmoe_icm, method="dense"),
        "gpmoe, iterative": partial(gpmoe_icm, method="iterative"),
        "BoTorch LatentKroneckerGP": botorch_latent,
        "GPyTorch Hadamard, Cholesky": gpytorch_hadamard,
    },
}


def case(name: str, library: str, small: bool) -> Case:
    parameters = {"n": 40 if small else 500, "tasks": 4 if small else 10, "missing": 0.3 if name == MISSING else 0.0}
    return Case(name, library, LIBRARIES[name][library], parameters, at_least=0.0 if small else 0.3)


def grid_case(name: str, k: int, n: int) -> Case:
    if name == MEMORY:
        return Case(name, "gpmoe", grid_memory, {"k": k, "n": n}, repetitions=1, warm_up=0, isolated=True)
    return Case(name, "gpmoe", grid_step, {"k": k, "n": n}, at_least=0.3)


def large(small: bool) -> int:
    return 12 if small else 100


def growth_cases(k: int, small: bool) -> list[Case]:
    return [grid_case(GROWTH, k, n) for n in SIZES[k][1 if small else 0]]


def cases(small: bool) -> list[Case]:
    return [
        *(case(name, library, small) for name in LIBRARIES for library in LIBRARIES[name]),
        grid_case(GRID, 3, large(small)),
        grid_case(MEMORY, 3, large(small)),
        *(each for k in SIZES for each in growth_cases(k, small)),
    ]


def icm_table(results: Results, name: str, small: bool) -> Table:
    ours = case(name, "gpmoe", small)
    exact = results.median(ours, "objective")
    rows = []
    for library in LIBRARIES[name]:
        this = case(name, library, small)
        bar = None if small else BARS.get((name, library))
        ratio = "" if library == "gpmoe" else against(results, ours, this, bar)
        if library == "BoTorch LatentKroneckerGP" and name == MISSING:
            iterative = case(name, "gpmoe, iterative", small)
            ratio += "; " + against(results, iterative, this, None if small else 1.0) + " of iterative"
        off = results.median(this, "objective") - exact
        residual = results.median(this, "residual")
        rows.append([library, duration(results.median(this)), ratio, number(off, ".2g"), number(residual, ".1e")])
    methods = {run["method"] for run in results.runs(ours)}
    size = " ".join(f"{k} = {v:,}" for k, v in ours.parameters.items())
    error = results.median(case(MISSING, "gpmoe, iterative", small), "standard_error")
    notes = (
        f"{size}; Matérn-5/2 ARD, d = 2, x ICM of rank 2, noise variance {NOISE}, float64, one log likelihood and its"
        f" gradient by all parameters; gpmoe's way: {', '.join(sorted(methods)) or '-'}.",
        "BoTorch KroneckerMultiTaskGP under GPyTorch's default settings, since BoTorch's own make it dense (9.9 s in"
        " notes); LatentKroneckerGP under use_iterative_methods() and max_cholesky_size(1), without which it is dense.",
        f"Off: log likelihood less gpmoe's exact one, nats (SLQ with 10 probes where iterative, gpmoe's standard error"
        f" {number(error, '.2g')}); residual: ‖Cα - y‖ / ‖y‖.",
    )
    return Table(name, ["library", "time", "library / gpmoe", "off, nats", "residual"], rows, notes)


def exponent(results: Results, k: int, small: bool) -> float:
    """Slope of log time over log N."""
    points = [(n**k, results.median(grid_case(GROWTH, k, n))) for n in SIZES[k][1 if small else 0]]
    known = [(np.log(N), np.log(t)) for N, t in points if t == t]
    return float(np.polyfit(*zip(*known, strict=True), 1)[0]) if len(known) > 1 else float("nan")


def grid_table(results: Results, small: bool) -> Table:
    n = large(small)
    seconds = results.median(grid_case(GRID, 3, n))
    used = results.median(grid_case(MEMORY, 3, n), "peak_bytes")
    rows = [
        [f"{n} x {n} x {n}, time", duration(seconds) + verdict(seconds, None if small else SECONDS, at_most=True)],
        [
            "peak memory beyond the data",
            f"{used / 1e6:.0f} MB" + verdict(used / 1e6, None if small else BYTES / 1e6, at_most=True),
        ],
    ]
    for k in SIZES:
        times = ", ".join(f"{c.parameters['n']}: {duration(results.median(c))}" for c in growth_cases(k, small))
        rows.append(
            [
                f"time ~ N^e, {k} factors",
                f"e = {number(exponent(results, k, small), '.2f')} (theory {1 + 1 / k:.2f}); {times}",
            ]
        )
    return Table("Grids", ["what", "gpmoe"], rows, ("Matérn-5/2 on each axis, one log likelihood and its gradient.",))


def tables(results: Results, small: bool) -> list[Table]:
    return [*(icm_table(results, name, small) for name in LIBRARIES), grid_table(results, small)]


SUITE = Suite("large_kronecker", cases, tables)
