"""Gates: probabilities of experts given inputs."""

from gpmoe.gates.constant import ConstantGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.gp import GPGate
from gpmoe.gates.softmax import SoftmaxGate

__all__ = ["ConstantGate", "GPGate", "Gate", "SoftmaxGate"]
