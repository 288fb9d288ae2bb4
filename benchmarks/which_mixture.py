"""The table of docs/which_mixture.md: each gate with each inference, on small tables.

    python -m benchmarks.which_mixture [--quick]

prints Markdown, a row as soon as it is measured.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.datasets import Split, load_motorcycle, load_split
from benchmarks.harness import DATA

N_EXPERTS, FOLDS = 3, 2
MIXTURES = {
    "softmax": ("vbem", "hard"),
    "top_k": ("vbem",),
    "gaussian_mixture": ("vbem",),
    "gp_softmax": ("vbem",),
    "constant": ("vbem",),
    "softmax, minibatches": ("svi",),
}


def models() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Gate, inference, and the model unfitted."""
    from gpmoe import (
        GPRegressor,
        LocalExpertsRegressor,
        MixtureOfExpertsRegressor,
        SparseGPRegressor,
        TreeMixtureRegressor,
    )

    def mixture(gate: str, inference: str) -> Callable[[], Any]:
        return lambda: MixtureOfExpertsRegressor(N_EXPERTS, gate=gate, inference=inference, random_state=0)

    yield "none: one exact GP", "-", GPRegressor
    yield "none: one sparse GP", "-", lambda: SparseGPRegressor(random_state=0)
    yield "none: local experts", "grbcm", lambda: LocalExpertsRegressor(100, random_state=0)
    yield "none: local experts", "cpoe", lambda: LocalExpertsRegressor(100, aggregation="cpoe", random_state=0)
    yield "random partitions", "evidence", lambda: TreeMixtureRegressor(random_state=0)
    for gate, engines in MIXTURES.items():
        for inference in engines:
            yield gate, inference, mixture(gate.split(",")[0], inference)


def splits(n: int | None) -> Iterator[tuple[str, list[Split]]]:
    """Motorcycle, and concrete with n training rows (None for all), standardised by training rows."""
    X, y, folds = load_motorcycle()
    parts = [(np.delete(X, out, 0), np.delete(y, out), X[out], y[out]) for out in folds[:FOLDS]]
    yield "motorcycle, 120", parts
    rows = [load_split("concrete", fold) for fold in range(FOLDS)]
    chosen = [np.random.default_rng(0).permutation(len(part[0]))[:n] for part in rows]
    scaled = []
    for (X, y, X_test, y_test), kept in zip(rows, chosen, strict=True):
        center, spread = y[kept].mean(), y[kept].std()
        scaled.append((X[kept], (y[kept] - center) / spread, X_test, (y_test - center) / spread))
    yield f"concrete, {len(scaled[0][0])}", scaled


def measure(build: Callable[[], Any], parts: list[Split]) -> tuple[float, float]:
    """Mean log score over folds, and seconds a fit."""
    scores, times = [], []
    for X, y, X_test, y_test in parts:
        start = time.perf_counter()
        model = build().fit(X, y)
        times.append(time.perf_counter() - start)
        scores.append(model.log_score(X_test, y_test))
    return float(np.mean(scores)), float(np.mean(times))


def main(quick: bool) -> None:
    if not DATA.is_dir():
        sys.exit(f"no data at {DATA}; set GPMOE_DATA.")
    warnings.simplefilter("ignore")  # a fit that stopped early shows in its score
    tables = list(splits(100 if quick else 400))
    print("| gate | inference |", " | ".join(f"{name} rows: log score | seconds" for name, _ in tables), "|")
    print("|" + "---|" * (2 + 2 * len(tables)))
    for gate, inference, build in models():
        build().fit(*(part[:40] for part in tables[0][1][0][:2]))  # compiled, before the clock runs
        cells = [f"{score:.2f} | {seconds:.1f}" for score, seconds in (measure(build, parts) for _, parts in tables)]
        print(f"| {gate} | {inference} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main("--quick" in sys.argv)
