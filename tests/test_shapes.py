"""Checks at the public edge: what passes, and what the errors say."""

import pytest
import torch

from gpmoe import errors
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 4, 5, 3), (1, 3)])
def test_any_batch_with_the_right_trailing_sizes_passes(shape: tuple[int, ...]) -> None:
    expect_shape("X", torch.empty(shape), last=(-1, 3))
    with pytest.raises(errors.ShapeError):
        expect_shape("X", torch.empty(shape), last=(-1, 4))


@pytest.mark.parametrize(
    ("shape", "ndim", "last", "text"),
    [
        ((5, 2), None, (-1, 3), "`X` must have shape (*batch, any, 3); got (5, 2)."),
        ((3,), None, (-1, 3), "`X` must have shape (*batch, any, 3); got (3,)."),
        ((2, 5, 3), 2, (-1, 3), "`X` must have shape (any, 3); got (2, 5, 3)."),
        ((2, 5), 3, (5,), "`X` must have shape (any, any, 5); got (2, 5)."),
        ((), None, (1,), "`X` must have shape (*batch, 1); got ()."),
    ],
)
def test_shape_error_names_what_came_and_what_was_wanted(
    shape: tuple[int, ...], ndim: int | None, last: tuple[int, ...], text: str
) -> None:
    with pytest.raises(errors.ShapeError) as caught:
        expect_shape("X", torch.empty(shape), ndim=ndim, last=last)
    assert str(caught.value) == text


def test_only_the_number_of_dimensions_may_be_asked_for() -> None:
    expect_shape("y", torch.empty(4, 7), ndim=2)
    with pytest.raises(errors.ShapeError, match=r"got \(4, 7\)"):
        expect_shape("y", torch.empty(4, 7), ndim=1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128, torch.float16, torch.bfloat16])
def test_a_dtype_without_factorisation_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(errors.DtypeError, match=rf"`y` must be float32 or float64; got {dtype}"):
        expect_floating("y", torch.ones(3, dtype=dtype))


def test_a_mix_of_dtypes_is_refused_with_the_conversion_to_type() -> None:
    X = torch.ones(3, 1, dtype=torch.float64)
    expect_floating("y", torch.ones(3, dtype=torch.float64), like=X)
    with pytest.raises(errors.DtypeError, match=r"must be torch\.float64 on cpu.*got torch\.float32.*`y\.to\(X\)`"):
        expect_floating("y", torch.ones(3), like=X)


@pytest.mark.parametrize(
    ("shape", "index", "value", "text"),
    [
        ((4,), (2,), float("nan"), "`y` has nan at index 2;"),
        ((4, 3), (1, 2), float("inf"), "`y` has inf at index (1, 2);"),
        ((2, 4, 3), (1, 0, 0), float("-inf"), "`y` has -inf at index (1, 0, 0);"),
    ],
)
def test_the_first_entry_that_is_not_finite_is_named(
    shape: tuple[int, ...], index: tuple[int, ...], value: float, text: str
) -> None:
    tensor = torch.zeros(shape)
    tensor[index] = value
    tensor[..., -1].reshape(-1)[-1] = float("nan")  # a later one
    with pytest.raises(errors.NonFiniteError) as caught:
        expect_finite("y", tensor)
    assert str(caught.value).startswith(text)


def test_the_largest_finite_numbers_are_finite() -> None:
    expect_finite(
        "y", torch.tensor([torch.finfo(torch.float64).max, torch.finfo(torch.float64).min], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.ShapeError, ValueError),
        (errors.NonFiniteError, ValueError),
        (errors.DtypeError, TypeError),
        (errors.NotPositiveDefiniteError, ValueError),
        (errors.MemoryLimitError, MemoryError),
        (errors.MissingPackageError, ImportError),
        (errors.NotConvergedWarning, UserWarning),
        (errors.JitterWarning, UserWarning),
    ],
)
def test_each_error_is_also_the_builtin_that_a_caller_would_expect(
    error: type[Exception], builtin: type[Exception]
) -> None:
    ours = errors.GPMoEWarning if issubclass(error, Warning) else errors.GPMoEError
    assert issubclass(error, builtin)
    assert issubclass(error, ours)
