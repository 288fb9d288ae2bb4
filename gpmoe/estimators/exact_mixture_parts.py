"""Full-batch mixtures as plain data and tensors, for the files of estimators."""

from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import ShapeError
from gpmoe.estimators.probabilistic_regressor import set_tensors, tensors_of
from gpmoe.gates.description import buffers_of, build_gate, describe_gate, set_buffers
from gpmoe.kernels.description import share_modules, shared_modules
from gpmoe.models.expert_kinds import build_expert, describe_expert, restore_sites, sites_of
from gpmoe.models.mixture_of_experts import MixtureOfExperts


def exact_to_parts(model: MixtureOfExperts) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able data and tensors of a fitted mixture, its training data included.

    Raises:
        UnsupportedKernelError: for a kernel, expert or gate that a file can't describe.
    """
    data = {
        "experts": [describe_expert(expert) for expert in model.all_experts],
        "gate": describe_gate(model.gate),
        "shared": shared_modules(model),
    }
    tensors = {"X": model.X, "y": model.y, "responsibilities": model.responsibilities}
    tensors |= {**tensors_of(model, "model"), **buffers_of(model.gate, "gate")}
    for k, expert in enumerate(model.all_experts):
        tensors |= {f"sites.{k}.{name}": value.clone() for name, value in sites_of(expert).items()}
    return data, tensors


def exact_from_parts(data: dict[str, Any], tensors: dict[str, Tensor]) -> MixtureOfExperts:
    """The inverse of `exact_to_parts`."""
    X, y = tensors["X"], tensors["y"]
    experts = [build_expert(part, X, y) for part in data["experts"]]
    model = MixtureOfExperts(X, y, experts=experts, gate=build_gate(data["gate"]))
    share_modules(model, data["shared"])
    set_tensors(model, "model", tensors)
    set_buffers(model.gate, "gate", tensors)
    responsibilities = tensors["responsibilities"]
    if responsibilities.shape != model.responsibilities.shape or responsibilities.dtype != torch.float64:
        raise ShapeError(f"`responsibilities` must be {tuple(model.responsibilities.shape)}, float64.")
    sites: list[dict[str, Tensor]] = [{} for _ in experts]
    for name, value in tensors.items():
        if name.startswith("sites."):
            _, k, which = name.split(".")
            sites[int(k)][which] = value
    _restore(model, responsibilities, sites)
    return model


def settle(model: MixtureOfExperts) -> None:
    """Hold responsibilities and q as a file would give them back, so that both predict the same to the last bit."""
    _restore(model, model.responsibilities, [sites_of(expert) for expert in model.all_experts])


def _restore(model: MixtureOfExperts, responsibilities: Tensor, sites: list[dict[str, Tensor]]) -> None:
    """Take responsibilities ``(n, k)`` and each expert's q as they are."""
    model.restore_responsibilities(responsibilities)
    for expert, own in zip(model.all_experts, sites, strict=True):
        restore_sites(expert, own)
