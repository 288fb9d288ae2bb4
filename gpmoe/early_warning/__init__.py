"""Ragged series, alarms that keep a promise, and what they are judged by."""

from gpmoe.early_warning.alarm_budget import AlarmBudget, AlarmChoice, choose_threshold
from gpmoe.early_warning.alarm_report import AlarmReport, DetectionWindow, alarm_report
from gpmoe.early_warning.alarms import AlarmPolicy, Alarms, confident_risk
from gpmoe.early_warning.bootstrap import Bootstrap, Estimate
from gpmoe.early_warning.calibration import decision_curve, reliability
from gpmoe.early_warning.concatenate import concatenate
from gpmoe.early_warning.horizons import horizon_ranking
from gpmoe.early_warning.optimal_risk import optimal_risk
from gpmoe.early_warning.ranking import largest_risk, series_ranking, time_ranking
from gpmoe.early_warning.readers import (
    load_challenge_2012,
    load_challenge_2019,
    read_challenge_2012,
    read_challenge_2019,
)
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.simulator import StayModel, simulate_stays
from gpmoe.early_warning.utility import ChallengeUtility

__all__ = [
    "AlarmBudget",
    "AlarmChoice",
    "AlarmPolicy",
    "AlarmReport",
    "Alarms",
    "Bootstrap",
    "ChallengeUtility",
    "DetectionWindow",
    "Estimate",
    "RaggedSeries",
    "SeriesScaling",
    "StayModel",
    "alarm_report",
    "choose_threshold",
    "concatenate",
    "confident_risk",
    "decision_curve",
    "horizon_ranking",
    "largest_risk",
    "load_challenge_2012",
    "load_challenge_2019",
    "optimal_risk",
    "read_challenge_2012",
    "read_challenge_2019",
    "reliability",
    "series_ranking",
    "simulate_stays",
    "time_ranking",
]
