"""One suggestion from what has been tried: surrogates are fitted, an acquisition is maximised.

Everything here is a function of its arguments: the same evidence and seed give the same configuration.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpmoe.bo.acquisition import Acquisition, NoisyExpectedImprovement, ProbabilityOfSuccess, Sum
from gpmoe.bo.encoding import Encoding
from gpmoe.bo.outcome import OFFSETS, Outcome
from gpmoe.bo.search import Search
from gpmoe.bo.surrogate import Layout, Surrogate, fit_surrogate
from gpmoe.linalg.threads import at_most_threads

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_INCUMBENTS = 5
_LEVELS_TO_WARP = 5
_MOST_WEIGHT = 20.0
_MOST = 1000  # trials that a surrogate is fitted to: the best half of them and the latest


@dataclass(frozen=True)
class Evidence:
    """What has been tried, as coordinates with NaN where a parameter is inactive.

    Attributes:
        C: of trials with an outcome, ``(n, p)``.
        y: outcomes, maximised, ``(n,)``, finite.
        final: which of them are final values, not the last ones of pruned trials, ``(n,)``.
        failed: of trials that failed, ``(f, p)``.
        pending: of trials under way, ``(q, p)``.
    """

    C: Matrix
    y: Vector
    final: NDArray[np.bool_]
    failed: Matrix
    pending: Matrix


def suggest(encoding: Encoding, evidence: Evidence, seed: int) -> Vector | None:
    """Coordinates of the configuration to try next, ``(p,)``, NaN where inactive.

    Args:
        encoding: of the space.
        evidence: with at least one final outcome.
        seed: for everything that is drawn.

    Returns:
        None if every configuration has been tried, or none obeys the constraints.
    """
    with at_most_threads(1):
        return _suggest(encoding, evidence, seed)


def _suggest(encoding: Encoding, evidence: Evidence, seed: int) -> Vector | None:
    rng = np.random.default_rng(seed)
    seen = np.concatenate([evidence.C, evidence.failed, evidence.pending])
    search = Search(encoding, seen, rng=rng)
    kept = _keep(evidence)
    C, y, final = evidence.C[kept], evidence.y[kept], evidence.final[kept]
    surrogate = fit_outcomes(encoding, C, y, rng)
    acquisition: Acquisition = NoisyExpectedImprovement(
        surrogate, encoding.inputs(evidence.pending), seed=seed, observed=np.flatnonzero(final)
    )
    if len(evidence.failed):
        acquisition = Sum(acquisition, fit_success(encoding, evidence, rng))
    best = np.argsort(np.where(final, -y, np.inf), kind="stable")[:_INCUMBENTS]
    return search.maximise(acquisition, C[best])


def fit_outcomes(encoding: Encoding, C: Matrix, y: Vector, rng: np.random.Generator) -> Surrogate:
    """The GP of outcomes, under the transform of them that the evidence likes best."""
    X, layout = encoding.inputs(C), layout_of(encoding)
    plain = Outcome.of(y, OFFSETS[0])
    best = fit_surrogate(X, plain(y), layout, rng=rng)
    start, evidence = best.theta, best.value + plain.log_slope
    for offset in OFFSETS[1:]:
        outcome = Outcome.of(y, offset)
        fit = fit_surrogate(X, outcome(y), layout, starts=[start])
        if fit.value + outcome.log_slope > evidence:
            best, evidence = fit, fit.value + outcome.log_slope
        start = fit.theta
    return best


def fit_success(encoding: Encoding, evidence: Evidence, rng: np.random.Generator) -> ProbabilityOfSuccess:
    """The GP of which trials fail.

    Its weight grows with the failures: where improvements elsewhere have become small, likely failures would be tried
    again and again for the large ones that nobody can rule out there.
    """
    C = np.concatenate([evidence.C, evidence.failed])[-_MOST:]
    labels = np.concatenate([np.ones(len(evidence.C)), -np.ones(len(evidence.failed))])[-_MOST:]
    plain = Layout(encoding.owner, np.empty(0, dtype=np.intp))
    weight = min(1.0 + 2 * len(evidence.failed), _MOST_WEIGHT)
    return ProbabilityOfSuccess(fit_surrogate(encoding.inputs(C), labels, plain, rng=rng), weight)


def layout_of(encoding: Encoding) -> Layout:
    """Which columns of the inputs share a lengthscale, and which are warped."""
    warped = [
        column
        for column, levels, categorical in zip(encoding.column, encoding.grids, encoding.categorical, strict=True)
        if not categorical and (levels is None or len(levels) >= _LEVELS_TO_WARP)
    ]
    return Layout(encoding.owner, np.array(warped, dtype=np.intp))


def _keep(evidence: Evidence) -> NDArray[np.intp]:
    """Rows that the surrogate sees."""
    n = len(evidence.y)
    if n <= _MOST:
        return np.arange(n)
    best = np.argsort(-evidence.y, kind="stable")[: _MOST // 2]
    latest = np.setdiff1d(np.arange(n), best)[-(_MOST - len(best)) :]
    return np.sort(np.concatenate([best, latest]))
