"""A kernel on learned features."""

from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.linalg.stationary import StationaryKernel, Term, product_terms


class FeatureKernel(StationaryKernel):
    """k(φ(x), φ(x')) for a neural feature map φ and any base kernel.

    Args:
        feature_map: a module from ``(*batch, n, d)`` to ``(*batch, n, features)``.
        base_kernel: a GPyTorch kernel on the features. With a stationary one the likelihood's gradient reaches the
            feature map through dL/dφ(X), ``(n, features)``: the map runs forward and backward once a step.

    Source: Wilson, Hu, Salakhutdinov and Xing (2016), Deep Kernel Learning, eq. 5.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> kernel = FeatureKernel(torch.nn.Linear(3, 2), RBFKernel())
        >>> kernel(torch.zeros(4, 3)).to_dense().shape
        torch.Size([4, 4])
    """

    def __init__(self, feature_map: torch.nn.Module, base_kernel: Kernel, **kernel_kwargs: Any) -> None:
        super().__init__(**kernel_kwargs)
        self.feature_map = feature_map
        self.base_kernel = base_kernel

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """k(φ(x1), φ(x2))."""
        return self.base_kernel(self.feature_map(x1), self.feature_map(x2), diag=diag, **params)

    def __getitem__(self, index: Any) -> Kernel:
        """The kernels of a batch that an index picks; the batch is the base kernel's."""
        picked: Kernel = super().__getitem__(index)
        picked.batch_shape = picked.base_kernel.batch_shape
        return picked

    def stationary_terms(self, X1: Tensor, X2: Tensor | None) -> list[Term] | None:
        """The base kernel's terms, of the features."""
        return product_terms(self.base_kernel, self.feature_map(X1), None if X2 is None else self.feature_map(X2))
