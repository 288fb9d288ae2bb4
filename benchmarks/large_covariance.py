"""Large covariance: products, solvers, grids, small and nearest-neighbour problems and sparse models in one suite.

Each part is a suite of its own as well, by its name.
"""

from benchmarks import large_kronecker, large_local, large_products, large_solvers, large_sparse
from benchmarks.harness import Case, Results, Suite, Table

PARTS = [part.SUITE for part in (large_products, large_solvers, large_kronecker, large_local, large_sparse)]


def cases(small: bool) -> list[Case]:
    return [case for part in PARTS for case in part.cases(small)]


def tables(results: Results, small: bool) -> list[Table]:
    return [table for part in PARTS for table in part.tables(results, small)]


SUITE = Suite("large_covariance", cases, tables)
