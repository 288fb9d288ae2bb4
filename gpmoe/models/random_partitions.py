"""Random axis-aligned partitions of the input space into cells with few training points each.

| symbol | name in code | shape |
|---|---|---|
| nodes of all V trees, one tree after another | `feature`, `threshold`, `left`, `right`, `leaf` | (nodes,) |
| first node of each tree | `roots` | (V,) |
| leaf of each row in each tree, numbered through all trees | `route(X)` | (V, m) |
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError


@dataclass(frozen=True)
class RandomPartitions:
    """V binary trees, each of which sends every input to one of its leaves.

    An inner node sends x left where x[feature] <= threshold.

    Attributes:
        feature, left, right: of inner nodes, ``(nodes,)``, int64; -1 at leaves.
        threshold: ``(nodes,)``; 0 at leaves.
        leaf: number of the leaf among those of all trees, ``(nodes,)``; -1 at inner nodes.
        roots: ``(V,)``.

    Example:
        >>> X = torch.linspace(0, 1, 8, dtype=torch.float64).unsqueeze(-1)
        >>> partitions = RandomPartitions.draw(X, 1, leaf_size=4, randomness=0.0, seed=0)
        >>> partitions.route(X).tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1]]
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    leaf: Tensor
    roots: Tensor

    @classmethod
    def draw(
        cls, X: Tensor, count: int, *, leaf_size: int, randomness: float = 0.5, seed: int | None = None
    ) -> "RandomPartitions":
        """Split cells until none has more than `leaf_size` training points.

        A cell is split along an input drawn in proportion to the cell's extents, at ε b + (1 - ε) median, where b is
        Beta(2, 2) on the extent. A cell whose points all coincide stays whole.

        Args:
            X: training inputs, ``(n, d)``.
            count: V.
            leaf_size: the most points in a leaf.
            randomness: ε, from 0 (medians) to 1.
            seed: of the draws.

        Raises:
            InputError: for a number out of its range.

        Source: Trapp, Peharz, Pernkopf and Rasmussen (2020), Deep Structured Mixtures of Gaussian Processes, sec. 4.
        """
        if count < 1 or leaf_size < 1:
            raise InputError(f"`count` and `leaf_size` must be at least 1; got {count} and {leaf_size}.")
        if not isinstance(randomness, (int, float)) or not 0 <= randomness <= 1:
            raise InputError(f"`randomness` must lie between 0 and 1; got {randomness!r}.")
        rng = np.random.default_rng(seed)
        nodes = _Nodes(X.detach().numpy(), leaf_size, randomness, rng)
        roots = [nodes.grow(np.arange(len(X))) for _ in range(count)]
        whole = (nodes.feature, nodes.left, nodes.right, nodes.leaf, roots)
        feature, left, right, leaf, first = (torch.tensor(part, dtype=torch.int64) for part in whole)
        return cls(feature, torch.tensor(nodes.threshold, dtype=torch.float64), left, right, leaf, first)

    def __len__(self) -> int:
        return len(self.roots)

    @property
    def n_leaves(self) -> int:
        """Number of leaves of all trees."""
        return int(self.leaf.max()) + 1

    def tree_of_leaves(self) -> Tensor:
        """The tree that each leaf belongs to, ``(n_leaves,)``."""
        nodes = torch.nonzero(self.leaf >= 0).squeeze(-1)  # leaves are numbered in the order of their nodes
        return torch.searchsorted(self.roots, nodes, right=True) - 1

    def expect_whole(self, n_features: int) -> None:
        """Check nodes that were read from a file: every path must end at a leaf, on inputs that there are.

        Raises:
            InputError: if they are not V binary trees.
        """
        node = torch.arange(len(self.leaf))
        inner = self.leaf < 0
        sizes = {len(part) for part in (self.feature, self.threshold, self.left, self.right, self.leaf)}
        whole = len(sizes) == 1 and len(self.roots) > 0 and int(self.roots[0]) == 0 and not bool(inner[-1:].any())
        if whole:
            children = torch.stack([self.left, self.right])[:, inner]
            down = (children > node[inner]).all() & (children < len(node)).all()  # each path only goes on
            known = (self.feature[inner] >= 0).all() & (self.feature[inner] < n_features).all()
            numbered = torch.equal(self.leaf[~inner], torch.arange(int((~inner).sum())))
            whole = bool(down & known) and numbered and bool((self.roots.diff() > 0).all())
        if not whole:
            raise InputError(f"the nodes of {len(self.roots)} trees on {n_features} inputs don't fit together.")

    def route(self, X: Tensor) -> Tensor:
        """The leaf of each row in each tree, ``(V, m)``, for X ``(m, d)``."""
        node = self.roots.unsqueeze(-1).repeat(1, len(X))
        row = torch.arange(len(X)).expand(node.shape)
        while bool((inner := self.leaf[node] < 0).any()):
            goes_left = X[row, self.feature[node].clamp_min(0)] <= self.threshold[node]
            node = torch.where(inner, torch.where(goes_left, self.left[node], self.right[node]), node)
        return self.leaf[node]


class _Nodes:
    """Lists of nodes that grow tree by tree."""

    def __init__(self, X: NDArray[np.float64], leaf_size: int, randomness: float, rng: np.random.Generator) -> None:
        self.X, self.leaf_size, self.randomness, self.rng = X, leaf_size, randomness, rng
        self.feature: list[int] = []
        self.threshold: list[float] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.leaf: list[int] = []
        self.leaves = 0

    def grow(self, rows: NDArray[np.int64]) -> int:
        """Add the tree of some rows; returns its first node."""
        first = len(self.leaf)
        waiting = [(rows, -1, self.left)]
        while waiting:
            rows, parent, side = waiting.pop()
            node = self._add()
            if parent >= 0:
                side[parent] = node
            split = self._split(rows) if len(rows) > self.leaf_size else None
            if split is None:
                self.leaf[node], self.leaves = self.leaves, self.leaves + 1
                continue
            self.feature[node], self.threshold[node] = split
            goes_left = self.X[rows, split[0]] <= split[1]
            waiting += [(rows[~goes_left], node, self.right), (rows[goes_left], node, self.left)]
        return first

    def _add(self) -> int:
        for column in (self.feature, self.left, self.right, self.leaf):
            column.append(-1)
        self.threshold.append(0.0)
        return len(self.leaf) - 1

    def _split(self, rows: NDArray[np.int64]) -> tuple[int, float] | None:
        """An input and a threshold with rows on both sides; None if all rows coincide."""
        cell = self.X[rows]
        lower, extent = cell.min(0), np.ptp(cell, 0)
        if not extent.any():
            return None
        j = int(self.rng.choice(len(extent), p=extent / extent.sum()))
        drawn = lower[j] + extent[j] * self.rng.beta(2.0, 2.0)
        threshold = self.randomness * drawn + (1 - self.randomness) * np.median(cell[:, j])
        if threshold >= cell[:, j].max():  # ties at the top, or rounding
            threshold = cell[cell[:, j] < cell[:, j].max(), j].max()
        return j, float(max(threshold, lower[j]))
