"""Hyperparameters of every local expert by itself, groups of experts in parallel.

Groups go through joblib: ``with joblib.parallel_config(backend="ray")`` fits them on other machines.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import Mean
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.inference.fit import fit_quietly
from gpmoe.inference.report import FitReport
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import at_most_threads
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.local_experts import LocalExperts

Array = NDArray[np.float64]

_GROUP = 32  # experts of one task


def fit_each_expert(
    model: LocalExperts, report: FitReport, *, max_iterations: int, n_jobs: int | None = None
) -> tuple[LocalExperts, FitReport]:
    """Learn each expert's hyperparameters by its own evidence, from those that all share.

    Args:
        model: experts that share hyperparameters.
        report: of the fit that found them; the result's goes on from it.
        max_iterations: of L-BFGS, for each expert.
        n_jobs: as in `joblib.Parallel`. Results don't depend on it, nor on the backend.

    Returns:
        A model with the same rows, and the report.
    """
    bounds = list(zip(model.layout.offsets[:-1].tolist(), model.layout.offsets[1:].tolist(), strict=True))
    groups = [bounds[i : i + _GROUP] for i in range(0, len(bounds), _GROUP)]
    parts = (deepcopy(model.covar_module), deepcopy(model.mean_module), deepcopy(model.likelihood))
    jobs = (
        delayed(_fit_group)(
            [(model.X[a:b].clone(), model.y[a:b].clone()) for a, b in group], parts, max_iterations, lapack.provider()
        )
        for group in groups
    )
    ends = [end for group in Parallel(n_jobs=n_jobs)(jobs) for end in group]
    learned = model.likelihood.raw_noise.requires_grad
    noise = None if learned else float(model.new_noise())
    kernel = _batch_of(model.covar_module, len(ends))
    own = LocalExperts(model.X, model.y, model.layout, aggregation=model.aggregation, kernel=kernel, noise=noise)
    for module, name in ((own.covar_module, "kernel"), (own.mean_module, "mean"), (own.likelihood, "likelihood")):
        for key, parameter in module.named_parameters():
            parameter.data.copy_(torch.stack([torch.from_numpy(end.parameters[f"{name}.{key}"]) for end in ends]))
    value = sum(end.value for end in ends)
    whole = replace(
        report,
        objective_trace=(*report.objective_trace, value),
        iterations=max(end.iterations for end in ends),
        evaluations=report.evaluations + sum(end.evaluations for end in ends),
        converged=all(end.converged for end in ends),
        reason=f"{sum(end.converged for end in ends)} of {len(ends)} experts converged",
        jitter=max(end.jitter for end in ends),
        starts=(value,),
    )
    return own, whole


@dataclass(frozen=True)
class _End:
    """Where one expert's fit ended, in what every backend can carry."""

    parameters: dict[str, Array]
    value: float
    iterations: int
    evaluations: int
    converged: bool
    jitter: float


def _fit_group(
    data: Sequence[tuple[Tensor, Tensor]],
    parts: tuple[Kernel, Mean, GaussianLikelihood],
    most: int,
    name: lapack.Provider,
) -> list[_End]:
    """Fit some experts one after another; what a worker runs, with its parent's LAPACK."""
    with lapack.use_provider(name), at_most_threads(1):  # in any process, so that results don't depend on which
        return [_fit_one(X, y, *deepcopy(parts), most) for X, y in data]


def _fit_one(X: Tensor, y: Tensor, kernel: Kernel, mean: Mean, likelihood: GaussianLikelihood, most: int) -> _End:
    gp = ExactGP(X, y, kernel=kernel, mean=mean, noise=likelihood)
    report = fit_quietly(gp, max_iterations=most)
    modules = {"kernel": kernel, "mean": mean, "likelihood": likelihood}
    parameters = {
        f"{name}.{key}": parameter.detach().numpy().copy()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }
    value = report.objective_trace[-1]
    return _End(parameters, value, report.iterations, report.evaluations, report.converged, report.jitter)


def _batch_of(kernel: Kernel, count: int) -> Kernel:
    """A kernel of batch shape ``(count,)``, every one of them as the one given."""
    batch = deepcopy(kernel)
    for part in batch.modules():
        if isinstance(part, Kernel):
            part.batch_shape = torch.Size([count])
    for parameter in batch.parameters():
        parameter.data = parameter.data.expand(count, *parameter.shape).clone()
    return batch
