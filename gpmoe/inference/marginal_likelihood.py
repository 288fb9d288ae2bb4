"""Objectives of an exact GP: evidence and prior."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import Module


class HasEvidence(Protocol):
    """A model that knows its marginal likelihood."""

    def log_marginal_likelihood(self) -> Tensor:
        """log p(y | X), ``(*batch,)``, nats."""


def log_marginal_likelihood(gp: HasEvidence) -> Tensor:
    """log p(y | X, hyperparameters), the sum over data (and batch), as the model has it: exact, or an approximation.

    Args:
        gp: the model.

    Returns:
        A scalar in nats that backpropagates (once) to every parameter.
    """
    return gp.log_marginal_likelihood().sum()


def log_prior(model: Module) -> Tensor | float:
    """Sum of the log densities of all GPyTorch priors registered in a model, nats; 0 if there are none."""
    return prior_of(model)()


def prior_of(model: Module) -> Callable[[], Tensor | float]:
    """A function that gives `log_prior` of a model at its present parameters, with the search for priors done once.

    A prior of a module that several parts share counts once.
    """
    found = {
        (id(module), name.rsplit(".", 1)[-1]): (prior, module, closure)
        for name, module, prior, closure, _ in model.named_priors()  # type: ignore[operator]
    }
    priors = list(found.values())

    def total() -> Tensor | float:
        terms = [prior.log_prob(closure(module)).sum() for prior, module, closure in priors]
        return sum(terms[1:], terms[0]) if terms else 0.0

    return total
