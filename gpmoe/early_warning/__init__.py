"""Ragged series, alarms that keep a promise, and what they are judged by."""

from gpmoe.early_warning.alarm_budget import AlarmBudget, AlarmChoice, choose_threshold
from gpmoe.early_warning.alarm_report import AlarmReport, DetectionWindow, alarm_report
from gpmoe.early_warning.alarm_stream import AlarmStream
from gpmoe.early_warning.alarm_table import alarm_table
from gpmoe.early_warning.alarms import AlarmPolicy, Alarms, confident_risk
from gpmoe.early_warning.bootstrap import Bootstrap, Estimate
from gpmoe.early_warning.calibration import decision_curve, reliability
from gpmoe.early_warning.concatenate import concatenate
from gpmoe.early_warning.horizon_labels import horizon_labels
from gpmoe.early_warning.horizons import horizon_ranking
from gpmoe.early_warning.multitask_head import MultitaskHead
from gpmoe.early_warning.next_measurement import NextMeasurement, next_measurement
from gpmoe.early_warning.optimal_risk import optimal_risk
from gpmoe.early_warning.ranking import largest_risk, series_ranking, time_ranking
from gpmoe.early_warning.readers import (
    load_challenge_2012,
    load_challenge_2019,
    read_challenge_2012,
    read_challenge_2019,
)
from gpmoe.early_warning.regular_grid import regular_grid
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.scorecard import Scorecard, scorecard
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.simulator import StayModel, simulate_stays
from gpmoe.early_warning.utility import ChallengeUtility

__all__ = [
    "AlarmBudget",
    "AlarmChoice",
    "AlarmPolicy",
    "AlarmReport",
    "AlarmStream",
    "Alarms",
    "Bootstrap",
    "ChallengeUtility",
    "DetectionWindow",
    "Estimate",
    "MultitaskHead",
    "NextMeasurement",
    "RaggedSeries",
    "Scorecard",
    "SeriesScaling",
    "StayModel",
    "alarm_report",
    "alarm_table",
    "choose_threshold",
    "concatenate",
    "confident_risk",
    "decision_curve",
    "horizon_labels",
    "horizon_ranking",
    "largest_risk",
    "load_challenge_2012",
    "load_challenge_2019",
    "next_measurement",
    "optimal_risk",
    "read_challenge_2012",
    "read_challenge_2019",
    "regular_grid",
    "reliability",
    "scorecard",
    "series_ranking",
    "simulate_stays",
    "time_ranking",
]
