"""Merged models and their Pareto front, found on surrogates of the metrics ("amortised").

    θ(c) = θ_0 + Σ_n c_n (θ_n - θ_0)        M_t(c): metric of task t at θ(c), larger is better

| symbol | name in code | shape |
|---|---|---|
| θ_0, θ_n | `pretrained`, `tuned` | (p,), (N, p) |
| c | `C`, `coefficients` | (n, N) |
| M_t(c) | `metrics` | (n, T) |

A few merged models are evaluated; a quadratic-mean GP for each metric learns from them and says, by the noisy
hypervolume improvement, which to evaluate next; thousands of coefficients are then judged by the GPs alone.

Source: Li et al. (2025), MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation,
sec. 4, for merging, first coefficients and the pick by preference; Daulton, Balandat and Bakshy (2021), Parallel
Bayesian Optimization of Multiple Noisy Objectives, for the improvement. Coefficients stay in the box that was sampled:
the published program searches (-3, 3) with what it learned on (0, 1).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from gpmoe.bo.offline.quadratic_surrogate import quadratic_gp
from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.inference.fit import fit_quietly
from gpmoe.models.exact_gp import ExactGP

_JITTER, _CANDIDATES = 0.1, 4096


@dataclass(frozen=True)
class ParetoFront:
    """What surrogates say of merged models, and what was evaluated to teach them.

    Attributes:
        coefficients: of points that no other dominates by predicted metrics, ``(k, N)``.
        metrics: predicted at them, ``(k, T)``.
        evaluated: coefficients whose metrics were measured, in order, ``(n, N)``.
        measured: their metrics, ``(n, T)``.
    """

    coefficients: Tensor
    metrics: Tensor
    evaluated: Tensor
    measured: Tensor

    def pick(self, preference: Sequence[float]) -> Tensor:
        """Coefficients ``(N,)`` of the point whose metrics, weighted, sum to most.

        Args:
            preference: weights of the T metrics, not negative; only their ratios matter.

        Raises:
            InputError: for another number of weights, a negative one, or none above zero.
        """
        weights = self.metrics.new_tensor(preference)
        if weights.shape != self.metrics.shape[1:] or bool((weights < 0).any()) or not bool((weights > 0).any()):
            raise InputError(
                f"`preference` needs {self.metrics.shape[1]} weights, none negative and one positive; got {preference}."
            )
        return self.coefficients[(self.metrics @ weights).argmax()]


def merged(pretrained: Tensor, tuned: Tensor, coefficients: Tensor) -> Tensor:
    """θ_0 + Σ_n c_n (θ_n - θ_0).

    Args:
        pretrained: ``(p,)``, for instance of `torch.nn.utils.parameters_to_vector`.
        tuned: ``(N, p)``.
        coefficients: ``(*batch, N)``.

    Returns:
        ``(*batch, p)``.

    Example:
        >>> merged(torch.zeros(2), torch.eye(2), torch.tensor([0.5, 0.25]))
        tensor([0.5000, 0.2500])
    """
    return pretrained + coefficients @ (tuned - pretrained)


def first_coefficients(n_models: int, n_points: int, generator: torch.Generator) -> Tensor:
    """Coefficients to begin with: each model alone, shaken; all models alike; and uniform points.

    Args:
        n_models: N.
        n_points: how many; each model alone and the even mix come first.
        generator: of all chance.

    Returns:
        ``(n_points, N)`` in [0, 1].
    """
    alone = torch.eye(n_models, dtype=torch.float64)
    shake = _JITTER * torch.randn(n_models, n_models, dtype=torch.float64, generator=generator)
    shaken = (alone - shake.abs()).abs()  # inwards, so that none repeats a corner
    even = torch.tensor([1 / n_models, 0.75], dtype=torch.float64).unsqueeze(-1).expand(2, n_models)
    spread = torch.rand(n_points, n_models, dtype=torch.float64, generator=generator)
    half = n_points // 2
    return torch.cat([alone, even[:1], spread[:half], shaken, even[1:], spread[half:]]).clamp(0, 1)[:n_points]


def amortised_front(
    evaluate: Callable[[Tensor], Tensor],
    n_models: int,
    *,
    n_first: int | None = None,
    n_rounds: int = 2,
    batch_size: int = 4,
    seed: int = 0,
) -> ParetoFront:
    """Evaluate merged models where it pays and find their Pareto front on surrogates.

    Args:
        evaluate: from coefficients ``(N,)`` to metrics ``(T,)``, larger is better (give losses with a minus).
        n_models: N.
        n_first: evaluations before the first surrogate; twice the numbers of a quadratic if None.
        n_rounds, batch_size: rounds of evaluations that hypervolume improvement asks for, and how many in each.
        seed: of all chance.

    Raises:
        InputError: for no model or too few first evaluations.
        ShapeError, NonFiniteError: if `evaluate` returns other than T finite numbers each time.

    Example:
        >>> ends = torch.eye(2, dtype=torch.float64)
        >>> found = amortised_front(lambda c: -(c - ends).square().sum(-1), 2, n_rounds=0)
        >>> c = found.pick([1.0, 1.0])  # between the two ends
        >>> bool((c - 0.5).abs().max() < 0.1)
        True
    """
    n_first = (n_models + 1) * (n_models + 2) if n_first is None else n_first
    if n_models < 1 or n_first < 2:
        raise InputError(f"need at least one model and two first evaluations; got {n_models} and {n_first}.")
    generator = torch.Generator().manual_seed(seed)
    C = first_coefficients(n_models, n_first, generator)
    M = _measure(evaluate, C)
    for turn in range(n_rounds):
        new = _most_improving(_surrogates(C, M), C, M, batch_size, seed + turn)
        C, M = torch.cat([C, new]), torch.cat([M, _measure(evaluate, new)])
    candidates = torch.cat([C, SobolEngine(n_models, scramble=True, seed=seed).draw(_CANDIDATES, dtype=torch.float64)])
    with torch.no_grad():
        scaled = torch.stack([gp.posterior(candidates).mean.squeeze(-1) for gp in _surrogates(C, M)], dim=-1)
    centre, spread = _scale(M)
    best = _non_dominated(scaled)
    return ParetoFront(candidates[best], centre + spread * scaled[best], C, M)


def _measure(evaluate: Callable[[Tensor], Tensor], C: Tensor) -> Tensor:
    rows = [evaluate(c).detach().double() for c in C]
    if any(row.dim() != 1 or row.shape != rows[0].shape for row in rows):
        raise ShapeError(
            f"`evaluate` must return one tensor (T,) each time; got {sorted({tuple(r.shape) for r in rows})}."
        )
    M = torch.stack(rows)
    if not bool(M.isfinite().all()):
        at = C[int((~M.isfinite()).any(-1).nonzero()[0])]
        raise NonFiniteError(f"`evaluate` returned NaN or infinity at {at.tolist()}; every metric must be finite.")
    return M


def _scale(M: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each metric, 1 for a constant one."""
    spread = M.std(0, correction=0)
    return M.mean(0), torch.where(spread > 0, spread, 1.0)


