"""Mixtures at scale: a million rows, growth of fit time, and prediction beside SMT's mixture.

SMT is a peer for development alone: `pip install --no-deps --target FOLDER smt pydoe jenn orjson jsonpointer jsonschema
jsonschema-specifications attrs referencing rpds-py` and set ``GPMOE_SMT=FOLDER``.
"""

import importlib
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.tables import duration, number, verdict

Array = NDArray[np.float64]
SCALE, PREDICT = "two-regime GP, 8 inputs", "prediction with 8 experts"
MIXTURE, SMT = "gpmoe mixture, svi", "SMT"
FEATURES, NOISE = 500, (0.1, 0.5)
NEW = 100_000  # points to predict
PEER_POINTS = 500  # points that SMT predicts one by one; its time for more is in proportion


class Truth:
    """Two functions drawn from GPs with RBF kernels of lengthscale 3 (random Fourier features), noise standard
    deviations 0.1 and 0.5, and a gate linear in two inputs."""

    def __init__(self, d: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.omega = rng.standard_normal((2, FEATURES, d)) / 3.0
        self.phase = rng.uniform(0, 2 * np.pi, (2, FEATURES))
        self.weight = rng.standard_normal((2, FEATURES)) * np.sqrt(2 / FEATURES)
        self.d = d

    def functions(self, X: Array) -> Array:
        """``(n, 2)``."""
        blocks = np.array_split(X, max(1, len(X) // 20_000))
        return np.vstack([self._functions(block) for block in blocks])

    def _functions(self, X: Array) -> Array:
        return np.column_stack([np.cos(X @ self.omega[k].T + self.phase[k]) @ self.weight[k] for k in (0, 1)])

    def gate(self, X: Array) -> Array:
        first = 1 / (1 + np.exp(-(8 * X[:, 0] + 4 * X[:, 1])))
        return np.column_stack([first, 1 - first])

    def draw(self, n: int, seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((n, self.d))
        regime = (rng.random(n) > self.gate(X)[:, 0]).astype(int)
        f = np.take_along_axis(self.functions(X), regime[:, None], 1)[:, 0]
        return X, f + np.array(NOISE)[regime] * rng.standard_normal(n)

    def log_score(self, X: Array, y: Array) -> float:
        from gpmoe.distributions import Predictive

        truth = Predictive.mixture(self.gate(X), self.functions(X), np.tile(np.square(NOISE), (len(X), 1)))
        return float(truth.log_prob(y).mean())


def mixture(k: int, n_inducing: int, epochs: int | None) -> Any:
    from gpmoe.estimators.mixture_of_experts_regressor import MixtureOfExpertsRegressor

    return MixtureOfExpertsRegressor(k, inference="svi", n_inducing=n_inducing, max_iterations=epochs, random_state=0)


def quietly(model: Any, X: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


def scale_run(n: int, n_inducing: int, epochs: int, new: int) -> Run:
    truth = Truth()
    X, y = truth.draw(n, seed=1)
    X_new, y_new = truth.draw(new, seed=2)

    def figures(model: Any) -> Figures:
        start = time.perf_counter()
        predictive = model.predict_dist(X_new)
        seconds = time.perf_counter() - start
        score = float(predictive.log_prob(y_new).mean())
        return {"log_score": score, "truth": truth.log_score(X_new, y_new), "predict_seconds": seconds}

    return Run(lambda: quietly(mixture(2, n_inducing, epochs), X, y), figures)


# SMT.


def smt_moe() -> Any:
    """SMT's class, or None where it is not installed."""
    folder = os.environ.get("GPMOE_SMT")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("smt.applications").MOE
    except ImportError:
        return None


def blocks_data(n: int) -> tuple[Array, Array]:
    """Eight steps, each with a slope of its own."""
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 8, (n, 2))
    step = np.floor(X[:, 0])
    return X, 3 * (step % 3) + np.sin(step) * X[:, 1] + 0.1 * rng.standard_normal(n)


def predict_ours(n: int, new: int) -> Run:
    model = quietly(mixture(8, 64, 10), *blocks_data(n))
    X_new = np.random.default_rng(1).uniform(0, 8, (new, 2))
    return Run(lambda: model.predict_dist(X_new))


def predict_smt(n: int, new: int) -> Run:
    X, y = blocks_data(n)
    moe = smt_moe()(n_clusters=8, smooth_recombination=True, variances_support=True, allow=["KRG"])
    moe.set_training_values(X, y[:, None])
    moe.train()
    X_new = np.random.default_rng(1).uniform(0, 8, (new, 2))[:PEER_POINTS]

    def step() -> tuple[Array, Array]:
        return np.ravel(moe.predict_values(X_new)), np.ravel(moe.predict_variances(X_new))

    def figures(found: tuple[Array, Array]) -> Figures:
        """The peer's variance against the law of total variance for its own gate and experts."""
        mean, variance = found
        probs = np.asarray(moe._proba_cluster(X_new, moe.distribs))
        means = np.column_stack([np.ravel(expert.predict_values(X_new)) for expert in moe._experts])
        variances = np.column_stack([np.ravel(expert.predict_variances(X_new)) for expert in moe._experts])
        total = (probs * (variances + means**2)).sum(1) - (probs * means).sum(1) ** 2
        ratio = np.maximum(variance, 1e-300) / np.maximum(total, 1e-300)
        return {"points": len(mean), "median_ratio": float(np.median(ratio)), "least_ratio": float(ratio.min())}

    return Run(step, figures)


# Cases and tables.


def sizes(small: bool) -> tuple[int, ...]:
    return (300, 600, 1200) if small else (10_000, 100_000, 1_000_000)


def scale_case(n: int, small: bool) -> Case:
    options = {"n_inducing": 10, "epochs": 2, "new": 500} if small else {"n_inducing": 128, "epochs": 10, "new": NEW}
    return Case(SCALE, MIXTURE, scale_run, {"n": n, **options}, repetitions=1, warm_up=0, isolated=True)


def predict_case(library: str, small: bool) -> Case:
    parameters = {"n": 200 if small else 2000, "new": 1000 if small else NEW}
    prepare = predict_smt if library == SMT else predict_ours
    return Case(PREDICT, library, prepare, parameters, repetitions=1 if small else 3)


def cases(small: bool) -> list[Case]:
    peer = [SMT] if smt_moe() is not None else []
    if not peer:
        print("mixtures_scale: SMT skipped, not installed; see the module's first lines")
    return [
        *(scale_case(n, small) for n in sizes(small)),
        *(predict_case(library, small) for library in (MIXTURE, *peer)),
    ]


def scale_row(results: Results, n: int, small: bool) -> list[str]:
    case, before = scale_case(n, small), scale_case(sizes(small)[-2], small)
    score, largest = results.median(case, "log_score"), n == sizes(small)[-1]
    loss = results.median(before, "log_score") - score
    return [
        f"{n:,}",
        duration(results.median(case)) + verdict(results.median(case), 900 if largest else None, at_most=True),
        number(results.median(case, "peak_bytes") / 2**30, ".2f")
        + verdict(results.median(case, "peak_bytes") / 2**30, 8 if largest else None, at_most=True),
        number(score) + (f", lost {loss:+.3f}" + verdict(loss, 0.05, at_most=True) if largest else ""),
        number(results.median(case, "truth")),
        duration(results.median(case, "predict_seconds"))
        + verdict(results.median(case, "predict_seconds"), 20 if largest else None, at_most=True),
    ]


def exponent(results: Results, small: bool) -> float:
    """Slope of log fit time against log n, from the least to the largest n."""
    n = np.log(sizes(small))
    seconds = np.log([results.median(scale_case(size, small)) for size in sizes(small)])
    return float(np.polyfit(n, seconds, 1)[0]) if np.isfinite(seconds).all() else float("nan")


def predict_rows(results: Results, small: bool) -> list[list[str]]:
    ours, peer = predict_case(MIXTURE, small), predict_case(SMT, small)
    new = ours.parameters["new"]
    points = results.median(peer, "points")
    seconds = results.median(peer) * new / points
    ratio = seconds / results.median(ours)
    return [
        [MIXTURE, duration(results.median(ours)), "", "", ""],
        [
            SMT,
            duration(seconds),
            number(ratio, ".0f") + verdict(ratio, 50),
            number(results.median(peer, "median_ratio")),
            number(results.median(peer, "least_ratio"), ".2g"),
        ],
    ]


def tables(results: Results, small: bool) -> list[Table]:
    slope = exponent(results, small)
    scale = Table(
        SCALE,
        ["rows", "fit", "peak memory, GiB", "log score", "log score of the truth", "prediction"],
        [scale_row(results, n, small) for n in sizes(small)],
        [
            f"Exponent of fit time against n: {number(slope, '.2f')}{verdict(slope, 1.1, at_most=True)}.",
            "Ten passes at every n, two experts of 128 inducing points, softmax gate; prediction of 100,000 points with"
            " the full mixture; each case in a process of its own.",
        ],
    )
    predict = Table(
        PREDICT,
        ["library", f"{NEW:,} points" if not small else "points", "SMT / gpmoe", "median σ² / law", "least σ² / law"],
        predict_rows(results, small),
        [
            f"SMT predicts point by point: timed on {PEER_POINTS} points (mean and variance), in proportion for all.",
            "Last columns: SMT's variance Σ π² σ² over the law of total variance Σ π (σ² + μ²) - (Σ π μ)², for its own"
            " gate and experts; 1 would be right, less is overconfident.",
        ],
    )
    return [scale, predict]


SUITE = Suite("mixtures_scale", cases, tables)
