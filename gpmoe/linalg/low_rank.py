"""Low-rank approximations of a covariance from some of its rows: F F' ≈ K, never above it.

| symbol | name in code | shape |
|---|---|---|
| F', the factor | `F` | (k, n), one row a pivot |
| diagonal of K - F F' | `left` | (n,) |

All three choose pivot rows S and give the Nyström approximation K[:, S] K[S, S]⁻¹ K[S, :], for which
0 ⪯ F F' ⪯ K. They differ in how: pivoted Cholesky takes the row with the largest remaining variance, which chases
outliers; the randomly pivoted one draws rows in proportion to what remains, and is close to the best approximation of
its rank; Nyström's draws uniformly.

Source: Harbrecht, Peters and Schneider (2012), pivoted Cholesky; Chen, Epperly, Tropp and Webber (2025), "Randomly
pivoted Cholesky", alg. 1; Epperly, Tropp and Webber, arXiv 2410.03969, alg. 3 (accelerated, by rejection in blocks).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg import lapack
from gpmoe.linalg.operator import SymmetricOperator, product

_BLOCK = 128
_NOTHING = 1e-12  # of the trace, below which the rest is rounding

Stop = Callable[[int, float], bool]


@dataclass(frozen=True)
class LowRank:
    """K ≈ F'F.

    Attributes:
        F: ``(k, n)``.
        pivots: the rows of K that were used, ``(k,)``.
        left: trace of K - F'F.
    """

    F: Tensor
    pivots: Tensor
    left: float


def pivoted_cholesky(operator: SymmetricOperator, rank: int) -> LowRank:
    """Greedy pivoted Cholesky: each pivot is the row with the largest remaining variance.

    Args:
        operator: K is its part without noise.
        rank: pivots at most; fewer if nothing remains.
    """
    growing = _Growing(operator, rank)
    while not growing.full:
        growing.append(growing.left.argmax().reshape(1))
    return growing.result()


def nystrom(operator: SymmetricOperator, rank: int, *, generator: torch.Generator | None = None) -> LowRank:
    """Nyström approximation from uniformly drawn rows.

    Args:
        operator: K is its part without noise.
        rank: rows drawn at most; those that add nothing are left out.
        generator: for the draw.
    """
    growing = _Growing(operator, rank)
    order = torch.randperm(len(operator.noise), generator=generator)[: growing.rank]
    for index in order.split(_BLOCK):
        growing.append(growing.independent(index))
    return growing.result()


def randomly_pivoted_cholesky(
    operator: SymmetricOperator,
    rank: int,
    *,
    generator: torch.Generator | None = None,
    stop: Stop | None = None,
) -> LowRank:
    """Accelerated randomly pivoted Cholesky: blocks of proposals, thinned by rejection to the exact law.

    Args:
        operator: K is its part without noise.
        rank: pivots at most; fewer if nothing remains.
        generator: for proposals and rejections.
        stop: asked after each block with the rank so far and the trace that remains.
    """
    growing = _Growing(operator, rank)
    while not growing.full:
        count = min(_BLOCK, growing.rank - growing.size)
        proposals = torch.multinomial(growing.left, count, replacement=True, generator=generator)
        growing.append(growing.accepted(proposals, generator))
        if stop is not None and stop(growing.size, growing.trace()):
            break
    return growing.result()


class _Growing:
    """A factor to which blocks of pivots are appended."""

    def __init__(self, operator: SymmetricOperator, rank: int) -> None:
        n = len(operator.noise)
        if rank < 0:
            raise InputError(f"`rank` must be at least 0; got {rank}.")
        self.rank = min(rank, n)
        self.operator = operator
        self.left = operator.diagonal().clone()
        self.floor = _NOTHING * float(self.left.sum())
        self.size = 0
        self._F = operator.noise.new_empty(self.rank, n)
        self._pivots: list[Tensor] = []

    @property
    def full(self) -> bool:
        return self.size >= self.rank or self.trace() <= self.floor

    def trace(self) -> float:
        return float(self.left.sum())

    def residual_block(self, index: Tensor) -> Tensor:
        """(K - F'F)[index, index]."""
        F = self._F[: self.size, index]
        return self.operator.rows(index)[:, index] - F.mT @ F

    def accepted(self, proposals: Tensor, generator: torch.Generator | None) -> Tensor:
        """Those of the proposals, drawn by the old diagonal, that pivots drawn one by one would have been."""
        chance = torch.rand(len(proposals), generator=generator, dtype=self.left.dtype, device=self.left.device)
        return _independent(self.residual_block(proposals), proposals, chance)

    def independent(self, index: Tensor) -> Tensor:
        """Those of the rows that are not explained by F and the ones before them."""
        return _independent(self.residual_block(index), index, torch.zeros_like(self.left[index]))

    def append(self, index: Tensor) -> None:
        """Eliminate rows that are independent of each other and of those before."""
        k, b = self.size, len(index)
        if b == 0:
            return
        F = self._F[:k]
        rows = self.operator.rows(index)
        if k:
            rows -= product(F[:, index].mT.contiguous(), F)
        E = rows[:, index]
        E = 0.5 * (E + E.mT)
        lapack.diagonal(E).add_(10 * torch.finfo(E.dtype).eps * float(lapack.diagonal(E).sum()))
        L = torch.linalg.cholesky(E)
        self._F[k : k + b] = lapack.solve_triangular(L, rows, overwrite=True)
        self.left -= self._F[k : k + b].square().sum(0)
        self.left.clamp_min_(0.0)
        self.left[index] = 0.0
        self.size += b
        self._pivots.append(index)

    def result(self) -> LowRank:
        pivots = torch.cat(self._pivots) if self._pivots else torch.zeros(0, dtype=torch.long)
        return LowRank(self._F[: self.size], pivots, self.trace())


def _independent(E: Tensor, index: Tensor, chance: Tensor) -> Tensor:
    """Pivots, in order, of which the ones before leave more than a share `chance`, and more than rounding."""
    left, least = E.cpu().numpy(), chance.clamp_min(1e-10).cpu().numpy()
    first = left.diagonal().copy()
    kept = []
    for i in range(len(index)):
        if left[i, i] > least[i] * first[i]:
            kept.append(i)
            column = left[i:, i] / left[i, i] ** 0.5
            left[i:, i:] -= column[:, None] * column
    return index[kept]
