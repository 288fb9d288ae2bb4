"""How linear systems are solved, as an object that is passed in; the one file that touches GPyTorch's settings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import gpytorch


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
