"""Reading of the data that benchmarks use; nothing here is shipped with the package."""

import numpy as np

from benchmarks.harness import DATA
from benchmarks.libraries import Array

Split = tuple[Array, Array, Array, Array]  # X_train, y_train, X_test, y_test


def load_split(name: str, split: int) -> Split:
    """One of Gal's standard splits of a UCI table, in original units."""
    folder = DATA / "uci20" / name
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt", dtype=int)
    X, y = table[:, features], table[:, int(np.loadtxt(folder / "index_target.txt"))]
    train, test = (np.loadtxt(folder / f"index_{part}_{split}.txt", dtype=int) for part in ("train", "test"))
    return X[train], y[train], X[test], y[test]


def load_motorcycle() -> tuple[Array, Array, Array]:
    """Inputs ``(133, 1)``, y standardised on all rows, and ten folds of 13 test rows ``(10, 13)``."""
    table = np.loadtxt(DATA / "bayesnewton" / "mcycle.csv", delimiter=",")
    order = np.loadtxt(DATA / "bayesnewton" / "mcycle_cvind.csv").astype(int)
    y = table[:, 2]
    return table[:, 1:2], (y - y.mean()) / y.std(), order[:130].reshape(10, 13)
