"""Grids with missing cells by way of the missing ones: exact, or by conjugate gradients.

With C = K_1 ⊗ … ⊗ K_k + σ²I on all N cells, P = C⁻¹ known in the eigenbasis, M cells observed (o), m missing (u):

    log |C_oo| = log |C| + log |P_uu|
    y_u = -P_uu⁻¹ P_uo y_o completes the data: P (y_o, y_u) is C_oo⁻¹ y_o on o and 0 on u
    C_oo⁻¹, with zeros at missing cells, = P - P_:u P_uu⁻¹ P_u:

| symbol | name in code | shape |
|---|---|---|
| D = Λ + σ² | `D` | (n_1, …, n_k) |
| o, u as positions in the raveled grid | `observed`, `missing` | (M,), (m,) |
| P_uu, later its lower Cholesky factor | `L` | (m, m) |
| pairs with E Σ_c u_c w_c' = P_:u P_uu⁻¹ P_u:, in the eigenbasis | `pairs` | (c, n_1, …, n_k) |

Exact, P_uu is factorised and the pairs are the columns of P_:u L⁻': O(m N Σ n_j + m³), which beats a factor of C_oo
unless few cells are observed. Iterative, only products with P are taken: P_uu has eigenvalues near 1/σ² where cells
are missing at random, so a few steps do; where whole regions are missing they are followed by steps preconditioned by
C_uu. The stochastic part is log |P_uu| and its gradient alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpmoe.linalg import lapack
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.grid_conjugate_gradients import Solved, conjugate_gradients, log_quadrature
from gpmoe.linalg.kronecker import KroneckerEigen, outer
from gpmoe.linalg.kronecker_likelihood import finished_gradient

_CHUNK = 2**22  # entries of a block of columns: 32 MB in float64
_PLAIN_STEPS = 50  # before C_uu preconditions


@dataclass(frozen=True)
class Iterative:
    """How grids are solved by iteration.

    Attributes:
        tolerance: of the relative true residual ‖C_oo α - y‖ / ‖y‖, and of the probes' own.
        probes: random vectors for the log-determinant and its gradient.
        seed: of the probes, the same at each evaluation, so that the objective is a function.
        max_steps: of conjugate gradients.
    """

    tolerance: float = 1e-3
    probes: int = 16
    seed: int = 0
    max_steps: int = 1000


class Pair(NamedTuple):
    """Rotated grid tensors whose weighted outer products make P_:u P_uu⁻¹ P_u:; W is U itself if None."""

    U: Tensor
    W: Tensor | None
    weight: float


class Completion(NamedTuple):
    """Data completed at the missing cells."""

    alpha: Tensor  # (c, M), C_oo⁻¹ y_o
    rotated: Tensor  # (c, n_1, ..., n_k), Q' α on the grid
    quadratic: Tensor  # (c,), y_o' C_oo⁻¹ y_o


class Complement:
    """What the eigenbasis of the whole grid makes of its observed cells.

    Args:
        factors: K_j ``(n_j, n_j)``.
        noise: variance, ``()``.
        observed: bool ``(n_1, …, n_k)``.
        iterative: None for the exact form.
        workspace: memory to reuse for P_uu.

    Attributes:
        residual: the largest relative residual so far, ‖C_oo α - y‖ / ‖y‖; 0 for the exact form, whose rounding error
            is that of a factorisation.
        steps: of conjugate gradients, the most so far.
        standard_error: of the log likelihood, nats; None until one was estimated.
        converged: whether every solve met its tolerance.

    Raises:
        NotPositiveDefiniteError, NonFiniteError: see `KroneckerEigen`.

    Example:
        >>> import torch
        >>> K = torch.eye(2, dtype=torch.float64)
        >>> observed = torch.tensor([[True, True], [False, True]])
        >>> Complement([K, K], K.new_tensor(1.0), observed).solve(K.new_ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        noise: Tensor,
        observed: Tensor,
        iterative: Iterative | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.basis = KroneckerEigen.of(factors)
        self.D = self.basis.noisy_spectrum(noise)
        self.iterative = iterative
        self.is_missing = ~observed
        self.observed = observed.reshape(-1).nonzero().squeeze(-1)
        self.missing = self.is_missing.reshape(-1).nonzero().squeeze(-1)
        self.residual, self.steps, self.converged = 0.0, 0, True
        self.standard_error: float | None = None
        self.workspace = Workspace() if workspace is None else workspace
        self.jitter = 0.0
        if iterative is None and len(self.missing):
            self._factorise()

    def solve(self, B: Tensor) -> Tensor:
        """C_oo⁻¹ of each row of B, ``(c, M)``."""
        if len(B) == 0:
            return B.clone()
        rows = max(1, _CHUNK // self.D.numel())
        return torch.cat([self.complete(part).alpha for part in B.split(rows)])

    def complete(self, B: Tensor) -> Completion:
        """Solve for rows of B ``(c, M)``, with what a likelihood needs."""
        y = self._embed(B, self.observed)
        rotated = self.basis.rotate(y)
        weighted = rotated / self.D
        if len(self.missing):
            filled = self._fill(self.basis.rotate_back(weighted), B.norm(dim=-1))
            rotated = rotated + self.basis.rotate(filled)
            weighted = rotated / self.D
        alpha = self.basis.rotate_back(weighted).flatten(1)[:, self.observed]
        return Completion(alpha, weighted, (rotated * weighted).flatten(1).sum(-1))

    def quadratic(self, B: Tensor) -> Tensor:
        """b' C_oo⁻¹ b of each row of B ``(c, M)``."""
        rows = max(1, _CHUNK // self.D.numel())
        return torch.cat([B.new_zeros(0), *(self._quadratic(part) for part in B.split(rows) if len(part))])

    def _quadratic(self, B: Tensor) -> Tensor:
        if self.iterative is not None and len(self.missing):
            return self.complete(B).quadratic
        rotated = self.basis.rotate(self._embed(B, self.observed))
        weighted = rotated / self.D
        whole = (rotated * weighted).flatten(1).sum(-1)
        if not len(self.missing):
            return whole
        at_missing = self.basis.rotate_back(weighted).flatten(1)[:, self.missing]
        return whole - lapack.solve_triangular(self.L, at_missing.mT).square().sum(0)

    def log_likelihood(self, y: Tensor) -> tuple[Tensor, Completion, list[Pair] | Iterator[Pair]]:
        """log N(y | 0, C_oo) for y ``(M,)``, the completed data, and the pairs of its gradient."""
        if self.iterative is None or not len(self.missing):
            done = self.complete(y.unsqueeze(0))
            log_det = self.D.log().sum()
            if len(self.missing):
                log_det = log_det + 2 * lapack.diagonal(self.L).log().sum()
            pairs: list[Pair] | Iterator[Pair] = self._exact_pairs()
        else:
            done, log_det, pairs = self._estimate(y, self.iterative)
        value = -0.5 * (done.quadratic[0] + log_det + len(y) * math.log(2 * math.pi))
        return value, done, pairs

    def gradients(self, done: Completion, pairs: list[Pair] | Iterator[Pair]) -> tuple[list[Tensor], Tensor]:
        """dL/dK_j and dL/dσ²."""
        inverse = 1 / self.D
        d_noise = done.rotated[0].square().sum() - inverse.sum()
        M = [self.basis.gram(j, done.rotated[:1]) for j in range(len(self.basis.values))]
        for U, W, weight in pairs:
            d_noise = d_noise + weight * (U * (U if W is None else W)).sum()
            for j, total in enumerate(M):
                total.add_(self.basis.gram(j, U, W), alpha=weight)
        return [finished_gradient(self.basis, j, total, inverse) for j, total in enumerate(M)], 0.5 * d_noise

    def _embed(self, B: Tensor, positions: Tensor) -> Tensor:
        """Rows of B on the grid, zero elsewhere, ``(c, n_1, …, n_k)``."""
        flat = B.new_zeros(len(B), self.D.numel())
        flat[:, positions] = B
        return flat.view(len(B), *self.basis.sizes)

    def _precision(self, T: Tensor) -> Tensor:
        """P T."""
        return self.basis.rotate_back(self.basis.rotate(T).div_(self.D))

    def _covariance(self, T: Tensor) -> Tensor:
        """C T."""
        return self.basis.rotate_back(self.basis.rotate(T).mul_(self.D))

    def _fill(self, T: Tensor, scale: Tensor) -> Tensor:
        """-P_uu⁻¹ of T's missing cells, zero at observed ones, on the grid; `scale` is ‖y‖ of each row."""
        if self.iterative is None:
            return self._embed(-self._solve_missing(T.flatten(1)[:, self.missing]), self.missing)
        return -self._iterate(T * self.is_missing, scale, self.iterative, rows=len(T)).x

    # The exact form.

    def _factorise(self) -> None:
        """L L' = P_uu, filled in blocks of rows."""

        def fill(P: Tensor) -> None:
            for rows in self._row_blocks():
                P[rows] = self.basis.rotate_back(self._unit_columns(rows).div_(self.D)).flatten(1)[:, self.missing]

        self.L = self.workspace.matrix(len(self.missing), like=self.D)
        self.jitter = self.workspace.jitter = cholesky_with_jitter_(fill, self.L)

    def _unit_columns(self, rows: slice) -> Tensor:
        """Q' of the unit vectors of some missing cells: outer products of rows of the Q_j."""
        at = torch.unravel_index(self.missing[rows], self.basis.sizes)
        return outer([Q[a] for Q, a in zip(self.basis.vectors, at, strict=True)])

    def _row_blocks(self) -> list[slice]:
        size, m = max(1, _CHUNK // self.D.numel()), len(self.missing)
        return [slice(start, min(start + size, m)) for start in range(0, m, size)]

    def _solve_missing(self, B: Tensor) -> Tensor:
        if len(B) == 1:
            return lapack.cholesky_solve(self.L, B[0].contiguous()).unsqueeze(0)
        half = lapack.solve_triangular(self.L, B.mT)
        return lapack.solve_triangular(self.L, half, transpose=True).mT

    def _exact_pairs(self) -> Iterator[Pair]:
        """Columns of P_:u L⁻', rotated, in blocks."""
        for rows in self._row_blocks() if len(self.missing) else []:
            unit = torch.zeros(len(self.missing), rows.stop - rows.start, dtype=self.D.dtype, device=self.D.device)
            lapack.diagonal(unit[rows]).fill_(1.0)
            columns = lapack.solve_triangular(self.L, unit, transpose=True)
            yield Pair(self.basis.rotate(self._embed(columns.mT, self.missing)).div_(self.D), None, 1.0)

    # The iterative form.

    def _iterate(self, b: Tensor, scale: Tensor, how: Iterative, rows: int) -> Solved:
        """P_uu x = b for masked grid tensors ``(c, n_1, …)``; the first rows stop by the residual of C_oo."""

        def product(T: Tensor) -> Tensor:
            return self._precision(T).mul_(self.is_missing)

        def relative(r: Tensor) -> Tensor:
            own = r.flatten(1).norm(dim=1) / b_norm
            true = self._covariance(r[:rows]).mul_(~self.is_missing).flatten(1).norm(dim=1) / scale.clamp_min(tiny)
            return torch.cat([true, own[rows:]])

        def precondition(T: Tensor) -> Tensor:
            return self._covariance(T).mul_(self.is_missing)

        tiny = torch.finfo(b.dtype).tiny
        b_norm = b.flatten(1).norm(dim=1).clamp_min(tiny)
        solved = conjugate_gradients(product, b, relative, tolerance=how.tolerance, max_steps=_PLAIN_STEPS)
        steps, quadrature = solved.steps, solved.quadrature
        if not solved.converged and how.max_steps > _PLAIN_STEPS:
            left = how.max_steps - _PLAIN_STEPS
            solved = conjugate_gradients(
                product, b, relative, tolerance=how.tolerance, max_steps=left, start=solved, precondition=precondition
            )
            steps += solved.steps
        self.residual = max(self.residual, float(solved.relative[:rows].max()))
        self.steps = max(self.steps, steps)
        self.converged = self.converged and solved.converged
        return solved._replace(quadrature=quadrature)

    def _estimate(self, y: Tensor, how: Iterative) -> tuple[Completion, Tensor, list[Pair]]:
        """Completed data, log |C_oo|, and pairs from probes, all from one run of conjugate gradients."""
        rotated = self.basis.rotate(self._embed(y.unsqueeze(0), self.observed))
        generator = torch.Generator(device=y.device).manual_seed(how.seed)
        signs = torch.randint(0, 2, (how.probes, len(self.missing)), generator=generator, device=y.device)
        z = self._embed(signs.to(y) * 2 - 1, self.missing)
        b = torch.cat([self.basis.rotate_back(rotated / self.D).mul_(self.is_missing), z])
        solved = self._iterate(b, y.norm().unsqueeze(0), how, rows=1)
        rotated = rotated - self.basis.rotate(solved.x[:1])
        weighted = rotated / self.D
        alpha = self.basis.rotate_back(weighted).flatten(1)[:, self.observed]
        logs = len(self.missing) * log_quadrature(solved.quadrature, first=1)
        self.standard_error = 0.5 * float(logs.std()) / math.sqrt(how.probes) if how.probes > 1 else float("nan")
        log_det = self.D.log().sum() + logs.mean()
        U = self.basis.rotate(solved.x[1:]).div_(self.D)
        W = self.basis.rotate(z).div_(self.D)
        done = Completion(alpha, weighted, (rotated * weighted).flatten(1).sum(-1))
        return done, log_det, [Pair(U, W, 1.0 / how.probes)]
