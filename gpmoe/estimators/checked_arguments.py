"""Arguments of estimators, checked when `fit` is called."""

from typing import Any

import numpy as np
from gpytorch.kernels import Kernel

from gpmoe.errors import InputError


def expect_count(name: str, value: Any, *also: Any, least: int = 1) -> None:
    """Check an argument that counts something.

    Args:
        name: of the argument.
        value: what came.
        *also: other values that it may have, such as None or "auto".
        least: what it must not be below.

    Raises:
        InputError: if it is neither a whole number of at least that nor one of those.
    """
    if any(isinstance(value, type(other)) and value == other for other in also):
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        words = "".join(f"{other!r} or " for other in also)
        raise InputError(f"`{name}` must be {words}a whole number of at least {least}; got {value!r}.")


def expect_flag(name: str, value: Any) -> None:
    """Check an argument that is True or False.

    Raises:
        InputError: if it is neither: text such as "no" would count as True.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"`{name}` must be True or False; got {value!r}.")


def expect_kernel(kernel: Any) -> None:
    """Check that a kernel is one, or None.

    Raises:
        InputError: if it is something else.
    """
    if kernel is not None and not isinstance(kernel, Kernel):
        raise InputError(
            f"`kernel` must be a GPyTorch kernel or None; got {kernel!r}. "
            "One is gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())."
        )
