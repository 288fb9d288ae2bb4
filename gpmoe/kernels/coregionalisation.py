"""Covariances between tasks: free ones of any rank, and one that tells outlying tasks from the rest.

| symbol | name in code | shape |
|---|---|---|
| W, v of B = W W' + diag(v) | `mixing`, `own_variance` | (T, rank), (T,) |
| s, the probability that a task is outlying | `gate_probs()` | (T,) |
| a, variances of the shared, the outlying and the inlying process | `variances` | (3,) |
"""

import math
from abc import abstractmethod

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import Tensor
from torch.nn import Parameter

from gpmoe.errors import InputError
from gpmoe.kernels.parameter import constrained, declare_positive, set_constrained

_LEAST_SHARE = 0.05  # of a task's variance that starts as its own


class Coregionalisation(gpytorch.Module):
    """A covariance between T tasks, whose parameters are learned."""

    @abstractmethod
    def forward(self) -> Tensor:
        """B, symmetric and positive semidefinite, ``(T, T)``, in products of the tasks' units."""

    @abstractmethod
    def start_at(self, correlation: Tensor) -> None:
        """Set the parameters so that B comes near a matrix ``(T, T)``, in place."""


class FreeCoregionalisation(Coregionalisation):
    """B = W W' + diag(v): any covariance, of a rank above the tasks' own variances.

    The mixing W has independent standard normal priors, which suit tasks of about unit variance. It starts with all
    tasks alike in its first column and waves over them in the others, since zeros would stay where they are.

    Args:
        n_tasks: T.
        rank: columns of W; 0 leaves tasks independent.

    Attributes:
        mixing: W, ``(T, rank)``, a parameter.

    Raises:
        InputError: if T or the rank is out of range.

    Example:
        >>> import torch
        >>> tasks = FreeCoregionalisation(3, rank=1).double()
        >>> tasks.start_at(torch.ones(3, 3, dtype=torch.float64))
        >>> bool((tasks() - 1).abs().max() < 0.1)
        True
    """

    def __init__(self, n_tasks: int, *, rank: int = 1) -> None:
        super().__init__()
        if n_tasks < 1 or not 0 <= rank <= n_tasks:
            raise InputError(f"`rank` must be 0 to the number of tasks, {n_tasks}; got {rank}.")
        waves = torch.outer(torch.arange(n_tasks) + 0.5, torch.arange(rank)).double() * (math.pi / n_tasks)
        self.mixing = Parameter(waves.cos() * math.sqrt(0.5 / max(rank, 1)))
        declare_positive(self, "own_variance", torch.full((n_tasks,), 0.5, dtype=torch.float64))
        if rank:
            zero, one = (torch.tensor(number, dtype=torch.float64) for number in (0.0, 1.0))
            self.register_prior("mixing_prior", NormalPrior(zero, one), _mixing)

    @property
    def own_variance(self) -> Tensor:
        """v, what each task does not share, ``(T,)``."""
        return constrained(self, "own_variance")

    def forward(self) -> Tensor:
        """See `Coregionalisation`."""
        return self.mixing @ self.mixing.mT + torch.diag_embed(self.own_variance)

    def start_at(self, correlation: Tensor) -> None:
        """See `Coregionalisation`: the leading eigenvectors make W, what they leave of the diagonal v."""
        rank = self.mixing.shape[-1]
        values, vectors = torch.linalg.eigh(correlation.to(self.mixing))
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
        lead = vectors[vectors.abs().argmax(0), torch.arange(rank)].sign()  # eigenvectors have no sign of their own
        W = vectors * lead * values.clamp_min(1e-2).sqrt()
        diagonal = correlation.diagonal().to(W)
        self.mixing.data.copy_(W)
        left = diagonal - W.square().sum(-1)
        set_constrained(self, "own_variance", left.clamp_min(_LEAST_SHARE * diagonal))


