"""Which experts of a correlated product know each other: blocks of rows in a chain of overlapping cliques.

Blocks come in the order of a minimum spanning tree of their centres. A new block's predecessors are the C - 1 blocks
nearest to it within one earlier clique, and with them it makes the next clique. So every clique is new block +
predecessors, every set of predecessors lies in an earlier clique, its host: the cliques form a tree, and a model whose
blocks depend on their predecessors alone can be conditioned on all data by two sweeps over it, without fill-in. The
first C blocks all know each other, so that C = M is the full process.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpmoe.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class CliqueTree:
    """Cliques of blocks, clique k belonging to the k-th block in order.

    Attributes:
        order: the blocks in the order in which they come, ``(M,)``.
        cliques: for each place k, the places of the predecessors, the last C - 1 or fewer, and k at the end.
        hosts: for each place, the earlier place whose clique holds all its predecessors; -1 for the first.

    Example:
        >>> import numpy as np
        >>> tree = clique_tree(np.array([[0.0], [3.0], [1.0], [2.0]]), degree=2)
        >>> tree.order.tolist(), [clique.tolist() for clique in tree.cliques]
        ([2, 0, 3, 1], [[0], [0, 1], [0, 2], [2, 3]])
    """

    order: Indices
    cliques: tuple[Indices, ...]
    hosts: Indices

    @property
    def answering(self) -> Indices:
        """Places whose cliques are not part of the next one: those that predict, ``(M - C + 1,)``."""
        degree = max(len(clique) for clique in self.cliques)
        return np.arange(degree - 1, len(self.cliques))

    def answering_near(self, neighbours: Indices) -> Indices:
        """Cliques that answer in each block's region: those that hold it, then those that hold its neighbours.

        Args:
            neighbours: blocks near each block, itself first, ``(M, k)``.

        Returns:
            Positions in `answering`, ``(M, at most k)``.
        """
        holding: list[list[int]] = [[] for _ in self.order]
        for position, k in enumerate(self.answering):
            for place in self.cliques[k]:
                holding[self.order[place]].append(position)
        found = [list(dict.fromkeys(clique for b in near for clique in holding[b])) for near in neighbours]
        most = min(neighbours.shape[1], min(map(len, found)))
        return np.array([each[:most] for each in found])


def clique_tree(centers: Array, degree: int) -> CliqueTree:
    """Order blocks and choose their predecessors by distances between centres.

    Args:
        centers: ``(M, d)``, in units in which distances mean something.
        degree: C, blocks in a clique, from 1 to M.

    Raises:
        InputError: if there are fewer blocks than that.
    """
    count = len(centers)
    if not 1 <= degree <= count:
        raise InputError(
            f"`degree` of correlation must be from 1 to the number of experts, {count}; got {degree}. "
            "Lower it, or give experts fewer rows."
        )
    order, nearest = _spanning_order(centers)
    placed = centers[order]
    cliques: list[Indices] = [np.array([0])]
    hosts = np.full(count, -1, dtype=np.int64)
    member_of: list[list[int]] = [[0], *([] for _ in range(count - 1))]
    for k in range(1, count):
        host = k - 1 if k < degree else _best_host(k, int(nearest[k]), placed, cliques, member_of, degree)
        known = cliques[host]
        distance = ((placed[known] - placed[k]) ** 2).sum(-1)
        chosen = np.sort(known[np.argsort(distance, kind="stable")[: degree - 1]])
        cliques.append(np.append(chosen, k))
        hosts[k] = host
        for place in cliques[k]:
            member_of[place].append(k)
    return CliqueTree(order, tuple(cliques), hosts)


def _spanning_order(centers: Array) -> tuple[Indices, Indices]:
    """Prim's order from the block nearest the centre of all, and each one's place of its nearest earlier block."""
    count = len(centers)
    first = int(((centers - centers.mean(0)) ** 2).sum(-1).argmin())
    order, nearest = np.empty(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    distance, link = np.full(count, np.inf), np.zeros(count, dtype=np.int64)
    at, done = first, np.zeros(count, dtype=bool)
    for k in range(count):
        order[k], nearest[k], done[at] = at, link[at], True
        new = ((centers - centers[at]) ** 2).sum(-1)
        closer = new < distance
        distance[closer], link[closer] = new[closer], k
        at = int(np.where(done, np.inf, distance).argmin())
    return order, nearest


def _best_host(
    k: int, nearest: int, placed: Array, cliques: list[Indices], member_of: list[list[int]], degree: int
) -> int:
    """Among the cliques of the nearest block, the one whose C - 1 nearest members are nearest."""
    if degree == 1:
        return k - 1
    best, least = -1, np.inf
    for clique in member_of[nearest]:
        if len(cliques[clique]) < degree:  # one of the first, all of whose blocks the next one has too
            continue
        distance = np.sort(((placed[cliques[clique]] - placed[k]) ** 2).sum(-1))[: degree - 1].sum()
        if distance < least:
            best, least = clique, float(distance)
    return best
