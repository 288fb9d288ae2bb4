"""Local experts: published comparisons repeated, against exact and sparse processes, and cost against rows."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.datasets import load_split
from benchmarks.harness import DATA, Case, Figures, Results, Run, Suite, Table
from benchmarks.large_sparse import load_masked
from benchmarks.tables import duration, number, verdict

FOUR, FOLDS, LARGE, GROWTH, BLOCKS, PREDICTION = (
    "4 experts", "100 points an expert", "large", "growth", "growth out of core", "prediction")  # fmt: skip
PUBLISHED = {  # negative log score and coverage of 95 % of Schürch's notebook, concrete, 927 / 103 rows, mean of 10
    "exact": (0.235, 0.92),
    "minimum_variance": (0.305, 0.92),
    "gpoe": (0.34, 0.96),
    "bcm": (0.58, 0.82),
    "rbcm": (0.715, 0.79),
    "grbcm": (0.355, 0.92),
    "cpoe 1": (0.295, 0.92),
    "cpoe 2": (0.295, 0.91),
    "cpoe 3": (0.29, 0.91),
    "cpoe 4": (0.295, 0.91),
}
GRBCM = {"concrete": 0.278, "energy": -1.594, "airfoil": 0.009}
METHODS = ("grbcm", "cpoe 1", "cpoe 2", "cpoe 3", "cpoe 4", "nested", "minimum_variance", "rbcm", "bcm", "gpoe",
           "gpoe_softmax", "barycentre")  # fmt: skip
LOCAL, LARGER, MIXTURE, EXACT, SPARSE = (
    "gpmoe, local experts", "gpmoe, local experts of 500", "gpmoe, mixture by svi", "gpmoe, exact GP",
    "gpmoe, SVGP-512")  # fmt: skip

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def standardised(name: str, fold: int) -> Split:
    """A fold of a table, standardised by its training rows: X, y, X_test, y_test."""
    if (DATA / "uci10" / name).is_dir():
        return load_masked(name, fold)
    X, y, X_test, y_test = load_split(name, fold)
    center, spread = X.mean(0), np.where(X.std(0) > 0, X.std(0), 1.0)
    parts = ((X - center) / spread, (y - y.mean()) / y.std(), (X_test - center) / spread, (y_test - y.mean()) / y.std())
    first, second, third, fourth = map(torch.from_numpy, parts)
    return first, second, third, fourth


def concrete_by_schuerch(seed: int) -> Split:
    """927 / 103 rows, standardised on all, by NumPy's old permutation of a seed, as the notebook draws them."""
    table = np.loadtxt(DATA / "uci20" / "concrete" / "data.txt")
    table = (table - table.mean(0)) / table.std(0)
    order = np.random.RandomState(seed).permutation(len(table))
    train, test = torch.from_numpy(table[order[:927]]), torch.from_numpy(table[order[927:]])
    return train[:, :-1], train[:, -1], test[:, :-1], test[:, -1]


def scores(mean: Tensor, variance: Tensor, y: Tensor) -> Figures:
    normal = torch.distributions.Normal(mean, variance.sqrt())
    return {
        "nls": -normal.log_prob(y).mean().item(),
        "rmse": (mean - y).square().mean().sqrt().item(),
        "covered": ((mean - y).abs() <= 1.96 * variance.sqrt()).double().mean().item(),
    }


def take(model: Any, method: str) -> None:
    rule, _, degree = method.partition(" ")
    model.combine_by(rule, int(degree or 1))


# Published comparisons. The notebook combines observations, noise inside each expert; here that is repeated with the
# same rules, and latent functions, noise added once, stand beside it.


