"""Mixtures of experts: theory, small sets, local experts and scale in one suite.

Each part is a suite of its own as well, by its name.
"""

from benchmarks import mixtures_local, mixtures_scale, mixtures_small, mixtures_theory
from benchmarks.harness import Case, Results, Suite, Table

PARTS = [part.SUITE for part in (mixtures_theory, mixtures_small, mixtures_local, mixtures_scale)]


def cases(small: bool) -> list[Case]:
    return [case for part in PARTS for case in part.cases(small)]


def tables(results: Results, small: bool) -> list[Table]:
    return [table for part in PARTS for table in part.tables(results, small)]


SUITE = Suite("mixtures", cases, tables)
