"""Sweeps: regret of gpmoe's sampler beside Optuna's GP sampler and TPE, on tables of tuning runs and known functions.

Each seed of each sampler at a problem is one stored run. A table's objective is one of its measured seeds, drawn anew
at each trial; the regret is that of the incumbent's true value, its mean over the seeds, as a share of the distance
from the median configuration to the best. Ordered choices are whole numbers for all samplers.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import DATA, Case, Results, Run, Suite, Table

GPMOE, GP, TPE, RANDOM = "gpmoe", "Optuna GPSampler", "Optuna TPESampler", "random"
SAMPLERS = (GPMOE, GP, TPE, RANDOM)
SEEDS, TRIALS = 3, 60

FUNCTIONS: dict[str, tuple[str, int | None]] = {
    "Branin": ("Branin", None),
    "Hartmann-6": ("Hartmann", 6),
    "Ackley-10": ("Ackley", 10),
    "Levy-8": ("Levy", 8),
    "Rosenbrock-6": ("Rosenbrock", 6),
    "StyblinskiTang-8": ("StyblinskiTang", 8),
}
_MLP = {"alpha": 10, "batch_size": 10, "depth": 3, "learning_rate": 10, "width": 10}
_NET = {
    "activation_1": ["relu", "tanh"],
    "activation_2": ["relu", "tanh"],
    "batch_size": 4,
    "dropout_1": 3,
    "dropout_2": 3,
    "learning_rate": 6,
    "schedule": ["cosine", "const"],
    "units_1": 6,
    "units_2": 6,
}
TABLES: dict[str, tuple[str, dict[str, Any], float]] = {
    "australian": ("hpobench_mlp_tabular/australian.npz", _MLP, 1.0),
    "car": ("hpobench_mlp_tabular/car.npz", _MLP, 1.0),
    "credit_g": ("hpobench_mlp_tabular/credit_g.npz", _MLP, 1.0),
    "vehicle": ("hpobench_mlp_tabular/vehicle.npz", _MLP, 1.0),
    "parkinsons": ("hpolib_tabular/parkinsons_telemonitoring.npz", _NET, -1.0),
    "naval": ("hpolib_tabular/naval_propulsion.npz", _NET, -1.0),
}


@dataclass(frozen=True)
class Problem:
    """What is maximised.

    Attributes:
        space: of the configurations.
        evaluate: the outcome that a sampler is told, and the true value, of a configuration.
        best: the largest true value.
    """

    space: Any
    evaluate: Callable[[dict[str, Any], np.random.Generator], tuple[float, float]]
    best: float


def known_function(name: str) -> Problem:
    """One of BoTorch's test functions, turned round."""
    import torch
    from botorch import test_functions

    from gpmoe.bo import Float, Space

    kind, dimensions = FUNCTIONS[name]
    function = getattr(test_functions, kind)(**({} if dimensions is None else {"dim": dimensions}))
    bounds = function.bounds.T.tolist()
    space = Space({f"x{i}": Float(low, high) for i, (low, high) in enumerate(bounds)})

    def evaluate(configuration: dict[str, Any], rng: np.random.Generator) -> tuple[float, float]:
        x = torch.tensor([list(configuration.values())], dtype=torch.float64)
        value = -float(function(x))
        return value, value

    return Problem(space, evaluate, -function.optimal_value)


def tuning_table(name: str) -> Problem:
    """A complete table of tuning runs."""
    from gpmoe.bo import Categorical, Int, Space

    file, columns, sign = TABLES[name]
    table = np.load(DATA / "hpo" / file)
    values = sign * table["values"].astype(np.float64)
    truth = np.nanmean(values, axis=1)
    scale = float(np.nanmax(truth) - np.nanmedian(truth))
    rows = {tuple(row): i for i, row in enumerate(table["index"].tolist())}
    space = Space({n: Int(0, c - 1) if isinstance(c, int) else Categorical(c) for n, c in columns.items()})

    def evaluate(configuration: dict[str, Any], rng: np.random.Generator) -> tuple[float, float]:
        choices = {n: v if isinstance(columns[n], int) else columns[n].index(v) for n, v in configuration.items()}
        row = rows[tuple(choices[n] for n in columns)]
        return float(rng.choice(values[row])) / scale, float(truth[row]) / scale

    return Problem(space, evaluate, float(np.nanmax(truth)) / scale)


def problem(name: str) -> Problem:
    """The problem of a name."""
    return known_function(name) if name in FUNCTIONS else tuning_table(name)


