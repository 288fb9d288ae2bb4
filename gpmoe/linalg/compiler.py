"""Numba where it is installed: `AVAILABLE` says so. Without it, what is marked for compilation is never called."""

from collections.abc import Callable
from typing import Any

try:
    from llvmlite import ir
    from numba import njit, types
    from numba.core.extending import intrinsic, overload
except ModuleNotFoundError:
    ir = types = None  # type: ignore[assignment]

    def njit(**options: Any) -> Callable[[Any], Any]:  # type: ignore[no-redef]
        """Leave a function as it is."""
        return lambda function: function

    def intrinsic(function: Any) -> Any:  # type: ignore[no-redef]
        """Leave a function as it is."""
        return function

    def overload(function: Any, **options: Any) -> Callable[[Any], Any]:  # type: ignore[misc]
        """Leave a function as it is."""
        return lambda implementation: implementation


AVAILABLE = types is not None

__all__ = ["AVAILABLE", "intrinsic", "ir", "njit", "overload", "types"]
