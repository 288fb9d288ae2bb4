"""GPyTorch's own shipped kernel tests on our kernels."""

import unittest
from typing import Any

import torch
from gpytorch.kernels import RBFKernel
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

from gpmoe.kernels import FeatureKernel


class TestFeatureKernel(BaseKernelTestCase, unittest.TestCase):
    """RBF of bent inputs, as many features as inputs."""

    def create_kernel_no_ard(self, **kwargs: Any) -> FeatureKernel:
        active_dims = kwargs.pop("active_dims", None)
        return FeatureKernel(torch.nn.Tanh(), RBFKernel(**kwargs), active_dims=active_dims)

    def create_kernel_ard(self, num_dims: int, **kwargs: Any) -> FeatureKernel:
        return self.create_kernel_no_ard(ard_num_dims=num_dims, **kwargs)
