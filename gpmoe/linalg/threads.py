"""How many threads small problems get: one."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from threadpoolctl import LibController, ThreadpoolController

SMALL = 300  # rows below which waking a thread costs more than it saves

_limit: ContextVar[float] = ContextVar(
    "limit", default=float("inf")
)  # of the block around, so that inner ones are free


@cache
def _openblas() -> list[LibController]:
    """The OpenBLAS libraries of this process: SciPy's, and NumPy's where that is another one."""
    return [library for library in ThreadpoolController().lib_controllers if library.internal_api == "openblas"]


@contextmanager
def at_most_threads(most: int) -> Iterator[None]:
    """Let torch and OpenBLAS use at most so many threads in a block; restored after it."""
    if _limit.get() <= most:
        yield
        return
    torch_threads = torch.get_num_threads()
    before = [(library, library.get_num_threads()) for library in _openblas()]
    changed = [(library, threads) for library, threads in before if threads > most]
    if torch_threads > most:
        torch.set_num_threads(most)
    for library, _ in changed:
        library.set_num_threads(most)
    token = _limit.set(most)
    try:
        yield
    finally:
        _limit.reset(token)
        for library, threads in changed:
            library.set_num_threads(threads)
        if torch_threads > most:
            torch.set_num_threads(torch_threads)


@contextmanager
def threads_for(n: int) -> Iterator[None]:
    """One thread for a block of work on n rows if n is small.

    OpenBLAS and MKL split work of any size, and on a machine that is busy elsewhere each waits for its other thread.
    """
    if n >= SMALL:
        yield
        return
    with at_most_threads(1):
        yield
