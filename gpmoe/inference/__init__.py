"""Inference: objectives, optimisers, expectation maximisation, and how linear systems are solved."""

from gpmoe.inference.fit import fit
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, log_prior
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import Cholesky
from gpmoe.inference.vbem import choose_n_experts, fit_mixture

__all__ = ["Cholesky", "FitReport", "choose_n_experts", "fit", "fit_mixture", "log_marginal_likelihood", "log_prior"]
