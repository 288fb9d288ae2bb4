"""How many components a multi-task GP needs, by its evidence."""

import math
from collections.abc import Callable

import torch

from gpmoe.inference.fit import fit
from gpmoe.inference.report import FitReport
from gpmoe.models.multitask_gp import MultitaskGP

_MOST = 3


def penalised_evidence(model: MultitaskGP) -> float:
    """log p(y | X) - ½ p log M, p parameters and M observed targets, nats: the Bayesian information criterion's half.

    Source: Schwarz (1978), Estimating the Dimension of a Model.
    """
    with torch.no_grad():
        evidence = float(model.log_marginal_likelihood())
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return evidence - 0.5 * learned * math.log(len(model.y))


def fit_components(
    make: Callable[[int], MultitaskGP], *, n_restarts: int = 0, seed: int | None = None
) -> tuple[MultitaskGP, FitReport]:
    """Fit models of one component, two, three, as long as the penalised evidence rises.

    Args:
        make: the unfitted model of a number of components.
        n_restarts, seed: see `fit`.

    Returns:
        The last model that gained, and the report of its fit.
    """
    model = make(1)
    report, best = fit(model, n_restarts=n_restarts, seed=seed), penalised_evidence(model)
    for number in range(2, _MOST + 1):
        richer = make(number)
        richer_report, found = fit(richer, n_restarts=n_restarts, seed=seed), penalised_evidence(richer)
        if not found > best:
            break
        model, report, best = richer, richer_report, found
    return model, report
