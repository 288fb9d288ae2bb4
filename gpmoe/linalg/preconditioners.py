"""Preconditioners P = F'F + diag(noise) ⪯ C, applied by Woodbury's identity, and how large they should be.

| symbol | name in code | shape |
|---|---|---|
| D, the noise | `noise` | (n,) |
| F, low-rank factor | `F` | (k, n) |
| M = I + F D⁻¹ F' = L L' | `L` | (k, k) |
| T = L⁻¹ F D^-½ | `T` | (k, n) |

    P⁻¹ v = D^-½ (w - T'(T w)),  w = D^-½ v;     log|P| = log|D| + 2 log|L|

Since F'F ⪯ K, P ⪯ C and v'C⁻¹v ≤ v'P⁻¹v: what a preconditioned solver computes anyway bounds its error.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg import lapack
from gpmoe.linalg.low_rank import LowRank, randomly_pivoted_cholesky
from gpmoe.linalg.operator import SymmetricOperator, product
from gpmoe.linalg.single_factor import factorise_in_single

_BEFORE_WHOLE = 4  # ranks that the model has to see before it gives up on all of them


class Preconditioner(Protocol):
    """P, close to C in the sense that P⁻¹C has few distinct eigenvalues, with a cheap inverse."""

    @property
    def slack(self) -> float:
        """The number for which v'C⁻¹v ≤ slack · v'P⁻¹v."""

    @property
    def description(self) -> str:
        """For reports."""

    def solve(self, V: Tensor) -> Tensor:
        """P⁻¹ V in the precision of V, ``(n, c)``."""

    def log_determinant(self) -> float:
        """log|P|, nats."""

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Columns drawn from N(0, P), ``(n, count)``."""


