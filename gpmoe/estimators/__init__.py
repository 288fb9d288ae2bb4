"""The front door: scikit-learn style estimators that answer in the caller's units."""

from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
from gpmoe.estimators.gp_regressor import GPRegressor
from gpmoe.estimators.grid_gp_regressor import GridGPRegressor
from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor
from gpmoe.estimators.mixture_of_experts_classifier import MixtureOfExpertsClassifier
from gpmoe.estimators.mixture_of_experts_regressor import MixtureOfExpertsRegressor
from gpmoe.estimators.multitask_gp_regressor import MultitaskGPRegressor
from gpmoe.estimators.series_baselines import ClockClassifier, DTWNeighboursClassifier, HandFeatureClassifier
from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor
from gpmoe.estimators.tree_mixture_regressor import TreeMixtureRegressor

__all__ = [
    "ClockClassifier",
    "DTWNeighboursClassifier",
    "EarlyWarningClassifier",
    "GPRegressor",
    "GridGPRegressor",
    "HandFeatureClassifier",
    "LocalExpertsRegressor",
    "MixtureOfExpertsClassifier",
    "MixtureOfExpertsRegressor",
    "MultitaskGPRegressor",
    "SparseGPRegressor",
    "TreeMixtureRegressor",
]
