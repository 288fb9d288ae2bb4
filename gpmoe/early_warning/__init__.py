"""Ragged series, alarms that keep a promise, and what they are judged by."""

from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries

__all__ = ["RaggedSeries", "SeriesScaling"]