def noise_inside(model: Any, X: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """The rule on predictions of y, as published code has it."""
    from gpmoe.models import aggregation as rules

    noise, level = model.new_noise(), model.mean_module.constant.detach()
    kept = model.aggregation
    model.combine_by("grbcm" if method == "grbcm" else "rbcm")
    with torch.no_grad():
        means, latent = model._moments(X, model._answering(X), model._hyper())
        base = model._communicated(X) if method == "grbcm" else None
    model.combine_by(kept)
    means, variances = means - level, latent + noise
    priors = (model.covar_module(X, diag=True).detach() + noise).unsqueeze(-1).expand(means.shape)
    votes = rules.differential_entropy_votes(variances, priors)
    if base is not None:
        mean, variance = rules.generalised_robust_committee(means, variances, base[0] - level, base[1] + noise)
    elif method == "bcm":
        mean, variance = rules.committee_machine(means, variances, priors, priors[:, 0])
    elif method == "rbcm":
        mean, variance = rules.committee_machine(means, variances, priors, priors[:, 0], votes)
    elif method == "gpoe":  # the notebook's "GPoE-scaled": entropy votes that sum to one
        mean, variance = rules.product_of_experts(means, variances, votes / votes.sum(-1, keepdim=True))
    else:
        mean, variance = rules.minimum_variance(means, variances)
    return level + mean, variance


def four_experts(seed: int, n_points: int) -> Run:
    """Concrete, RBF with a lengthscale per input, k-d tree, hyperparameters shared."""
    from gpytorch.kernels import RBFKernel, ScaleKernel

    from gpmoe.inference.fit import fit_quietly
    from gpmoe.inference.fit_local_experts import ExpertPlan, fit_local_experts
    from gpmoe.models.exact_gp import ExactGP

    X, y, X_test, y_test = concrete_by_schuerch(seed)

    def step() -> Figures:
        figures: Figures = {}
        gp = ExactGP(X, y, kernel=ScaleKernel(RBFKernel(ard_num_dims=X.shape[-1])))
        fit_quietly(gp)
        gp.requires_grad_(False)
        mean, variance = gp.marginals(X_test)
        figures |= named("exact", scores(mean, variance + gp.new_noise(), y_test))
        kernel = ScaleKernel(RBFKernel(ard_num_dims=X.shape[-1]))
        plan = ExpertPlan(n_points, partition="tree", n_nearest=None, kernel=kernel, seed=seed)
        model = fit_local_experts(X, y, plan).model.requires_grad_(False)
        for method in list(PUBLISHED)[1:]:
            take(model, method)
            mean, variance = model.marginals(X_test)
            figures |= named(method, scores(mean, variance + model.new_noise(), y_test))
            if not method.startswith("cpoe"):
                inside = noise_inside(model, X_test, method)
                figures |= named(f"{method}, noise inside", scores(*inside, y_test))
        return figures

    return Run(step, lambda figures: figures)


def named(method: str, figures: Figures) -> Figures:
    return {f"{method}: {key}": value for key, value in figures.items()}


def fold(data: str, split: int, points: int) -> Run:
    """All methods on one fold, and which of them predicts a tenth of the training rows best."""
    from gpmoe.inference.fit_local_experts import ExpertPlan, fit_local_experts

    X, y, X_test, y_test = standardised(data, split)
    plan = ExpertPlan(points, n_nearest=None, seed=split)

    def on(X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor) -> Figures:
        model, figures = fit_local_experts(X, y, plan).model.requires_grad_(False), {}
        for method in METHODS:
            take(model, method)
            mean, variance = model.marginals(X_test)
            figures |= named(method, scores(mean, variance + model.new_noise(), y_test))
        return figures

    def step() -> Figures:
        figures = on(X, y, X_test, y_test)
        held = np.random.default_rng(split).permutation(len(X))
        kept, out = torch.from_numpy(held[len(X) // 10 :]), torch.from_numpy(held[: len(X) // 10])
        inner = on(X[kept], y[kept], X[out], y[out])
        best = min(METHODS, key=lambda method: inner[f"{method}: nls"])
        return figures | {"chosen": best, "chosen: nls": figures[f"{best}: nls"]}

    return Run(step, lambda figures: figures)


# Against exact and sparse processes.


def local(data: str, n: int | None, points: int, rule: str) -> Run:
    from gpmoe.inference.fit_local_experts import ExpertPlan, fit_local_experts

    X, y, X_test, y_test = standardised(data, 0)
    name, _, degree = rule.partition(" ")
    plan = ExpertPlan(points, aggregation=name, degree=int(degree or 1))  # type: ignore[arg-type]

    def step() -> Figures:
        model = fit_local_experts(X[:n], y[:n], plan).model.requires_grad_(False)
        mean, variance = model.marginals(X_test)
        return scores(mean, variance + model.new_noise(), y_test)

    return Run(step, lambda figures: figures)


def larger(data: str, n: int | None, points: int, rule: str) -> Run:
    """Experts of 500 points, without the correlations that make "cpoe" dear."""
    return local(data, n, points if n else 500, "grbcm")


def exact(data: str, n: int | None, points: int, rule: str) -> Run:
    """By conjugate gradients, several times faster than Cholesky factors at these sizes."""
    from gpmoe.inference.fit import fit_quietly
    from gpmoe.inference.solver import ConjugateGradients
    from gpmoe.models.iterative_gp import IterativeGP

    X, y, X_test, y_test = standardised(data, 0)

    def step() -> Figures:
        gp = IterativeGP(X[:n], y[:n], solver=ConjugateGradients())
        fit_quietly(gp)
        gp.requires_grad_(False)
        mean, variance = gp.marginals(X_test)
        return scores(mean, variance + gp.new_noise(), y_test)

    return Run(step, lambda figures: figures)


def sparse(data: str, n: int | None, points: int, rule: str) -> Run:
    """512 inducing points by minibatches."""
    from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor

    inducing, epochs = (20, 2) if n else (512, 50)
    return estimated(
        data, n, SparseGPRegressor(inducing, inference="stochastic", max_iterations=epochs, random_state=0)
    )


def mixture(data: str, n: int | None, points: int, rule: str) -> Run:
    """Two experts of 256 inducing points each, by minibatches."""
    from gpmoe.estimators.mixture_of_experts_regressor import MixtureOfExpertsRegressor

    inducing, epochs = (20, 2) if n else (256, 30)
    return estimated(
        data,
        n,
        MixtureOfExpertsRegressor(2, inference="svi", n_inducing=inducing, max_iterations=epochs, random_state=0),
    )


def estimated(data: str, n: int | None, model: Any) -> Run:
    X, y, X_test, y_test = standardised(data, 0)

    def step() -> Figures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictive = model.fit(X[:n].numpy(), y[:n].numpy()).predict_dist(X_test.numpy())
        covered = predictive.interval(0.95)
        return {
            "nls": -float(predictive.log_prob(y_test.numpy()).mean()),
            "rmse": float(np.sqrt(np.square(predictive.mean - y_test.numpy()).mean())),
            "covered": float(((covered[0] <= y_test.numpy()) & (y_test.numpy() <= covered[1])).mean()),
        }

    return Run(step, lambda figures: figures)


# Cost against rows.


def two_regimes(n: int, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Slow and quiet on one side of a plane, fast and loud on the other."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, d))
    slow, fast = np.sin(2 * X[:, 1] + X[:, 2]), np.sin(6 * X[:, 1]) * np.cos(3 * X[:, 2])
    loud = X[:, 0] > 0
    return X, np.where(loud, fast + 0.3 * rng.standard_normal(n), slow + 0.05 * rng.standard_normal(n))


def growth(n: int) -> Run:
    from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor

    X, y = two_regimes(n + 10_000)
    model = LocalExpertsRegressor(points_per_expert=100, random_state=0)

    def step() -> Figures:
        start = time.perf_counter()
        model.fit(X[:n], y[:n])
        fitted = time.perf_counter()
        score = model.log_score(X[n:], y[n:])
        return {"fit": fitted - start, "nls": -score, "answered": time.perf_counter() - fitted}

    return Run(step, lambda figures: figures)


def from_blocks(n: int, rows: int) -> Run:
    """Rows that are made a block at a time, so that the peak of memory is the fit's."""
    from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor

    model = LocalExpertsRegressor(points_per_expert=100, random_state=0)
    X, y = two_regimes(10_000, seed=10**6)

    def step() -> Figures:
        start = time.perf_counter()
        model.fit(two_regimes(rows, seed=block) for block in range(n // rows))
        return {"fit": time.perf_counter() - start, "nls": -model.log_score(X, y)}

    return Run(step, lambda figures: figures)


def prediction(n: int, m: int) -> Run:
    from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor

    X, y = two_regimes(n + m)
    model = LocalExpertsRegressor(points_per_expert=100, random_state=0).fit(X[:n], y[:n])
    return Run(lambda: model.predict(X[n:], return_std=True))


def problems(name: str, small: bool) -> list[dict[str, Any]]:
    uci = [data for data in ("elevators", "pol", "pumadyn32nm") if (DATA / "uci10" / data).is_dir()]
    if name == FOUR:
        seeds = range(1 if small else 10) if (DATA / "uci20" / "concrete").is_dir() else ()
        return [{"seed": seed, "n_points": 232} for seed in seeds]
    if name == FOLDS:
        return [
            {"data": data, "split": i, "points": 100}
            for data in GRBCM
            if any((DATA / folder / data).is_dir() for folder in ("uci10", "uci20"))
            for i in range(1 if small else 10)
        ]
    if name == LARGE:
        size = {"n": 400, "points": 100} if small else {"n": None, "points": 300}
        return [{"data": data, **size, "rule": "cpoe 2"} for data in uci]
    if name == GROWTH:
        return [{"n": n} for n in ((500, 1000) if small else (10_000, 31_623, 100_000, 316_228, 1_000_000))]
    if name == BLOCKS:
        sizes = (100_000, 1_000_000, 3_000_000)
        return [{"n": 1000, "rows": 500}] if small else [{"n": n, "rows": 50_000} for n in sizes]
    return [{"n": 1000, "m": 500}] if small else [{"n": 50_000, "m": 100_000}, {"n": 1_000_000, "m": 100_000}]


RUNS: dict[str, dict[str, Callable[..., Run]]] = {
    FOUR: {"gpmoe": four_experts},
    FOLDS: {"gpmoe": fold},
    LARGE: {LOCAL: local, LARGER: larger, MIXTURE: mixture, EXACT: exact, SPARSE: sparse},
    GROWTH: {"gpmoe": growth},
    BLOCKS: {"gpmoe": from_blocks},
    PREDICTION: {"gpmoe": prediction},
}


def case(name: str, library: str, parameters: dict[str, Any]) -> Case:
    isolated = name in (GROWTH, BLOCKS, PREDICTION)
    return Case(name, library, RUNS[name][library], parameters, repetitions=1, warm_up=0, isolated=isolated)


def cases(small: bool) -> list[Case]:
    if not DATA.is_dir():
        print(f"mixtures_local: real data skipped, no {DATA}; set GPMOE_DATA")
    return [
        case(name, library, parameters)
        for name, libraries in RUNS.items()
        for parameters in problems(name, small)
        for library in libraries
    ]


def mean_of(results: Results, name: str, small: bool, figure: str, **only: Any) -> tuple[float, float]:
    """Mean over the problems of a kind, and its standard error."""
    chosen = [each for each in problems(name, small) if only.items() <= each.items()]
    values = [value for each in chosen for value in results.values(case(name, "gpmoe", each), figure)]
    if not values:
        return math.nan, math.nan
    return float(np.mean(values)), float(np.std(values) / max(1, len(values) - 1) ** 0.5)


def four_rows(results: Results, small: bool) -> list[list[str]]:
    rows, pairs = [], []
    for method, (nls, covered) in PUBLISHED.items():
        latent = [mean_of(results, FOUR, small, f"{method}: {key}")[0] for key in ("nls", "covered")]
        inside = [mean_of(results, FOUR, small, f"{method}, noise inside: {key}")[0] for key in ("nls", "covered")]
        found = latent if math.isnan(inside[1]) else inside
        near = verdict(abs(found[1] - covered), 0.03, at_most=True)
        rows.append([method, *map(number, (nls, covered)), *map(number, found), near, *map(number, latent)])
        pairs.append((nls, found[0]))
    rank = float(spearmanr(pairs).statistic) if np.isfinite(pairs).all() else math.nan
    rows.append(["rank correlation of scores", "", "", number(rank, ".2f"), "", "", "", ""])
    return rows


def fold_rows(results: Results, small: bool) -> list[list[str]]:
    rows = []
    for method in (*METHODS, "chosen"):
        cells = []
        for data, bar in GRBCM.items():
            mean, error = mean_of(results, FOLDS, small, f"{method}: nls", data=data)
            cells.append(f"{number(mean)} ± {number(error)}{verdict(mean, bar, at_most=True)}")
        rows.append([method, *cells])
    return rows


def large_rows(results: Results, small: bool) -> list[list[str]]:
    rows = []
    for each in problems(LARGE, small):
        experts, larger_ones, mixed, dense, svgp = (case(LARGE, library, each) for library in RUNS[LARGE])
        for one in (experts, larger_ones, mixed, dense, svgp):
            figures = [number(results.median(one, key)) for key in ("nls", "rmse", "covered")]
            bars = ["", ""]
            if one in (experts, larger_ones, mixed):
                share = results.median(one) / results.median(dense)
                gap = results.median(one, "nls") - results.median(svgp, "nls")
                bars = [
                    f"{share:.3f}{verdict(share, 0.1, at_most=True)}",
                    f"{gap:+.3f}{verdict(gap, 0.0, at_most=True)}",
                ]
            rows.append([each["data"], one.library, duration(results.median(one)), *figures, *bars])
    return rows


def growth_rows(results: Results, small: bool) -> list[list[str]]:
    each = [case(GROWTH, "gpmoe", parameters) for parameters in problems(GROWTH, small)]
    sizes, times = [c.parameters["n"] for c in each], [results.median(c, "fit") for c in each]
    known = [i for i, t in enumerate(times) if t == t]
    slope = math.nan
    if len(known) > 1:
        slope = float(np.polyfit(np.log([sizes[i] for i in known]), np.log([times[i] for i in known]), 1)[0])
    rows = [
        [f"{n:,}", duration(t), number(results.median(c, "nls")), f"{results.median(c, 'peak_bytes') / 1e9:.2f}", ""]
        for n, t, c in zip(sizes, times, each, strict=True)
    ]
    rows[-1][-1] = f"{number(slope, '.2f')}{verdict(slope, 1.1, at_most=True)}"
    for c in (case(BLOCKS, "gpmoe", parameters) for parameters in problems(BLOCKS, small)):
        figures = duration(results.median(c, "fit")), number(results.median(c, "nls"))
        rows.append([f"{c.parameters['n']:,} in blocks", *figures, f"{results.median(c, 'peak_bytes') / 1e9:.2f}", ""])
    return rows


def tables(results: Results, small: bool) -> list[Table]:
    four = Table(
        "Concrete, 4 experts of 232 rows, 10 splits",
        ["method", "published score", "published cover", "score", "cover of 95 %", "within .03",
         "score, noise added once", "cover, noise added once"],
        four_rows(results, small),
        ("Negative log scores. Published: Schürch et al. (2023), whose products combine predictions of y, with noise"
         " inside each expert, and whose gPoE has entropy votes that sum to one; columns 4-6 do the same. The library"
         " itself combines latent functions and adds noise once: last two columns.",),
    )  # fmt: skip
    folds = Table(
        "About 100 points an expert, 10 folds: negative log score, standardised units",
        ["method", *(f"{data} (published grBCM {bar})" for data, bar in GRBCM.items())],
        fold_rows(results, small),
        ('"chosen": the method that predicted a random tenth of the training rows best, fold by fold.',),
    )
    large = Table(
        "Against exact and sparse processes",
        ["data", "library", "time", "negative log score", "RMSE", "cover of 95 %", "time / exact", "score - SVGP"],
        large_rows(results, small),
        (
            "Mask 0 of uci10. Local experts: 300 points each, correlated product of degree 2, or 500 and grBCM; all"
            " defaults otherwise.",
            "The exact process by conjugate gradients, several times faster here than by Cholesky factors.",
        ),
    )
    asked = [
        [f"{each['n']:,}", f"{each['m']:,}", duration(results.median(case(PREDICTION, "gpmoe", each)))]
        for each in problems(PREDICTION, small)
    ]
    return [
        four,
        folds,
        large,
        Table(
            "Cost against rows: 8 inputs, two regimes, 100 points an expert, grBCM",
            ["rows", "fit", "negative log score", "peak GB", "exponent"],
            growth_rows(results, small),
            ("In blocks: rows made 50,000 at a time; the peak counts pages of mapped files, which can be taken back.",),
        ),
        Table("Prediction with standard deviations", ["rows", "new points", "time"], asked),
    ]


SUITE = Suite("mixtures_local", cases, tables)
