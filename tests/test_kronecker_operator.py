"""linear_operator's own tests of operators, on ours."""

from functools import reduce
from unittest import TestCase

import pytest
import torch
from linear_operator.test.linear_operator_test_case import LinearOperatorTestCase, RectangularLinearOperatorTestCase
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.linalg.kronecker_operator import KroneckerOperator

FIRST = [[4.0, 0.0, 2.0], [0.0, 3.0, -1.0], [2.0, -1.0, 3.0]]
SECOND = [[2.0, 1.0], [1.0, 2.0]]
THIRD = [[3.0, 0.5, 0.2], [0.5, 2.0, 0.1], [0.2, 0.1, 1.0]]


def kron(factors: list[Tensor]) -> Tensor:
    """Kronecker product of matrices with batch dimensions."""

    def two(A: Tensor, B: Tensor) -> Tensor:
        return torch.einsum("...ij,...kl->...ikjl", A, B).flatten(-4, -3).flatten(-2, -1)

    return reduce(two, factors)


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what linear_operator warns of in its own tests
    pytest.mark.usefixtures("linear_operator_defaults"),
]


class TestKroneckerOperator(LinearOperatorTestCase, TestCase):
    """A square product."""

    seed = 0
    should_call_cg = False

    def create_linear_op(self) -> KroneckerOperator:
        return KroneckerOperator(*(torch.tensor(F, requires_grad=True) for F in (FIRST, SECOND, THIRD)))

    def evaluate_linear_op(self, linear_op: KroneckerOperator) -> Tensor:
        return kron(list(linear_op.factors))


class TestKroneckerOperatorBatch(TestKroneckerOperator):
    """A batch of square products."""

    seed = 0

    def create_linear_op(self) -> KroneckerOperator:
        factors = (torch.tensor(F).repeat(3, 1, 1).requires_grad_() for F in (FIRST, SECOND, THIRD))
        return KroneckerOperator(*factors)


class TestKroneckerOperatorRectangular(RectangularLinearOperatorTestCase, TestCase):
    """A product of rectangular factors."""

    seed = 0

    def create_linear_op(self) -> KroneckerOperator:
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 3), (5, 2), (2, 2))
        return KroneckerOperator(*(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes))

    def evaluate_linear_op(self, linear_op: KroneckerOperator) -> Tensor:
        return kron(list(linear_op.factors))


def test_factors_of_different_batches_are_broadcast() -> None:
    operator = KroneckerOperator(torch.ones(4, 1, 2, 2), torch.eye(3).expand(5, 3, 3))
    assert operator.shape == (4, 5, 6, 6)
    assert torch.equal(operator.to_dense()[0, 0], kron([torch.ones(2, 2), torch.eye(3)]))


def test_what_is_not_a_matrix_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        KroneckerOperator()
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        KroneckerOperator(torch.ones(3))
