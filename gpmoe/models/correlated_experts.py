"""The correlated product of experts: blocks of rows that each depend on C - 1 others, conditioned on all data.

| symbol | name in code | shape |
|---|---|---|
| values of block k, and of its predecessors π(k) | u_k, u_π | (n_k,), (p,) |
| both: the clique ψ(k) | u_ψ | (p + n_k,) |
| u_k given u_π: mean F u_π, covariance L L' | `F`, `L` | (n_k, p), (n_k, n_k) |
| what data say of u_ψ: exp(-½ u'Λu + η'u) | `precision`, `information` | |
| posterior of u_ψ | `mean`, `covariance` | |

The prior is q(u) = Π_k p(u_k | u_π(k)), the process's own where every block is a predecessor, and its posterior given
all data comes from two sweeps over the tree of cliques: one gathers what data say, u_k = F u_π + L z being integrated
over z ~ N(0, I), the other hands posteriors back. With A the prior covariance of u_ψ, clique k predicts

    mean k_*'A⁻¹m_ψ,     variance k_** - k_*'W k_*,     W = A⁻¹ - A⁻¹ S_ψ A⁻¹.

Here u is the latent function plus a tenth of the noise variance, the rest of which lies between u and y: A then has a
factor without jitter, and the sum is the model's own noise. Sweeps cost O(M (C b)³) for M blocks of b rows.

Source: Schürch, Azzimonti, Benavoli and Zaffalon (2023), Correlated product of experts for sparse Gaussian process
regression, sec. 3; the order and predecessors here make its precision matrix free of fill-in (see `clique_tree`).
"""

import math
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.cross_covariance import cross_covariance
from gpmoe.linalg.factorisation import cholesky_with_jitter_
from gpmoe.linalg.stationary import dense_covariance, fill_covariance
from gpmoe.models.clique_tree import CliqueTree

_INNER = 0.1  # share of the noise variance that belongs to u


@dataclass(frozen=True)
class Clique:
    """What predicts: rows, A⁻¹m and W."""

    rows: Tensor
    weights: Tensor
    explained: Tensor


@dataclass(frozen=True)
class CorrelatedExperts:
    """The posterior of a correlated product.

    Attributes:
        cliques: those that predict, in the order of `CliqueTree.answering`.
        log_evidence: log q(y), nats.
    """

    cliques: tuple[Clique, ...]
    log_evidence: float

    def posterior(self, kernel: Kernel, X: Tensor, clique: int, X_new: Tensor) -> tuple[Tensor, Tensor]:
        """One clique's posterior of the latent function at ``(q, d)`` points, less the prior mean: ``(q,)`` each.

        Args:
            kernel: the process's.
            X: all training rows, ``(n, d)``.
            clique: its number.
            X_new: ``(q, d)``.
        """
        part = self.cliques[clique]
        K = cross_covariance(kernel, X_new, X[part.rows])
        prior = kernel(X_new, diag=True)
        variance = prior - ((K @ part.explained) * K).sum(-1)
        return K @ part.weights, torch.maximum(variance, torch.finfo(K.dtype).eps * prior)

    def covariance(self, kernel: Kernel, X: Tensor, clique: int, X_new: Tensor) -> Tensor:
        """One clique's joint posterior covariance at ``(q, d)`` points, ``(q, q)``."""
        part = self.cliques[clique]
        K = cross_covariance(kernel, X_new, X[part.rows])
        return dense_covariance(kernel, X_new, X_new) - K @ part.explained @ K.mT


@dataclass
class _Block:
    """The link of a block to its predecessors, and what its sweep leaves behind."""

    F: Tensor
    L: Tensor
    gain: Tensor | None = None  # posterior mean of u_k is gain u_π + offset
    offset: Tensor | None = None
    root: Tensor | None = None  # root root' its covariance given u_π


def correlated_experts(
    kernel: Kernel, X: Tensor, residual: Tensor, noise: float, offsets: Tensor, tree: CliqueTree
) -> CorrelatedExperts:
    """Condition the correlated product on all data.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X: rows of all blocks, one after another, ``(n, d)``.
        residual: targets less the prior mean, ``(n,)``.
        noise: noise variance.
        offsets: ``(M + 1,)``: block b has the rows ``offsets[b]:offsets[b + 1]``.
        tree: of the blocks.
    """
    with torch.no_grad():
        rows = [torch.arange(int(offsets[b]), int(offsets[b + 1])) for b in tree.order]
        sweep = _Sweep(kernel, X, residual, noise, rows, tree)
        sweep.gather()
        return CorrelatedExperts(tuple(sweep.hand_back()), sweep.log_evidence)


