"""Kernels as plain data, so that a file can hold one without running code when it is read.

Known are GPyTorch's kernels, constraints and priors of the tables below, exactly (a subclass may compute something
else), `FeatureKernel` with a network of `gpmoe.features`, and the kernels between tasks. Parameter values are not part
of a description; they travel as tensors under the names of `named_parameters`. Which modules several kernels share is
told by `shared_modules`.
"""

import importlib
from typing import Any

import gpytorch
import torch
from gpytorch import constraints, kernels, priors
from gpytorch.kernels import Kernel

from gpmoe.errors import UnsupportedKernelError
from gpmoe.kernels.feature_kernel import FeatureKernel
from gpmoe.kernels.task_description import TASK_KERNELS, build_task_kernel, describe_task_kernel
from gpmoe.kernels.task_rows import TaskRowKernel

_KERNELS: dict[str, tuple[str, ...]] = {
    "RBFKernel": (),
    "MaternKernel": ("nu",),
    "RQKernel": (),
    "PeriodicKernel": (),
    "CosineKernel": (),
    "LinearKernel": (),
    "ConstantKernel": (),
    "PolynomialKernel": ("power",),
    "PiecewisePolynomialKernel": ("q",),
    "SpectralMixtureKernel": ("num_mixtures",),
    "ScaleKernel": ("base_kernel",),
    "AdditiveKernel": ("kernels",),
    "ProductKernel": ("kernels",),
}
_FEATURE_MAPS = {  # of a FeatureKernel, and where they live
    "FeatureNetwork": "gpmoe.features.feature_network",
    "ModulatedNetwork": "gpmoe.features.modulated_network",
}
_PRIORS: dict[str, tuple[str, ...]] = {
    "GammaPrior": ("concentration", "rate"),
    "LogNormalPrior": ("loc", "scale"),
    "NormalPrior": ("loc", "scale"),
    "HalfNormalPrior": ("scale",),
    "HalfCauchyPrior": ("scale",),
    "UniformPrior": ("low", "high"),
}
_ENDS = {"GreaterThan": (0.0,), "LessThan": (0.0,), "Interval": (0.0, 1.0)}  # arguments to make a plain one
_CONSTRAINTS = ("Positive", "GreaterThan", "LessThan", "Interval")


def describe_kernel(kernel: Kernel) -> dict[str, Any]:
    """A kernel's structure, priors and constraints as JSON-able data.

    Raises:
        UnsupportedKernelError: for a kernel, prior or constraint that is not in this module's tables.
    """
    name = type(kernel).__name__
    if type(kernel) is FeatureKernel:
        return _describe_feature_kernel(kernel)
    if isinstance(kernel, TaskRowKernel):
        return describe_task_kernel(kernel, describe_kernel)
    if name not in _KERNELS or type(kernel) is not getattr(kernels, name):
        raise UnsupportedKernelError(
            f"a kernel of type {type(kernel).__module__}.{name} can't be written to a file; known are "
            f"{', '.join(_KERNELS)}. Keep such a model in memory, or save "
            "its parameters yourself with torch.save(model.state_dict())."
        )
    arguments = {key: _describe_argument(getattr(kernel, key)) for key in _KERNELS[name]}
    if name in (
        "RBFKernel",
        "MaternKernel",
        "RQKernel",
        "PeriodicKernel",
        "SpectralMixtureKernel",
        "PiecewisePolynomialKernel",
    ):
        arguments["ard_num_dims"] = kernel.ard_num_dims
    elif name == "LinearKernel" and kernel.raw_variance.shape[-1] > 1:
        arguments["ard_num_dims"] = kernel.raw_variance.shape[-1]
    return {
        "type": name,
        "arguments": arguments,
        "active_dims": None if kernel.active_dims is None else kernel.active_dims.tolist(),
        "batch_shape": list(kernel.batch_shape) if name not in ("AdditiveKernel", "ProductKernel") else [],
        "constraints": {
            key.removesuffix("_constraint"): _describe_constraint(value) for key, value in kernel._constraints.items()
        },
        "priors": {key: _describe_prior(kernel, key, value[0]) for key, value in kernel._priors.items()},
    }


def build_kernel(description: dict[str, Any]) -> Kernel:
    """The kernel that a description stands for, with default parameter values."""
    name = description["type"]
    if name == "FeatureKernel":
        return _build_feature_kernel(description)
    if name in TASK_KERNELS:
        return build_task_kernel(description, build_kernel)
    if name not in _KERNELS:
        raise UnsupportedKernelError(f"unknown kernel type {name!r}.")
    arguments = dict(description["arguments"])
    kind = getattr(kernels, name)
    if name in ("AdditiveKernel", "ProductKernel"):
        kernel = kind(*(build_kernel(part) for part in arguments["kernels"]))
    else:
        if "base_kernel" in arguments:
            arguments["base_kernel"] = build_kernel(arguments["base_kernel"])
        if description["active_dims"] is not None:
            arguments["active_dims"] = tuple(description["active_dims"])
        kernel = kind(**arguments, batch_shape=torch.Size(description["batch_shape"]))
    for key, value in description["constraints"].items():
        kernel.register_constraint(key, _build_constraint(value))
    for key, value in description["priors"].items():
        kernel.register_prior(key, _build_prior(value), key.removesuffix("_prior"))
    return kernel.double()


