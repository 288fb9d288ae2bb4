"""Hard EM: cluster, classify, regress, then take turns until no point changes its expert.

| symbol | name in code | shape |
|---|---|---|
| c_n, the expert of point n | `labels` | (n,) |

Given labels each expert is a GP fitted to its own points and the gate a classifier of labels; given those,

    c_n = argmax_k log π_k(x_n) + log N(y_n; μ_k(x_n), v_k(x_n) + σ_k²)

What starts are compared by is the classification likelihood, Σ_k log p(y_{c=k} | X_{c=k}) + Σ_n log π_{c_n}(x_n).

Source: Etienam, Law and Wade (2024), (Ultra-)fast deep mixtures of Gaussian process experts, where the first round
is called CCR and further ones MM.
"""

import time
import warnings
from copy import deepcopy
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import Likelihood
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates import Gate
from gpmoe.inference.fit import fit_quietly
from gpmoe.inference.fit_sparse_mixture import GATE_ROWS, gate_rows, natural_pass
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.shared_parameters import sharing_groups
from gpmoe.inference.solver import Cholesky
from gpmoe.inference.vbem import cluster_starts
from gpmoe.kernels.dimension_scaled import expert_matern
from gpmoe.linalg import lapack
from gpmoe.linalg.threads import at_most_threads, threads_for
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.inducing_points import greedy_inducing_points
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

_SEARCH_ROWS = 400  # on more rows than these starts are compared on so many of them, drawn at random
_CLUSTER_ROWS = 2000
_SEARCH_ROUNDS = 3
_ITERATIONS = 6  # of L-BFGS for each expert in a round
_SETTLED = 1e-3  # share of rows that may still change their expert when sparse experts stop


@dataclass(frozen=True)
class _Round:
    """A model after some rounds, its classification likelihood and the experts' shares of the points after each, and
    whether labels stand still."""

    moe: MixtureOfExperts
    trace: list[float]
    usage: list[tuple[float, ...]]
    converged: bool


def fit_hard(moe: MixtureOfExperts, *, n_restarts: int = 4, max_rounds: int = 10, seed: int | None = None) -> FitReport:
    """Fit a mixture of exact experts by hard EM, in place; responsibilities end as zeros and ones.

    Starts are clusterings of inputs, targets and the residuals of one GP, which run through joblib.

    Args:
        moe: the model; with one expert this is `fit` on it.
        n_restarts: number of starts.
        max_rounds: how often labels are assigned at most.
        seed: for the clusterings.

    Returns:
        The report; its objective is the classification likelihood.

    Raises:
        InputError: for experts that are not exact GPs, or if experts or gate share parameters.

    Warns:
        NotConvergedWarning, JitterWarning: as `fit` does.
    """
    report = fit_hard_quietly(moe, n_restarts=n_restarts, max_rounds=max_rounds, seed=seed)
    warn_about(report, stacklevel=3)
    return report


def fit_hard_quietly(
    moe: MixtureOfExperts, *, n_restarts: int = 4, max_rounds: int = 10, seed: int | None = None
) -> FitReport:
    """`fit_hard` without its warnings, for fits that are part of another one."""
    parts = [part for part in [*moe.all_experts, moe.gate] if isinstance(part, torch.nn.Module)]
    if len(sharing_groups(parts)) < len(parts):
        raise InputError("hard EM fits gate and experts one by one, and these share parameters; use `fit_mixture`.")
    start = time.perf_counter()
    if moe.n_experts == 1:
        return fit_quietly(moe.all_experts[0])
    for k, expert in enumerate(moe.all_experts):
        if not isinstance(expert, ExactGP):
            raise InputError(
                f"hard EM fits `ExactGP` experts; expert {k} is a {type(expert).__name__}: use `fit_mixture`."
            )
    order = torch.randperm(len(moe.y), generator=torch.Generator().manual_seed(0 if seed is None else seed))
    small = moe.on_rows(order[:_SEARCH_ROWS].sort().values)
    found = _search(small, n_restarts, seed)
    best = max(found, key=lambda each: each.trace[-1])
    _take_hyperparameters(best.moe, moe)
    moe.gate = best.moe.gate
    with threads_for(len(moe.y)), Cholesky().applied():
        end = _alternate(moe, _labels(best.moe, moe.X, moe.y), max_rounds)
    return FitReport(
        objective_trace=tuple(end.trace),
        iterations=len(end.trace),
        evaluations=len(end.trace),
        converged=end.converged,
        reason="no point changed its expert" if end.converged else "max_rounds reached",
        jitter=max(expert.factor().jitter for expert in moe.all_experts),
        seconds=time.perf_counter() - start,
        solver=f"hard EM; {Cholesky()} by {lapack.provider()}",
        starts=tuple(each.trace[-1] for each in found),
        usage=tuple(end.usage),
    )


