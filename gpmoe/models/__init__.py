"""Models: data, GPyTorch parts and posteriors; each is a BoTorch model."""

from gpmoe.models.channel_posterior import ChannelPosterior, smooth_noise
from gpmoe.models.conditioned_mixture import ConditionedMixture
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert_kinds import make_expert
from gpmoe.models.gaussian_model import ConditionedGP
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.inducing_points import greedy_inducing_points, kmeans_inducing_points
from gpmoe.models.iterative_gp import IterativeGP
from gpmoe.models.kronecker_gp import KroneckerGP
from gpmoe.models.linear_expert import LinearExpert
from gpmoe.models.local_experts import LocalExperts
from gpmoe.models.measurement_history import MeasurementHistory, measurement_history
from gpmoe.models.measurement_value import rank_measurements, variance_reduction
from gpmoe.models.mgp_adapter import MGPAdapter
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.mixture_posterior import MixturePosterior
from gpmoe.models.multitask_gp import MultitaskGP
from gpmoe.models.null_expert import NullExpert
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP
from gpmoe.models.streaming_mgp import StreamingMGP
from gpmoe.models.student_t_gp import StudentTGP
from gpmoe.models.tree_mixture import TreeMixture
from gpmoe.models.vecchia_gp import VecchiaGP

__all__ = [
    "ChannelPosterior",
    "ConditionedGP",
    "ConditionedMixture",
    "ExactGP",
    "HeteroscedasticGP",
    "IterativeGP",
    "KroneckerGP",
    "LinearExpert",
    "LocalExperts",
    "MGPAdapter",
    "MeasurementHistory",
    "MixtureOfExperts",
    "MixturePosterior",
    "MultitaskGP",
    "NullExpert",
    "SparseGP",
    "SparseMixtureOfExperts",
    "StochasticVariationalGP",
    "StreamingMGP",
    "StudentTGP",
    "TreeMixture",
    "VecchiaGP",
    "greedy_inducing_points",
    "kmeans_inducing_points",
    "make_expert",
    "measurement_history",
    "rank_measurements",
    "smooth_noise",
    "variance_reduction",
]
