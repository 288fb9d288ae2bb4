"""Where a figure comes from: computer, versions, threads, memory, and what else runs."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "gpytorch", "linear_operator", "botorch", "scikit-learn", "scipy", "numpy", "numba")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# Idle threads sleep at once: OpenMP's, and OpenBLAS's, which else spin for some 30 ms beside whoever computes next.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "10"}
SETTINGS = (*PASSIVE, "GPMOE_LAPACK", *THREADS)
NOT_NUMERICS = ("cli.py", "demo.py", "table.py", "io.py", "plotting", "testing", "data")  # change no figure


@cache
def machine() -> dict[str, Any]:
    """The computer, as far as it decides a timing."""
    path = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in path.read_text().splitlines()] if path.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in lines}
    flags = {"avx2", "avx512f"} & set(cpu.get("flags", "").split())
    model = " ".join(cpu.get(key, "") for key in ("model name", "cpu family", "model"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model.strip() or platform.processor(),
        "cores": cores(),
        "simd": sorted(flags),
        "memory_GiB": round(memory),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def versions() -> dict[str, str]:
    """Version of each package, and of gpmoe a digest of the sources that decide figures."""
    sources = hashlib.sha1()
    for path in sorted((ROOT / "gpmoe").rglob("*.py")):
        if path.relative_to(ROOT / "gpmoe").parts[0] not in NOT_NUMERICS:
            sources.update(path.read_bytes())
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {"gpmoe": sources.hexdigest()[:10]}


def settings() -> dict[str, str]:
    """Environment variables that decide a timing, as they stand."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def environment(passive: bool) -> dict[str, str]:
    """Environment to measure in: BLAS chooses its own kernels, each pool has as many threads as cores."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    return kept | dict.fromkeys(THREADS, str(cores())) | (PASSIVE if passive else {})


class Load:
    """What other processes do, in cores' worth of work, from one look to the next; NaN off Linux."""

    def __init__(self) -> None:
        self.busy, self.own, self.clock = self._busy(), time.process_time(), time.perf_counter()

    @staticmethod
    def _busy() -> float:
        path = Path("/proc/stat")
        if not path.exists():
            return float("nan")
        ticks = [int(word) for word in path.read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    def elsewhere(self) -> float:
        """Cores busy with other work since this object was made (10 ms ticks: rough below 0.2 s)."""
        others = self._busy() - self.busy - (time.process_time() - self.own)
        return max(others / (time.perf_counter() - self.clock), 0.0)


def wait_for_quiet(limit: float, busy: float = 0.2) -> float:
    """Sleep until other work takes less than `busy` cores, or for `limit` seconds; what it took last."""
    if limit <= 0:
        return float("nan")
    end = time.monotonic() + limit
    while True:
        load = Load()
        time.sleep(0.3)
        others = load.elsewhere()
        if not others >= busy or time.monotonic() >= end:
            return others


def memory(field_name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at most (elsewhere than Linux both the most).

    Not `getrusage` on Linux: its peak survives exec, so a child starts at the peak of its parent.
    """
    path = Path("/proc/self/status")
    if path.exists():
        words = next(line.split() for line in path.read_text().splitlines() if line.startswith(field_name))
        return int(words[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
