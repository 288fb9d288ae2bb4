"""Gates as plain data and tensors, so that a file can hold one without running code when it is read."""

from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import ShapeError, UnsupportedKernelError
from gpmoe.gates.constant import ConstantGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.gp import GPGate
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.kernels.description import build_kernel, describe_kernel


def describe_gate(gate: Gate) -> dict[str, Any]:
    """A gate's structure as JSON-able data.

    Raises:
        UnsupportedKernelError: for a gate that gpmoe does not ship.
    """
    if type(gate) is ConstantGate:
        return {"type": "constant", "n_experts": gate.n_experts}
    if type(gate) is SoftmaxGate:
        features = gate.weights.shape[0] - 1
        return {"type": "softmax", "n_experts": gate.n_experts, "n_features": features, "precision": gate.precision}
    if type(gate) is GPGate:
        kernel = describe_kernel(gate.kernel)
        return {"type": "gp", "n_experts": gate.n_experts, "n_features": gate.X.shape[-1], "kernel": kernel}
    raise UnsupportedKernelError(
        f"a gate of type {type(gate).__name__} can't be written to a file; gpmoe's own gates can."
    )


def build_gate(description: dict[str, Any]) -> Gate:
    """The gate that a description stands for, before its tensors are set."""
    kind, n_experts = description["type"], int(description["n_experts"])
    if kind == "constant":
        return ConstantGate(n_experts)
    if kind == "softmax":
        return SoftmaxGate(n_experts, int(description["n_features"]), float(description["precision"]))
    if kind == "gp":
        return GPGate(n_experts, int(description["n_features"]), build_kernel(description["kernel"]))
    raise UnsupportedKernelError(f"unknown gate type {kind!r}.")


_DATA_SIZED = ("X", "xi", "responsibilities")


def buffers_of(gate: Gate, prefix: str) -> dict[str, Tensor]:
    """A gate's own buffers under `prefix`."""
    assert isinstance(gate, torch.nn.Module)
    return {f"{prefix}.{name}": buffer.clone() for name, buffer in gate.named_buffers(recurse=False)}


def set_buffers(gate: Gate, prefix: str, tensors: dict[str, Tensor]) -> None:
    """The inverse of `buffers_of`."""
    assert isinstance(gate, torch.nn.Module)
    for name, buffer in list(gate.named_buffers(recurse=False)):
        stored = tensors[f"{prefix}.{name}"]
        fixed = slice(1, None) if name in _DATA_SIZED else slice(None)
        fits = stored.dim() == buffer.dim() and stored.shape[fixed] == buffer.shape[fixed]
        rows = {len(tensors[f"{prefix}.{key}"]) for key in _DATA_SIZED if f"{prefix}.{key}" in tensors}
        if not fits or stored.dtype != buffer.dtype or len(rows) > 1:
            raise ShapeError(f"`{prefix}.{name}` must have shape {tuple(buffer.shape)}; got {tuple(stored.shape)}.")
        setattr(gate, name, stored.clone())
