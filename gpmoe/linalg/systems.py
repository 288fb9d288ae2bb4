"""What solvers and the systems they make of an operator look like from outside, and the systems there are."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpmoe.linalg.alternating_projections import Blocks, alternating_projections
from gpmoe.linalg.conjugate_gradients import conjugate_gradients
from gpmoe.linalg.lanczos import Estimate, log_determinant
from gpmoe.linalg.operator import SymmetricOperator
from gpmoe.linalg.preconditioners import Preconditioner
from gpmoe.linalg.solution import Solution
from gpmoe.linalg.stochastic_dual_descent import stochastic_dual_descent

_STEPS = 100  # of Lanczos, without a preconditioner


class LinearSystem(Protocol):
    """One operator made ready to be solved with many right-hand sides: preconditioned, or its blocks factorised."""

    @property
    def description(self) -> str:
        """What was prepared, for a report: a rank, a number of blocks."""

    def solve(self, B: Tensor, *, start: Tensor | None = None, tolerance: float | Tensor | None = None) -> Solution:
        """Solve C X = B ``(n, c)`` from `start`, to the solver's tolerance or another, one or ``(c,)``."""

    def log_determinant(self, *, generator: torch.Generator | None = None) -> Estimate:
        """An estimate of log|C|, nats."""

    def inverse_bound(self, R: Tensor) -> Tensor:
        """An upper bound on r'C⁻¹r for each column of R ``(n, c)``, ``(c,)``."""


class LinearSolver(Protocol):
    """A way to solve linear systems, as an object that is passed in."""

    @property
    def memory(self) -> float:
        """Bytes that an operator may take to keep its covariance in float32."""

    def prepare(self, operator: SymmetricOperator, *, columns: int = 1, tolerance: float | None = None) -> LinearSystem:
        """Do once what all solves with an operator share, for so many right-hand sides to the solver's tolerance."""


@dataclass(frozen=True)
class PreconditionedSystem:
    """An operator with a preconditioner, to be solved by `conjugate_gradients`; its fields are that function's."""

    operator: SymmetricOperator
    preconditioner: Preconditioner | None
    tolerance: float
    max_iterations: int
    mixed: bool

    @property
    def description(self) -> str:
        """See `LinearSystem`."""
        return "no preconditioner" if self.preconditioner is None else self.preconditioner.description

    def solve(self, B: Tensor, *, start: Tensor | None = None, tolerance: float | Tensor | None = None) -> Solution:
        """See `LinearSystem`."""
        return conjugate_gradients(
            self.operator,
            B,
            preconditioner=self.preconditioner,
            start=start,
            tolerance=self.tolerance if tolerance is None else tolerance,
            max_iterations=self.max_iterations,
            mixed=self.mixed,
        )

    def log_determinant(self, *, generator: torch.Generator | None = None) -> Estimate:
        """See `LinearSystem`."""
        return log_determinant(self.operator, preconditioner=self.preconditioner, generator=generator)

    def inverse_bound(self, R: Tensor) -> Tensor:
        """See `LinearSystem`: r'P⁻¹r times the slack."""
        if self.preconditioner is None:
            return noise_bound(self.operator, R)
        return self.preconditioner.slack * (R * self.preconditioner.solve(R)).sum(0)


@dataclass(frozen=True)
class BlockSystem:
    """An operator with factors of its diagonal blocks, to be solved by `alternating_projections`."""

    operator: SymmetricOperator
    blocks: Blocks
    tolerance: float
    max_passes: int

    @property
    def description(self) -> str:
        """See `LinearSystem`."""
        return f"{len(self.blocks.index)} blocks"

    def solve(self, B: Tensor, *, start: Tensor | None = None, tolerance: float | Tensor | None = None) -> Solution:
        """See `LinearSystem`."""
        wanted = self.tolerance if tolerance is None else tolerance
        return alternating_projections(
            self.operator, B, blocks=self.blocks, start=start, tolerance=wanted, max_passes=self.max_passes
        )

    def log_determinant(self, *, generator: torch.Generator | None = None) -> Estimate:
        """See `LinearSystem`."""
        return log_determinant(self.operator, steps=_STEPS, generator=generator)

    def inverse_bound(self, R: Tensor) -> Tensor:
        """See `LinearSystem`: r'D⁻¹r with the noise D ⪯ C."""
        return noise_bound(self.operator, R)


@dataclass(frozen=True)
class DescentSystem:
    """An operator to be solved by `stochastic_dual_descent`; its fields are that function's."""

    operator: SymmetricOperator
    batch_size: int
    tolerance: float
    max_passes: int
    seed: int

    @property
    def description(self) -> str:
        """See `LinearSystem`."""
        return f"batches of {self.batch_size}"

    def solve(self, B: Tensor, *, start: Tensor | None = None, tolerance: float | Tensor | None = None) -> Solution:
        """See `LinearSystem`."""
        return stochastic_dual_descent(
            self.operator,
            B,
            batch_size=self.batch_size,
            start=start,
            tolerance=self.tolerance if tolerance is None else tolerance,
            max_passes=self.max_passes,
            generator=torch.Generator(B.device).manual_seed(self.seed),
        )

    def log_determinant(self, *, generator: torch.Generator | None = None) -> Estimate:
        """See `LinearSystem`."""
        return log_determinant(self.operator, steps=_STEPS, generator=generator)

    def inverse_bound(self, R: Tensor) -> Tensor:
        """See `LinearSystem`: r'D⁻¹r with the noise D ⪯ C."""
        return noise_bound(self.operator, R)


def noise_bound(operator: SymmetricOperator, R: Tensor) -> Tensor:
    """r'D⁻¹r for each column of R, at least r'C⁻¹r; infinite where there is no noise."""
    return (R.square() / operator.noise[:, None]).sum(0).nan_to_num(nan=0.0, posinf=float("inf"))
