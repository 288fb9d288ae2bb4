"""Measure cases side by side and keep every single run.

A suite is a module of this folder with a `SUITE`. Cases that share a name and parameters form a group:
the libraries of a group run in one process, one after the other, and the order turns round with every
repetition. An isolated case runs in a process of its own, which also measures its peak memory. Each run
is appended to ``results/runs/<suite>.jsonl`` as it ends, and is skipped when it is found there with the
same parameters, library, repetition, versions, machine and threads.
"""

import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import ROOT, Load, machine, memory, settings, versions, wait_for_quiet

RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("GPMOE_DATA", ROOT.parent / "shared" / "data"))
SESSION = datetime.now(UTC).isoformat(timespec="seconds")

Figures = dict[str, Any]
Record = dict[str, Any]


class Run(NamedTuple):
    """One prepared measurement: only `step` is timed."""

    step: Callable[[], Any]
    figures: Callable[[Any], Figures] = lambda result: {}  # what to keep of the last result
    reset: Callable[[], None] = lambda: None  # called before each step


@dataclass(frozen=True)
class Case:
    """One library at one problem.

    `prepare(**parameters)` makes data and models. A repetition calls the step until `at_least` seconds
    are full and keeps the median; `path` leads the module path of an isolated case's process.
    """

    name: str
    library: str
    prepare: Callable[..., Run]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repetitions: int = 3
    warm_up: int = 1
    at_least: float = 0.0
    isolated: bool = False
    path: str = ""

    @property
    def identity(self) -> str:
        return json.dumps([self.name, dict(self.parameters), self.library], sort_keys=True)

    @property
    def group(self) -> str:
        return json.dumps([self.name, dict(self.parameters)], sort_keys=True)

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.parameters.items()), self.library])


@dataclass(frozen=True)
class Table:
    """What a suite shows: a title, columns, rows of cells, and remarks on the protocol."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Suite:
    """Cases and the tables made of them; raise `protocol` when a change makes stored runs void."""

    name: str
    cases: Callable[[bool], Sequence[Case]]  # True asks for a small version, to try the code
    tables: Callable[["Results", bool], Sequence[Table]]
    protocol: int = 1


class Results:
    """The stored runs of a suite that belong to the versions, machine and settings of this process."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.path = RESULTS / "runs" / f"{suite.name}.jsonl"
        self.records: dict[str, Record] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that was cut while it was written
            self.records[record["key"]] = record

    def key(self, case: Case, repetition: int) -> str:
        used = versions() if case.library.startswith("gpmoe") else versions() | {"gpmoe": ""}
        parts = [self.suite.name, self.suite.protocol, case.identity, repetition, used, machine(), settings()]
        return hashlib.sha1(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def find(self, case: Case, repetition: int) -> Record | None:
        return self.records.get(self.key(case, repetition))

    def add(self, case: Case, repetition: int, figures: Figures) -> None:
        """Append one run, in one write, so that a cut leaves whole lines."""
        record: Record = {"key": self.key(case, repetition), "suite": self.suite.name, "case": case.name}
        record |= {"parameters": dict(case.parameters), "library": case.library, "repetition": repetition}
        record |= figures | {"session": SESSION, "settings": settings()}
        record |= {"versions": versions(), "machine": machine()}
        self.records[record["key"]] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, (("\n" if cut else "") + json.dumps(record) + "\n").encode())
        os.close(handle)

    def runs(self, case: Case) -> list[Record]:
        return [found for i in range(case.repetitions) if (found := self.find(case, i))]

    def values(self, case: Case, figure: str) -> list[float]:
        return [run[figure] for run in self.runs(case) if run.get(figure) is not None]

    def median(self, case: Case, figure: str = "seconds") -> float:
        """Median of a figure over repetitions, NaN where there is none."""
        values = self.values(case, figure)
        return statistics.median(values) if values else float("nan")


def prepare(case: Case) -> Run:
    """Make the case's data and models, and warm it up."""
    run = case.prepare(**case.parameters)
    for _ in range(case.warm_up):
        run.reset()
        run.step()
    return run


def measure(case: Case, run: Run) -> Figures:
    """Time the step as one repetition."""
    times: list[float] = []
    load = Load()
    while not times or (sum(times) < case.at_least and len(times) < 50):
        run.reset()
        gc.collect()
        start = time.perf_counter()
        result = run.step()
        times.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times),
        "calls": len(times),
        "busy_elsewhere": load.elsewhere(),
        **run.figures(result),
    }


def measure_here(suite: Suite, identity: str, small: bool) -> Figures:
    """Measure one case with its peak memory; what the process of an isolated case does."""
    case = next(case for case in suite.cases(small) if case.identity == identity)
    run = prepare(case)
    before = memory("VmRSS")
    return measure(case, run) | {"peak_bytes": memory("VmHWM") - before}


def measure_apart(suite: Suite, case: Case, small: bool) -> Figures:
    """Measure one case in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), suite.name, "--one", case.identity]
    env = dict(os.environ) | ({"PYTHONPATH": case.path} if case.path else {})
    done = subprocess.run(command + ["--small"] * small, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_suite(suite: Suite, small: bool, *, fresh: bool = False, only: str = "", wait: float = 0.0) -> None:
    """Measure what is not stored yet, each repetition after up to `wait` seconds for a quiet machine."""
    results = Results(suite)
    cases = [case for case in suite.cases(small) if only in case.label]
    for _, members in groupby(cases, key=lambda case: case.group):
        group = list(members)
        turns = [
            (case, repetition)
            for repetition in range(max(case.repetitions for case in group))
            for case in (group if repetition % 2 == 0 else reversed(group))
            if repetition < case.repetitions and (fresh or not results.find(case, repetition))
        ]
        if turns:
            run_group(results, turns, small, wait)


def run_group(results: "Results", turns: Sequence[tuple[Case, int]], small: bool, wait: float) -> None:
    """Measure the cases of one group in turn, store each repetition; a failed case is left for next time."""
    suite, prepared, failed = results.suite, dict[str, Run](), set[str]()
    for case, repetition in turns:
        if case.library in failed:
            continue
        wait_for_quiet(wait)
        load = {"load_average": os.getloadavg()[0]}
        try:
            if case.isolated:
                figures = measure_apart(suite, case, small)
            else:
                if case.library not in prepared:
                    prepared[case.library] = prepare(case)
                figures = measure(case, prepared[case.library])
        except Exception as error:  # any failure of a peer is a finding, not an end
            failed.add(case.library)
            print(f"{suite.name}: {case.label}: failed: {type(error).__name__}: {error}", flush=True)
            continue
        results.add(case, repetition, figures | load)
        print(f"{suite.name}: {case.label} #{repetition}: {figures['seconds']:.4g} s", flush=True)
