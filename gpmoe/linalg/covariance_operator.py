"""A covariance matrix as a linear operator, multiplied by whichever engine suits."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator import LinearOperator
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.covariance_source import KernelSource, PackedSource, Source, Tensors
from gpmoe.linalg.likelihood import learnable_tensors
from gpmoe.linalg.product_plan import ProductPlan, Wanted, batched, plan_terms
from gpmoe.linalg.stationary import pack, product_terms
from gpmoe.shapes import expect_finite, expect_floating, expect_shape


def covariance_operator(
    kernel: Kernel, X1: Tensor, X2: Tensor | None = None, *, engine: Wanted = "auto", products: int = 100
) -> "CovarianceOperator":
    """K(X1, X2) as a linear operator.

    Args:
        kernel: any GPyTorch kernel without batch dimensions.
        X1: ``(n, d)``, float32 or float64.
        X2: ``(m, d)``; None for the covariance of X1 with itself.
        engine: as in `covariance_product`.
        products: how many products will be asked for; many speak for "dense", which makes K once and keeps it.

    Returns:
        ``(n, m)``; its `plan` says which engine runs, and why.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if the inputs don't fit each other.
        InputError, UnsupportedKernelError, MissingPackageError: if the engine can't run.
    """
    for name, X in (("X1", X1), ("X2", X1 if X2 is None else X2)):
        expect_floating(name, X, like=X1)
        expect_finite(name, X)
        if not batched(kernel, X1, X2):
            expect_shape(name, X, ndim=2, last=(-1, X1.shape[-1]))
    if batched(kernel, X1, X2):
        raise InputError("a covariance operator takes no batch dimensions; make one for each element of the batch.")
    terms = product_terms(kernel, X1, X2) if len(X1) and (X2 is None or len(X2)) else None
    plan = plan_terms(terms, kernel, X1, X2, columns=1, products=products, engine=engine)
    if terms is None or plan.engine == "tiled":
        inputs = [X1] if X2 is None else [X1, X2]
        source: Source = KernelSource(kernel, square=X2 is None)
        return CovarianceOperator(*inputs, *learnable_tensors(kernel), source=source, plan=plan)
    packed = pack(terms)
    source = PackedSource(packed.rows, packed.family, packed.leaves, plan.engine, square=X2 is None)
    second = [] if packed.Z2 is None else [packed.Z2]
    return CovarianceOperator(packed.Z1, *second, packed.shape, packed.scale, source=source, plan=plan)


class CovarianceOperator(LinearOperator):
    """K(X1, X2) without K, which is held only by the engine "dense"; made by `covariance_operator`.

    Entries, rows and submatrices follow from the inputs alone, and gradients reach inputs and parameters through
    every product.

    Args:
        tensors: what the source makes a covariance of.
        source: how it does.
        plan: which engine multiplies, and why.
        batch: batch dimensions over which the one matrix is repeated.

    Example:
        >>> from gpytorch.kernels import RBFKernel
        >>> K = covariance_operator(RBFKernel(), torch.randn(6, 2), engine="tiled")
        >>> (K @ torch.ones(6, 3)).shape, K.diagonal().shape, K.rows(torch.tensor([4, 0])).shape
        (torch.Size([6, 3]), torch.Size([6]), torch.Size([2, 6]))
    """

    def __init__(
        self,
        *tensors: Tensor,
        source: Source,
        plan: ProductPlan,
        batch: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__(*tensors, source=source, plan=plan, batch=batch)
        self.source = source
        self.plan = plan
        self._batch = batch
        self._kept: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Tensor:
        """Some rows of K.

        Args:
            index: ``(k,)`` integers, or a slice.

        Returns:
            ``(k, m)``, differentiable.
        """
        source, tensors = self.source.select(self._args, index, slice(None))
        return source.matrix(tensors)

    def _size(self) -> torch.Size:
        return torch.Size((*self._batch, *self.source.size(self._args)))

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._multiply(rhs.unsqueeze(-1)).squeeze(-1).expand(self.shape[:-1])
        V = rhs.movedim(-2, 0)
        result = self._multiply(V.reshape(len(V), -1)).reshape(-1, *V.shape[1:]).movedim(0, -2)
        return result.expand(*torch.broadcast_shapes(self._batch, rhs.shape[:-2]), *result.shape[-2:])

    def _multiply(self, V: Tensor) -> Tensor:
        if self.plan.engine != "dense" or torch.is_grad_enabled():
            return self.source.multiply(self._args, V)
        if self._kept is None:
            self._kept = self.source.matrix(self._args)
        return self._kept @ V

    def _bilinear_derivative(self, left_vecs: Tensor, right_vecs: Tensor) -> tuple[Tensor | None, ...]:
        batch = torch.broadcast_shapes(self._batch, left_vecs.shape[:-2], right_vecs.shape[:-2])
        U, V = (
            x.expand(*batch, *x.shape[-2:]).movedim(-2, 0).reshape(x.shape[-2], -1) for x in (left_vecs, right_vecs)
        )
        return self.source.derivative(self._args, U, V)

    def _transpose_nonbatch(self) -> LinearOperator:
        return self if self.source.square else self._with(self.source.turned(self._args))

    def _diagonal(self) -> Tensor:
        diagonal = self.source.pairs(self._args)
        return diagonal.expand(*self._batch, *diagonal.shape)

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        shape = torch.broadcast_shapes(*(index.shape for index in (row_index, col_index, *batch_indices)))
        rows, columns = (index.expand(shape).reshape(-1) for index in (row_index, col_index))
        source, tensors = self.source.select(self._args, rows, columns)
        return source.pairs(tensors).reshape(shape)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        batch = torch.empty(self._batch)[batch_indices].shape if batch_indices else self._batch
        if all(isinstance(index, slice) and index == slice(None) for index in (row_index, col_index)):
            return self._with(self._args, batch=batch)
        source, tensors = self.source.select(self._args, row_index, col_index)
        return CovarianceOperator(*tensors, source=source, plan=self.plan, batch=batch)

    def _with(self, tensors: Tensors, batch: torch.Size | None = None) -> "CovarianceOperator":
        return CovarianceOperator(
            *tensors, source=self.source, plan=self.plan, batch=self._batch if batch is None else batch
        )

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        return self._with(self._args, batch=torch.Size((*self._batch[:dim], 1, *self._batch[dim:])))

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> LinearOperator:
        return self._with(self._args, batch=torch.Size(batch_shape))

    def _permute_batch(self, *dims: int) -> LinearOperator:
        return self._with(self._args, batch=torch.Size(self._batch[dim] for dim in dims))
