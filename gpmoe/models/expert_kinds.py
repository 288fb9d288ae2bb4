"""Experts by name, and as plain data and tensors, so that a file can hold one without running code when it is read."""

from collections.abc import Callable
from typing import Any

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from gpmoe.errors import InputError, UnsupportedKernelError
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern, expert_matern
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.expert import Expert
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.linear_expert import LinearExpert
from gpmoe.models.mixture_of_experts import exact_experts
from gpmoe.models.null_expert import NullExpert
from gpmoe.models.site_model import SiteModel
from gpmoe.models.student_t_gp import StudentTGP

EXPERTS: dict[str, Callable[[Tensor, Tensor, int], Expert]] = {  # from X, y and how many experts there will be
    "gp": lambda X, y, k: exact_experts(X, y, k, None, None)[0],
    "linear": lambda X, y, k: LinearExpert(X, y),
    "constant": lambda X, y, k: LinearExpert(X, y, inputs=[]),
    "null": lambda X, y, k: NullExpert(X, y),
    "heteroscedastic": lambda X, y, k: HeteroscedasticGP(X, y, kernel=_matern(X, k), noise_kernel=_matern(X, k)),
    "student_t": lambda X, y, k: StudentTGP(X, y, kernel=_matern(X, k)),
}
_DESCRIBED: dict[str, Any] = {
    "linear": LinearExpert,
    "null": NullExpert,
    "heteroscedastic": HeteroscedasticGP,
    "student_t": StudentTGP,
}


def make_expert(name: str, X: Tensor, y: Tensor, n_experts: int) -> Expert:
    """An expert by its name, one of `EXPERTS`.

    Args:
        name: "gp", an exact GP; "linear"; "constant", a constant with learned noise; "null", N(0, 4) everywhere, which
            takes outliers of standardised targets; "heteroscedastic", a GP whose log noise variance is a GP;
            "student_t", a GP with noise of heavy tails.
        X: ``(n, d)``, about unit variance.
        y: ``(n,)``.
        n_experts: how many experts the mixture has; several GPs take `kernels.expert_matern`, a single one
            `kernels.dimension_scaled_matern`.

    Raises:
        InputError: for another name.

    Example:
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> type(make_expert("linear", X, X.squeeze(-1), 2)).__name__
        'LinearExpert'
    """
    if name not in EXPERTS:
        raise InputError(f"an expert must be one of {', '.join(map(repr, EXPERTS))}; got {name!r}.")
    return EXPERTS[name](X, y, n_experts)


def describe_expert(expert: Any) -> dict[str, Any]:
    """An expert's structure as JSON-able data; its parameters and `sites_of` it are tensors and travel apart.

    Raises:
        UnsupportedKernelError: for a kind of expert, or a kernel, that a file can't describe.
    """
    if type(expert) is ExactGP:
        floor = float(expert.likelihood.noise_covar.raw_noise_constraint.lower_bound)
        return {"type": "gp", "kernel": describe_kernel(expert.covar_module), "least_noise": floor}
    for name, kind in _DESCRIBED.items():
        if type(expert) is kind:
            return {"type": name, **expert.description()}
    raise UnsupportedKernelError(
        f"an expert of type {type(expert).__name__} can't be written to a file; these can: gp, {', '.join(_DESCRIBED)}."
    )


def build_expert(description: dict[str, Any], X: Tensor, y: Tensor) -> Any:
    """The expert that a description stands for, of data ``(n, d)`` and ``(n,)``, before its parameters are set."""
    kind = description["type"]
    if kind == "gp":
        floor = torch.tensor(float(description["least_noise"]), dtype=torch.float64)
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(floor)).double()
        return ExactGP(X, y, kernel=build_kernel(description["kernel"]), noise=likelihood)
    if kind not in _DESCRIBED:
        raise UnsupportedKernelError(f"unknown kind of expert {kind!r}; known are gp, {', '.join(_DESCRIBED)}.")
    return _DESCRIBED[kind].from_description(description, X, y)


def sites_of(expert: Any) -> dict[str, Tensor]:
    """What an expert's q holds for each of its training points, beside its parameters; nothing for most kinds."""
    return expert.sites() if isinstance(expert, SiteModel) else {}


def restore_sites(expert: Any, sites: dict[str, Tensor]) -> None:
    """The inverse of `sites_of`, for an expert that has its data and parameters already."""
    if isinstance(expert, SiteModel):
        expert.restore_sites(sites)


def _matern(X: Tensor, n_experts: int) -> Any:
    d = X.shape[-1]
    return dimension_scaled_matern(d) if n_experts == 1 else expert_matern(d)
