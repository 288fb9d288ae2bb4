"""The objective of sparse models."""

from torch import Tensor

from gpmoe.models.inducing_model import InducingModel


def elbo(gp: InducingModel) -> Tensor:
    """The lower bound on log p(y | X, hyperparameters), the sum over data (and batch).

    Args:
        gp: a `SparseGP` or a `StochasticVariationalGP`.

    Returns:
        A scalar in nats that backpropagates (once) to every parameter.
    """
    return gp.elbo().sum()
