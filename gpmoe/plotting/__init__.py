"""Figures in two steps: a function that computes a small record of numbers, and one that draws it."""

from gpmoe.plotting.band import PosteriorBand, plot_band, posterior_band
from gpmoe.plotting.calibration import CalibrationCurve, calibration_curve, plot_calibration
from gpmoe.plotting.experts import ExpertCurves, expert_curves, plot_experts, plot_gate

__all__ = [
    "CalibrationCurve",
    "ExpertCurves",
    "PosteriorBand",
    "calibration_curve",
    "expert_curves",
    "plot_band",
    "plot_calibration",
    "plot_experts",
    "plot_gate",
    "posterior_band",
]
