"""Networks in front of GPs and of alarms: feature extractors of deep kernels, and causal networks of time series."""

from gpmoe.features.deep_kernels import deep_kernels
from gpmoe.features.feature_network import FeatureNetwork
from gpmoe.features.modulated_network import ModulatedNetwork

__all__ = ["FeatureNetwork", "ModulatedNetwork", "deep_kernels"]
