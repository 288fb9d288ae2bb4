"""Many small problems at once, and the Vecchia approximation: likelihood and gradient beside GPyTorch and GPBoost."""

import importlib.util
import math
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import Array, PlainGP, gpytorch_cholesky, gpytorch_model, matern_kernel
from benchmarks.tables import against, duration, number, verdict

BATCH, VECCHIA, CHOICE = (
    "many small likelihoods and gradients",
    "Vecchia likelihood and gradient",
    "order and neighbours",
)
BATCH_BARS = {"GPyTorch, loop": 10.0, "GPyTorch, padded batches": 3.0}
GPBOOST_BAR = 1 / 1.5
EXPONENT_BAR = 1.1
NEIGHBOURS = 30


# Many small problems: sizes 20 to 180, mean 100, and four inputs; one set of hyperparameters for each.


def small_problems(count: int, d: int = 4) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((n, d)) for n in rng.integers(20, 181, count)]
    return X, [np.sin(x).sum(1) + 0.3 * rng.standard_normal(len(x)) for x in X]


def gpmoe_batch(count: int) -> Run:
    from gpmoe.linalg.small_batch import SmallGPs

    X, y = small_problems(count)
    rows, targets = torch.from_numpy(np.concatenate(X)), torch.from_numpy(np.concatenate(y))
    offsets = torch.tensor([0, *np.cumsum([len(x) for x in X])])
    hyper = {"lengthscale": rows.new_full((count, 4), 1.5), "noise": rows.new_full((count,), 0.1)}
    hyper["outputscale"] = rows.new_ones(count)
    for tensor in hyper.values():
        tensor.requires_grad_()

    def step() -> float:
        value = SmallGPs(rows, targets, offsets, **hyper).log_marginal_likelihood().sum()
        torch.autograd.grad(value, list(hyper.values()))
        return value.item()

    return Run(step, lambda value: {"value": value})


def gpytorch_loop(count: int) -> Run:
    models = [gpytorch_model(x, t, matern_kernel(4), 0.1).train() for x, t in zip(*small_problems(count), strict=True)]
    objectives = [gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp) for gp in models]

    def step() -> float:
        total = 0.0
        with gpytorch_cholesky():
            for gp, objective in zip(models, objectives, strict=True):
                gp.zero_grad(set_to_none=True)
                value = objective(gp(*gp.train_inputs), gp.train_targets) * len(gp.train_targets)
                value.backward()
                total += value.item()
        return total

    return Run(step, lambda value: {"value": value})


def gpytorch_padded(count: int, at_once: int = 256) -> Run:
    """Batches of `at_once` problems of similar size; padding is far away, with a noise variance of 1e6."""
    X, y = small_problems(count)
    order = np.argsort([len(x) for x in X])
    batches = [
        padded_model([X[i] for i in group], [y[i] for i in group])
        for group in np.split(order, range(at_once, count, at_once))
    ]

    def step() -> float:
        total = 0.0
        with gpytorch_cholesky():
            for gp, objective, extra in batches:
                gp.zero_grad(set_to_none=True)
                value = (objective(gp(*gp.train_inputs), gp.train_targets) * gp.train_targets.shape[-1]).sum()
                value.backward()
                total += value.item() - extra
        return total

    return Run(step, lambda value: {"value": value})


def padded_model(X: list[Array], y: list[Array]) -> tuple[PlainGP, Any, float]:
    """A batch model, its objective, and what the padding adds to that."""
    longest, batch = max(map(len, X)), torch.Size([len(X)])
    inputs = 1e3 * np.arange(1, longest + 1)[None, :, None] * np.ones((len(X), 1, 4))
    targets, noise = np.zeros((len(X), longest)), np.full((len(X), longest), 1e6)
    for b, (x, t) in enumerate(zip(X, y, strict=True)):
        inputs[b, : len(x)], targets[b, : len(x)], noise[b, : len(x)] = x, t, 1e-6
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=4, batch_shape=batch), batch_shape=batch).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 1.5, 1.0
    likelihood: Any = FixedNoiseGaussianLikelihood(
        torch.from_numpy(noise), learn_additional_noise=True, batch_shape=batch
    )
    likelihood = likelihood.double()
    likelihood.second_noise = 0.1 - 1e-6
    gp = PlainGP(torch.from_numpy(inputs), torch.from_numpy(targets), kernel, likelihood).train()
    padding = len(X) * longest - sum(map(len, X))
    return gp, gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, gp), -0.5 * padding * math.log(2 * math.pi * 1e6)


# Vecchia: a surface on the unit square.


def square(n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(n, 2))
    return X, np.sin(6 * X[:, 0]) * np.cos(5 * X[:, 1]) + 0.3 * rng.standard_normal(n)


