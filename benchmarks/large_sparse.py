"""Sparse Gaussian processes: one step of each bound, and whole fits with their scores, beside GPyTorch's."""

import gzip
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import cache, partial
from typing import Any, NamedTuple

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import InducingPointKernel, Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import Mean, ZeroMean
from gpytorch.optim import NGD
from gpytorch.variational import NaturalVariationalDistribution, VariationalStrategy
from torch import Tensor

from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import matern_data, matern_kernel, noise_model
from benchmarks.tables import against, duration, number

STEP, BATCH_STEP, FIT = "bound and gradient", "minibatch step", "fit"
EXACT = {"pol": (0.076, -1.22), "elevators": (0.355, 0.375)}  # RMSE and negative log score that exact inference reaches
BATCH, NATURAL_STEP, LEARNING_RATE = 1024, 0.1, 0.01


class Start(NamedTuple):
    """Training data, inducing points and hyperparameters from which every library goes on, and test data."""

    X: Tensor
    y: Tensor
    Z: Tensor
    kernel: Kernel
    mean: Mean
    likelihood: GaussianLikelihood
    X_test: Tensor
    y_test: Tensor

    def parts(self) -> dict[str, Any]:
        return {"kernel": deepcopy(self.kernel), "mean": deepcopy(self.mean)}


def simulated(n: int, p: int, d: int) -> Start:
    X, y = (torch.from_numpy(part) for part in matern_data(n, d))
    return Start(X, y, X[:p].clone(), matern_kernel(d), ZeroMean(), noise_model(0.1), X[:0], y[:0])


