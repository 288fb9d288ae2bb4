"""A mixture of experts with a probabilistic gate.

    p(y | x) = sum_k π_k(x) p_k(y | x),  p_k = N(y; μ_k(x), v_k(x) + σ_k²) for exact GP experts

| symbol | name in code | shape |
|---|---|---|
| r, posterior probability that expert k made observation n | `responsibilities` | (n, k) |
| π, gate | `gate_probs` | (m, k) |
| μ, v: expert k given all data, point n held with weight r_nk | `experts[k]` | |
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

import gpytorch
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, ShapeError
from gpmoe.gates import (
    ActivationGate,
    AnnealedGate,
    ConstantGate,
    DirichletProcessGate,
    Gate,
    GaussianMixtureGate,
    GPGate,
    GPProbitGate,
    GPSoftmaxGate,
    NeuralGate,
    SoftmaxGate,
    TopKGate,
    UncertaintyRouter,
)
from gpmoe.kernels.dimension_scaled import expert_matern
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert import Components, Expert
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.gaussian_noise import LEAST_SHARED_NOISE, gaussian_noise
from gpmoe.models.mixture_model import MixtureModel

_LEAST_RESPONSIBILITY = 1e-14  # of less, float64 keeps no trace in the evidence


class MixtureOfExperts(gpytorch.Module, MixtureModel):
    """Experts, each on the whole input space, mixed by a gate.

    Args:
        X: ``(n, d)``, float64, about unit variance.
        y: ``(n,)``.
        n_experts: k; two exact GPs if neither this nor `experts` is given.
        kernel: a GPyTorch kernel for every expert (copied), or one for each; if None `kernels.expert_matern`,
            and for a single expert the default of `ExactGP`.
        noise: noise variance of every expert, fixed; learned for each if None, at least 1e-4 where there are several.
        gate: a name of `GATES` or a `Gate` of k experts.
        experts: k experts of any kind instead of exact GPs, each made with all of X and y; see
            `gpmoe.models.expert.Expert`. They say their noise and kernels themselves.

    Attributes:
        experts: k experts, whose weights are the responsibilities.
        gate: the gate.
        responsibilities: ``(n, k)``.

    Raises:
        InputError: for an unknown gate, a number of experts below one, or experts beside what they say themselves.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> moe = MixtureOfExperts(X, X.abs().squeeze(-1), n_experts=2)
        >>> moe.predictive(X[:3])
        Predictive(mixture of 2 Gaussians, n=3)
    """

    X: Tensor
    y: Tensor
    responsibilities: Tensor
    gate: Gate

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        n_experts: int | None = None,
        kernel: Kernel | Sequence[Kernel] | None = None,
        noise: float | None = None,
        gate: str | Gate = "softmax",
        experts: Sequence[Expert] | None = None,
    ) -> None:
        super().__init__()
        if experts is not None and (kernel is not None or noise is not None or n_experts not in (None, len(experts))):
            raise InputError("`experts` have their number, kernels and noise: pass neither of these besides.")
        k = len(experts) if experts is not None else 2 if n_experts is None else n_experts
        if k < 1:
            raise InputError(f"`n_experts` must be at least 1; got {k}.")
        made = list(exact_experts(X, y, k, kernel, noise) if experts is None else experts)
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.experts = torch.nn.ModuleList(cast(list[torch.nn.Module], made))
        self.gate = gate_of(gate, k, X.shape[-1])
        self.register_buffer("responsibilities", X.new_full((len(X), k), 1 / k))
        self.set_responsibilities(self.responsibilities)

    @property
    def n_experts(self) -> int:
        """k."""
        return len(self.experts)

    @property
    def all_experts(self) -> list[Any]:
        """The experts: each an `Expert`, and what else its kind is."""
        return list(self.experts)

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one data set."""
        return torch.Size()

    def set_responsibilities(self, responsibilities: Tensor) -> None:
        """Give each expert the points it may have made, weighted.

        Responsibilities below 1e-14 become zero, and rows are made to sum to one again.

        Args:
            responsibilities: ``(n, k)``.
        """
        kept = torch.where(responsibilities < _LEAST_RESPONSIBILITY, 0.0, responsibilities)
        self.restore_responsibilities(kept / kept.sum(-1, keepdim=True))

    def restore_responsibilities(self, responsibilities: Tensor) -> None:
        """Take responsibilities as they are, to the last bit, from a model that had them."""
        self.responsibilities = responsibilities
        for k, expert in enumerate(self.all_experts):
            weights = self.responsibilities[:, k]
            rows = weights > 0
            if bool(rows.all()):
                expert.set_data(self.X, self.y, weights.clamp_min(_LEAST_RESPONSIBILITY))
                continue
            if not bool(rows.any()):  # an expert without data is its prior: one point of no weight keeps it a model
                rows[0] = True
            expert.set_data(self.X[rows], self.y[rows], weights[rows].clamp_min(_LEAST_RESPONSIBILITY))

    def gate_probs(self, X: Tensor) -> Tensor:
        """π_k(x), ``(*batch, m, k)``."""
        return self.gate.log_probs(X).exp()

    def predictive(self, X: Tensor, *, include_noise: bool = True) -> Predictive:
        """The full mixture at each new point.

        Args:
            X: ``(m, d)``.
            include_noise: p(y | data) if True, p(f | data) if not.

        Returns:
            A mixture of k Gaussians for each point, of more where an expert's own density is a mixture.
        """
        expect_inputs(X, self.X)
        with torch.no_grad():
            parts = [expert.components(X, include_noise=include_noise) for expert in self.all_experts]
            return _mixed(self.gate_probs(X), parts)

    def expert_predictives(self, X: Tensor) -> list[Predictive]:
        """Each expert's own p(y | data) at X ``(m, d)``."""
        expect_inputs(X, self.X)
        with torch.no_grad():
            parts = [expert.components(X) for expert in self.all_experts]
        return [Predictive.mixture(*(each.numpy() for each in part)) for part in parts]

    def membership(self, X: Tensor, y: Tensor) -> Tensor:
        """Probability that expert k made each new observation, ``(m, k)``, by predictive density and gate."""
        with torch.no_grad():
            densities = [_log_density(expert.components(X), y) for expert in self.all_experts]
            return torch.softmax(torch.stack(densities, -1) + self.gate.log_probs(X), -1)

    def on_rows(self, rows: Tensor) -> "MixtureOfExperts":
        """A copy whose training data are the given rows of this one's."""
        copy = deepcopy(self)
        copy.X, copy.y = self.X[rows], self.y[rows]
        copy.set_responsibilities(self.responsibilities[rows])
        return copy

    def leave_one_out(self) -> Predictive:
        """p(y_i | all other training targets), with hyperparameters, gate and the others' responsibilities kept.

        Source: Rasmussen and Williams (2006), eq. 3.56; see `gpmoe.models.expert.left_out`.
        """
        with torch.no_grad():
            parts = [
                expert.components_left_out(self.X, self.y, self.responsibilities[:, k])
                for k, expert in enumerate(self.all_experts)
            ]
            return _mixed(self.gate_probs(self.X), parts)


