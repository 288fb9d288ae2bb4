"""Exact inference is refused where it would not fit into memory."""

import os
from pathlib import Path

from gpmoe.errors import MemoryLimitError


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
            f"{int((at_hand / 8 / matrices) ** 0.5)} of them would fit); a sparse variational GP "
            "(botorch.models.SingleTaskVariationalGP); a machine with more memory."
        )
