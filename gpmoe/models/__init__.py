"""Models: data, GPyTorch parts and exact posteriors; each is a BoTorch model."""

from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import ConditionedGP

__all__ = ["ConditionedGP", "ExactGP"]
