"""Several targets at once: what the others tell of the one that is missing.

Standardised squared error (SMSE) is the mean squared error over the mean squared distance of the test targets from the
mean of the *training* targets of the same task, averaged over tasks, as the authors of COGP compute it; over the
variance of the test targets it stands beside. The standardised log score is in units of each task's training standard
deviation.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.libraries import Array
from benchmarks.tables import duration, number, verdict

INDEPENDENT, INTRINSIC, LINEAR, CHOSEN = (
    "gpmoe, independent tasks",
    "gpmoe, intrinsic",
    "gpmoe, linear model",
    "gpmoe, by evidence",
)
CONVOLVED, SPECTRAL = "gpmoe, convolved", "gpmoe, spectral"
PEER = "GPyTorch Hadamard"
JURA, FX, WEATHER, WINDOW, EEG = "jura", "fx", "weather2013", "weather2013, days 10-15", "eeg337"
PROBLEMS = (JURA, FX, EEG, WINDOW, WEATHER)
BARS = {JURA: 0.46, FX: 0.21, WEATHER: 0.11, WINDOW: 0.11}
RANKS = {INDEPENDENT: (1, 0), INTRINSIC: (1, 2), LINEAR: (2, 2)}  # components and rank
CANDIDATES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1))

_ROUNDING = 1e-6  # of times in days; stamps are 1/288 apart


# --- problems ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A table of tasks of which some targets are hidden.

    Attributes:
        X: ``(n, d)``.
        Y: all targets, ``(n, T)``, NaN where there never was one.
        hidden: those to predict, bool ``(n, T)``.
    """

    X: Array
    Y: Array
    hidden: Array

    @property
    def given(self) -> Array:
        """What a model may see."""
        return np.where(self.hidden, np.nan, self.Y)


def read_columns(path: str, names: tuple[str, ...]) -> Array:
    """Columns of a CSV file with a header, ``(n, len(names))``."""
    with open(DATA / path) as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def jura() -> Problem:
    """Cadmium at 100 sites, from itself at 259 and from nickel and zinc at all 359."""
    names = ("Xloc", "Yloc", "Cd", "Ni", "Zn")
    table = np.concatenate([read_columns(f"jura/jura_{part}.csv", names) for part in ("pred", "val")])
    hidden = np.zeros((len(table), 3), dtype=bool)
    hidden[259:, 0] = True
    return Problem(table[:, :2], table[:, 2:], hidden)


def fx() -> Problem:
    """CAD on days 50-100, JPY on 100-150 and AUD on 150-200 (counted from 1), of thirteen dollar rates."""
    table = np.loadtxt(DATA / "fx" / "fx2007-processed.csv", delimiter=",")
    hidden = np.zeros(table.shape, dtype=bool)
    for column, first in ((3, 50), (5, 100), (8, 150)):
        hidden[first - 1 : first + 50, column] = True
    return Problem(np.arange(1.0, len(table) + 1)[:, None], np.where(table == -1, np.nan, 1 / table), hidden)


def weather(first: float = 0.0) -> Problem:
    """Air temperature at Cambermet on days 10.2-10.8 and at Chimet on 13.5-14.2, from four stations from a day on."""
    from scipy.io import loadmat

    files = [loadmat(DATA / "weather2013" / f"{name}.mat") for name in ("bra", "cam", "chi", "sot")]
    x = files[0]["x"].astype(float)
    Y = np.stack([file["y"][:, 3].astype(float) for file in files], axis=1)
    kept = x[:, 0] >= first - _ROUNDING
    x, Y = x[kept], np.where(Y == -1, np.nan, Y)[kept]
    hidden = np.zeros(Y.shape, dtype=bool)
    for column, start, end in ((1, 10.2, 10.8), (2, 13.5, 14.2)):
        hidden[:, column] = (x[:, 0] >= start - _ROUNDING) & (x[:, 0] <= end + _ROUNDING)
    return Problem(x, Y, hidden & ~np.isnan(Y))


def eeg() -> Problem:
    """Electrodes FZ, F1 and F2 in the last 100 of 256 samples, from F3 to F6."""
    table = read_columns("eeg337/eeg337_trial0.csv", ("time", "F3", "F4", "F5", "F6", "FZ", "F1", "F2"))
    hidden = np.zeros((len(table), 7), dtype=bool)
    hidden[-100:, 4:] = True
    return Problem(table[:, :1], table[:, 1:], hidden)


LOADERS: dict[str, Callable[[], Problem]] = {
    JURA: jura,
    FX: fx,
    WEATHER: weather,
    WINDOW: partial(weather, 10.0),
    EEG: eeg,
}


