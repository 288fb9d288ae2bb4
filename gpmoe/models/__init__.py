"""Models: data, GPyTorch parts and exact posteriors; each is a BoTorch model."""

from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import ConditionedGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts, MixturePosterior

__all__ = ["ConditionedGP", "ExactGP", "MixtureOfExperts", "MixturePosterior"]
