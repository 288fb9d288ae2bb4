"""The best score that simulated stays allow: the exact posterior probability of their label at each grid time.

The onset is one of finitely many hours, and so is the excursion. Given both, the measurements up to any time are
Gaussian, and one Cholesky factor gives the likelihood of every prefix: with C = L L' and z = L^-1 (y - mean),

    log p(y_1, ..., y_k) = -1/2 sum_{j<=k} z_j^2 - sum_{j<=k} log L_jj - k/2 log 2 pi,

since the leading block of L is the factor of the leading block of C. Where labs are ordered by severity, the times
of measurement have their Poisson likelihood too. A stay that still goes on at t says how long it is at least, which
is part of the prior at t.
"""

import numpy as np
import torch
from scipy.special import logsumexp

from gpmoe.early_warning.rows import Array
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.early_warning.simulator import StayModel


def optimal_risk(model: StayModel, series: RaggedSeries) -> Array:
    """P(label = 1 | everything measured so far, and the stay goes on) at each grid time, ``(G,)``.

    Args:
        model: the law that the stays come from.
        series: simulated stays, hourly grid; labels and event times are not looked at.

    Example:
        >>> from gpmoe.early_warning.simulator import simulate_stays
        >>> stays = simulate_stays(5, seed=0)
        >>> risk = optimal_risk(StayModel(), stays.series)
        >>> bool(((risk >= 0) & (risk <= 1)).all())
        True
    """
    if not len(series):
        return np.zeros(0)
    onsets = np.arange(model.earliest, model.lengths[1] + 1.0)
    return np.concatenate([_risk_of_stay(model, stay, onsets) for stay in series])


def _risk_of_stay(model: StayModel, stay: RaggedSeries, onsets: Array) -> Array:
    """Risk at the grid times of one stay, ``(T,)``."""
    grid = stay.grid_times
    hypotheses = np.append(onsets, np.inf)
    seen = np.concatenate([onsets[onsets - model.ramp < grid[-1]], [np.inf]])  # the others look like no onset
    fit = _log_likelihoods(model, stay, seen)
    full = np.concatenate([fit[:, :-1], np.repeat(fit[:, -1:], len(hypotheses) - len(seen) + 1, axis=1)], axis=1)
    log_posterior = full + _log_prior(model, grid, onsets)
    log_posterior -= logsumexp(log_posterior, axis=1, keepdims=True)
    positive = hypotheses <= grid[:, None] + model.lead
    risk: Array = np.where(positive, np.exp(log_posterior), 0.0).sum(axis=1)
    return np.minimum(risk, 1.0)


def _log_prior(model: StayModel, grid: Array, onsets: Array) -> Array:
    """log P(onset, stay goes on at t) at each grid time, for each onset and none, ``(T, h + 1)``."""
    hours = model.hours.astype(np.float64)
    each = model.prevalence * model.length_probs(True) / (hours - model.earliest + 1)
    reaches = (hours >= grid[:, None, None]) & (hours >= onsets[None, :, None])
    none = (1 - model.prevalence) * np.where(hours >= grid[:, None], model.length_probs(False), 0.0).sum(-1)
    return np.log(np.column_stack([np.where(reaches, each, 0.0).sum(-1), none]))


def _log_likelihoods(model: StayModel, stay: RaggedSeries, onsets: Array) -> Array:
    """log p(measured up to t | onset) up to a constant, at each grid time, ``(T, h)``."""
    time, channel, value = stay.time, stay.channel, stay.value
    severity = model.severity(time, onsets[:, None])
    pulses, log_chance = _excursions(model, stay)
    left = (value - model.mean(channel, severity))[:, None, :] - pulses
    factor = torch.linalg.cholesky(torch.from_numpy(model.covariance(time, channel, severity)))
    z = torch.linalg.solve_triangular(factor, torch.from_numpy(left).mT, upper=False).numpy()
    log_diagonal = np.log(torch.diagonal(factor, dim1=-2, dim2=-1).numpy())
    steps = -0.5 * z**2 - log_diagonal[:, :, None]
    prefix = np.concatenate([np.zeros((len(onsets), 1, len(pulses))), np.cumsum(steps, axis=1)], axis=1)
    gaussian = logsumexp(prefix + log_chance, axis=2).T
    known = np.searchsorted(time, stay.grid_times, side="right")
    orders = np.log1p(model.ordering * severity) * (channel >= len(model.rates) - model.n_labs)
    ordered = np.concatenate([np.zeros((len(onsets), 1)), np.cumsum(orders, axis=1)], axis=1).T
    return gaussian[known] + ordered[known] - _expected_orders(model, stay.grid_times[:, None], onsets)


def _excursions(model: StayModel, stay: RaggedSeries) -> tuple[Array, Array]:
    """Each possible excursion at the measurements, none first, ``(c, n)``, and its log probability ``(c,)``."""
    starts = np.repeat(model.excursion_starts, 2)[:, None]
    signs = np.tile([-1.0, 1.0], len(model.excursion_starts))[:, None]
    pulses = model.excursion(stay.time, stay.channel, starts, signs)
    chance = np.append(1 - model.excursions, np.full(len(starts), model.excursions / len(starts)))
    possible = chance > 0
    return np.concatenate([np.zeros((1, len(stay.time))), pulses])[possible], np.log(chance[possible])


def _expected_orders(model: StayModel, t: Array, onsets: Array) -> Array:
    """Orders up to t that severity adds to the expected number: ordering * sum of lab rates * integral of w."""
    labs = sum(model.rates[len(model.rates) - model.n_labs :])
    start = np.where(np.isfinite(onsets), onsets - model.ramp, np.inf)
    return model.ordering * labs * (_integral(t - start, model.ramp) - _integral(0.0 - start, model.ramp))


def _integral(u: Array, ramp: float) -> Array:
    """Integral of the ramp from its start to u hours later."""
    inside = np.clip(u, 0.0, ramp)
    return inside**2 / (2 * ramp) + np.clip(u - ramp, 0.0, None)