def make_sampler(library: str, seed: int, space: Any) -> Any:
    """A sampler, set up as its users would."""
    import optuna

    if library == GPMOE:
        from gpmoe.bo import GPMoESampler

        return GPMoESampler(seed, space=space)
    kinds = {GP: optuna.samplers.GPSampler, TPE: optuna.samplers.TPESampler, RANDOM: optuna.samplers.RandomSampler}
    return kinds[library](seed=seed)


def one_sweep(library: str, name: str, seed: int, trials: int) -> dict[str, Any]:
    """Regret of the incumbent after each trial, and processor seconds of each suggestion."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, rng = problem(name), np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=make_sampler(library, seed, task.space))
    told, true, seconds = [], [], []
    for _ in range(trials):
        start = time.process_time()
        trial = study.ask()
        configuration = task.space.suggest(trial)
        seconds.append(time.process_time() - start)
        outcome, value = task.evaluate(configuration, rng)
        study.tell(trial, outcome)
        told.append(outcome)
        true.append(value)
    regret = [task.best - true[int(np.argmax(told[: t + 1]))] for t in range(trials)]
    return {"regret": regret, "regret_end": regret[-1], "suggestion_p95": float(np.quantile(seconds, 0.95))}


def prepare(library: str, problem: str, seed: int, trials: int) -> Run:
    """One sweep as a measurement."""
    return Run(partial(one_sweep, library, problem, seed, trials), lambda figures: figures)


def problems(small: bool) -> list[str]:
    """Their names; without those whose table is not there."""
    if small:
        return ["Branin"]
    return [*FUNCTIONS, *(name for name, (file, *_) in TABLES.items() if (DATA / "hpo" / file).exists())]


def case(library: str, name: str, seed: int, small: bool) -> Case:
    """One run: its seed is a parameter, so that each is stored by itself."""
    parameters = {"problem": name, "seed": seed, "trials": 10 if small else TRIALS}
    return Case("sweep", library, partial(prepare, library), parameters, repetitions=1, warm_up=0)


def cases(small: bool) -> list[Case]:
    """All runs, seed by seed, so that a sweep that is cut short has something of every problem."""
    seeds = range(1 if small else SEEDS)
    return [case(library, name, seed, small) for seed in seeds for name in problems(small) for library in SAMPLERS]


def end_regrets(results: Results, library: str, name: str, small: bool) -> list[float]:
    """Final regrets of the seeds that are stored."""
    runs = (results.values(case(library, name, seed, small), "regret_end") for seed in range(SEEDS))
    return [regret for values in runs for regret in values]


def ranks(results: Results, names: list[str], small: bool) -> dict[str, list[int]]:
    """Rank of each sampler's median at each problem that all have run, 1 for the best."""
    places: dict[str, list[int]] = {library: [] for library in SAMPLERS}
    for name in names:
        found = {library: end_regrets(results, library, name, small) for library in SAMPLERS}
        if all(found.values()):
            medians = {library: statistics.median(regrets) for library, regrets in found.items()}
            for library in SAMPLERS:
                places[library].append(1 + sum(m < medians[library] for m in medians.values()))
    return places


def tables(results: Results, small: bool) -> list[Table]:
    """Median final regret at each problem with the range over seeds, and average ranks."""
    names = problems(small)
    rows = []
    for name in names:
        cells = []
        for library in SAMPLERS:
            found = end_regrets(results, library, name, small)
            cells.append(
                f"{statistics.median(found):.3g} ({min(found):.2g} to {max(found):.2g})" if found else "not run"
            )
        rows.append([name, *cells])
    places = ranks(results, names, small)
    rows.append(["average rank", *(f"{np.mean(p):.2f}" if p else "not run" for p in places.values())])
    times = [
        max(
            max(results.values(case(lib, n, s, small), "suggestion_p95"), default=0.0)
            for n in names
            for s in range(SEEDS)
        )
        for lib in SAMPLERS
    ]
    rows.append(["slowest p95 of a suggestion, processor seconds", *(f"{t:.3g}" for t in times)])
    trials = 10 if small else TRIALS
    notes = [
        "Bars: average rank the best of all; mean regret on the tables below GPSampler's and TPE's; p95 at most 0.3 s.",
        "Regret of the incumbent's true value: in units of the function, and of median minus best of a table.",
    ]
    return [Table(f"Regret after {trials} trials, median (range) over seeds", ["problem", *SAMPLERS], rows, notes)]


SUITE = Suite("sweeps", cases, tables)