def thinned(problem: Problem, every: int) -> Problem:
    """Every so many rows, to try the code."""
    return Problem(problem.X[::every], problem.Y[::every], problem.hidden[::every])


# --- models: each maps a problem to means and standard deviations ``(n, T)`` at its rows -----------------


class Fitted:
    """A fitted gpmoe model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, X: Array) -> tuple[Array, Array]:
        mean, std = self.model.predict(X, return_std=True)
        return np.asarray(mean), np.asarray(std)

    @property
    def remarks(self) -> Figures:
        return {
            "solver": self.model.report_.solver,
            "evidence": self.model.report_.objective_trace[-1],
            "components": len(self.model.model_.kernels),
            "rank": self.model.rank,
        }


def fit_gpmoe(problem: Problem, components: int, rank: int) -> Fitted:
    from gpmoe import MultitaskGPRegressor

    return Fitted(MultitaskGPRegressor(rank, n_components=components).fit(problem.X, problem.given))


def fit_by_evidence(problem: Problem) -> Fitted:
    """The number of components and the rank of the largest penalised marginal likelihood (BIC) of training data."""
    from gpmoe.inference.fit_components import penalised_evidence

    fits = [fit_gpmoe(problem, *candidate) for candidate in CANDIDATES]
    return max(fits, key=lambda fitted: penalised_evidence(fitted.model.model_))


def fit_kernels(problem: Problem, kind: str) -> Fitted:
    """Kernels that tell tasks apart themselves: a width for each task, or a spectrum; tasks keep a part of their own.

    The convolved part starts with all tasks alike.
    """
    from gpytorch.kernels import MaternKernel

    from gpmoe import MultitaskGPRegressor
    from gpmoe.kernels import ConvolvedTaskKernel, FreeCoregionalisation, SpectralTaskKernel, TaskKernel

    d, T = problem.X.shape[1], problem.Y.shape[1]
    own = TaskKernel(MaternKernel(nu=2.5, ard_num_dims=d).double(), FreeCoregionalisation(T, rank=0))
    shared = (
        ConvolvedTaskKernel(FreeCoregionalisation(T, rank=2), d) if kind == CONVOLVED else SpectralTaskKernel(T, d, 2)
    )
    return Fitted(MultitaskGPRegressor(kernels=[shared, own]).fit(problem.X, problem.given))


class GPyTorchHadamard:
    """GPyTorch's Hadamard multitask example: Matérn-5/2 of the input times an IndexKernel of rank two, Adam."""

    def __init__(self, problem: Problem) -> None:
        import gpytorch
        import torch

        given, X = problem.given, problem.X
        self.x = (X.mean(0), X.std(0))
        self.y = (np.nanmean(given, 0), np.nanstd(given, 0))
        row, task = np.nonzero(~np.isnan(given))
        inputs = (torch.from_numpy((X[row] - self.x[0]) / self.x[1]), torch.from_numpy(task)[:, None])
        targets = torch.from_numpy((given[row, task] - self.y[0][task]) / self.y[1][task])
        d, T = X.shape[1], given.shape[1]

        class Model(gpytorch.models.ExactGP):  # type: ignore[misc]
            def __init__(self, likelihood: Any) -> None:
                super().__init__(inputs, targets, likelihood)
                self.mean_module = gpytorch.means.ConstantMean()
                self.covar_module = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=d)
                self.task_covar_module = gpytorch.kernels.IndexKernel(num_tasks=T, rank=2)

            def forward(self, x: Any, t: Any) -> Any:
                covariance = self.covar_module(x).mul(self.task_covar_module(t))
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), covariance)

        self.remarks = {"solver": "GPyTorch, Cholesky"}
        torch.manual_seed(0)
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        self.model = Model(self.likelihood).double()
        objective = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.model)
        optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        for _ in range(200):
            optimiser.zero_grad()
            (-objective(self.model(*inputs), targets)).backward()
            optimiser.step()

    def predict(self, X: Array) -> tuple[Array, Array]:
        import torch

        T = len(self.y[0])
        scaled = torch.from_numpy((X - self.x[0]) / self.x[1]).repeat_interleave(T, 0)
        self.model.eval()
        self.likelihood.eval()
        with torch.no_grad():
            posterior = self.likelihood(self.model(scaled, torch.arange(T).repeat(len(X))[:, None]))
        mean, std = (part.numpy().reshape(len(X), T) for part in (posterior.mean, posterior.stddev))
        return mean * self.y[1] + self.y[0], std * self.y[1]


