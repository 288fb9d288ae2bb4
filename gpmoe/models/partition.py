"""Rows divided among local experts by a binary tree of hyperplanes, which also sends new points to an expert.

| symbol | name in code | shape |
|---|---|---|
| normal of a node's hyperplane, and where it cuts | `normals`, `thresholds` | (nodes, d), (nodes,) |
| what lies below and above: a node, or ~part | `children` | (nodes, 2) |

A node with m parts gives ⌊m/2⌋ of them, and that share of its rows, to the side below: parts differ by one row at most,
whatever the data are. With "kmeans" a cut is balanced two-means: the hyperplane whose normal joins the means of the
two sides that it makes, found by iteration from the first principal axis. With "tree" it is across the widest input.
Both cost O(n d log M).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError, ShapeError

Kind = Literal["kmeans", "tree"]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_SAMPLE = 2000  # rows of a node on which the normal of its cut is found
_ITERATIONS = 10


@dataclass(frozen=True)
class Partition:
    """Regions of space, one for each part.

    Attributes:
        normals, thresholds, children: see the table above; node 0 is the root. Without nodes there is one part.

    Example:
        >>> import numpy as np
        >>> partition, labels = partition_rows(np.arange(8.0)[:, None], 4)
        >>> labels.tolist()
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> partition.assign(np.array([[-5.0], [3.1], [9.0]])).tolist()
        [0, 1, 3]
    """

    normals: Array
    thresholds: Array
    children: Indices

    @property
    def n_parts(self) -> int:
        """How many parts there are."""
        return len(self.children) + 1

    def assign(self, X: Array) -> Indices:
        """The part in whose region each point lies.

        Args:
            X: ``(m, d)``.

        Returns:
            ``(m,)``.
        """
        if X.ndim != 2 or X.shape[1] != self.normals.shape[1]:
            raise ShapeError(f"`X` must have shape (m, {self.normals.shape[1]}); got {X.shape}.")
        if not len(self.children):
            return np.zeros(len(X), dtype=np.int64)
        at, inside = np.zeros(len(X), dtype=np.int64), np.arange(len(X))
        while len(inside):
            nodes = at[inside]
            above = np.einsum("md,md->m", X[inside], self.normals[nodes]) >= self.thresholds[nodes]
            at[inside] = self.children[nodes, above.astype(np.int64)]
            inside = inside[at[inside] >= 0]
        return ~at


def partition_rows(X: Array, n_parts: int, kind: Kind = "kmeans") -> tuple[Partition, Indices]:
    """Divide rows into parts of equal size, neighbours together.

    Args:
        X: ``(n, d)``, in units in which distances mean something.
        n_parts: how many, from 1 to n.
        kind: "kmeans" or "tree", see above.

    Returns:
        The regions, and the part of each row ``(n,)``. Rows on a cut are divided so that sizes agree.

    Raises:
        InputError: for another kind, or a number of parts that can't be had.
    """
    if kind not in ("kmeans", "tree"):
        raise InputError(f"`kind` must be 'kmeans' or 'tree'; got {kind!r}.")
    if not 1 <= n_parts <= len(X):
        raise InputError(f"`n_parts` must be from 1 to the number of rows, {len(X)}; got {n_parts}.")
    normals, thresholds = np.zeros((n_parts - 1, X.shape[1])), np.zeros(n_parts - 1)
    children, labels = np.zeros((n_parts - 1, 2), dtype=np.int64), np.zeros(len(X), dtype=np.int64)
    waiting = [(np.arange(len(X)), 0, n_parts, 0)]  # rows, their first part, how many parts, the node
    while waiting:
        rows, first, parts, node = waiting.pop()
        if parts == 1:
            labels[rows] = first
            continue
        low = parts // 2
        count = len(rows) * low // parts
        normals[node] = _normal(X[rows], count / len(rows), kind)
        below, above, thresholds[node] = _cut(X[rows] @ normals[node], count)
        for side, (half, start, many) in enumerate(((below, first, low), (above, first + low, parts - low))):
            child = node + 1 + side * (low - 1)  # a subtree of m parts has m - 1 nodes
            children[node, side] = child if many > 1 else ~start
            waiting.append((rows[half], start, many, child))
    return Partition(normals, thresholds, children), labels


def graft(trunk: Partition, branches: list[Partition]) -> Partition:
    """One partition of the parts of several, each of which divides one part of the trunk.

    Args:
        trunk: with as many parts as there are branches.
        branches: in the order of its parts; their parts are numbered on from one to the next.
    """
    nodes = np.cumsum([len(trunk.children), *(len(branch.children) for branch in branches)])
    parts = np.cumsum([0, *(branch.n_parts for branch in branches)])
    roots = np.array([nodes[i] if len(branch.children) else ~parts[i] for i, branch in enumerate(branches)])
    children = [np.where(trunk.children < 0, roots[~trunk.children], trunk.children)]
    for branch, node, part in zip(branches, nodes, parts, strict=False):
        children.append(np.where(branch.children < 0, branch.children - part, branch.children + node))
    everything = [trunk, *branches]
    return Partition(
        np.concatenate([each.normals for each in everything]),
        np.concatenate([each.thresholds for each in everything]),
        np.concatenate(children),
    )


def random_parts(n: int, n_parts: int, rng: np.random.Generator) -> Indices:
    """Parts of equal size drawn at random, ``(n,)``."""
    if not 1 <= n_parts <= n:
        raise InputError(f"`n_parts` must be from 1 to the number of rows, {n}; got {n_parts}.")
    return rng.permutation(np.arange(n, dtype=np.int64) % n_parts)


def _cut(projection: Array, count: int) -> tuple[Indices, Indices, float]:
    """The `count` lowest, the others, and a value between them."""
    order = np.argpartition(projection, [count - 1, count])
    below, above = order[:count], order[count:]
    return below, above, 0.5 * float(projection[order[count - 1]] + projection[order[count]])


def _normal(X: Array, share: float, kind: Kind) -> Array:
    """The direction in which rows are divided, ``(d,)``, of unit length."""
    X = X[:: max(1, len(X) // _SAMPLE)]
    center = X - X.mean(0)
    if kind == "tree":
        normal = np.zeros(X.shape[1])
        normal[int(np.ptp(center, axis=0).argmax())] = 1.0
        return normal
    normal = np.linalg.eigh(center.T @ center)[1][:, -1]
    count = min(max(1, round(share * len(X))), len(X) - 1)
    before: Indices = np.zeros(0, dtype=np.int64)
    for _ in range(_ITERATIONS if len(X) > 1 else 0):
        below, above, _ = _cut(center @ normal, count)
        joined = center[above].mean(0) - center[below].mean(0)
        length = float(np.linalg.norm(joined))
        below.sort()
        if length == 0.0 or np.array_equal(below, before):
            break
        normal, before = joined / length, below
    return normal
