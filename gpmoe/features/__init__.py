"""Networks in front of GPs and of alarms: feature extractors of deep kernels, and causal networks of time series."""

from gpmoe.features.causal_network import CausalNetwork
from gpmoe.features.decaying_recurrence import DecayingRecurrence
from gpmoe.features.deep_kernels import deep_kernels
from gpmoe.features.feature_network import FeatureNetwork
from gpmoe.features.gated_recurrence import GatedRecurrence
from gpmoe.features.linear_head import LinearHead
from gpmoe.features.modulated_network import ModulatedNetwork
from gpmoe.features.temporal_convolution import TemporalConvolution

__all__ = [
    "CausalNetwork",
    "DecayingRecurrence",
    "FeatureNetwork",
    "GatedRecurrence",
    "LinearHead",
    "ModulatedNetwork",
    "TemporalConvolution",
    "deep_kernels",
]
