"""Kernels between tasks as plain data; see `description`, which tells a file of them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from gpytorch.kernels import Kernel

from gpmoe.errors import UnsupportedKernelError
from gpmoe.kernels.convolved_task_kernel import ConvolvedTaskKernel
from gpmoe.kernels.coregionalisation import Coregionalisation, FreeCoregionalisation, OutlierTaskGate
from gpmoe.kernels.spectral_task_kernel import SpectralTaskKernel
from gpmoe.kernels.task_kernel import TaskKernel
from gpmoe.kernels.task_rows import TaskRowKernel

TASK_KERNELS = ("TaskKernel", "ConvolvedTaskKernel", "SpectralTaskKernel")


def describe_task_kernel(kernel: TaskRowKernel, describe: Callable[[Kernel], dict[str, Any]]) -> dict[str, Any]:
    """A kernel between tasks as JSON-able data.

    Args:
        kernel: one of `TASK_KERNELS`.
        describe: of the kernel of inputs in it.

    Raises:
        UnsupportedKernelError: for another kernel or coregionalisation, and for priors or constraints of one's own.
    """
    data: dict[str, Any] = {"type": type(kernel).__name__}
    if type(kernel) is TaskKernel:
        data |= {"base_kernel": describe(kernel.base_kernel), "tasks": _describe_tasks(kernel.tasks)}
    elif type(kernel) is ConvolvedTaskKernel:
        data |= {"tasks": _describe_tasks(kernel.tasks), "n_inputs": kernel.n_inputs}
    elif type(kernel) is SpectralTaskKernel:
        sizes = (kernel.n_tasks, kernel.n_inputs, kernel.n_components)
        data |= dict(zip(("n_tasks", "n_inputs", "n_components"), sizes, strict=True))
    else:
        raise UnsupportedKernelError(
            f"a kernel of type {type(kernel).__name__} can't be written to a file; of those between tasks, "
            f"{', '.join(TASK_KERNELS)} can."
        )
    if _rules(build_task_kernel(data, lambda _: deepcopy(kernel.base_kernel))) != _rules(kernel):
        raise UnsupportedKernelError(
            f"a {data['type']} with priors or constraints of its own can't be written to a file. Keep such a model in "
            "memory, or save its parameters yourself with torch.save(model.state_dict())."
        )
    return data


def build_task_kernel(data: dict[str, Any], build: Callable[[dict[str, Any]], Kernel]) -> Kernel:
    """The inverse of `describe_task_kernel`, with default parameter values."""
    kernel: Kernel
    if data["type"] == "TaskKernel":
        kernel = TaskKernel(build(data["base_kernel"]), _build_tasks(data["tasks"]))
    elif data["type"] == "ConvolvedTaskKernel":
        kernel = ConvolvedTaskKernel(_build_tasks(data["tasks"]), data["n_inputs"])
    else:
        kernel = SpectralTaskKernel(data["n_tasks"], data["n_inputs"], data["n_components"])
    return kernel.double()


def _rules(kernel: Kernel) -> dict[str, str]:
    """Priors and constraints by name, in words."""
    priors = {name: repr(prior) for name, _, prior, *_ in kernel.named_priors()}
    return priors | {name: repr(constraint) for name, constraint in kernel.named_constraints()}


def _describe_tasks(tasks: Coregionalisation) -> dict[str, Any]:
    if type(tasks) is FreeCoregionalisation:
        n_tasks, rank = tasks.mixing.shape
        return {"type": "FreeCoregionalisation", "n_tasks": n_tasks, "rank": rank}
    if type(tasks) is OutlierTaskGate:
        return {"type": "OutlierTaskGate", "n_tasks": len(tasks.gate_logits)}
    raise UnsupportedKernelError(
        f"a coregionalisation of type {type(tasks).__name__} can't be written to a file; FreeCoregionalisation and "
        "OutlierTaskGate can."
    )


def _build_tasks(data: dict[str, Any]) -> Coregionalisation:
    if data["type"] == "FreeCoregionalisation":
        return FreeCoregionalisation(data["n_tasks"], rank=data["rank"])
    if data["type"] == "OutlierTaskGate":
        return OutlierTaskGate(data["n_tasks"])
    raise UnsupportedKernelError(f"unknown coregionalisation {data['type']!r}.")
