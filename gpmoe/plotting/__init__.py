"""Figures in two steps: a function that computes a small record of numbers, and one that draws it."""

from gpmoe.plotting.band import PosteriorBand, plot_band, posterior_band
from gpmoe.plotting.calibration import CalibrationCurve, calibration_curve, plot_calibration
from gpmoe.plotting.early_warning_report import report
from gpmoe.plotting.experts import ExpertCurves, expert_curves, plot_experts, plot_gate
from gpmoe.plotting.partition_map import PartitionMap, partition_map, plot_partition_map
from gpmoe.plotting.ranking_curves import plot_precision_recall, plot_roc, ranking_curves
from gpmoe.plotting.responsibilities import ResponsibilityPoints, plot_responsibilities, responsibility_points
from gpmoe.plotting.risk_reliability import plot_reliability
from gpmoe.plotting.usage import UsageCurves, plot_usage, usage_curves
from gpmoe.plotting.watched_series import plot_watched_series, watched_series

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
    "plot_precision_recall",
    "plot_reliability",
    "plot_responsibilities",
    "plot_roc",
    "plot_usage",
    "plot_watched_series",
    "posterior_band",
    "ranking_curves",
    "report",
    "responsibility_points",
    "usage_curves",
    "watched_series",
]