def _mixed(gate_probs: Tensor, parts: Sequence[Components]) -> Predictive:
    """The mixture by gate ``(m, k)`` of k densities that are mixtures."""
    weights = torch.cat([gate_probs[:, k : k + 1] * part[0] for k, part in enumerate(parts)], -1)
    means, variances = (torch.cat([part[i] for part in parts], -1) for i in (1, 2))
    return Predictive.mixture(weights.numpy(), means.numpy(), variances.numpy())


def _log_density(part: Components, y: Tensor) -> Tensor:
    """log density of y ``(m,)`` under mixtures, ``(m,)``."""
    weights, means, variances = part
    exponent = (2 * torch.pi * variances).log() + (y.unsqueeze(-1) - means).square() / variances
    return torch.logsumexp(weights.log() - 0.5 * exponent, -1)


def exact_experts(
    X: Tensor, y: Tensor, n_experts: int, kernel: Kernel | Sequence[Kernel] | None, noise: float | None
) -> list[ExactGP]:
    """Exact GP experts; see `MixtureOfExperts` for the arguments.

    Kernels of a list are copied together, so that what they share stays shared.

    Raises:
        ShapeError: if there are kernels, but not one for each expert.
    """
    if kernel is None and n_experts > 1:
        kernel = expert_matern(X.shape[-1])
    kernels = [kernel] * n_experts if isinstance(kernel, Kernel) or kernel is None else list(kernel)
    if len(kernels) != n_experts:
        raise ShapeError(f"`kernel` must be one kernel or {n_experts}, one for each expert; got {len(kernels)}.")
    differ = len({id(part) for part in kernels}) == n_experts
    copies = deepcopy(kernels) if differ else [deepcopy(part) for part in kernels]
    return [ExactGP(X, y, kernel=part, noise=_noise(noise, n_experts)) for part in copies]


GATES: dict[str, Callable[[int, int], Gate]] = {  # from numbers of experts and inputs
    "constant": lambda k, d: ConstantGate(k),
    "softmax": SoftmaxGate,
    "top_k": TopKGate,
    "activation": ActivationGate,
    "annealed": AnnealedGate,
    "neural": NeuralGate,
    "gp": GPGate,
    "gp_softmax": GPSoftmaxGate,
    "gp_probit": lambda k, d: ConstantGate(1) if k == 1 else GPProbitGate(d, n_experts=k),
    "gaussian_mixture": GaussianMixtureGate,
    "dirichlet_process": DirichletProcessGate,
    "uncertainty_router": UncertaintyRouter,
}


def gate_of(gate: str | Gate, n_experts: int, n_features: int) -> Gate:
    """The gate that a mixture's argument stands for.

    Raises:
        InputError: for an unknown name, or what is no gate of so many experts.
    """
    made = gate
    if isinstance(gate, str) and gate in GATES:
        made = GATES[gate](n_experts, n_features)
    number = getattr(made, "n_experts", None)
    if isinstance(made, str) or number is None:
        raise InputError(f"`gate` must be one of {', '.join(map(repr, GATES))}, or a Gate; got {gate!r}.")
    if number != n_experts:
        raise InputError(f"`gate` must have {n_experts} experts; got one of {number}.")
    return made


def _noise(noise: float | None, n_experts: int) -> GaussianLikelihood | None:
    """The likelihood of each expert: of fixed variance, or learned with a floor that keeps one of several from
    collapsing on a few points; None for the default of a single GP."""
    return None if noise is None and n_experts == 1 else gaussian_noise(noise, least_noise=LEAST_SHARED_NOISE)
