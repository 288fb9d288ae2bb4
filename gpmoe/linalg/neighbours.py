"""An order that fills space from coarse to fine, and each point's nearest neighbours among those before it.

| symbol | name in code | shape |
|---|---|---|
| points | `Z` | (n, d) |
| ℓ_i, distance of a point to the nearest one chosen so far | `distance` | (n,) |

Sources: Guinness (2018), Permutation and grouping methods for sharpening Gaussian process approximations, sec. 3;
Schäfer, Katzfuss and Owhadi (2021), Sparse Cholesky factorization by Kullback-Leibler minimization, alg. 4.1.
"""

import heapq
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from gpmoe.linalg.compiler import njit

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_COMPILED: Any = {"cache": True, "nogil": True, "error_model": "numpy"}
_GRID = 3  # dimensions of the grid of cells at most


def maximin_order(Z: Array) -> Indices:
    """Exact max-min order: first the point nearest the centre, then always the one farthest from all chosen.

    A point at distance ℓ from those chosen can bring only points within ℓ nearer, so each choice looks at the cells
    of side ℓ around it: O(n log² n) for spread-out points in up to three dimensions. In more, cells divide the three
    widest alone; the order is the same, but the time nears n² from about d = 8.

    Args:
        Z: ``(n, d)``, finite. Repeated points come last.

    Returns:
        ``(n,)``: the row numbers in order.
    """
    if len(Z) == 0:
        return np.zeros(0, dtype=np.int64)
    first = int(((Z - Z.mean(0)) ** 2).sum(1).argmin())
    widest = np.argsort(-np.ptp(Z, axis=0), kind="stable")[:_GRID]
    return _maximin(np.ascontiguousarray(Z), np.ascontiguousarray(Z[:, widest]), first)


@njit(**_COMPILED)
def _bucket(cell, count):  # type: ignore[no-untyped-def]
    """The bucket of a cell of the grid; different cells may share one."""
    key = 0
    for c in cell:
        key = (key * 73856093) ^ (c & 0x3FFFFFFF)
    return (key ^ (key >> 15)) & (count - 1)


@njit(**_COMPILED)
def _fill_buckets(G, side, distance, count):  # type: ignore[no-untyped-def]
    """Rows that are not chosen yet, sorted by bucket, and where each bucket begins."""
    n, g = G.shape
    cell, bucket = np.zeros(g, dtype=np.int64), np.full(n, -1)
    starts = np.zeros(count + 1, dtype=np.int64)
    for i in range(n):
        if distance[i] > 0.0:
            for c in range(g):
                cell[c] = math.floor(G[i, c] / side)
            bucket[i] = _bucket(cell, count)
            starts[bucket[i] + 1] += 1
    for b in range(count):
        starts[b + 1] += starts[b]
    members, at = np.empty(starts[count], dtype=np.int64), starts[:count].copy()
    for i in range(n):
        if bucket[i] >= 0:
            members[at[bucket[i]]] = i
            at[bucket[i]] += 1
    return members, starts


@njit(**_COMPILED)
def _maximin(Z, G, first):  # type: ignore[no-untyped-def]
    """The order; G are the coordinates that the grid divides. Distances stand squared in the heap, negated."""
    n, d = Z.shape
    g = G.shape[1]
    distance = np.empty(n)
    for i in range(n):
        total = 0.0
        for c in range(d):
            total += (Z[i, c] - Z[first, c]) ** 2
        distance[i] = total
    distance[first] = 0.0
    heap = [(-distance[i], i) for i in range(n)]
    heapq.heapify(heap)
    count = 1
    while count < n:
        count *= 2
    order, placed = np.empty(n, dtype=np.int64), 1
    order[0] = first
    around = 3**g
    cell, center = np.zeros(g, dtype=np.int64), np.zeros(g, dtype=np.int64)
    side = 0.0
    members, starts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    while len(heap) > 0:
        key, i = heap[0]
        if distance[i] == 0.0:  # it coincides with a chosen one
            heapq.heappop(heap)
            continue
        if -key != distance[i]:  # it came nearer since
            heapq.heapreplace(heap, (-distance[i], i))
            continue
        heapq.heappop(heap)
        reach = math.sqrt(distance[i])
        if side == 0.0 or reach < 0.5 * side:
            side = 1.000001 * reach
            members, starts = _fill_buckets(G, side, distance, count)
        order[placed] = i
        placed += 1
        for c in range(g):
            center[c] = math.floor(G[i, c] / side)
        radius = distance[i]
        distance[i] = 0.0
        for neighbour in range(around):
            rest = neighbour
            for c in range(g):
                cell[c] = center[c] + rest % 3 - 1
                rest //= 3
            b = _bucket(cell, count)
            for at in range(starts[b], starts[b + 1]):
                j = members[at]
                total = 0.0
                for c in range(d):
                    total += (Z[i, c] - Z[j, c]) ** 2
                if total < distance[j] and total <= radius:
                    distance[j] = total
    return _append_rest(order, placed, n)


@njit(**_COMPILED)
def _append_rest(order, placed, n):  # type: ignore[no-untyped-def]
    """Rows that coincide with chosen ones, in their own order."""
    chosen = np.zeros(n, dtype=np.bool_)
    for i in range(placed):
        chosen[order[i]] = True
    for i in range(n):
        if not chosen[i]:
            order[placed] = i
            placed += 1
    return order


def previous_neighbours(Z: Array, count: int) -> NDArray[np.int32]:
    """The nearest rows among those before each row, by k-d trees of growing leading parts.

    Args:
        Z: points in order, ``(n, d)``.
        count: neighbours wanted, at least 1.

    Returns:
        ``(n, min(count, n - 1))``, the nearest first; row i has min(count, i) of them, then -1.
    """
    n = len(Z)
    count = min(count, max(n - 1, 0))
    found = np.full((n, count), -1, dtype=np.int32)
    start = min(n, max(64, 2 * count))
    square = ((Z[:start, None] - Z[None, :start]) ** 2).sum(-1)
    for i in range(1, start):
        nearest = np.argsort(square[i, :i], kind="stable")[:count]
        found[i, : len(nearest)] = nearest
    while start < n:
        stop = min(n, start + max(64, start // 4))
        tree = cKDTree(Z[:stop])
        rows, asked = np.arange(start, stop), min(stop, math.ceil(1.4 * count) + 5)
        while len(rows):
            _, near = tree.query(Z[rows], k=[*range(1, asked + 1)], workers=torch.get_num_threads())
            earlier = near < rows[:, None]
            rank = earlier.cumsum(1)
            done = rank[:, -1] >= count
            found[rows[done]] = near[done][earlier[done] & (rank[done] <= count)].reshape(-1, count)
            rows, asked = rows[~done], min(stop, 2 * asked)
        start = stop
    return found


def nearest_rows(Z: Array, Z_new: Array, count: int) -> NDArray[np.int32]:
    """The nearest rows of Z ``(n, d)`` for each of ``(q, d)`` new points: ``(q, min(count, n))``, the nearest first."""
    ranks = [*range(1, min(count, len(Z)) + 1)]
    _, near = cKDTree(Z).query(Z_new, k=ranks, workers=torch.get_num_threads())
    return near.astype(np.int32)
