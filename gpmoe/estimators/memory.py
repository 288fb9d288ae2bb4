"""Inference is refused where it would not fit into memory, and "auto" takes the solver that fits."""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpmoe.errors import InputError, MemoryLimitError, SolverWarning
from gpmoe.inference.solver import Cholesky, ConjugateGradients, Solver


def available_bytes() -> int:
    """Memory that a process can still take: what Linux says is available, elsewhere what the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def expect_memory(n: int, matrices: int) -> None:
    """Check that some n x n matrices of float64 fit.

    Args:
        n: number of training rows.
        matrices: how many are held at once.

    Raises:
        MemoryLimitError: with the bytes needed and at hand, and the ways out.
    """
    needed, at_hand = 8 * n * n * matrices, available_bytes()
    if needed > at_hand:
        raise MemoryLimitError(
            f"exact inference on n={n} rows needs {needed / 1e9:.1f} GB ({needed} bytes), and {at_hand / 1e9:.1f} GB "
            "are at hand. Ways out: fit to a random subset of the rows (`X[::k]`, about "
            f"{int((at_hand / 8 / matrices) ** 0.5)} of them would fit); an iterative solver, which needs less "
            '(`solver=ConjugateGradients()` of gpmoe.inference.solver, or `solver="auto"`); a sparse GP '
            "(`SparseGPRegressor`); for data on a grid, `GridGPRegressor`; a machine with more memory."
        )


_WORKSPACE = 8 * 8 * 256  # bytes a row: eight blocks of 256 right-hand sides in float64


def _iterative(n: int) -> ConjugateGradients:
    """Conjugate gradients whose covariance, preconditioner and right-hand sides fit into the memory at hand."""
    at_hand = available_bytes()
    room = at_hand - _WORKSPACE * n
    if room <= 0:
        raise MemoryLimitError(
            f"an iterative solver on n={n} rows needs at least {_WORKSPACE * n / 1e9:.1f} GB for its right-hand sides, "
            f"and {at_hand / 1e9:.1f} GB are at hand. Ways out: a sparse GP (`SparseGPRegressor`); a random subset of "
            "the rows; a machine with more memory."
        )
    usual = ConjugateGradients()
    return replace(usual, memory=min(usual.memory, room / 3))


def solver_for(n: int, solver: Any, *, stacklevel: int) -> Solver:
    """The solver to use on n rows, for which there is memory.

    Args:
        n: number of training rows.
        solver: one of `inference.solver`, None for `Cholesky()`, or "auto" for that or, where a float64 matrix does
            not fit, `ConjugateGradients()`.
        stacklevel: of the warning.

    Raises:
        MemoryLimitError: if the solver asked for needs more memory than there is.
        InputError: for another word.

    Warns:
        SolverWarning: if "auto" leaves Cholesky.
    """
    if isinstance(solver, str):
        if solver != "auto":
            raise InputError(f"`solver` must be None, 'auto' or a solver of gpmoe.inference.solver; got {solver!r}.")
        if 8 * n * n <= available_bytes():
            return Cholesky()
        chosen = _iterative(n)
        warnings.warn(
            f"a Cholesky factor of n={n} rows needs {8e-9 * n * n:.1f} GB and {available_bytes() / 1e9:.1f} GB are at "
            f"hand: solving iteratively, to a relative residual of {chosen.tolerance:.0e}, by {chosen}",
            SolverWarning,
            stacklevel=stacklevel + 1,
        )
        return chosen
    if solver is None or isinstance(solver, Cholesky):
        expect_memory(n, matrices=1)
        return Cholesky()
    return solver
