"""The demonstration: its table, its files, and, marked slow, that it takes less than 90 seconds."""

import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from gpmoe import demo
from gpmoe.distributions import Predictive
from gpmoe.errors import NotConvergedWarning


class Constant:
    """Stands for an estimator: the mean and variance of y, alone or in two equal halves."""

    def __init__(self, n_experts: int) -> None:
        self.n_experts = n_experts

    def fit(self, X, y):
        if self.n_experts == 2 and len(X) == 119:
            warnings.warn("stopped\nearly", NotConvergedWarning, stacklevel=2)
        self.moments_ = float(np.mean(y)), float(np.var(y)) * self.n_experts
        return self

    def predict_dist(self, X) -> Predictive:
        ones = np.ones((len(X), self.n_experts))
        mean, variance = self.moments_
        return Predictive.mixture(ones / self.n_experts, mean * ones, variance * ones)

    def predict_experts(self, X) -> list[Predictive]:
        mean, variance = self.moments_
        return [Predictive.gaussian(np.full(len(X), mean), np.full(len(X), variance))] * self.n_experts

    def predict_gate_probs(self, X):
        return np.full((len(X), self.n_experts), 1.0 / self.n_experts)


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the demonstration prints with two constant models, run in this process."""
    monkeypatch.setattr(demo, "_estimator", lambda model, problem: Constant(2 if model == "moe" else 1))
    console = Console(record=True, width=120, quiet=False, force_terminal=False)
    demo.run_demo(tmp_path / "out", console, n_jobs=1)
    return console.export_text()


def test_the_demonstration_prints_each_score_of_both_models(printed: str) -> None:
    for word in ("motorcycle", "133 x 1, 10 folds", "wine, proline", "178 x 12, 10 folds", "log score", "RMSE", "CRPS"):
        assert word in printed
    rows = [line for line in printed.splitlines() if re.search(r"log score|RMSE|CRPS|coverage", line)]
    assert len(rows) == 8
    assert all(len(re.findall(r"-?\d+\.\d{3}", row)) == 2 for row in rows)


def test_the_demonstration_tells_of_warnings_once(printed: str) -> None:
    # Of ten folds of 133 rows, seven leave out 13 rows and three leave out 14, which leaves 119.
    assert "note: 3 of 40 fits warned; the first, on motorcycle: stopped early" in printed


def test_the_demonstration_leaves_scores_and_a_figure(printed: str, tmp_path: Path) -> None:
    assert pl.read_csv(tmp_path / "out" / "scores.csv").shape == (16, 4)
    assert (tmp_path / "out" / "motorcycle.png").read_bytes().startswith(b"\x89PNG")
    assert "motorcycle.png" in printed
    assert "scores.csv" in printed


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [("log_score", (-1.0, -2.0), 0), ("rmse", (3.0, 2.0), 1), ("coverage_90", (0.99, 0.85), 1)],
)
def test_the_better_score_is_bold(name: str, values: tuple[float, float], best: int) -> None:
    assert ["bold" in text for text in demo._emphasised(name, *values)] == [index == best for index in (0, 1)]


@pytest.mark.slow
def test_the_demonstration_takes_less_than_ninety_seconds(tmp_path: Path) -> None:
    start = time.perf_counter()
    code = "import sys; from gpmoe.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 90
    assert (tmp_path / "gpmoe-demo" / "motorcycle.png").exists()