def shared_modules(module: torch.nn.Module) -> dict[str, str]:
    """For each module with parameters that is met again under another name, that name and the first one."""
    first: dict[int, str] = {}
    again: dict[str, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if next(part.parameters(), None) is None:
            continue
        if id(part) not in first:
            first[id(part)] = name
        elif name.rpartition(".")[0] not in again:  # else it came along with what holds it
            again[name] = first[id(part)]
    return again


def share_modules(module: torch.nn.Module, shared: dict[str, str]) -> None:
    """The inverse of `shared_modules`, for modules that were built each on its own.

    Raises:
        UnsupportedKernelError: if two modules that shall be one differ in their parameters' names or shapes.
    """
    for name, first in shared.items():
        parent, _, leaf = name.rpartition(".")
        kept, dropped = module.get_submodule(first), module.get_submodule(name)
        shapes = [{key: value.shape for key, value in part.named_parameters()} for part in (kept, dropped)]
        if type(kept) is not type(dropped) or shapes[0] != shapes[1]:
            raise UnsupportedKernelError(f"modules {first!r} and {name!r} can't be shared: they differ.")
        setattr(module.get_submodule(parent), leaf, kept)


def _describe_feature_kernel(kernel: FeatureKernel) -> dict[str, Any]:
    feature_map: Any = kernel.feature_map
    name = type(feature_map).__name__
    if type(feature_map).__module__ != _FEATURE_MAPS.get(name):
        raise UnsupportedKernelError(
            f"a FeatureKernel on a {name} can't be written to a file, since a module is code; known are "
            f"{', '.join(_FEATURE_MAPS)}. Keep such a model in memory, or save its parameters yourself with "
            "torch.save(model.state_dict())."
        )
    return {
        "type": "FeatureKernel",
        "feature_map": {"type": name, **feature_map.description()},
        "base_kernel": describe_kernel(kernel.base_kernel),
        "active_dims": None if kernel.active_dims is None else kernel.active_dims.tolist(),
    }


def _build_feature_kernel(description: dict[str, Any]) -> Kernel:
    arguments = {key: value for key, value in description["feature_map"].items() if key != "type"}
    name = description["feature_map"]["type"]
    if name not in _FEATURE_MAPS:
        raise UnsupportedKernelError(f"unknown feature map {name!r}; known are {', '.join(_FEATURE_MAPS)}.")
    kind = getattr(importlib.import_module(_FEATURE_MAPS[name]), name)
    dims = description["active_dims"]
    base = build_kernel(description["base_kernel"])
    return FeatureKernel(kind.from_description(arguments), base, active_dims=None if dims is None else tuple(dims))


def _describe_argument(value: Any) -> Any:
    if isinstance(value, Kernel):
        return describe_kernel(value)
    if isinstance(value, torch.nn.ModuleList):
        return [describe_kernel(part) for part in value]
    return float(value) if isinstance(value, float) else int(value)


def _describe_constraint(constraint: gpytorch.constraints.Interval) -> dict[str, Any]:
    name = type(constraint).__name__
    if name not in _CONSTRAINTS:
        raise UnsupportedKernelError(
            f"a constraint of type {name} can't be written; known are {', '.join(_CONSTRAINTS)}."
        )
    if type(constraint._transform) is not type(type(constraint)(*_ENDS.get(name, ()))._transform):
        raise UnsupportedKernelError(f"a {name} constraint with a transform of its own can't be written to a file.")
    ends = {"lower": constraint.lower_bound, "upper": constraint.upper_bound}
    finite = {key: end.tolist() for key, end in ends.items() if bool(end.isfinite().all())}
    return {"type": name, **finite}


def _build_constraint(description: dict[str, Any]) -> gpytorch.constraints.Interval:
    name = description["type"]
    if name not in _CONSTRAINTS:
        raise UnsupportedKernelError(f"unknown constraint type {name!r}.")
    wanted = {"Positive": (), "GreaterThan": ("lower",), "LessThan": ("upper",), "Interval": ("lower", "upper")}[name]
    return getattr(constraints, name)(*(torch.tensor(description[end], dtype=torch.float64) for end in wanted))


def _describe_prior(kernel: Kernel, key: str, prior: gpytorch.priors.Prior) -> dict[str, Any]:
    name = type(prior).__name__
    if name not in _PRIORS or not key.endswith("_prior") or key.removesuffix("_prior") not in dir(type(kernel)):
        raise UnsupportedKernelError(
            f"the prior {key!r} of type {name} can't be written; known are {', '.join(_PRIORS)}, on a kernel's own "
            "parameters."
        )
    arguments = {argument: getattr(prior, argument) for argument in _PRIORS[name]}
    single = all(value.dtype == torch.float32 for value in arguments.values())  # how exactly its density is computed
    return {"type": name, "single": single, "arguments": {key: value.tolist() for key, value in arguments.items()}}


def _build_prior(description: dict[str, Any]) -> gpytorch.priors.Prior:
    name = description["type"]
    if name not in _PRIORS:
        raise UnsupportedKernelError(f"unknown prior type {name!r}.")
    dtype = torch.float32 if description["single"] else torch.float64
    arguments = {key: torch.tensor(description["arguments"][key], dtype=dtype) for key in _PRIORS[name]}
    if name == "UniformPrior":
        return priors.UniformPrior(arguments["low"], arguments["high"])
    return getattr(priors, name)(**arguments)
