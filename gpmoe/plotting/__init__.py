"""Figures in two steps: a function that computes a small record of numbers, and one that draws it."""

from gpmoe.plotting.band import PosteriorBand, plot_band, posterior_band
from gpmoe.plotting.calibration import CalibrationCurve, calibration_curve, plot_calibration
from gpmoe.plotting.experts import ExpertCurves, expert_curves, plot_experts, plot_gate
from gpmoe.plotting.partition_map import PartitionMap, partition_map, plot_partition_map
from gpmoe.plotting.responsibilities import ResponsibilityPoints, plot_responsibilities, responsibility_points
from gpmoe.plotting.usage import UsageCurves, plot_usage, usage_curves

__all__ = [
    "CalibrationCurve",
    "ExpertCurves",
    "PartitionMap",
    "PosteriorBand",
    "ResponsibilityPoints",
    "UsageCurves",
    "calibration_curve",
    "expert_curves",
    "partition_map",
    "plot_band",
    "plot_calibration",
    "plot_experts",
    "plot_gate",
    "plot_partition_map",
    "plot_responsibilities",
    "plot_usage",
    "posterior_band",
    "responsibility_points",
    "usage_curves",
]