def _search(moe: MixtureOfExperts, count: int, seed: int | None) -> list[_Round]:
    single = deepcopy(moe.all_experts[0])
    single.set_data(moe.X, moe.y)
    fit_quietly(single, max_iterations=50)
    starts = [start.responsibilities.argmax(-1) for start in cluster_starts(moe, single, count, seed)]
    jobs = (delayed(_search_one)(deepcopy(moe), labels, lapack.provider()) for labels in starts)
    return list(Parallel()(jobs))


def _search_one(moe: MixtureOfExperts, labels: Tensor, provider: lapack.Provider) -> _Round:
    with lapack.use_provider(provider), at_most_threads(1), Cholesky().applied():
        return _alternate(moe, labels, _SEARCH_ROUNDS)


def _alternate(moe: MixtureOfExperts, labels: Tensor, max_rounds: int) -> _Round:
    """Regress and classify until labels stand still; the model ends as fitted to the last labels."""
    trace: list[float] = []
    usage: list[tuple[float, ...]] = []
    converged = False
    while len(trace) < max_rounds and not converged:
        trace.append(_regress(moe, labels))
        usage.append(_shares(labels, moe.n_experts))
        new = _labels(moe, moe.X, moe.y)
        converged = bool((new == labels).all())
        labels = new if len(trace) < max_rounds else labels
    return _Round(moe, trace, usage, converged)


def _shares(labels: Tensor, k: int) -> tuple[float, ...]:
    """Share of the points with each label."""
    counts = torch.bincount(labels, minlength=k).double()
    return tuple((counts / counts.sum()).tolist())


def _regress(moe: MixtureOfExperts, labels: Tensor) -> float:
    """Fit gate and experts to labels; returns the classification likelihood."""
    one_hot = torch.nn.functional.one_hot(labels, moe.n_experts).to(moe.X)
    moe.set_responsibilities(one_hot)
    rows = gate_rows(moe.gate, len(moe.y))
    with torch.no_grad():
        moe.gate.fit_step(moe.X[:rows], one_hot[:rows])
        total = float((one_hot * moe.gate.log_probs(moe.X)).sum())
    for k, expert in enumerate(moe.all_experts):
        if bool((labels == k).any()):
            total += fit_quietly(expert, max_iterations=_ITERATIONS).objective_trace[-1]
    return total


def _labels(moe: MixtureOfExperts, X: Tensor, y: Tensor) -> Tensor:
    return moe.membership(X, y).argmax(-1)


def _take_hyperparameters(source: MixtureOfExperts, target: MixtureOfExperts) -> None:
    for one, other in zip(source.all_experts, target.all_experts, strict=True):
        values = dict(one.named_parameters())
        for name, parameter in other.named_parameters():
            parameter.data.copy_(values[name].detach())


def sparse_from_exact(
    moe: MixtureOfExperts, X: Tensor, y: Tensor, *, n_inducing: int, seed: int | None = None
) -> SparseMixtureOfExperts:
    """A sparse mixture for many rows that starts where a mixture of exact experts on some of them ended.

    20,000 random rows are classified. Each expert's inducing points are chosen among its own by greedy conditional
    variance, and its q(v) is the best one given them.

    Args:
        moe: the fitted mixture of exact experts; it stays as it is.
        X: ``(n, d)``, all rows.
        y: ``(n,)``.
        n_inducing: inducing points of each expert at most.
        seed: for the random rows.
    """
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    rows = torch.randperm(len(y), generator=generator)[:GATE_ROWS]
    labels = torch.zeros(len(rows), dtype=torch.long) if moe.n_experts == 1 else _labels(moe, X[rows], y[rows])
    Z = [_greedy(expert.covar_module, X[rows], labels == k, n_inducing) for k, expert in enumerate(moe.all_experts)]
    sparse = SparseMixtureOfExperts(
        X,
        y,
        Z,
        n_experts=moe.n_experts,
        kernel=[expert.covar_module for expert in moe.all_experts],
        likelihood=[expert.likelihood for expert in moe.all_experts],
        gate=deepcopy(moe.gate),
    )
    for source, target in zip(moe.all_experts, sparse.all_experts, strict=True):
        target.mean_module.load_state_dict(source.mean_module.state_dict())
    one_hot = torch.nn.functional.one_hot(labels, moe.n_experts).to(X)
    natural_pass(sparse, rows, one_hot)
    return sparse


def _greedy(kernel: Kernel, X: Tensor, own: Tensor, p: int) -> Tensor:
    """Inducing points among an expert's own rows, or among all where it has fewer than p."""
    return greedy_inducing_points(kernel, X[own] if int(own.sum()) >= p else X, p)


