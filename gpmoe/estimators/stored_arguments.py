"""Arguments of estimators as JSON-able data and tensors, and back, for their files."""

from typing import Any, cast

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.estimators.probabilistic_regressor import set_tensors, tensors_of
from gpmoe.gates import Gate
from gpmoe.gates.description import buffers_of, build_gate, describe_gate, set_buffers
from gpmoe.kernels.description import build_kernel, describe_kernel


def kernel_to_parts(kernel: Kernel | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """A kernel as data, and its parameters; None without tensors if there is none."""
    return (None, {}) if kernel is None else (describe_kernel(kernel), tensors_of(kernel, "kernel"))


def kernel_from_parts(stored: dict[str, Any] | None, tensors: dict[str, Tensor]) -> Kernel | None:
    """The inverse of `kernel_to_parts`."""
    if stored is None:
        return None
    kernel = build_kernel(stored)
    set_tensors(kernel, "kernel", tensors)
    return kernel


def gate_to_parts(gate: str | Gate) -> tuple[str | dict[str, Any], dict[str, Tensor]]:
    """A gate as its name, or as data with its parameters and buffers."""
    if isinstance(gate, str):
        return gate, {}
    return describe_gate(gate), {
        **tensors_of(cast(torch.nn.Module, gate), "own_gate"),
        **buffers_of(gate, "own_gate"),
    }


def gate_from_parts(stored: str | dict[str, Any], tensors: dict[str, Tensor]) -> str | Gate:
    """The inverse of `gate_to_parts`."""
    if isinstance(stored, str):
        return stored
    gate = build_gate(stored)
    set_tensors(cast(torch.nn.Module, gate), "own_gate", tensors)
    set_buffers(gate, "own_gate", tensors)
    return gate


def stored_seed(random_state: Any) -> int | None:
    """A seed as a file holds it: a generator's state is not kept."""
    return int(random_state) if isinstance(random_state, (int, np.integer)) else None
