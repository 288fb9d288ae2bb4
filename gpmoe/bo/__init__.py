"""Bayesian optimisation: search spaces, a sampler for Optuna, and loops over it."""

from gpmoe.bo.parameters import Categorical, Fixed, Float, Int, Ordinal
from gpmoe.bo.space import LinearConstraint, Space

__all__ = ["Categorical", "Fixed", "Float", "Int", "LinearConstraint", "Ordinal", "Space"]
