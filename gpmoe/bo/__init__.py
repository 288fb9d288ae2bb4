"""Bayesian optimisation: search spaces, a sampler for Optuna, and loops and sweeps over it."""

from gpmoe.bo.loop import AskTell, Optimum, maximise, minimise
from gpmoe.bo.parameters import Categorical, Fixed, Float, Int, Ordinal
from gpmoe.bo.sampler import GPMoESampler, replay
from gpmoe.bo.space import LinearConstraint, Space
from gpmoe.bo.sweep import sweep

__all__ = [
    "AskTell",
    "Categorical",
    "Fixed",
    "Float",
    "GPMoESampler",
    "Int",
    "LinearConstraint",
    "Optimum",
    "Ordinal",
    "Space",
    "maximise",
    "minimise",
    "replay",
    "sweep",
]
