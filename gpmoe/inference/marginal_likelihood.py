"""Objectives of an exact GP: evidence and prior."""

from torch import Tensor
from torch.nn import Module

from gpmoe.models.exact_gp import ExactGP


def log_marginal_likelihood(gp: ExactGP) -> Tensor:
    """log p(y | X, hyperparameters), the sum over data (and batch), exact.

    Args:
        gp: the model.

    Returns:
        A scalar in nats that backpropagates (once) to every parameter.
    """
    return gp.log_marginal_likelihood().sum()


def log_prior(model: Module) -> Tensor | float:
    """Sum of the log densities of all GPyTorch priors registered in a model, nats; 0 if there are none."""
    total: Tensor | float = 0.0
    for _, module, prior, closure, _ in model.named_priors():  # type: ignore[operator]
        total = total + prior.log_prob(closure(module)).sum()
    return total
