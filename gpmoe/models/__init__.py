"""Models: data, GPyTorch parts and posteriors; each is a BoTorch model."""

from gpmoe.models.conditioned_mixture import ConditionedMixture
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import ConditionedGP
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.inducing_points import greedy_inducing_points, kmeans_inducing_points
from gpmoe.models.iterative_gp import IterativeGP
from gpmoe.models.kronecker_gp import KroneckerGP
from gpmoe.models.linear_expert import LinearExpert
from gpmoe.models.local_experts import LocalExperts
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.mixture_posterior import MixturePosterior
from gpmoe.models.null_expert import NullExpert
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP
from gpmoe.models.student_t_gp import StudentTGP
from gpmoe.models.tree_mixture import TreeMixture
from gpmoe.models.vecchia_gp import VecchiaGP

__all__ = [
    "ConditionedGP",
    "ConditionedMixture",
    "ExactGP",
    "HeteroscedasticGP",
    "IterativeGP",
    "KroneckerGP",
    "LinearExpert",
    "LocalExperts",
    "MixtureOfExperts",
    "MixturePosterior",
    "NullExpert",
    "SparseGP",
    "SparseMixtureOfExperts",
    "StochasticVariationalGP",
    "StudentTGP",
    "TreeMixture",
    "VecchiaGP",
    "greedy_inducing_points",
    "kmeans_inducing_points",
]