def fit_hard_sparse(moe: SparseMixtureOfExperts, *, max_rounds: int = 10) -> FitReport:
    """Hard EM with sparse experts: labels, gate and q(v) take turns over all rows; hyperparameters stay.

    Stops when fewer than one row in a thousand changes its expert.

    Args:
        moe: see `sparse_from_exact`; changed in place. Its likelihoods must be Gaussian, for whom one natural step
            reaches the optimum.
        max_rounds: how often labels are assigned at most.

    Returns:
        The report; its objective is the bound given the labels.

    Warns:
        NotConvergedWarning, JitterWarning: as `fit` does.
    """
    start = time.perf_counter()
    everything = torch.arange(len(moe.y))
    trace: list[float] = []
    usage: list[tuple[float, ...]] = []
    labels, changed = torch.full_like(everything, -1), 1.0
    while len(trace) < max_rounds and changed > _SETTLED:
        r = moe.responsibilities(moe.X, moe.y)
        changed = float((r.argmax(-1) != labels).to(moe.X).mean())
        labels = r.argmax(-1)
        one_hot = torch.nn.functional.one_hot(labels, moe.n_experts).to(moe.X)
        rows = gate_rows(moe.gate, len(moe.y))
        with torch.no_grad():
            moe.gate.fit_step(moe.X[:rows], one_hot[:rows])
        trace.append(natural_pass(moe, everything, one_hot))
        usage.append(_shares(labels, moe.n_experts))
    report = FitReport(
        objective_trace=tuple(trace),
        iterations=len(trace),
        evaluations=len(trace),
        converged=changed <= _SETTLED,
        reason=f"in the last round {changed:.2%} of the rows changed their expert",
        jitter=max(expert.factor().jitter for expert in moe.all_experts),
        seconds=time.perf_counter() - start,
        solver=f"hard EM with sparse experts; {Cholesky()} by {lapack.provider()}",
        starts=(trace[0],),
        usage=tuple(usage),
    )
    warn_about(report, stacklevel=3)
    return report


def sparse_from_clusters(
    X: Tensor,
    y: Tensor,
    *,
    n_experts: int,
    likelihood: Likelihood,
    kernel: Kernel | None = None,
    gate: str | Gate = "softmax",
    n_inducing: int,
    seed: int | None = None,
) -> SparseMixtureOfExperts:
    """A sparse mixture for any likelihood that starts from a clustering of the rows.

    k-means clusters 2,000 random rows by X, and by X and y, twice each; gate and experts learn each clustering and the
    one of the highest bound is kept.

    Args:
        X: ``(n, d)``, about unit variance.
        y: ``(n,)``, as the likelihood takes it.
        n_experts: k.
        likelihood: of every expert.
        kernel: of every expert; `SparseMixtureOfExperts`' own if None.
        gate: a name of `mixture_of_experts.GATES`, or a `Gate` of k experts.
        n_inducing: inducing points of each expert at most.
        seed: for rows and clusterings.
    """
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    rows = torch.randperm(len(y), generator=generator)[:_CLUSTER_ROWS]
    views = [X[rows], torch.cat([X[rows], _indicator(y[rows])], -1)]
    chosen = expert_matern(X.shape[-1]) if kernel is None else kernel
    found = []
    for start in range(4 if n_experts > 1 else 1):
        labels = _clusters(views[start % 2], n_experts, int(torch.randint(2**31, (1,), generator=generator)))
        moe = SparseMixtureOfExperts(
            X,
            y,
            [_greedy(chosen, X[rows], labels == k, n_inducing) for k in range(n_experts)],
            n_experts=n_experts,
            kernel=[chosen] * n_experts,
            likelihood=likelihood,
            gate=deepcopy(gate),
        )
        one_hot = torch.nn.functional.one_hot(labels, n_experts).to(X)
        allowed = gate_rows(moe.gate, len(rows))
        with torch.no_grad():
            moe.gate.fit_step(X[rows[:allowed]], one_hot[:allowed])
        for _ in range(3):
            natural_pass(moe, rows, one_hot, natural_step=0.5)
        with torch.no_grad():
            found.append((float(moe.elbo(rows)), start, moe))
    return max(found)[-1]


def _clusters(view: Tensor, k: int, seed: int) -> Tensor:
    with threadpool_limits(1), warnings.catch_warnings():  # identical rows give fewer clusters, a start as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(KMeans(k, n_init=1, random_state=seed).fit_predict(view.numpy())).long()


def _indicator(y: Tensor) -> Tensor:
    """A column for each value of y, for at most 20 of them; else y itself."""
    values, index = torch.unique(y, return_inverse=True)
    return torch.nn.functional.one_hot(index).to(torch.float64) if len(values) <= 20 else y.unsqueeze(-1)
