"""The one small table that examples need, and simulators whose truth is known."""

from gpmoe.data.motorcycle import load_motorcycle
from gpmoe.data.simulators import simulate_heteroscedastic, simulate_two_regimes

__all__ = ["load_motorcycle", "simulate_heteroscedastic", "simulate_two_regimes"]
