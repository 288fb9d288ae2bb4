"""Local experts from a file of rows, in memory that one batch of experts needs.

Hyperplanes found on a sample cut space into cells of some 100,000 rows; every row is copied to its cell's place in a
second file; each cell is read alone and divided among its experts. Shared hyperparameters need random experts of some
20,000 rows together, those of their own a group of experts at a time, and the model's rows stay in the file.
"""

import time
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from gpmoe.data.row_blocks import RowFile, blocks_in_memory
from gpmoe.errors import InputError
from gpmoe.inference.fit_local_experts import (
    ExpertPlan,
    FittedExperts,
    arrange,
    distance_units,
    fit_pilot,
    learn,
)
from gpmoe.models.partition import Kind, Partition, graft, partition_rows

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_CELL = 100_000  # rows of a batch of experts
_SAMPLE = 50_000  # rows on which cells are found


def fit_from_file(
    rows: Array, plan: ExpertPlan, *, n_jobs: int | None = None, cell: int | None = None
) -> FittedExperts:
    """As `fit_local_experts`, for rows that are mapped into memory.

    Args:
        rows: inputs and target, ``(n, d + 1)``, of about unit scale.
        plan: how; `partition` must not be "random".
        n_jobs: see `fit_local_experts`.
        cell: rows of a batch of experts, about; 100,000 if None.

    Returns:
        The model, whose rows lie in a file of its own.

    Raises:
        InputError: for a random partition.
    """
    if plan.partition == "random":
        raise InputError("`partition` 'random' needs all rows in memory; take 'kmeans' or 'tree' for a file.")
    start = time.perf_counter()
    rng = np.random.default_rng(plan.seed)
    n = len(rows)
    sample = torch.from_numpy(rows[np.sort(rng.choice(n, min(n, _SAMPLE), replace=False))])
    pilot = fit_pilot(sample[:, :-1], sample[:, -1], plan, rng)
    units = distance_units(pilot.covar_module, rows.shape[1] - 1)
    trunk, _ = partition_rows(
        sample[:, :-1].numpy() / units, max(1, round(n / (_CELL if cell is None else cell))), cast(Kind, plan.partition)
    )
    stored, cells = _by_cell(rows, trunk, units)
    branches, offsets = [], [0]
    for first, last in pairwise(cells):
        part = np.array(stored[first:last])
        count = max(1, round(len(part) / plan.points_per_expert))
        branch, labels = partition_rows(part[:, :-1] / units, count, cast(Kind, plan.partition))
        stored[first:last] = part[np.argsort(labels, kind="stable")]
        branches.append(branch)
        offsets.extend((first + np.cumsum(np.bincount(labels, minlength=count))).tolist())
    X, y = RowFile.empty(n, rows.shape[1] - 1).rows, RowFile.empty(n, 1).rows
    for part, at in blocks_in_memory(stored):
        X[at], y[at] = part[:, :-1], part[:, -1:]
    del stored
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y[:, 0])
    model = arrange(inputs, targets, np.array(offsets), graft(trunk, branches), pilot, plan, rng)
    return learn(model, pilot, plan, rng, start=start, n_jobs=n_jobs)


def _by_cell(rows: Array, trunk: Partition, units: Array) -> tuple[Array, Indices]:
    """A file of the rows sorted by cell, and where each cell begins, ``(cells + 1,)``."""
    labels = np.empty(len(rows), dtype=np.int32)
    for part, at in blocks_in_memory(rows):
        labels[at] = trunk.assign(part[:, :-1] / units)
    counts = np.bincount(labels, minlength=trunk.n_parts)
    begins = np.concatenate([[0], np.cumsum(counts)])
    free, stored = begins[:-1].copy(), RowFile.empty(*rows.shape).rows
    for part, at in blocks_in_memory(rows):
        order = np.argsort(labels[at], kind="stable")
        found, many = np.unique(labels[at], return_counts=True)
        piece = 0
        for label, count in zip(found, many, strict=True):
            stored[free[label] : free[label] + count] = part[order[piece : piece + count]]
            free[label], piece = free[label] + count, piece + count
    return stored, begins