MODELS: dict[str, Callable[[Problem], Any]] = {
    **{name: partial(fit_gpmoe, components=q, rank=rank) for name, (q, rank) in RANKS.items()},
    CHOSEN: fit_by_evidence,
    CONVOLVED: partial(fit_kernels, kind=CONVOLVED),
    SPECTRAL: partial(fit_kernels, kind=SPECTRAL),
    PEER: GPyTorchHadamard,
}


def scores(fitted: Any, problem: Problem) -> Figures:
    """Errors and log scores at the hidden targets, averaged over the tasks that have some."""
    rows = problem.hidden.any(1)
    mean, std = fitted.predict(problem.X[rows])
    given, truth, hidden = problem.given, problem.Y[rows], problem.hidden[rows]
    each: list[dict[str, float]] = []
    for t in np.flatnonzero(hidden.any(0)):
        y, m, s = (table[hidden[:, t], t] for table in (truth, mean, std))
        log_density = -0.5 * np.log(2 * np.pi * s**2) - 0.5 * ((y - m) / s) ** 2
        each.append(
            {
                "mae": float(np.abs(y - m).mean()),
                "smse": float(((y - m) ** 2).mean() / ((y - np.nanmean(given[:, t])) ** 2).mean()),
                "smse_variance": float(((y - m) ** 2).mean() / y.var()),
                "log_score": float(log_density.mean()),
                "standardised_log_score": float(log_density.mean() + np.log(np.nanstd(given[:, t]))),
                "coverage_90": float((np.abs(y - m) < 1.6448536 * s).mean()),
            }
        )
    averages = {key: float(np.mean([task[key] for task in each])) for key in each[0]}
    return averages | {"tasks": each} | fitted.remarks


def run(library: str, data: str, every: int) -> Run:
    problem = thinned(LOADERS[data](), every)
    return Run(lambda: MODELS[library](problem), lambda fitted: scores(fitted, problem))


# --- cases and tables --------------------------------------------------------------------------------


def libraries(data: str) -> list[str]:
    """The peer, and kernels of rows (x, task), write out covariances under autograd: for the two smaller tables."""
    return [name for name in MODELS if name not in (CONVOLVED, SPECTRAL, PEER) or data in (JURA, EEG)]


def case(data: str, library: str, small: bool) -> Case:
    every = {JURA: 4, FX: 4, EEG: 4, WINDOW: 8, WEATHER: 24}[data] if small else 1
    return Case("multitask", library, partial(run, library), {"data": data, "every": every}, repetitions=1, warm_up=0)


@cache
def cases(small: bool) -> list[Case]:
    if not DATA.is_dir():
        print(f"multitask: skipped, no folder {DATA}; set GPMOE_DATA")
        return []
    chosen = [(data, library) for data in PROBLEMS for library in libraries(data)]
    return [case(data, library, small) for data, library in chosen if not (small and library == CHOSEN)]


def row(results: Results, data: str, library: str, small: bool) -> list[str]:
    one = case(data, library, small)
    figures = {name: results.median(one, name) for name in ("mae", "smse", "smse_variance", "standardised_log_score")}
    ours = library == CHOSEN
    found = results.runs(one)
    how = found[0] if found else {}
    size = f"{how['components']}, {how['rank']}" if "rank" in how and library not in (CONVOLVED, SPECTRAL) else "-"
    barred = "mae" if data == JURA else "smse"
    texts = [
        number(value) + (verdict(value, BARS.get(data), at_most=True) if ours and name == barred else "")
        for name, value in figures.items()
    ]
    return [library, size, *texts, number(results.median(one, "coverage_90"), ".2f"), duration(results.median(one))]


def tables(results: Results, small: bool) -> list[Table]:
    header = ["model", "components, rank", "MAE", "SMSE", "SMSE by variance", "standardised log score"]
    notes = {
        JURA: ["Published independent GP: MAE .5739."],
        WEATHER: ["All 15 days: 15,789 training and 374 test targets (one of 375 hidden was never measured)."],
        WINDOW: ["The same test targets, from days 10-15 alone, which the authors of COGP use."],
    }
    shared = [
        "SMSE: over the mean squared distance of test targets from the task's training mean, averaged over tasks.",
        "By evidence: components and rank of the largest BIC among seven, from training targets alone; its time that "
        "of the seven fits.",
    ]
    return [
        Table(
            data,
            [*header, "90 % coverage", "fit time"],
            [row(results, data, library, small) for library in libraries(data)],
            [*notes.get(data, []), *shared],
        )
        for data in PROBLEMS
    ]


SUITE = Suite("multitask", cases, tables)
