"""Hyperparameters of a tree mixture by its exact marginal likelihood."""

import time

from torch import Tensor

from gpmoe.inference.fit import climb
from gpmoe.inference.marginal_likelihood import log_marginal_likelihood
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.solver import Cholesky
from gpmoe.models.tree_mixture import TreeMixture


def fit_tree_mixture(trees: TreeMixture, *, max_iterations: int = 200) -> FitReport:
    """Maximise log p(y | X) plus the log priors over the hyperparameters that all leaves share, in place.

    The evidence of the mixture is all but that of its best partition, and which one that is depends on the
    hyperparameters. The climb therefore goes first up the mean of the partitions' log evidences, which none of them
    dominates, then up the evidence of the mixture.

    Args:
        trees: the model; its present parameters are the start.
        max_iterations: of L-BFGS in each of the two climbs.

    Returns:
        The report; its trace is that of the second climb.

    Warns:
        NotConvergedWarning: if the second climb stopped before it met its tolerance.
        JitterWarning: if a leaf's covariance needed jitter.
    """
    start = time.perf_counter()
    solver = Cholesky()
    first = climb(trees, _mean_log_evidence, solver, max_iterations=max_iterations)
    end = climb(trees, log_marginal_likelihood, solver, max_iterations=max_iterations)
    report = FitReport(
        objective_trace=tuple(end.trace),
        iterations=end.iterations,
        evaluations=first.evaluations + end.evaluations,
        converged=end.converged,
        reason=end.reason,
        jitter=trees.jitter_needed(),
        seconds=time.perf_counter() - start,
        solver="Cholesky factors of all leaves in one pass",
        starts=(end.value,),
    )
    warn_about(report, stacklevel=3)
    return report


def _mean_log_evidence(trees: TreeMixture) -> Tensor:
    return trees.log_evidences().mean()
