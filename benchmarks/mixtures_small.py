"""Mixtures on small tables: held-out log scores beside one GP and one GP with input-dependent noise."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.accuracy import average, fit_gp, fit_mixture, motorcycle_split, scores
from benchmarks.datasets import Split, load_motorcycle
from benchmarks.harness import DATA, Case, Results, Run, Suite, Table
from benchmarks.libraries import Array
from benchmarks.tables import duration, number, verdict

GP, NOISY, MIXTURE = "gpmoe GP", "gpmoe heteroscedastic GP", "gpmoe mixture"
SINGLE, SPLITS, FOLDS = "motorcycle, one split", "motorcycle, ten 70/30 splits", "ten folds"
SINGLE_BAR = -0.23
TABLES = ("lidar", "fossil", "jump1d", "mogpe artificial")


class Scaled:
    """A model of standardised data that predicts in the caller's units."""

    def __init__(self, model: Any, scaling: Any) -> None:
        self.model, self.scaling = model, scaling

    def predict_dist(self, X: Array) -> Any:
        return self.scaling.predictive(self.model.predictive(self.scaling.inputs(X)))


def scaled(X: Array, y: Array) -> tuple[Any, Any, Any]:
    """The scaling of gpmoe's estimators, and the data in it."""
    from gpmoe.estimators.arrays import Scaling

    scaling = Scaling.learn(X, y, "standardise")
    return scaling, scaling.inputs(X), scaling.targets(y)


def fit_noisy(X: Array, y: Array) -> Scaled:
    """A GP whose log noise variance is a GP."""
    from gpmoe.inference import fit
    from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP

    scaling, inputs, targets = scaled(X, y)
    gp = HeteroscedasticGP(inputs, targets)
    fit(gp)
    return Scaled(gp, scaling)


MODELS: dict[str, Callable[[Array, Array], Any]] = {
    GP: fit_gp,
    NOISY: fit_noisy,
    MIXTURE: fit_mixture,
}


# --- problems ----------------------------------------------------------------------------------------


def permuted_split(seed: int) -> Split:
    """Seventy per cent of motorcycle by NumPy's RandomState; y standardised on all rows."""
    X, y, _ = load_motorcycle()
    order = np.random.RandomState(seed).permutation(len(y))
    train, test = order[:93], order[93:]
    return X[train], y[train], X[test], y[test]


@cache
def load_table(data: str) -> tuple[Array, Array]:
    """Inputs ``(n, 1)`` and targets of a small table."""
    if data == "mogpe artificial":
        file = np.load(DATA / "mogpe" / "artificial-data-used-in-paper.npz")
        return file["x"], file["y"][:, 0]
    if data == "jump1d":
        table = np.loadtxt(DATA / "regdata" / "jump1d.csv", delimiter=",", skiprows=1)
    else:
        table = np.loadtxt(DATA / "semipar" / f"{data}.txt", skiprows=1)
    return table[:, :1], table[:, 1]


def fold_split(data: str, fold: int) -> Split:
    """One of ten folds of a permutation by RandomState(0); y standardised on all rows, so that scores compare."""
    X, y = load_table(data)
    y = (y - y.mean()) / y.std()
    parts = np.array_split(np.random.RandomState(0).permutation(len(y)), 10)
    train = np.concatenate([part for i, part in enumerate(parts) if i != fold])
    return X[train], y[train], X[parts[fold]], y[parts[fold]]


def run(split: Callable[..., Split], library: str, **which: Any) -> Run:
    X, y, X_test, y_test = split(**which)

    def figures(model: Any) -> dict[str, Any]:
        inner = getattr(model, "model", getattr(model, "model_", None))
        return scores(model, X_test, y_test) | {"experts": getattr(inner, "n_experts", 1)}

    return Run(lambda: MODELS[library](X, y), figures)


# --- cases and tables --------------------------------------------------------------------------------


def case(name: str, library: str, **which: Any) -> Case:
    split = {SINGLE: motorcycle_split, SPLITS: permuted_split, FOLDS: fold_split}[name]
    return Case(name, library, partial(run, split, library), which, repetitions=1, warm_up=0)


def groups(small: bool) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Title of each table and its problems."""
    folds = range(1 if small else 10)
    found = {SINGLE: [(SINGLE, dict[str, Any]())], SPLITS: [(SPLITS, {"seed": seed}) for seed in folds]}
    for data in TABLES[:1] if small else TABLES:
        found[f"{data}, {FOLDS}"] = [(FOLDS, {"data": data, "fold": fold}) for fold in folds]
    return found


def libraries(title: str) -> list[str]:
    """The models of a table: on 900 rows, no GP with input-dependent noise, which takes a minute there."""
    return [GP, MIXTURE] if title.startswith("mogpe") else list(MODELS)


def cases(small: bool) -> list[Case]:
    if not DATA.is_dir():
        print(f"mixtures_small: skipped, no folder {DATA}; set GPMOE_DATA")
        return []
    return [
        case(name, library, **which)
        for title, problems in groups(small).items()
        for name, which in problems
        for library in libraries(title)
    ]


def difference(results: Results, ours: list[Case], base: list[Case]) -> tuple[float, str]:
    """Mean of the paired differences of log scores, and with its standard error as text."""
    pairs = [(results.median(a, "log_score"), results.median(b, "log_score")) for a, b in zip(ours, base, strict=True)]
    gains = np.array([a - b for a, b in pairs if a == a and b == b])
    if not gains.size:
        return float("nan"), "-"
    error = gains.std(ddof=1) / np.sqrt(gains.size) if gains.size > 1 else float("nan")
    return float(gains.mean()), f"{gains.mean():+.3f} ± {error:.3f}"


def row(results: Results, title: str, problems: list[tuple[str, dict[str, Any]]], library: str) -> list[str]:
    of = {each: [case(name, each, **which) for name, which in problems] for each in MODELS}
    score, text = average(results, of[library], "log_score")
    above_gp, above_gp_text = difference(results, of[library], of[GP])
    above_noisy, above_noisy_text = difference(results, of[library], of[NOISY])
    mixture = library == MIXTURE
    seconds = [results.median(each) for each in of[library]]
    return [
        library,
        text + verdict(score, SINGLE_BAR if mixture and title == SINGLE else None),
        above_gp_text + verdict(above_gp, 0.0 if mixture and title.endswith(FOLDS) else None),
        above_noisy_text + verdict(above_noisy, 0.0 if mixture and title == SPLITS else None),
        number(average(results, of[library], "rmse")[0]),
        number(average(results, of[library], "coverage_90")[0], ".2f"),
        number(average(results, of[library], "experts")[0], ".1f"),
        duration(max(seconds)) + verdict(max(seconds), 10.0 if title == SPLITS else None, at_most=True),
    ]


def tables(results: Results, small: bool) -> list[Table]:
    header = [
        "model",
        "log score",
        "above GP",
        "above heteroscedastic GP",
        "RMSE",
        "90 % coverage",
        "experts",
        "slowest",
    ]
    notes = [
        "Mean ± standard error over splits; differences are paired. y standardised on all rows of the table.",
        "The mixture at its defaults: kind and number of experts by the approximate evidence of the training rows; up"
        " to 500 rows one GP with input-dependent noise is among them.",
    ]
    return [
        Table(title, header, [row(results, title, problems, library) for library in libraries(title)], notes)
        for title, problems in groups(small).items()
    ]


SUITE = Suite("mixtures_small", cases, tables)
