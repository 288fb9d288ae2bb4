"""Inference: objectives, optimisers, expectation maximisation, and how linear systems are solved."""

from gpmoe.inference.fit import fit
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, log_prior
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import Cholesky

__all__ = ["Cholesky", "FitReport", "fit", "log_marginal_likelihood", "log_prior"]