class _Sweep:
    def __init__(
        self, kernel: Kernel, X: Tensor, residual: Tensor, noise: float, rows: list[Tensor], tree: CliqueTree
    ) -> None:
        self.kernel, self.X, self.residual, self.rows, self.tree = kernel, X, residual, rows, tree
        self.inner, self.outer = _INNER * noise, (1 - _INNER) * noise
        self.blocks: list[_Block] = []
        n = len(residual)
        square = float(residual.square().sum())
        self.log_evidence = -0.5 * (n * math.log(2 * math.pi * self.outer) + square / self.outer)

    def prior(self, rows: Tensor) -> Tensor:
        """Lower Cholesky factor of A over some rows."""
        x = self.X[rows]
        L = x.new_empty(len(x), len(x))

        def fill(C: Tensor) -> None:
            fill_covariance(self.kernel, x, None, C)
            lapack.diagonal(C).add_(self.inner)

        cholesky_with_jitter_(fill, L)
        return L.tril_()

    def clique_rows(self, k: int) -> Tensor:
        """Rows of u_ψ(k): the predecessors', then the block's own."""
        return torch.cat([self.rows[place] for place in self.tree.cliques[k]])

    def link(self, k: int) -> _Block:
        """F and L, from the factor of A over the clique: [[L_π, 0], [B, L]] with F = B L_π⁻¹."""
        L = self.prior(self.clique_rows(k))
        p = len(L) - len(self.rows[k])
        B = L[p:, :p].contiguous()
        F = lapack.solve_triangular(L[:p, :p].contiguous(), B.mT, transpose=True).mT if p else B
        return _Block(F.contiguous(), L[p:, p:].contiguous())

    def gather(self) -> None:
        """From the last block to the first: what data at and below each clique say of its predecessors."""
        sizes = [sum(len(self.rows[place]) for place in clique) for clique in self.tree.cliques]
        said: dict[int, tuple[Tensor, Tensor]] = {}
        for k in reversed(range(len(sizes))):
            block = self.link(k)
            precision, information = said.pop(k) if k in said else self._nothing(sizes[k])
            p = sizes[k] - len(self.rows[k])
            lapack.diagonal(precision)[p:] += 1 / self.outer
            information[p:] += self.residual[self.rows[k]] / self.outer
            message = self._integrate(block, precision, information, p)
            self.blocks.append(block)
            if p:
                host = int(self.tree.hosts[k])
                if host not in said:
                    said[host] = self._nothing(sizes[host])
                at = self._places(k, host)
                said[host][0][at[:, None], at] += message[0]
                said[host][1][at] += message[1]
        self.blocks.reverse()

    def _nothing(self, size: int) -> tuple[Tensor, Tensor]:
        return self.X.new_zeros(size, size), self.X.new_zeros(size)

    def _places(self, k: int, host: int) -> Tensor:
        """Where the rows of π(k) stand in the host's clique."""
        clique = self.tree.cliques[host].tolist()
        starts = [0]
        for place in clique:
            starts.append(starts[-1] + len(self.rows[place]))
        parts = []
        for place in self.tree.cliques[k][:-1]:
            i = clique.index(int(place))
            parts.append(torch.arange(starts[i], starts[i + 1]))
        return torch.cat(parts)

    def _integrate(self, block: _Block, precision: Tensor, information: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """Integrate over z, leave in the block what u_k is given u_π, and return what is said of u_π."""
        F, L = block.F, block.L
        own, cross = precision[p:, p:], precision[p:, :p]
        own_F = own @ F
        z_pi = L.mT @ (cross + own_F)
        z_information = L.mT @ information[p:]
        S = L.mT @ own @ L
        lapack.diagonal(S).add_(1.0)
        S = S.contiguous()
        lapack.cholesky_(S)  # at least the identity: it has a factor
        root = S.tril_()
        half = lapack.solve_triangular(root, torch.cat([z_information.unsqueeze(-1), z_pi], -1))
        h, H = half[:, 0], half[:, 1:]
        block.root = lapack.solve_triangular(root, L.mT).mT.contiguous()
        block.gain, block.offset = F - block.root @ H, block.root @ h
        self.log_evidence += 0.5 * float(h.square().sum()) - float(root.diagonal().log().sum())
        mixed = F.mT @ cross
        said = precision[:p, :p] + mixed + mixed.mT + F.mT @ own_F - H.mT @ H
        return said, information[:p] + F.mT @ information[p:] - H.mT @ h

    def hand_back(self) -> list[Clique]:
        """From the first block to the last: the posterior of each clique, and what predicts from it."""
        last_needed = {}
        for k, host in enumerate(self.tree.hosts):
            last_needed[int(host)] = k
        held: dict[int, tuple[Tensor, Tensor]] = {}
        answering = {int(k) for k in self.tree.answering}
        found = []
        for k, block in enumerate(self.blocks):
            mean, covariance = self._posterior(k, block, held)
            if k in answering:
                found.append(self._predictor(k, mean, covariance))
            if k in last_needed:
                held[k] = (mean, covariance)
            host = int(self.tree.hosts[k])
            if last_needed.get(host) == k:
                held.pop(host, None)
        return found

    def _posterior(self, k: int, block: _Block, held: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        assert block.gain is not None
        assert block.offset is not None
        assert block.root is not None
        own = lapack.rank_k(block.root)
        p = block.gain.shape[1]
        if not p:
            return block.offset, own
        mean, covariance = held[int(self.tree.hosts[k])]
        at = self._places(k, int(self.tree.hosts[k]))
        mean, covariance = mean[at], covariance[at[:, None], at]
        cross = block.gain @ covariance
        own = own + cross @ block.gain.mT
        joint = torch.cat([torch.cat([covariance, cross.mT], -1), torch.cat([cross, own], -1)])
        return torch.cat([mean, block.gain @ mean + block.offset]), joint

    def _predictor(self, k: int, mean: Tensor, covariance: Tensor) -> Clique:
        """A⁻¹m and W = L⁻'(I - L⁻¹ S L⁻')L⁻¹ for A = L L'."""
        rows = self.clique_rows(k)
        L = self.prior(rows)
        white = lapack.solve_triangular(L, lapack.solve_triangular(L, covariance).mT)
        inner = torch.eye(len(L), dtype=L.dtype) - 0.5 * (white + white.mT)
        explained = lapack.solve_triangular(L, lapack.solve_triangular(L, inner, transpose=True).mT, transpose=True)
        return Clique(rows, lapack.cholesky_solve(L, mean), 0.5 * (explained + explained.mT))
