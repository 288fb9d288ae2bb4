"""The demonstration: a Gaussian process against a mixture of GP experts, cross-validated on two real tables."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_wine
from sklearn.model_selection import KFold

from gpmoe.data import load_motorcycle
from gpmoe.errors import GPMoEWarning, MissingPackageError
from gpmoe.estimators import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.metrics import scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODELS = ("gp", "moe")
_LABELS = {
    "log_score": "log score (nats, higher is better)",
    "rmse": "RMSE",
    "crps": "CRPS",
    "coverage_90": "coverage of 90 % intervals",
}


@dataclass(frozen=True)
class _Problem:
    """A table to cross-validate on: ``X`` ``(n, d)`` and ``y`` ``(n,)``."""

    name: str
    X: NDArray[np.float64]
    y: NDArray[np.float64]
    n_experts: int | str
    folds: int = 10

    def splits(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        yield from KFold(self.folds, shuffle=True, random_state=0).split(self.X)


@dataclass(frozen=True)
class _FoldResult:
    """Scores of one model on one held-out fold, with what it warned of."""

    problem: str
    model: str
    fold: int
    scores: dict[str, float]
    warned: tuple[str, ...]


def run_demo(out: Path, console: Console, n_jobs: int = 2) -> None:
    """Cross-validate both models on both tables, print the scores, and write them and a figure into a folder.

    Args:
        out: folder, made if it is not there; gets ``scores.csv`` and ``motorcycle.png``.
        console: where the table goes.
        n_jobs: folds that run at once, each on one thread.

    Raises:
        MissingPackageError: if matplotlib is not installed.
    """
    start = time.perf_counter()
    figure = _new_figure()
    out.mkdir(parents=True, exist_ok=True)
    problems = _problems()
    results = _cross_validate(problems, console, n_jobs)
    summary = _summarise(results)
    console.print(_score_table(problems, summary))
    summary.write_csv(out / "scores.csv")
    _draw(figure, problems[0])
    figure.savefig(out / "motorcycle.png", dpi=150)
    _print_warnings(results, console)
    console.print(f"{out / 'scores.csv'}: the scores above", highlight=False)
    console.print(f"{out / 'motorcycle.png'}: bands, experts and gate on the motorcycle data", highlight=False)
    console.print(f"took {time.perf_counter() - start:.0f} s", highlight=False)


def _problems() -> list[_Problem]:
    wine = load_wine().data  # twelve measurements of a wine and, last, its proline in mg/l
    motorcycle = _Problem("motorcycle", *load_motorcycle(), n_experts="auto")
    return [motorcycle, _Problem("wine, proline", wine[:, :-1], wine[:, -1], n_experts=2)]


def _estimator(model: str, problem: _Problem) -> GPRegressor | MixtureOfExpertsRegressor:
    if model == "gp":
        return GPRegressor(random_state=0)
    return MixtureOfExpertsRegressor(problem.n_experts, random_state=0)


def _cross_validate(problems: list[_Problem], console: Console, n_jobs: int) -> list[_FoldResult]:
    jobs = [
        joblib.delayed(_score_fold)(problem, model, fold, train, test)
        for problem in problems
        for fold, (train, test) in enumerate(problem.splits())
        for model in _MODELS
    ]
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        results = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
        finished = list(track(results, "cross-validating", total=len(jobs), console=console, transient=True))
    return sorted(finished, key=lambda result: (result.problem, result.model, result.fold))


def _score_fold(
    problem: _Problem, model: str, fold: int, train: NDArray[np.intp], test: NDArray[np.intp]
) -> _FoldResult:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GPMoEWarning)
        fitted = _estimator(model, problem).fit(problem.X[train], problem.y[train])
        values = scores(fitted.predict_dist(problem.X[test]), problem.y[test])
    warned = tuple(str(entry.message) for entry in caught if issubclass(entry.category, GPMoEWarning))
    return _FoldResult(problem.name, model, fold, {name: values[name] for name in _LABELS}, warned)


def _summarise(results: list[_FoldResult]) -> pl.DataFrame:
    """One row a problem, model and score: the mean over folds."""
    rows = [
        {"data": result.problem, "model": result.model, "score": name, "value": value}
        for result in results
        for name, value in result.scores.items()
    ]
    return pl.DataFrame(rows).group_by("data", "model", "score", maintain_order=True).agg(pl.col("value").mean())


def _score_table(problems: list[_Problem], summary: pl.DataFrame) -> Table:
    values = {(data, model, name): value for data, model, name, value in summary.iter_rows()}
    table = Table(title="Means over the held-out folds, in units of y; the better score in bold")
    for heading in ("data", "score"):
        table.add_column(heading)
    for heading in ("Gaussian process", "mixture of experts"):
        table.add_column(heading, justify="right")
    for problem in problems:
        size = f"{problem.name}\n{len(problem.X)} x {problem.X.shape[1]}, {problem.folds} folds"
        for row, (name, label) in enumerate(_LABELS.items()):
            gp, moe = (values[problem.name, model, name] for model in _MODELS)
            heading = size.split("\n")[row] if row < 2 else ""
            table.add_row(heading, label, *_emphasised(name, gp, moe), end_section=name == "coverage_90")
    return table


def _emphasised(name: str, *values: float) -> list[str]:
    """The values as text, the best in bold."""
    best = min(values, key=lambda value: _cost(name, value))
    return [f"[bold]{value:.3f}[/bold]" if value == best else f"{value:.3f}" for value in values]


def _cost(name: str, value: float) -> float:
    """Lowest for the highest log score, for the coverage nearest 0.9, and for the lowest of other scores."""
    if name == "coverage_90":
        return abs(value - 0.9)
    return -value if name == "log_score" else value


def _print_warnings(results: list[_FoldResult], console: Console) -> None:
    warned = [result for result in results if result.warned]
    if warned:
        first = " ".join(warned[0].warned[0].split())
        text = f"note: {len(warned)} of {len(results)} fits warned; the first, on {warned[0].problem}: {first}"
        console.print(text, markup=False, highlight=False)


def _new_figure() -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("the demonstration draws: type pip install 'gpmoe[plot]'.") from error
    return Figure(figsize=(8.5, 6), layout="constrained")


def _draw(figure: "Figure", problem: _Problem) -> None:
    """Above: data, both models' bands and the experts; below: the gate."""
    from gpmoe.plotting import expert_curves, plot_band, plot_experts, plot_gate, posterior_band

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    grid = np.linspace(problem.X.min(), problem.X.max(), 300)[:, None]
    lower, upper = _estimator("gp", problem).fit(problem.X, problem.y).predict_dist(grid).interval(0.9)
    for end, label in ((lower, "90% of plain GP"), (upper, "_")):
        top.plot(grid[:, 0], end, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)), label=label)
    mixture = _estimator("moe", problem).fit(problem.X, problem.y)
    curves = expert_curves(mixture, grid)
    band = posterior_band(mixture, grid, levels=(0.5, 0.9), include_latent=False)
    plot_band(band, top, with_mean=False, colour="grey")
    plot_experts(curves, top, X=problem.X, y=problem.y, xlabel="", ylabel="acceleration (g)")
    top.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    plot_gate(curves, bottom, xlabel="time after impact (ms)")
