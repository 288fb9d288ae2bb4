"""From stored runs to a dated Markdown table."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness import RESULTS, SESSION, Case, Record, Results, Suite
from benchmarks.machine import machine, settings, versions


def duration(seconds: float) -> str:
    """Seconds with three digits in a unit that suits them."""
    if seconds != seconds:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def number(value: float, form: str = ".3f") -> str:
    """A figure, or a dash where there is none."""
    return format(value, form) if value == value else "-"


def verdict(value: float, bar: float | None, at_most: bool = False) -> str:
    """``(bar 5: met)`` behind a figure."""
    if bar is None or value != value:
        return "" if bar is None else f" (bar {bar:g})"
    met = value <= bar if at_most else value >= bar
    return f" (bar {bar:g}: {'met' if met else '**not met**'})"


def against(results: Results, ours: Case, peer: Case, bar: float | None = None) -> str:
    """How many times faster `ours` is than `peer`, with a dagger where no session measured both."""
    ratio = results.median(peer) / results.median(ours)
    sessions = [{run["session"] for run in results.runs(case)} for case in (ours, peer)]
    dagger = "" if sessions[0] & sessions[1] else "†"
    return (f"{ratio:.2f}x{dagger}" if ratio == ratio else "-") + verdict(ratio, bar)


def write_tables(suite: Suite, small: bool) -> Path:
    """Write ``results/<date>-<suite>.md`` from what is stored."""
    results = Results(suite)
    records = [run for case in suite.cases(small) for run in results.runs(case)]
    lines = [f"# {suite.name}{' (small, to try the code)' if small else ''}", "", *heading(records)]
    for table in suite.tables(results, small):
        rows = [table.header, ["---"] * len(table.header), *table.rows]
        lines += ["", f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
        lines += [f"- {note}" for note in table.notes]
    path = RESULTS / f"{SESSION[:10]}-{suite.name}{'-small' if small else ''}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def heading(records: Iterable[Record]) -> list[str]:
    """Machine, versions, threads and how quiet it was."""
    busy = [run["busy_elsewhere"] for run in records if run["busy_elsewhere"] == run["busy_elsewhere"]]
    quiet = f"median {statistics.median(busy):.2f}, most {max(busy):.2f}" if busy else "not measured"
    parts = {"Machine": machine(), "Versions": versions(), "Settings": settings()}
    lines = [f"- {name}: " + ", ".join(f"{k} {v}" for k, v in part.items()) for name, part in parts.items()]
    return [
        *lines,
        f"- Cores busy with other work during a run: {quiet}.",
        "- Figures are medians over repetitions, libraries alternating in one process; ratios above 1 say"
        " that gpmoe is faster; † where the two were not measured in the same session.",
    ]
