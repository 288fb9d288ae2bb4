"""Solvers as JSON-able data, and back."""

from dataclasses import asdict
from typing import Any

from gpmoe.errors import InputError
from gpmoe.inference.solver import AlternatingProjections, Cholesky, ConjugateGradients, Schedule, StochasticDualDescent

_KNOWN = {kind.__name__: kind for kind in (AlternatingProjections, Cholesky, ConjugateGradients, StochasticDualDescent)}


def describe_solver(solver: Any) -> Any:
    """A solver as its name and fields; None and words as they are.

    Raises:
        InputError: for an object that is none of gpmoe's solvers.
    """
    if solver is None or isinstance(solver, str):
        return solver
    if type(solver) not in _KNOWN.values():
        raise InputError(f"`solver` must be one of {', '.join(_KNOWN)} to be saved; got {solver!r}.")
    return {"name": type(solver).__name__, "fields": asdict(solver)}


def build_solver(data: Any) -> Any:
    """The inverse of `describe_solver`; files of gpmoe 0.1 say True for `Cholesky()` and False for None."""
    if isinstance(data, bool):
        return Cholesky() if data else None
    if data is None or isinstance(data, str):
        return data
    fields = dict(data["fields"])
    if "schedule" in fields:
        fields["schedule"] = Schedule(**fields["schedule"])
    return _KNOWN[data["name"]](**fields)
