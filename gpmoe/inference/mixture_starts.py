"""Where variational EM of a mixture starts: clusterings, or a fitted mixture with one expert more or less."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts

Array = NDArray[Any]


@dataclass(frozen=True)
class Start:
    """Where EM starts.

    Attributes:
        responsibilities: ``(n, k)``.
        models: for each expert a model whose parameters it starts from; None for those it was made with.
    """

    responsibilities: Tensor
    models: list[Any] | None


def cluster_starts(moe: MixtureOfExperts, single: ExactGP, count: int, seed: int | None) -> list[Start]:
    """Soft assignments from clusterings of inputs, targets and the residuals of one GP.

    Args:
        moe: gives X, y and the number of experts.
        single: one GP fitted to all points; every other start takes its hyperparameters.
        count: number of starts.
        seed: for the clusterings.

    Returns:
        `count` starts, with 0.9 of a point's responsibility on its cluster.
    """
    X, y, k = moe.X.numpy(), moe.y.numpy(), moe.n_experts
    loo_mean, loo_variance = single.leave_one_out()
    surprise = ((torch.from_numpy(y) - loo_mean) / loo_variance.sqrt()).numpy()
    size = np.log(np.abs(surprise) + 0.05)
    views: list[tuple[Callable[[Array, int, int], Array], Array]] = [
        (_gaussian_clusters, np.column_stack([X, y, size])),
        (_gaussian_clusters, np.column_stack([X, y])),
        (_centroids, np.column_stack([X, size])),
        (_centroids, X),
        (_gaussian_clusters, np.column_stack([X, size])),
        (_centroids, np.column_stack([X, y])),
    ]
    states = np.random.default_rng(seed).integers(2**31, size=count)
    starts = []
    for i in range(count):
        cluster, view = views[i % len(views)]
        labels = torch.from_numpy(cluster(view, k, int(states[i])))
        one_hot = torch.nn.functional.one_hot(labels.long(), k).to(torch.float64)
        starts.append(Start(0.9 * one_hot + 0.1 / k, None if i % 2 else [single] * k))
    return starts


def split_experts(moe: MixtureOfExperts) -> list[Start]:
    """For each expert of a fitted mixture, a start with one more expert in which that one is split in two.

    An expert is split where its points are, along the input that spreads them most, at their median; both halves keep
    its hyperparameters.
    """
    X, r = moe.X, moe.responsibilities
    starts = []
    for k in range(moe.n_experts):
        own = X[r[:, k] > 0.5]
        if len(own) < 4:
            continue
        widest = own.std(0).argmax()
        right = torch.where(X[:, widest] > own[:, widest].median(), 0.9, 0.1)
        others = [j for j in range(moe.n_experts) if j != k]
        halves = [r[:, k] * right, r[:, k] * (1 - right)]
        responsibilities = torch.stack([*(r[:, j] for j in others), *halves], -1)
        starts.append(Start(responsibilities, [moe.all_experts[j] for j in [*others, k, k]]))
    return starts


def merge_experts(moe: MixtureOfExperts) -> list[Start]:
    """A start with one expert less: the two whose predictions are closest, where their points are, become one.

    Closeness is the Bhattacharyya coefficient of two Gaussians with the experts' predictive moments, averaged over
    the rows by the responsibility of the two. The one that goes on has the parameters of the larger of the two.

    Returns:
        One start; none for a mixture of one.
    """
    if moe.n_experts == 1:
        return []
    r = moe.responsibilities
    with torch.no_grad():
        moments = [_moments(*expert.components(moe.X)) for expert in moe.all_experts]
    mean, variance = (torch.stack([pair[i] for pair in moments], -1) for i in (0, 1))
    best, closest = -1.0, (0, 1)
    for j in range(moe.n_experts):
        for k in range(j + 1, moe.n_experts):
            total = variance[:, j] + variance[:, k]
            overlap = (2 * (variance[:, j] * variance[:, k]).sqrt() / total).sqrt()
            overlap = overlap * (-0.25 * (mean[:, j] - mean[:, k]).square() / total).exp()
            own = r[:, j] + r[:, k]
            shared = float((own * overlap).sum() / own.sum().clamp_min(1e-300))
            if shared > best:
                best, closest = shared, (j, k)
    others = [i for i in range(moe.n_experts) if i not in closest]
    larger = max(closest, key=lambda i: float(r[:, i].sum()))
    columns = [*(r[:, i] for i in others), r[:, closest[0]] + r[:, closest[1]]]
    return [Start(torch.stack(columns, -1), [moe.all_experts[i] for i in [*others, larger]])]


def _moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of Gaussians, ``(m,)``."""
    mean = (weights * means).sum(-1)
    return mean, (weights * (variances + (means - mean.unsqueeze(-1)).square())).sum(-1)


def _centroids(view: Array, k: int, seed: int) -> Array:
    return _labels(KMeans(k, n_init=1, random_state=seed), view)


def _gaussian_clusters(view: Array, k: int, seed: int) -> Array:
    return _labels(GaussianMixture(k, reg_covar=1e-3, random_state=seed), view)


def _labels(clusters: Any, view: Array) -> Array:
    with warnings.catch_warnings():  # identical rows give fewer clusters than asked for, which is a start as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clusters.fit_predict(view)
