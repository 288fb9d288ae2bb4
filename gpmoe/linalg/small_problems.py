"""What a call on many small problems is about beside its tensors, and what went wrong in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import NotPositiveDefiniteError
from gpmoe.linalg import small_dense as dense
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.pool import run_pass
from gpmoe.linalg.ragged import Ragged

_SHARES = 64  # that threads take in turn

Array = NDArray[np.float64]


@dataclass
class SmallProblems:
    """What is no tensor in a call, and the jitter that comes back from it."""

    ragged: Ragged
    family: int = 0
    new: Ragged | None = None

    def __post_init__(self) -> None:
        self.jitter: Array = np.zeros(len(self.ragged))

    @staticmethod
    def compiled(X: Tensor) -> bool:
        """Whether the compiled pass takes these tensors."""
        return AVAILABLE and X.dtype == torch.float64 and X.device.type == "cpu"

    def run(self, function: Any, *arguments: Any) -> None:
        """Call a compiled pass on all threads, then see whether every problem had a factor."""
        cost = int((self.ragged.sizes.astype(float) ** 2).sum()) + 1
        order, offsets = self.ragged.order, self.ragged.offsets
        run_pass(function, cost, min(len(order), _SHARES), order, offsets, *arguments, self.jitter)
        check_factors(self.jitter, self.ragged)


def check_factors(jitter: Array, ragged: Ragged) -> None:
    """Raise if a compiled pass left NaN for a problem's jitter.

    Raises:
        NotPositiveDefiniteError: naming the first such problem.
    """
    failed = np.flatnonzero(np.isnan(jitter))
    if len(failed):
        first = int(failed[0])
        raise NotPositiveDefiniteError(
            f"the covariances of {len(failed)} of {len(jitter)} problems, the first of them problem {first} with "
            f"{ragged.sizes[first]} rows, are not positive definite at a relative jitter of {dense.JITTERS[-1]:.0e}.\n"
            "Usual causes, most likely first: repeated rows of X in one problem (merge them); a noise variance near "
            "zero (raise it); a hyperparameter that is not finite."
        )
