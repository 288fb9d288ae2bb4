"""Inference: objectives, optimisers, expectation maximisation, and how linear systems are solved."""

from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit import fit
from gpmoe.inference.fit_local_experts import fit_local_experts
from gpmoe.inference.fit_stochastic import fit_stochastic
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, log_prior
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import AlternatingProjections, Cholesky, ConjugateGradients, Schedule, StochasticDualDescent
from gpmoe.inference.vbem import choose_n_experts, fit_mixture

__all__ = [
    "AlternatingProjections",
    "Cholesky",
    "ConjugateGradients",
    "FitReport",
    "Schedule",
    "StochasticDualDescent",
    "choose_n_experts",
    "elbo",
    "fit",
    "fit_local_experts",
    "fit_mixture",
    "fit_stochastic",
    "log_marginal_likelihood",
    "log_prior",
]