@dataclass(frozen=True)
class LowRankPreconditioner:
    """A low-rank covariance plus noise, whose inverse, determinant and samples are cheap.

    Attributes:
        noise: ``(n,)``.
        T: ``(k, n)``, in the precision of the operator.
        T_single: the same in float32, for products in float32.
        L: ``(k, k)``.
        trace_left: of what the low rank leaves out of K.

    Example:
        >>> import torch
        >>> from gpmoe.linalg.low_rank import pivoted_cholesky
        >>> from gpmoe.linalg.operator import DenseOperator
        >>> C = DenseOperator(torch.ones(3, 3).double(), torch.ones(3).double())
        >>> P = precondition(C, pivoted_cholesky(C, 1))
        >>> C.matmul(P.solve(torch.ones(3, 1).double())).squeeze().round(decimals=3).tolist()
        [1.0, 1.0, 1.0]
    """

    noise: Tensor
    T: Tensor
    T_single: Tensor
    L: Tensor
    trace_left: float

    @property
    def rank(self) -> int:
        """k."""
        return len(self.T)

    @property
    def slack(self) -> float:
        """See `Preconditioner`: 1, since P ⪯ C."""
        return 1.0

    @property
    def description(self) -> str:
        """For reports."""
        return f"preconditioner of rank {self.rank}"

    def solve(self, V: Tensor) -> Tensor:
        """P⁻¹ V in the precision of V, ``(n, c)``."""
        T = self.T if V.dtype == self.T.dtype else self.T_single
        root = self.noise.rsqrt().to(V.dtype)[:, None]
        W = root * V
        return W.sub_(product(T.mT, product(T, W))).mul_(root)

    def log_determinant(self) -> float:
        """log|P|."""
        return float(self.noise.log().sum() + 2 * lapack.diagonal(self.L).log().sum())

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Columns drawn from N(0, P), ``(n, count)``."""
        like: dict[str, Any] = {"dtype": self.T.dtype, "device": self.T.device}
        g = torch.randn(len(self.noise), count, generator=generator, **like)
        h = torch.randn(self.rank, count, generator=generator, **like)
        return self.noise.sqrt()[:, None] * (g + self.T.mT @ (self.L.mT @ h))


def precondition(operator: SymmetricOperator, low_rank: LowRank) -> LowRankPreconditioner:
    """The preconditioner of an operator whose K is approximated by a low rank.

    Raises:
        InputError: if some noise is zero.
    """
    noise = operator.noise
    if not bool((noise > 0).all()):
        raise InputError(
            f"a preconditioner needs a positive noise variance at every point; got a minimum of {float(noise.min())}. "
            "Set a noise variance, or solve without a preconditioner."
        )
    G = low_rank.F * noise.rsqrt()
    M = lapack.rank_k(G) if len(G) else G @ G.mT
    lapack.diagonal(M).add_(1.0)
    L = torch.linalg.cholesky(M)
    T = lapack.solve_triangular(L, G, overwrite=True).contiguous()
    return LowRankPreconditioner(noise, T, T.float(), L, low_rank.left)


def adapted_preconditioner(
    operator: SymmetricOperator,
    *,
    tolerance: float,
    columns: int,
    most: int,
    whole: bool = False,
    generator: torch.Generator | None = None,
) -> Preconditioner:
    """The preconditioner with which the whole solve should take the least time.

    That is a randomly pivoted Cholesky factor of some rank, or, where low ranks promise less, all of C in float32.

    Args:
        operator: what will be solved with.
        tolerance: relative residual that will be asked for.
        columns: right-hand sides that will be solved for.
        most: the largest rank.
        whole: whether there is room for all of C.
        generator: for the pivots.

    Raises:
        InputError: if some noise is zero.
    """
    n = len(operator.noise)
    model = TimeModel(n, float(operator.noise.mean()), tolerance, columns, whole=whole)
    low_rank = randomly_pivoted_cholesky(operator, min(most, n // 2), generator=generator, stop=model)
    if model.prefers_whole and bool((operator.noise > 0).all()):
        return factorise_in_single(operator)
    return precondition(operator, low_rank)


class TimeModel:
    """Predicts the time of a preconditioned solve for each rank, and says when a larger one no longer pays.

    Each random pivot removes |E|_F² / tr E from the trace of the remainder E in expectation, an average of E's
    eigenvalues that stands in for its largest one: κ ≈ 1 + 2 δ / noise with the δ seen. Iterations are ½ √κ log(2/ε).
    Beyond the present rank κ - 1 is continued as a power of the rank. Costs are counted in float32 operations, not
    measured, so that the choice does not depend on what else the machine does.

    Args:
        n: rows.
        noise: mean noise variance.
        tolerance: relative residual ε.
        columns: right-hand sides.
        whole: whether factorising all of C in float32 is a choice.

    Attributes:
        prefers_whole: whether it was found to take less time than any rank.
    """

    def __init__(self, n: int, noise: float, tolerance: float, columns: int, *, whole: bool = False) -> None:
        self.n = n
        self.noise = noise
        self.tolerance = tolerance
        self.columns = columns
        self.whole = whole
        self.prefers_whole = False
        self._seen: list[tuple[int, float, float]] = []  # rank, trace left, excess κ - 1

    def cost(self, rank: int, excess: float) -> float:
        """Operations to build a preconditioner of a rank and to solve with a condition number of 1 + excess."""
        iterations = 0.5 * math.sqrt(1 + excess) * math.log(2 / self.tolerance)
        application = self._chunks * 8 * self.n * rank + 4 * self.n * rank * self.columns
        return 6 * self.n * rank**2 + (iterations + 2) * (self._product + application)

    def cost_of_whole(self) -> float:
        """Operations to factorise C in float32 and to refine with it, each step of which gains a factor of 100."""
        iterations = math.log(2 / self.tolerance) / math.log(100)
        application = self._chunks * 32 * self.n**2 + 2 * self.n**2 * self.columns
        return self.n**3 / 3 + (iterations + 2) * (self._product + application)

    def __call__(self, rank: int, trace: float) -> bool:
        """Whether to stop at this rank, where such a trace remains."""
        if not self._seen:
            self._seen.append((rank, trace, math.inf))
            return False
        before, old_trace, _ = self._seen[-1]
        excess = 2 * max(old_trace - trace, 0.0) / (rank - before) / self.noise
        self._seen.append((rank, trace, excess))
        power = self._power(rank, excess)
        ranks = [rank, round(1.25 * rank) + 64]
        costs = [self.cost(k, excess * (rank / k) ** power) for k in ranks]
        if self.whole and len(self._seen) >= _BEFORE_WHOLE:
            while costs[-1] < costs[-2]:
                ranks.append(2 * ranks[-1])
                costs.append(self.cost(ranks[-1], excess * (rank / ranks[-1]) ** power))
            self.prefers_whole = self.cost_of_whole() < min(costs) - 6 * self.n * rank**2
        return self.prefers_whole or costs[1] >= costs[0]

    @property
    def _chunks(self) -> int:
        """Of columns that are solved for one after the other."""
        return max(1, self.columns // 64)

    @property
    def _product(self) -> float:
        """Operations of one product with C."""
        return self._chunks * 16 * self.n**2 + 2 * self.n**2 * self.columns

    def _power(self, rank: int, excess: float) -> float:
        """How fast the excess falls with rank, from half the rank to the present one."""
        finite = [(k, value) for k, _, value in self._seen if value < math.inf and k <= 0.6 * rank]
        if not finite or excess <= 0.0:
            return 1.0
        k, value = finite[-1]
        return max(math.log(value / excess) / math.log(rank / k), 0.0) if value > 0.0 else 1.0
