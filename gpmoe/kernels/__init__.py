"""Covariance functions that GPyTorch lacks; every GPyTorch kernel works beside them."""

from gpmoe.kernels.dimension_scaled import dimension_scaled_matern, expert_matern
from gpmoe.kernels.feature_kernel import FeatureKernel

__all__ = ["FeatureKernel", "dimension_scaled_matern", "expert_matern"]
