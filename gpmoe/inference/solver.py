"""How linear systems are solved, as an object that is passed in; the one file that touches GPyTorch's settings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import gpytorch
import torch

from gpmoe.errors import InputError
from gpmoe.linalg.alternating_projections import factorise_blocks
from gpmoe.linalg.low_rank import randomly_pivoted_cholesky
from gpmoe.linalg.operator import SymmetricOperator
from gpmoe.linalg.preconditioners import Preconditioner, adapted_preconditioner, precondition
from gpmoe.linalg.systems import BlockSystem, DescentSystem, PreconditionedSystem


@dataclass(frozen=True)
class Cholesky:
    """Exact factorisation, at every n.

    GPyTorch leaves Cholesky for iterative methods above n = 800 unless BoTorch was imported before; inside
    `applied` it does not, in whatever order things were imported.
    """

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Make GPyTorch's own operations exact for a block, and restore its settings after it."""
        settings = gpytorch.settings
        with ExitStack() as stack:
            stack.enter_context(settings.max_cholesky_size(2**62))
            stack.enter_context(settings.fast_computations(False, False, False))
            stack.enter_context(settings.fast_pred_var(False))
            yield


@dataclass(frozen=True)
class Schedule:
    """How hyperparameters are fitted with an iterative solver: on some rows exactly, then on all by their gradient.

    Args:
        subset_rows: rows, drawn at random, that are fitted by L-BFGS and Cholesky first; all of them if there are no
            more, and then nothing else is done.
        steps: of Adam on all rows, with the pathwise estimate of the gradient.
        learning_rate: of the first step, in logarithms of scale parameters; it falls to zero as a cosine.
        probes: prior samples behind the estimate of the trace.
        tolerance: relative residual of the solves on the way.
        seed: for the rows and the probes.

    Raises:
        InputError: if rows, steps or probes are below 1, or the rate or the tolerance is not positive.
    """

    subset_rows: int = 4000
    steps: int = 15
    learning_rate: float = 0.1
    probes: int = 8
    tolerance: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("subset_rows", "steps", "probes"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        for name in ("learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` must be positive; got {getattr(self, name)}.")


@dataclass(frozen=True)
class ConjugateGradients:
    """Preconditioned conjugate gradients, see `linalg.conjugate_gradients`: the first choice where Cholesky won't fit.

    Args:
        tolerance: true relative residual of every solve.
        preconditioner_rank: of the randomly pivoted Cholesky preconditioner; None lets a model of the time decide, also
            whether to factorise all of the covariance in float32 instead, where `memory` has room for it.
        max_iterations: of every solve.
        mixed_precision: take products in float32, inside refinement in float64.
        memory: bytes that the covariance may take, in float32, to be kept; above that it is computed in each product.
            An adapted preconditioner takes at most as much.
        seed: for the pivots.
        schedule: of fits.

    Example:
        >>> ConjugateGradients(tolerance=1e-4).tolerance
        0.0001
    """

    tolerance: float = 1e-6
    preconditioner_rank: int | None = None
    max_iterations: int = 1000
    mixed_precision: bool = True
    memory: float = 2e9
    seed: int = 0
    schedule: Schedule = Schedule()

    def prepare(
        self, operator: SymmetricOperator, *, columns: int = 1, tolerance: float | None = None
    ) -> PreconditionedSystem:
        """See `linalg.systems.LinearSolver`."""
        wanted = self.tolerance if tolerance is None else tolerance
        generator = torch.Generator(operator.noise.device).manual_seed(self.seed)
        if self.preconditioner_rank is None:
            n = len(operator.noise)
            most = int(min(4000, self.memory / (20 * n + 1)))  # its factor twice, and in float32
            P: Preconditioner = adapted_preconditioner(
                operator,
                tolerance=wanted,
                columns=columns,
                most=most,
                whole=4 * n**2 <= self.memory,
                generator=generator,
            )
        else:
            low_rank = randomly_pivoted_cholesky(operator, self.preconditioner_rank, generator=generator)
            P = precondition(operator, low_rank)
        return PreconditionedSystem(operator, P, wanted, self.max_iterations, self.mixed_precision)


@dataclass(frozen=True)
class AlternatingProjections:
    """Blocks of rows solved exactly in turn, see `linalg.alternating_projections`: steady at any conditioning.

    Args:
        tolerance: true relative residual of every solve.
        block_size: rows of a block, whose factors take ``8 n block_size`` bytes.
        max_passes: over the rows, in every solve.
        memory: bytes that the covariance may take, in float32, to be kept.
        schedule: of fits.

    Example:
        >>> AlternatingProjections(block_size=500).block_size
        500
    """

    tolerance: float = 1e-4
    block_size: int = 1000
    max_passes: int = 1000
    memory: float = 2e9
    schedule: Schedule = Schedule()

    def prepare(self, operator: SymmetricOperator, *, columns: int = 1, tolerance: float | None = None) -> BlockSystem:
        """See `linalg.systems.LinearSolver`."""
        wanted = self.tolerance if tolerance is None else tolerance
        return BlockSystem(operator, factorise_blocks(operator, self.block_size), wanted, self.max_passes)


@dataclass(frozen=True)
class StochasticDualDescent:
    """Stochastic gradients on random rows, see `linalg.stochastic_dual_descent`: rough solutions of very large systems.

    Args:
        tolerance: true relative residual of every solve.
        batch_size: rows of a step.
        max_passes: over the rows, in every solve.
        memory: bytes that the covariance may take, in float32, to be kept.
        seed: for the rows.
        schedule: of fits.

    Example:
        >>> StochasticDualDescent().tolerance
        0.01
    """

    tolerance: float = 1e-2
    batch_size: int = 512
    max_passes: int = 1000
    memory: float = 2e9
    seed: int = 0
    schedule: Schedule = Schedule()

    def prepare(
        self, operator: SymmetricOperator, *, columns: int = 1, tolerance: float | None = None
    ) -> DescentSystem:
        """See `linalg.systems.LinearSolver`."""
        wanted = self.tolerance if tolerance is None else tolerance
        return DescentSystem(operator, self.batch_size, wanted, self.max_passes, self.seed)


IterativeSolver: TypeAlias = ConjugateGradients | AlternatingProjections | StochasticDualDescent
Solver: TypeAlias = Cholesky | IterativeSolver
