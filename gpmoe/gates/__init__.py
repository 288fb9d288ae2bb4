"""Gates: probabilities of experts given inputs."""

from gpmoe.gates.activation import ActivationGate
from gpmoe.gates.annealed import AnnealedGate
from gpmoe.gates.cascade import CascadeGate, CascadeRoute
from gpmoe.gates.confidence import ConfidenceGate
from gpmoe.gates.constant import ConstantGate
from gpmoe.gates.diagnostics import GateDiagnostics, gate_diagnostics, routing_diagnostics
from gpmoe.gates.dirichlet_process import DirichletProcessGate
from gpmoe.gates.expert_outputs import HeldOut
from gpmoe.gates.feature_gate import FeatureGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.gaussian_mixture import GaussianMixtureGate
from gpmoe.gates.global_local import GlobalLocalGate
from gpmoe.gates.gp import GPGate
from gpmoe.gates.gp_probit import GPProbitGate
from gpmoe.gates.gp_softmax import GPSoftmaxGate
from gpmoe.gates.hierarchical import HierarchicalGate
from gpmoe.gates.loss_free_bias import LossFreeBias
from gpmoe.gates.multi_gate import MultiGate
from gpmoe.gates.neural import NeuralGate
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.gates.stacking import learn_from_held_out
from gpmoe.gates.top_k import TopKGate
from gpmoe.gates.uncertainty_router import UncertaintyRouter

__all__ = [
    "ActivationGate",
    "AnnealedGate",
    "CascadeGate",
    "CascadeRoute",
    "ConfidenceGate",
    "ConstantGate",
    "DirichletProcessGate",
    "FeatureGate",
    "GPGate",
    "GPProbitGate",
    "GPSoftmaxGate",
    "Gate",
    "GateDiagnostics",
    "GaussianMixtureGate",
    "GlobalLocalGate",
    "HeldOut",
    "HierarchicalGate",
    "LossFreeBias",
    "MultiGate",
    "NeuralGate",
    "SoftmaxGate",
    "TopKGate",
    "UncertaintyRouter",
    "gate_diagnostics",
    "learn_from_held_out",
    "routing_diagnostics",
]
