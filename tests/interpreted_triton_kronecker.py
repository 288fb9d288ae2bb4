"""Triton's Kronecker products against dense float64; runs under TRITON_INTERPRET=1, see test_triton_kronecker.py."""

from collections.abc import Callable
from functools import reduce

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DifferentiationError, DtypeError, ShapeError
from gpmoe.linalg.triton_kronecker import kron_matmul

Normal = Callable[..., Tensor]

CASES = {
    "one factor": ([(3, 3)], 1),
    "one row": ([(1, 1), (1, 5)], 1),
    "two, not square": ([(17, 5), (4, 33)], 1),
    "three and two columns": ([(3, 3), (2, 5), (7, 4)], 2),
    "many columns": ([(2, 2), (20, 20)], 17),
    "a factor longer than a tile": ([(70, 68)], 3),
    "no columns": ([(3, 3), (2, 2)], 0),
    "no rows": ([(0, 3), (2, 2)], 2),
}


def check(shapes: list[tuple[int, int]], c: int, normal: Normal, dtype: torch.dtype, tolerance: float) -> None:
    factors = [normal(*shape).float().double().requires_grad_() for shape in shapes]
    product = reduce(torch.kron, factors)
    V = normal(product.shape[1], c).float().double().requires_grad_()
    want, got = product @ V, kron_matmul([A.to(dtype) for A in factors], V.to(dtype))
    assert got.dtype == dtype
    assert_close(got.double(), want, atol=tolerance, rtol=tolerance)
    G = normal(*want.shape).float().double()
    gotten = torch.autograd.grad(got, [*factors, V], G.to(dtype))
    for a, b in zip(gotten, torch.autograd.grad(want, [*factors, V], G), strict=True):
        assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_dense(name: str, normal: Normal) -> None:
    check(*CASES[name], normal, torch.float32, 1e-4)


def test_float64_stays_float64(normal: Normal) -> None:
    check([(3, 4), (5, 2)], 3, normal, torch.float64, 1e-10)


def test_a_factor_that_lies_transposed_in_memory_is_right(normal: Normal) -> None:
    A, B, V = normal(3, 4), normal(2, 2), normal(2, 6).mT
    assert_close(kron_matmul([A.mT[:, :3], B], V), torch.kron(A.mT[:, :3].contiguous(), B) @ V)


def test_differentiating_twice_is_refused(normal: Normal) -> None:
    A = normal(2, 2).requires_grad_()
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(kron_matmul([A], normal(2, 1)).sum(), A, create_graph=True)


def test_factors_that_do_not_fit_are_refused(normal: Normal) -> None:
    with pytest.raises(ShapeError, match=r"`V` must have shape \(6, any\)"):
        kron_matmul([normal(2, 2), normal(3, 3)], normal(5, 1))
    with pytest.raises(ShapeError, match="`factors` is empty"):
        kron_matmul([], normal(5, 1))
    with pytest.raises(ShapeError, match=r"`factors\[1\]` must have shape"):
        kron_matmul([normal(2, 2), normal(3)], normal(6, 1))
    with pytest.raises(DtypeError, match=r"`factors\[0\]` must be torch.float64"):
        kron_matmul([normal(2, 2).float()], normal(2, 1))
