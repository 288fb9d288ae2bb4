"""Local experts from rows: a pilot process, a division of the rows in its distances, and hyperparameters.

1. An exact GP on a thousand random rows says how long lengthscales are, so that the division ignores inputs that the
   target ignores.
2. Rows are divided (see `models.partition`), and the communication expert's are drawn at random.
3. Hyperparameters shared by all experts maximise Σ_i log N(y_i | m, K_i + σ²I) over the experts, or over as many
   random ones as make 20,000 rows, from the pilot's; or each expert goes on alone, groups of them through joblib.
"""

import time
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from gpytorch.kernels import Kernel, ScaleKernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.inference.fit import fit_quietly
from gpmoe.inference.fit_each_expert import fit_each_expert
from gpmoe.inference.report import FitReport
from gpmoe.linalg import lapack
from gpmoe.models.aggregation import Aggregation, expect_rule
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert_layout import ExpertLayout
from gpmoe.models.gaussian_noise import gaussian_noise
from gpmoe.models.local_experts import LocalExperts
from gpmoe.models.partition import Partition, partition_rows, random_parts

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_PILOT = 1000  # rows of the process that says what near is
_LEARNED_FROM = 20_000  # rows of the experts that shared hyperparameters are learned from


@dataclass(frozen=True)
class ExpertPlan:
    """How local experts are made.

    Args:
        points_per_expert: rows of an expert, and of the communication expert, about.
        aggregation, degree: see `LocalExperts`.
        partition: "kmeans" or "tree" for neighbouring rows (see `models.partition`), "random".
        n_nearest: how many experts answer for a point; None for all.
        shared: whether experts share hyperparameters.
        kernel: as for `ExactGP`; copied.
        noise: the noise variance; None to learn it.
        max_iterations: of L-BFGS, for the pilot, for all experts together or for each alone.
        seed: of everything random.

    Raises:
        InputError: if an argument is none of these.
    """

    points_per_expert: int = 200
    aggregation: Aggregation = "grbcm"
    degree: int = 2
    partition: str = "kmeans"
    n_nearest: int | None = 8
    shared: bool = True
    kernel: Kernel | None = None
    noise: float | None = None
    max_iterations: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        expect_rule(self.aggregation, shared=self.shared)
        if self.points_per_expert < 1:
            raise InputError(f"`points_per_expert` must be at least 1; got {self.points_per_expert}.")
        if self.partition not in ("kmeans", "tree", "random"):
            raise InputError(f"`partition` must be 'kmeans', 'tree' or 'random'; got {self.partition!r}.")


@dataclass(frozen=True)
class FittedExperts:
    """A fitted model and what the fit did."""

    model: LocalExperts
    report: FitReport


def fit_local_experts(X: Tensor, y: Tensor, plan: ExpertPlan, *, n_jobs: int | None = None) -> FittedExperts:
    """Divide rows among experts and learn their hyperparameters.

    Args:
        X: ``(n, d)``, float64, of about unit scale.
        y: ``(n,)``.
        plan: how.
        n_jobs: for joblib, where experts have hyperparameters of their own; as in `joblib.Parallel`. Results don't
            depend on it, nor on the backend.

    Returns:
        The model, its rows sorted by expert, and the report.

    Example:
        >>> import torch
        >>> X = torch.linspace(0, 6, 80, dtype=torch.float64).unsqueeze(-1)
        >>> fitted = fit_local_experts(X, X.sin().squeeze(-1), ExpertPlan(points_per_expert=20))
        >>> fitted.model.layout.n_experts
        4
    """
    start = time.perf_counter()
    rng = np.random.default_rng(plan.seed)
    pilot = fit_pilot(X, y, plan, rng)
    units = distance_units(pilot.covar_module, X.shape[-1])
    count = max(1, round(len(X) / plan.points_per_expert))
    if plan.partition == "random":
        regions, labels = None, random_parts(len(X), count, rng)
    else:
        regions, labels = partition_rows(X.numpy() / units, count, plan.partition)  # type: ignore[arg-type]
    order = torch.from_numpy(np.argsort(labels, kind="stable"))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])
    model = arrange(X[order], y[order], offsets, regions, pilot, plan, rng)
    return learn(model, pilot, plan, rng, start=start, n_jobs=n_jobs)


