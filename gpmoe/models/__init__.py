"""Models: data, GPyTorch parts and posteriors; each is a BoTorch model."""

from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import ConditionedGP
from gpmoe.models.inducing_points import greedy_inducing_points, kmeans_inducing_points
from gpmoe.models.iterative_gp import IterativeGP
from gpmoe.models.kronecker_gp import KroneckerGP
from gpmoe.models.local_experts import LocalExperts
from gpmoe.models.mixture_of_experts import MixtureOfExperts, MixturePosterior
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP
from gpmoe.models.vecchia_gp import VecchiaGP

__all__ = [
    "ConditionedGP",
    "ExactGP",
    "IterativeGP",
    "KroneckerGP",
    "LocalExperts",
    "MixtureOfExperts",
    "MixturePosterior",
    "SparseGP",
    "StochasticVariationalGP",
    "VecchiaGP",
    "greedy_inducing_points",
    "kmeans_inducing_points",
]
