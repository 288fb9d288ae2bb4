"""Gaussian processes and mixtures of Gaussian-process experts, with calibrated predictive distributions."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpmoe.bo import Space, sweep
    from gpmoe.early_warning import RaggedSeries
    from gpmoe.estimators import (
        EarlyWarningClassifier,
        GPRegressor,
        GridGPRegressor,
        LocalExpertsRegressor,
        MixtureOfExpertsClassifier,
        MixtureOfExpertsRegressor,
        MultitaskGPRegressor,
        SparseGPRegressor,
        TreeMixtureRegressor,
    )
    from gpmoe.io import load

__all__ = [
    "EarlyWarningClassifier",
    "GPRegressor",
    "GridGPRegressor",
    "LocalExpertsRegressor",
    "MixtureOfExpertsClassifier",
    "MixtureOfExpertsRegressor",
    "MultitaskGPRegressor",
    "RaggedSeries",
    "Space",
    "SparseGPRegressor",
    "TreeMixtureRegressor",
    "__version__",
    "load",
    "sweep",
]
__version__ = "0.1.0"

_HOMES = {
    "EarlyWarningClassifier": "gpmoe.estimators",
    "GPRegressor": "gpmoe.estimators",
    "GridGPRegressor": "gpmoe.estimators",
    "LocalExpertsRegressor": "gpmoe.estimators",
    "MixtureOfExpertsClassifier": "gpmoe.estimators",
    "MixtureOfExpertsRegressor": "gpmoe.estimators",
    "MultitaskGPRegressor": "gpmoe.estimators",
    "RaggedSeries": "gpmoe.early_warning",
    "Space": "gpmoe.bo",
    "SparseGPRegressor": "gpmoe.estimators",
    "TreeMixtureRegressor": "gpmoe.estimators",
    "load": "gpmoe.io",
    "sweep": "gpmoe.bo",
}
_SUBMODULES = {
    "bo",
    "data",
    "distributions",
    "early_warning",
    "errors",
    "estimators",
    "features",
    "gates",
    "inference",
    "io",
    "kernels",
    "linalg",
    "metrics",
    "models",
    "plotting",
    "shapes",
    "testing",
}

if not TYPE_CHECKING:  # a type checker reads the imports above and knows the names

    def __getattr__(name: str) -> object:
        """Import a public name at first use (PEP 562), so that ``import gpmoe`` itself costs next to nothing."""
        if name in _HOMES:
            value: object = getattr(importlib.import_module(_HOMES[name]), name)
        elif name in _SUBMODULES:
            value = importlib.import_module(f"gpmoe.{name}")
        else:
            raise AttributeError(f"module 'gpmoe' has no attribute {name!r}; public names: {', '.join(__dir__())}.")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*__all__, *_SUBMODULES})
