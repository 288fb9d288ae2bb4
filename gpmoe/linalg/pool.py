"""Plain Python threads around functions that release the GIL, so that no OpenMP pool spins beside LAPACK's."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_SERIAL = 20_000  # units of work, a pair of points each, below which waking a thread costs more than it saves

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def call_for_each(function: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call a function once for each item, on so many threads; each takes the next item when it is free.

    Args:
        function: one that releases the GIL. Which thread calls it for which item is left open: items may not share
            what they write to.
        items: its arguments.
        threads: the calling thread is one of them.
    """
    global _pool
    waiting = deque(items)
    threads = min(threads, len(waiting))
    if threads <= 1:
        for item in waiting:
            function(item)
        return

    def work() -> None:
        while waiting:
            try:
                item = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            function(item)

    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="gpmoe")
    others = [_pool.submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


def run_pass(function: Callable[..., None], work: int, shares: int, *arguments: Any) -> None:
    """Call ``function(first, step, *arguments)`` so that it meets every share of its work, on torch's threads.

    Each thread takes the next share when it has done one: a core that is busy elsewhere, with a thread of BLAS that
    waits for more to do as often as not, then holds nobody up.

    Args:
        function: one that releases the GIL, and does shares first, first + step, ... of its work.
        work: how much there is, in pairs of points; few are done by the calling thread alone.
        shares: how many there are.
        arguments: passed on.
    """
    threads = torch.get_num_threads() if work > _SERIAL else 1
    if threads == 1:
        function(0, 1, *arguments)
    else:
        call_for_each(lambda share: function(share, shares, *arguments), range(shares), threads)