def load_masked(name: str, mask: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One split of a table of uci10, standardised by its training rows: X, y, X_test, y_test."""
    with gzip.open(DATA / "uci10" / name / "data.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    with gzip.open(DATA / "uci10" / name / "test_mask.csv.gz") as file:
        test = np.loadtxt(file, delimiter=",")[:, mask].astype(bool)
    center, spread = table[~test].mean(0), table[~test].std(0)
    table = torch.from_numpy((table - center) / np.where(spread > 0, spread, 1.0))
    test = torch.from_numpy(test)
    return table[~test, :-1], table[~test, -1], table[test, :-1], table[test, -1]


@cache
def real(name: str, n: int | None, p: int) -> Start:
    """A table, with the hyperparameters of an exact GP on 1,000 random rows and greedy inducing points."""
    from gpmoe.inference.fit import fit_quietly
    from gpmoe.models.exact_gp import ExactGP
    from gpmoe.models.inducing_points import greedy_inducing_points

    X, y, X_test, y_test = load_masked(name, 0)
    X, y = X[:n], y[:n]
    rows = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[:1000]
    gp = ExactGP(X[rows], y[rows])
    fit_quietly(gp)
    Z = greedy_inducing_points(gp.covar_module, X, p)
    return Start(X, y, Z, gp.covar_module, gp.mean_module, gp.likelihood, X_test, y_test)


# gpmoe.


def gpmoe_collapsed(start: Start) -> Any:
    from gpmoe.models.sparse_gp import SparseGP

    return SparseGP(start.X, start.y, start.Z, noise=deepcopy(start.likelihood), **start.parts())


def gpmoe_stochastic(start: Start) -> Any:
    from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

    likelihood = deepcopy(start.likelihood)
    return StochasticVariationalGP(start.X, start.y, start.Z, likelihood=likelihood, **start.parts())


def scores(mean: Tensor, variance: Tensor, y: Tensor) -> Figures:
    """Root mean squared error and negative log score, standardised units."""
    log_prob = torch.distributions.Normal(mean, variance.sqrt()).log_prob(y)
    return {"rmse": (mean - y).square().mean().sqrt().item(), "nls": -log_prob.mean().item()}


def gpmoe_figures(start: Start, gp: Any) -> Figures:
    with torch.no_grad():
        mean, variance = gp.marginals(start.X_test)
        return scores(mean, variance + gp.new_noise(), start.y_test)


def fit_collapsed(start: Start, iterations: int) -> Any:
    from gpmoe.inference.elbo import elbo
    from gpmoe.inference.fit import fit_quietly

    gp = gpmoe_collapsed(start)
    fit_quietly(gp, elbo, max_iterations=iterations)
    return gp


def fit_minibatches(start: Start, epochs: int) -> Any:
    from gpmoe.inference.fit_stochastic import fit_stochastic_quietly

    gp = gpmoe_stochastic(start)
    fit_stochastic_quietly(
        gp, epochs=epochs, batch_size=BATCH, natural_step=NATURAL_STEP, learning_rate=LEARNING_RATE, seed=0
    )
    return gp


# GPyTorch, as its tutorials write it, in float64.


def woodbury() -> ExitStack:
    """GPyTorch's low-rank algebra, which BoTorch turns off at its import: without it SGPR factorises n x n matrices."""
    stack = ExitStack()
    stack.enter_context(gpytorch.settings.max_cholesky_size(10**9))
    stack.enter_context(gpytorch.settings.fast_computations(True, True, True))
    return stack


class SGPR(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(self, start: Start, likelihood: GaussianLikelihood) -> None:
        super().__init__(start.X, start.y, likelihood)
        parts = start.parts()
        self.mean_module = parts["mean"]
        self.covar_module = InducingPointKernel(parts["kernel"], start.Z.clone(), likelihood)

    def forward(self, X: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.covar_module(X))

    def transform_inputs(self, X: Tensor) -> Tensor:
        """BoTorch's L-BFGS-B driver asks for it; nothing is transformed."""
        return X


class SVGP(gpytorch.models.ApproximateGP):  # type: ignore[misc]
    def __init__(self, start: Start) -> None:
        q = NaturalVariationalDistribution(len(start.Z))
        super().__init__(VariationalStrategy(self, start.Z.clone(), q, learn_inducing_locations=True))
        parts = start.parts()
        self.mean_module, self.covar_module = parts["mean"], parts["kernel"]

    def forward(self, X: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.covar_module(X))


def gpytorch_collapsed(start: Start) -> SGPR:
    return SGPR(start, deepcopy(start.likelihood)).train()


def fit_sgpr(start: Start, iterations: int) -> Any:
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    gp = gpytorch_collapsed(start)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
    with woodbury(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped at so many iterations
        fit_gpytorch_mll_scipy(mll, options={"maxiter": iterations})
    return gp


class SVGPTraining:
    """The model with GPyTorch's loop of minibatches, and our decay of both step sizes."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.gp = SVGP(start).double().train()
        self.gp.likelihood = deepcopy(start.likelihood)
        strategy = self.gp.variational_strategy
        natural = list(strategy._variational_distribution.parameters())
        known = {id(parameter) for parameter in natural}
        others = [parameter for parameter in self.gp.parameters() if id(parameter) not in known]
        self.mll = gpytorch.mlls.VariationalELBO(self.gp.likelihood, self.gp, num_data=len(start.y))
        self.optimisers = [
            NGD(natural, num_data=len(start.y), lr=NATURAL_STEP),
            torch.optim.Adam(others, lr=LEARNING_RATE),
        ]

    def step(self, rows: Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        (-self.mll(self.gp(self.start.X[rows]), self.start.y[rows])).backward()
        for optimiser in self.optimisers:
            optimiser.step()


def fit_svgp(start: Start, epochs: int) -> Any:
    training = SVGPTraining(start)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        share = max(0.01, min(1.0, 2.0 * (1.0 - epoch / epochs)))
        for optimiser, size in zip(training.optimisers, (NATURAL_STEP, LEARNING_RATE), strict=True):
            optimiser.param_groups[0]["lr"] = share * size
        for rows in torch.randperm(len(start.y), generator=generator).split(BATCH):
            training.step(rows)
    return training.gp


def gpytorch_figures(start: Start, gp: Any) -> Figures:
    with torch.no_grad(), woodbury():
        predictive = gp.eval().likelihood(gp(start.X_test))
        return scores(predictive.mean, predictive.variance, start.y_test)


# Steps.


def gpmoe_bound(n: int, p: int, d: int) -> Run:
    gp = gpmoe_collapsed(simulated(n, p, d))

    def step() -> float:
        gp.zero_grad()
        value = gp.elbo()
        value.backward()
        return value.item()

    return Run(step, lambda value: {"value": value})


def gpytorch_bound(n: int, p: int, d: int) -> Run:
    start = simulated(n, p, d)
    gp = gpytorch_collapsed(start)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)

    def step() -> float:
        gp.zero_grad()
        with woodbury():
            value = mll(gp(start.X), start.y)
            value.backward()
        return n * value.item()

    return Run(step, lambda value: {"value": value})


def gpmoe_minibatch(n: int, p: int, d: int) -> Run:
    from gpmoe.inference.minibatches import optimisers_of

    gp = gpmoe_stochastic(simulated(n, p, d))
    optimisers, rows = optimisers_of(gp, NATURAL_STEP, LEARNING_RATE), torch.arange(BATCH)

    def step() -> None:
        gp.zero_grad()
        (-gp.elbo(rows)).backward()
        for optimiser in optimisers:
            optimiser.step()

    return Run(step)


def gpytorch_minibatch(n: int, p: int, d: int) -> Run:
    training, rows = SVGPTraining(simulated(n, p, d)), torch.arange(BATCH)
    return Run(lambda: training.step(rows))


def fit_run(
    fitter: Callable[[Start, int], Any],
    figures: Callable[[Start, Any], Figures],
    data: str,
    n: int | None,
    p: int,
    iterations: int,
) -> Run:
    start = real(data, n, p)
    return Run(lambda: fitter(start, iterations), partial(figures, start))


LIBRARIES: dict[str, dict[str, Callable[..., Run]]] = {
    STEP: {"gpmoe": gpmoe_bound, "GPyTorch": gpytorch_bound},
    BATCH_STEP: {"gpmoe": gpmoe_minibatch, "GPyTorch": gpytorch_minibatch},
    f"{FIT}, collapsed": {
        "gpmoe": partial(fit_run, fit_collapsed, gpmoe_figures),
        "GPyTorch": partial(fit_run, fit_sgpr, gpytorch_figures),
    },
    f"{FIT}, minibatches": {
        "gpmoe": partial(fit_run, fit_minibatches, gpmoe_figures),
        "GPyTorch": partial(fit_run, fit_svgp, gpytorch_figures),
    },
}


def problems(name: str, small: bool) -> list[dict[str, Any]]:
    if name == STEP:
        return [
            {"n": n, "p": 50 if small else 500, "d": d}
            for n, d in ([(400, 3)] if small else [(10_000, 8), (15_000, 26)])
        ]
    if name == BATCH_STEP:
        return [{"n": 2_000 if small else 15_000, "p": 50 if small else 500, "d": 8}]
    iterations = 3 if small else (100 if "collapsed" in name else 30)
    size = {"n": 500, "p": 20} if small else {"n": None, "p": 500}
    return [{"data": data, **size, "iterations": iterations} for data in EXACT if (DATA / "uci10" / data).is_dir()]


def case(name: str, library: str, parameters: dict[str, Any]) -> Case:
    if name.startswith(FIT):
        return Case(name, library, LIBRARIES[name][library], parameters, repetitions=1, warm_up=0)
    return Case(name, library, LIBRARIES[name][library], parameters)


def cases(small: bool) -> list[Case]:
    for data in EXACT:
        if not (DATA / "uci10" / data).is_dir():
            print(f"large_sparse: {data} skipped, no {DATA / 'uci10' / data}; set GPMOE_DATA")
    return [
        case(name, library, parameters)
        for name, libraries in LIBRARIES.items()
        for parameters in problems(name, small)
        for library in libraries
    ]


def step_row(results: Results, name: str, parameters: dict[str, Any]) -> list[str]:
    ours, peer = (case(name, library, parameters) for library in LIBRARIES[name])
    values = [results.median(each, "value") for each in (ours, peer)]
    size = ", ".join(f"{key} = {value:,}" for key, value in parameters.items())
    times = (duration(results.median(each)) for each in (ours, peer))
    return [name, size, *times, against(results, ours, peer), *(number(value, ".2f") for value in values)]


def fit_rows(results: Results, name: str, parameters: dict[str, Any]) -> list[list[str]]:
    ours, peer = (case(name, library, parameters) for library in LIBRARIES[name])
    rmse, nls = EXACT[parameters["data"]]
    rows = []
    for each, label in ((ours, "gpmoe"), (peer, "GPyTorch")):
        ratio = against(results, ours, peer) if each is peer else ""
        figures = [number(results.median(each, "rmse"), ".4f"), number(results.median(each, "nls"))]
        rows.append(
            [parameters["data"], name, label, duration(results.median(each)), ratio, *figures, f"{rmse} / {nls}"]
        )
    return rows


def tables(results: Results, small: bool) -> list[Table]:
    steps = [step_row(results, name, each) for name in (STEP, BATCH_STEP) for each in problems(name, small)]
    fits = [
        row
        for name in LIBRARIES
        if name.startswith(FIT)
        for each in problems(name, small)
        for row in fit_rows(results, name, each)
    ]
    ours = ["what", "size", "gpmoe", "GPyTorch", "GPyTorch / gpmoe", "bound gpmoe", "bound GPyTorch"]
    columns = [
        "data",
        "what",
        "library",
        "time",
        "GPyTorch / gpmoe",
        "RMSE",
        "negative log score",
        "exact: RMSE / score",
    ]
    step_notes = (
        "Float64, Matérn-5/2 ARD, gradient for hyperparameters and inducing points; bounds in nats, GPyTorch's with its"
        " jitter of 1e-6.",
        f"Minibatch of {BATCH}: bound, gradient, a natural step for q and an Adam step for all else.",
    )
    fit_notes = (
        "Mask 0 of uci10, about 90 % of rows for training, standardised by them; 500 inducing points. Every library"
        " starts from the hyperparameters of one exact GP on 1,000 rows and one greedy choice of points, found before"
        " the clock starts, and takes as many iterations.",
        f"Collapsed: L-BFGS-B, 100 iterations (GPyTorch through BoTorch's SciPy driver). Minibatches of {BATCH}: 30"
        " epochs, natural gradients and Adam, step sizes falling to a hundredth in the second half.",
    )
    return [Table("One step", ours, steps, step_notes), Table("Fits", columns, fits, fit_notes)]


SUITE = Suite("large_sparse", cases, tables)
