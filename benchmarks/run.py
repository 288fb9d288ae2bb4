"""Run suites and write their tables: ``python benchmarks/run.py [suite ...] [--fresh]``."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness, machine, tables

SUITES = (
    "likelihood", "prediction", "fit", "accuracy", "large_covariance", "mixtures", "adapter", "multitask",
    "early_warning", "sweeps", "offline", "gpu",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure gpmoe beside its peers; stored runs are skipped.")
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"any of {', '.join(SUITES)}; default all")
    parser.add_argument("--fresh", action="store_true", help="measure again what is stored")
    parser.add_argument("--small", action="store_true", help="small problems, to try the code in minutes")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose label holds this text")
    parser.add_argument("--passive", action="store_true", help="let idle threads of OpenMP and OpenBLAS sleep")
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait at most so long for quiet")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    wanted = machine.environment(chosen.passive)
    if wanted != dict(os.environ):  # thread pools read it when they load
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)
    suites = [importlib.import_module(f"benchmarks.{name}").SUITE for name in chosen.suites or SUITES]
    if chosen.one:
        print(json.dumps(harness.measure_here(suites[0], chosen.one, chosen.small)))
        return
    for suite in suites:
        harness.run_suite(suite, chosen.small, fresh=chosen.fresh, only=chosen.only, wait=chosen.wait)
        print(tables.write_tables(suite, chosen.small), flush=True)


if __name__ == "__main__":
    main()