def square_kernel() -> Kernel:
    kernel = ScaleKernel(MaternKernel(nu=1.5)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.1, 1.0
    return kernel


def gpmoe_vecchia(n: int) -> Run:
    from gpmoe.models.vecchia_gp import VecchiaGP

    X, y = square(n)
    gp = VecchiaGP(torch.from_numpy(X), torch.from_numpy(y), kernel=square_kernel(), n_neighbours=NEIGHBOURS)
    gp.mean_module.requires_grad_(False)

    def step() -> float:
        gp.zero_grad(set_to_none=True)
        value = gp.log_marginal_likelihood()
        value.backward()
        return value.item()

    return Run(step, lambda value: {"value": value})


def gpmoe_choice(n: int) -> Run:
    from gpmoe.models.vecchia_gp import VecchiaGP

    X, y = square(n)
    gp = VecchiaGP(torch.from_numpy(X), torch.from_numpy(y), kernel=square_kernel(), n_neighbours=NEIGHBOURS)
    return Run(gp.choose_neighbours)


def gpboost_model(n: int) -> Any:
    import gpboost

    return gpboost.GPModel(
        gp_coords=square(n)[0],
        cov_function="matern",
        cov_fct_shape=1.5,
        gp_approx="vecchia",
        num_neighbors=NEIGHBOURS,
        vecchia_ordering="random",
        likelihood="gaussian",
        num_parallel_threads=torch.get_num_threads(),
    )


def gpboost_vecchia(n: int) -> Run:
    y, parameters = square(n)[1], np.array([0.1, 1.0, 0.1])  # noise, outputscale, lengthscale
    gp = gpboost_model(n)

    def figures(value: float) -> Figures:
        return {"value": -value}

    return Run(lambda: float(gp.neg_log_likelihood(cov_pars=parameters, y=y)), figures)


def gpboost_choice(n: int) -> Run:
    return Run(lambda: gpboost_model(n))


BATCHES = {"gpmoe": gpmoe_batch, "GPyTorch, loop": gpytorch_loop, "GPyTorch, padded batches": gpytorch_padded}
VECCHIAS = {"gpmoe": gpmoe_vecchia, "GPBoost": gpboost_vecchia}
CHOICES = {"gpmoe": gpmoe_choice, "GPBoost": gpboost_choice}
HAS_GPBOOST = importlib.util.find_spec("gpboost") is not None


def batch_case(library: str, small: bool) -> Case:
    repetitions = 5 if library == "gpmoe" else 2
    return Case(BATCH, library, BATCHES[library], {"count": 64 if small else 4096}, repetitions)


def sizes(small: bool) -> tuple[int, ...]:
    return (500, 1000, 2000) if small else (25_000, 50_000, 100_000, 200_000)


def vecchia_case(library: str, n: int) -> Case:
    return Case(VECCHIA, library, VECCHIAS[library], {"n": n}, 3 if library == "gpmoe" else 2)


def choice_case(library: str, n: int) -> Case:
    return Case(CHOICE, library, CHOICES[library], {"n": n}, repetitions=1)


def peers() -> tuple[str, ...]:
    return ("gpmoe", "GPBoost") if HAS_GPBOOST else ("gpmoe",)


def cases(small: bool) -> list[Case]:
    if not HAS_GPBOOST:
        print("large_local: GPBoost is not installed, its cases are skipped: pip install --no-deps gpboost", flush=True)
    largest = sizes(small)[-1]
    return [
        *(batch_case(library, small) for library in BATCHES),
        *(vecchia_case("gpmoe", n) for n in sizes(small)[:-1]),
        *(vecchia_case(library, largest) for library in peers()),
        *(choice_case(library, largest) for library in peers()),
    ]


def value_of(results: Results, case: Case) -> float:
    runs = results.runs(case)
    return runs[0]["value"] if runs else math.nan


def batch_table(results: Results, small: bool) -> Table:
    ours, rows = batch_case("gpmoe", small), []
    for name in BATCHES:
        case = batch_case(name, small)
        ratio = "" if name == "gpmoe" else against(results, ours, case, None if small else BATCH_BARS[name])
        apart = abs(value_of(results, case) / value_of(results, ours) - 1)
        rows.append([name, duration(results.median(case)), ratio, number(apart, ".1e")])
    notes = (
        f"{ours.parameters['count']:,} problems of 20 to 180 rows (mean 100), d = 4, Matérn-5/2 ARD, float64, each"
        " with its own lengthscales, outputscale and noise; the sum of log likelihoods and its gradient.",
        "Loop: one ExactGP a problem, Cholesky. Padded: batch-mode ExactGP, 256 problems of similar size at a time.",
    )
    return Table("Many small problems", ["library", "time", "library / gpmoe", "values differ by"], rows, notes)


def vecchia_table(results: Results, small: bool) -> Table:
    rows, largest = [], sizes(small)[-1]
    for name in peers():
        case, choice = vecchia_case(name, largest), choice_case(name, largest)
        bar = None if small else GPBOOST_BAR
        ratio = "" if name == "gpmoe" else against(results, vecchia_case("gpmoe", largest), case, bar)
        times = [duration(results.median(one)) for one in (case, choice)]
        rows.append([name, *times, ratio, number(value_of(results, case) / largest, ".4f")])
    seconds = [results.median(vecchia_case("gpmoe", n)) for n in sizes(small)]
    slope = float(np.polyfit(np.log(sizes(small)), np.log(seconds), 1)[0])
    growth = verdict(slope, None if small else EXPONENT_BAR, at_most=True)
    notes = (
        f"n = {largest:,}, d = 2, {NEIGHBOURS} neighbours, Matérn-3/2, float64.",
        "gpmoe: likelihood and gradient. GPBoost: the likelihood alone, since it has no call for the gradient alone;"
        " a step of its optimiser costs several times more. Its order is random, gpmoe's max-min.",
        f"gpmoe's time at n = {', '.join(f'{n:,}' for n in sizes(small))}: {', '.join(map(duration, seconds))};"
        f" it grows like n to the power {slope:.2f}{growth}.",
    )
    header = ["library", "likelihood", "order and neighbours", "library / gpmoe", "nats per row"]
    return Table("Vecchia", header, rows, notes)


def tables(results: Results, small: bool) -> list[Table]:
    return [batch_table(results, small), vecchia_table(results, small)]


SUITE = Suite("large_local", cases, tables)