class OutlierTaskGate(Coregionalisation):
    """B of tasks that are inlying or outlying, with one gate a task.

    f_t = g_0 + s_t g_1 + (1 - s_t) g_2 + h_t with s = sigmoid(gate_logits): all tasks share g_0, outlying ones g_1,
    the others g_2, and h_t is a task's own. B = a_0 11' + a_1 ss' + a_2 (1 - s)(1 - s)' + diag(v). The fit can swap
    the names of the two groups; `outlier_scores` calls the smaller one outlying.

    Args:
        n_tasks: T.

    Attributes:
        gate_logits: ``(T,)``, a parameter.

    Raises:
        InputError: if there are fewer than three tasks, which have no minority.

    Example:
        >>> OutlierTaskGate(4)().shape
        torch.Size([4, 4])

    Source: the two-group decomposition of robust multi-task gradient boosting (R-MTGB, arXiv 2507.11411), as Gaussian
        processes.
    """

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        if n_tasks < 3:
            raise InputError(f"an outlier-task gate needs at least three tasks; got {n_tasks}.")
        zero = torch.tensor(0.0, dtype=torch.float64)
        self.gate_logits = Parameter(torch.zeros(n_tasks, dtype=torch.float64))
        declare_positive(self, "variances", torch.full((3,), 0.5, dtype=torch.float64))
        declare_positive(self, "own_variance", torch.full((n_tasks,), 0.5, dtype=torch.float64))
        self.register_prior("gate_logits_prior", NormalPrior(zero, zero + 2.0), _gate_logits)

    @property
    def variances(self) -> Tensor:
        """a, ``(3,)``."""
        return constrained(self, "variances")

    @property
    def own_variance(self) -> Tensor:
        """v, ``(T,)``."""
        return constrained(self, "own_variance")

    def gate_probs(self) -> Tensor:
        """s, ``(T,)``."""
        return self.gate_logits.sigmoid()

    def outlier_scores(self) -> Tensor:
        """Probability that each task belongs to the smaller group, ``(T,)``, without gradients."""
        s = self.gate_probs().detach()
        return s if float(s.mean()) <= 0.5 else 1 - s

    def forward(self) -> Tensor:
        """See `Coregionalisation`."""
        s = self.gate_probs()
        W = torch.stack([torch.ones_like(s), s, 1 - s], dim=-1) * self.variances.sqrt()
        return W @ W.mT + torch.diag_embed(self.own_variance)

    def start_at(self, correlation: Tensor) -> None:
        """See `Coregionalisation`: gates from the eigenvector that splits the tasks best, variances even."""
        correlation = correlation.to(self.gate_logits)
        centred = correlation - correlation.mean(0)
        centred = centred - centred.mean(1, keepdim=True)
        split = torch.linalg.eigh(0.5 * (centred + centred.mT)).eigenvectors[:, -1]
        split = split * split[split.abs().argmax()].sign()
        self.gate_logits.data.copy_(2 * split / split.abs().max())
        variance = correlation.diagonal().mean()
        set_constrained(self, "variances", (0.4 * variance).expand(3).contiguous())
        set_constrained(self, "own_variance", 0.2 * correlation.diagonal())


def task_relevance(B: Tensor, target: int, *, penalty: float = 0.1, sweeps: int = 1000) -> Tensor:
    """How much each task tells of one, with those that tell little set to exactly zero.

    argmin_ν ½ ν'B_ss ν - ν'B_st + λ|ν|₁ over the source tasks s, by coordinate descent: the Lasso of the target's
    latent function on those of the sources, of tasks scaled to unit variance. λ = penalty · max |B_st|.

    Args:
        B: covariance between tasks, ``(T, T)``.
        target: which task.
        penalty: 0 for least squares, 1 for all zero.
        sweeps: the most passes over the tasks.

    Returns:
        ν, ``(T,)``, zero at the target.

    Raises:
        InputError: if there is no such task, or the penalty lies outside [0, 1].

    Source: Wang, Chen, Jamieson and Du (2023), Improved Active Multi-Task Representation Learning via Lasso, sec. 4.

    Example:
        >>> import torch
        >>> B = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> task_relevance(B, 0)
        tensor([0.0000, 0.8100, 0.0000])
    """
    T = len(B)
    if not 0 <= target < T or not 0 <= penalty <= 1:
        raise InputError(f"`target` must be 0 to {T - 1} and `penalty` in [0, 1]; got {target} and {penalty}.")
    B = B.detach()
    scale = B.diagonal().clamp_min(torch.finfo(B.dtype).tiny).rsqrt()
    R = B * scale * scale.unsqueeze(-1)
    sources = [t for t in range(T) if t != target]
    threshold = penalty * R[sources, target].abs().max() if sources else R.new_zeros(())
    weights = torch.zeros_like(R[0])
    for _ in range(sweeps):
        before = weights.clone()
        for t in sources:
            left = R[t, target] - R[t] @ weights + weights[t]
            weights[t] = left.sign() * (left.abs() - threshold).clamp_min(0)
        if bool((weights - before).abs().max() <= 10 * torch.finfo(B.dtype).eps):
            break
    return weights


# What priors are on, as functions of the module's own file: a prior's closure travels in pickles.


def _mixing(module: FreeCoregionalisation) -> Tensor:
    return module.mixing


def _gate_logits(module: OutlierTaskGate) -> Tensor:
    return module.gate_logits
