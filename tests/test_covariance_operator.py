"""The covariance operator against linear_operator's own shipped tests, and against dense matrices."""

import unittest
from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, RBFKernel, RQKernel, ScaleKernel
from linear_operator.test.linear_operator_test_case import LinearOperatorTestCase, RectangularLinearOperatorTestCase
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import InputError, ShapeError
from gpmoe.linalg.covariance_operator import CovarianceOperator, covariance_operator
from gpmoe.linalg.covariance_source import PackedSource

Normal = Callable[..., Tensor]
pytestmark = pytest.mark.usefixtures("linear_operator_defaults")


def points(n: int, seed: int) -> Tensor:
    return 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def by_formula(op: CovarianceOperator) -> Tensor:
    """The matrix of a one-term operator from its tensors, written out."""
    source = op.source
    assert isinstance(source, PackedSource)
    Z1, *between, _, scale = op.representation()
    Z2 = between[0] if between else Z1
    r2 = (Z1.mT.unsqueeze(1) - Z2.mT.unsqueeze(0)).square().sum(-1)
    return scale * (-r2 / 2).exp()


class TestSquare(LinearOperatorTestCase, unittest.TestCase):
    """linear_operator's tests of a square operator, by the fused pass."""

    seed = 0
    engine = "fused"
    tolerances = {**LinearOperatorTestCase.tolerances, "grad": {"rtol": 0.05, "atol": 1e-3}}  # noqa: RUF012

    def create_linear_op(self) -> CovarianceOperator:
        apart = torch.tensor([[0.0, 0.0], [0.9, 0.1], [2.1, -0.3], [3.6, 0.2], [4.6, 0.5]])  # simple eigenvalues
        return covariance_operator(ScaleKernel(RBFKernel()), apart, engine=self.engine).detach().requires_grad_(True)

    def evaluate_linear_op(self, linear_op: CovarianceOperator) -> Tensor:
        return by_formula(linear_op)


class TestSquareDense(TestSquare):
    """The same with a kept matrix."""

    engine = "dense"


class TestRectangular(RectangularLinearOperatorTestCase, unittest.TestCase):
    """linear_operator's tests of a rectangular operator, by the fused pass."""

    seed = 0

    def create_linear_op(self) -> CovarianceOperator:
        operator = covariance_operator(RBFKernel(), points(6, 0), points(4, 1), engine="fused")
        return operator.detach().requires_grad_(True)

    def evaluate_linear_op(self, linear_op: CovarianceOperator) -> Tensor:
        return by_formula(linear_op)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "Matérn": lambda: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=2)),
    "sum": lambda: RQKernel() + ScaleKernel(RBFKernel()) * MaternKernel(nu=0.5),
    "linear": lambda: ScaleKernel(LinearKernel()),
}


@pytest.mark.parametrize("engine", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_the_operator_equals_the_dense_matrix(name: str, square: bool, engine: str, normal: Normal) -> None:
    kernel, X1 = KERNELS[name]().double(), normal(40, 2)
    X2 = None if square else normal(30, 2)
    other = X1 if X2 is None else X2
    wanted, V = kernel(X1, other.clone()).to_dense().detach(), normal(len(other), 3)
    K = covariance_operator(kernel, X1, X2, engine=engine)
    assert K.plan.reason
    assert_close(K @ V, wanted @ V)
    assert_close(K.mT @ wanted[:, :2], wanted.mT @ wanted[:, :2])
    assert_close(K.to_dense(), wanted)
    assert_close(K.rows(torch.tensor([3, 3, 0])), wanted[[3, 3, 0]])
    assert_close(K[5:9, ::2].to_dense(), wanted[5:9, ::2])
    assert_close(K[[1, 2], [3, 0]], wanted[[1, 2], [3, 0]])
    if square:
        assert_close(K.diagonal(), wanted.diagonal())


@pytest.mark.parametrize("engine", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_reach_inputs_and_parameters(name: str, engine: str, normal: Normal) -> None:
    kernel, X, V = KERNELS[name]().double(), normal(15, 2).requires_grad_(), normal(15, 2)
    wanted = [X, *kernel.parameters()]
    dense = torch.autograd.grad((kernel(X, X.clone()).to_dense() @ V).square().sum(), wanted)
    ours = torch.autograd.grad((covariance_operator(kernel, X, engine=engine) @ V).square().sum(), wanted)
    for got, expected in zip(ours, dense, strict=True):
        assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_many_products_of_a_small_covariance_keep_the_matrix() -> None:
    X = torch.zeros(1500, 3)
    assert covariance_operator(RBFKernel(), X, products=1000).plan.engine == "dense"
    assert covariance_operator(RBFKernel(), X, products=1).plan.engine == "fused"


def test_batches_and_wrong_shapes_are_refused(normal: Normal) -> None:
    with pytest.raises(InputError, match="batch"):
        covariance_operator(RBFKernel().double(), normal(2, 5, 3))
    with pytest.raises(ShapeError, match="X2"):
        covariance_operator(RBFKernel().double(), normal(5, 3), normal(4, 2))