def _surrogates(C: Tensor, M: Tensor) -> list[ExactGP]:
    """A fitted GP for each standardised metric."""
    centre, spread = _scale(M)
    gps = [quadratic_gp(C, metric) for metric in ((M - centre) / spread).mT.contiguous()]
    for gp in gps:
        fit_quietly(gp)
    return gps


def _most_improving(gps: list[ExactGP], C: Tensor, M: Tensor, q: int, seed: int) -> Tensor:
    """The q coefficients in the unit box of largest noisy expected hypervolume improvement, in log, ``(q, N)``."""
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.models.model import ModelList
    from botorch.optim.optimize import optimize_acqf
    from botorch.utils.multi_objective.hypervolume import infer_reference_point
    from linear_operator.utils.warnings import NumericalWarning

    centre, spread = _scale(M)
    scaled = (M - centre) / spread
    reference = infer_reference_point(scaled[_non_dominated(scaled)])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # BoTorch draws from torch's own generator
        torch.manual_seed(seed)
        warnings.simplefilter("ignore", NumericalWarning)  # points that meet have a singular covariance
        improvement = qLogNoisyExpectedHypervolumeImprovement(
            ModelList(*gps), reference, C, prune_baseline=True, cache_root=False
        )
        box = torch.stack([torch.zeros_like(C[0]), torch.ones_like(C[0])])
        found, _ = optimize_acqf(
            improvement, box, q, num_restarts=2, raw_samples=64, sequential=True, options={"maxiter": 50}
        )
    return found.detach()


def _non_dominated(metrics: Tensor) -> Tensor:
    """Which rows of ``(n, T)`` no other row dominates, ``(n,)``."""
    from botorch.utils.multi_objective.pareto import is_non_dominated

    return is_non_dominated(metrics, deduplicate=True)
