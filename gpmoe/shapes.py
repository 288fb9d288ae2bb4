"""Checks of shape, dtype and finiteness, made once at the public edge."""

import torch
from torch import Tensor

from gpmoe.errors import DtypeError, NonFiniteError, ShapeError


def expect_shape(name: str, tensor: Tensor, *, ndim: int | None = None, last: tuple[int, ...] = ()) -> None:
    """Check the number of dimensions and the trailing sizes of a tensor.

    Args:
        name: what the caller calls the tensor.
        tensor: any shape.
        ndim: number of dimensions wanted, or None for any.
        last: trailing sizes wanted; -1 stands for any size.

    Raises:
        ShapeError: if the tensor is otherwise.
    """
    shape = tuple(tensor.shape)
    tail = shape[len(shape) - len(last) :] if last else ()
    fits = len(shape) >= len(last) and all(want in (-1, got) for want, got in zip(last, tail, strict=False))
    if not fits or (ndim is not None and len(shape) != ndim):
        sizes = ", ".join("any" if size == -1 else str(size) for size in last)
        lead = "*batch, " if ndim is None else "any, " * (ndim - len(last))
        raise ShapeError(f"`{name}` must have shape ({lead}{sizes}); got {shape}.")


def expect_floating(name: str, tensor: Tensor, *, like: Tensor | None = None) -> None:
    """Check that a tensor is floating, and of the dtype and device of another.

    Raises:
        DtypeError: if it is not. Nothing is ever cast silently.
    """
    if tensor.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"`{name}` must be float32 or float64; got {tensor.dtype}. Convert it: `{name}.double()`.")
    if like is not None and (tensor.dtype, tensor.device) != (like.dtype, like.device):
        raise DtypeError(
            f"`{name}` must be {like.dtype} on {like.device}, as `X` is; got {tensor.dtype} on {tensor.device}. "
            f"Convert it: `{name}.to(X)`."
        )


def expect_finite(name: str, tensor: Tensor) -> None:
    """Check that no entry is NaN or infinite.

    Raises:
        NonFiniteError: naming the first offending index.
    """
    finite = tensor.isfinite()
    if not bool(finite.all()):
        index = tuple(int(i) for i in (~finite).nonzero()[0])
        value = float(tensor[index])
        raise NonFiniteError(
            f"`{name}` has {value} at index {index if len(index) != 1 else index[0]}; every entry must be finite. "
            "Drop or impute such rows first."
        )
