"""The front door: scikit-learn style estimators that answer in the caller's units."""

from gpmoe.estimators.gp_regressor import GPRegressor
from gpmoe.estimators.mixture_of_experts_regressor import MixtureOfExpertsRegressor

__all__ = ["GPRegressor", "MixtureOfExpertsRegressor"]