def fit_pilot(X: Tensor, y: Tensor, plan: ExpertPlan, rng: np.random.Generator) -> ExactGP:
    """An exact GP on random rows."""
    rows = torch.from_numpy(np.sort(rng.permutation(len(X))[:_PILOT]))
    pilot = ExactGP(X[rows], y[rows], kernel=deepcopy(plan.kernel), noise=gaussian_noise(plan.noise))
    fit_quietly(pilot, max_iterations=plan.max_iterations)
    return pilot


def distance_units(kernel: Kernel, d: int) -> Array:
    """What one unit of distance is in each input, ``(d,)``: the lengthscales where the kernel has one of each."""
    while isinstance(kernel, ScaleKernel) and kernel.active_dims is None:
        kernel = kernel.base_kernel
    if not kernel.has_lengthscale or kernel.active_dims is not None:
        return np.ones(d)
    return np.broadcast_to(kernel.lengthscale.detach().numpy().reshape(-1), d).copy()


def arrange(
    X: Tensor,
    y: Tensor,
    offsets: Indices,
    regions: Partition | None,
    pilot: ExactGP,
    plan: ExpertPlan,
    rng: np.random.Generator,
) -> LocalExperts:
    """The model of sorted rows, with the pilot's hyperparameters.

    Args:
        X, y: sorted by expert, ``(n, d)`` and ``(n,)``.
        offsets: where each expert's rows begin, ``(M + 1,)``.
        regions: of the experts, in the pilot's units of distance; None if they have none.
        pilot: see `fit_pilot`.
        plan: how.
        rng: draws the communication expert's rows.
    """
    units = distance_units(pilot.covar_module, X.shape[-1])
    centers = np.stack([X[int(start) : int(stop)].mean(0).numpy() for start, stop in pairwise(offsets)]) / units
    if regions is not None:
        regions = replace(regions, normals=regions.normals / units)
    communication = np.zeros(0, dtype=np.int64)
    if plan.aggregation == "grbcm":
        communication = np.sort(rng.choice(len(X), min(len(X), plan.points_per_expert), replace=False))
    layout = ExpertLayout(offsets, centers, regions, communication, plan.n_nearest)
    kernel = deepcopy(pilot.covar_module)
    model = LocalExperts(
        X, y, layout, aggregation=plan.aggregation, degree=plan.degree, kernel=kernel, noise=plan.noise
    )
    model.mean_module.load_state_dict(pilot.mean_module.state_dict())
    model.likelihood.load_state_dict(pilot.likelihood.state_dict())
    return model


def learn(
    model: LocalExperts,
    pilot: ExactGP,
    plan: ExpertPlan,
    rng: np.random.Generator,
    *,
    start: float,
    n_jobs: int | None = None,
) -> FittedExperts:
    """Learn the hyperparameters that experts share, and then, if wanted, each expert's own."""
    together = _some_experts(model, rng)
    report = fit_quietly(together, max_iterations=plan.max_iterations)
    for name in ("covar_module", "mean_module", "likelihood"):
        getattr(model, name).load_state_dict(getattr(together, name).state_dict())
    if not plan.shared:
        model, report = fit_each_expert(model, report, max_iterations=plan.max_iterations, n_jobs=n_jobs)
    seconds = time.perf_counter() - start
    return FittedExperts(model, replace(report, seconds=seconds, solver=f"{model.solved_by} by {lapack.provider()}"))


def _some_experts(model: LocalExperts, rng: np.random.Generator) -> LocalExperts:
    """The model of random experts that have some 20,000 rows together; all if there are no more."""
    layout = model.layout
    enough = rng.permutation(layout.n_experts)
    sizes = np.diff(layout.offsets)[enough]
    chosen = np.sort(enough[: max(1, int((np.cumsum(sizes) <= _LEARNED_FROM).sum()))])
    rows, offsets = layout.rows_of(chosen)
    index = torch.from_numpy(rows)
    part = ExpertLayout(offsets, layout.centers[chosen], None, np.zeros(0, dtype=np.int64))
    kernel = deepcopy(model.covar_module)
    some = LocalExperts(model.X[index], model.y[index], part, aggregation="rbcm", kernel=kernel)
    some.mean_module.load_state_dict(model.mean_module.state_dict())
    some.likelihood = deepcopy(model.likelihood)
    return some
