"""Gates as plain data and tensors, so that a file can hold one without running code when it is read."""

import importlib
from typing import Any, cast

import torch
from torch import Tensor

from gpmoe.errors import ShapeError, UnsupportedKernelError
from gpmoe.gates.gate import Gate

_HOMES = {  # types that a file may name: their module in `gpmoe.gates`, and their class
    "constant": ("constant", "ConstantGate"),
    "softmax": ("softmax", "SoftmaxGate"),
    "top_k": ("top_k", "TopKGate"),
    "activation": ("activation", "ActivationGate"),
    "annealed": ("annealed", "AnnealedGate"),
    "neural": ("neural", "NeuralGate"),
    "gp": ("gp", "GPGate"),
    "gp_softmax": ("gp_softmax", "GPSoftmaxGate"),
    "gp_probit": ("gp_probit", "GPProbitGate"),
    "gaussian_mixture": ("gaussian_mixture", "GaussianMixtureGate"),
    "dirichlet_process": ("dirichlet_process", "DirichletProcessGate"),
    "uncertainty_router": ("uncertainty_router", "UncertaintyRouter"),
    "hierarchical": ("hierarchical", "HierarchicalGate"),
    "multi_gate": ("multi_gate", "MultiGate"),
    "global_local": ("global_local", "GlobalLocalGate"),
}


def describe_gate(gate: Gate) -> dict[str, Any]:
    """A gate's structure as JSON-able data.

    Raises:
        UnsupportedKernelError: for a gate that gpmoe does not ship, or one that holds functions.
    """
    kind = type(gate)
    for name, (module, label) in _HOMES.items():
        if kind.__name__ == label and kind.__module__ == f"gpmoe.gates.{module}":
            return {"type": name, **gate.description()}
    raise UnsupportedKernelError(
        f"a gate of type {kind.__name__} can't be written to a file; these can: {', '.join(_HOMES)}."
    )


def build_gate(description: dict[str, Any]) -> Gate:
    """The gate that a description stands for, before its tensors are set."""
    kind = description["type"]
    if kind not in _HOMES:
        raise UnsupportedKernelError(f"unknown gate type {kind!r}; known are {', '.join(_HOMES)}.")
    module, label = _HOMES[kind]
    arguments = {name: value for name, value in description.items() if name != "type"}
    gate: Gate = getattr(importlib.import_module(f"gpmoe.gates.{module}"), label).from_description(arguments)
    return gate


_DATA_SIZED = ("X", "xi", "psi", "responsibilities")


def buffers_of(gate: Gate, prefix: str) -> dict[str, Tensor]:
    """A gate's buffers, those of its parts too, under `prefix`."""
    module = cast(torch.nn.Module, gate)  # as every gate is that `describe_gate` knows
    return {f"{prefix}.{name}": buffer.clone() for name, buffer in module.named_buffers()}


def set_buffers(gate: Gate, prefix: str, tensors: dict[str, Tensor]) -> None:
    """The inverse of `buffers_of`."""
    module = cast(torch.nn.Module, gate)
    for name, buffer in list(module.named_buffers()):
        stored = tensors[f"{prefix}.{name}"]
        fixed = slice(1, None) if name in _DATA_SIZED else slice(None)
        fits = stored.dim() == buffer.dim() and stored.shape[fixed] == buffer.shape[fixed]
        rows = {len(tensors[f"{prefix}.{key}"]) for key in _DATA_SIZED if f"{prefix}.{key}" in tensors}
        if not fits or stored.dtype != buffer.dtype or len(rows) > 1:
            raise ShapeError(f"`{prefix}.{name}` must have shape {tuple(buffer.shape)}; got {tuple(stored.shape)}.")
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, stored.clone())
