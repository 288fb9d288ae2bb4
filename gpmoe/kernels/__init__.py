"""Covariance functions that GPyTorch lacks; every GPyTorch kernel works beside them."""

from gpmoe.kernels.convolved_task_kernel import ConvolvedTaskKernel
from gpmoe.kernels.coregionalisation import FreeCoregionalisation, OutlierTaskGate, task_relevance
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern, expert_matern
from gpmoe.kernels.feature_kernel import FeatureKernel
from gpmoe.kernels.spectral_task_kernel import SpectralTaskKernel
from gpmoe.kernels.task_kernel import TaskKernel

__all__ = [
    "ConvolvedTaskKernel",
    "FeatureKernel",
    "FreeCoregionalisation",
    "OutlierTaskGate",
    "SpectralTaskKernel",
    "TaskKernel",
    "dimension_scaled_matern",
    "expert_matern",
    "task_relevance",
]
