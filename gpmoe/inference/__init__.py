"""Inference: objectives, optimisers, expectation maximisation, and how linear systems are solved."""

from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit import fit
from gpmoe.inference.fit_adapter import adapter_from_data, fit_adapter
from gpmoe.inference.fit_leave_one_out import fit_leave_one_out, leave_one_out_log_likelihood
from gpmoe.inference.fit_local_experts import fit_local_experts
from gpmoe.inference.fit_sparse_mixture import fit_sparse_mixture
from gpmoe.inference.fit_stochastic import fit_stochastic
from gpmoe.inference.fit_tree_mixture import fit_tree_mixture
from gpmoe.inference.hard_em import fit_hard, fit_hard_sparse
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood, log_prior
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import AlternatingProjections, Cholesky, ConjugateGradients, Schedule, StochasticDualDescent
from gpmoe.inference.vbem import choose_n_experts, fit_mixture, log_evidence

__all__ = [
    "AlternatingProjections",
    "Cholesky",
    "ConjugateGradients",
    "FitReport",
    "Schedule",
    "StochasticDualDescent",
    "adapter_from_data",
    "choose_n_experts",
    "elbo",
    "fit",
    "fit_adapter",
    "fit_hard",
    "fit_hard_sparse",
    "fit_leave_one_out",
    "fit_local_experts",
    "fit_mixture",
    "fit_sparse_mixture",
    "fit_stochastic",
    "fit_tree_mixture",
    "leave_one_out_log_likelihood",
    "log_evidence",
    "log_marginal_likelihood",
    "log_prior",
]
