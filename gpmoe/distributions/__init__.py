"""What every prediction is."""

from gpmoe.distributions.predictive import Predictive
from gpmoe.distributions.standard_densities import Array

__all__ = ["Array", "Predictive"]
