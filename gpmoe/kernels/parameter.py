"""Positive parameters of kernels: a raw tensor that an optimiser moves freely, and its value."""

import gpytorch
from gpytorch.constraints import Positive
from torch import Tensor
from torch.nn import Parameter


def declare_positive(module: gpytorch.Module, name: str, value: Tensor) -> None:
    """Give a module the parameter ``raw_<name>`` under a positive constraint, where its value is the given one."""
    module.register_parameter(f"raw_{name}", Parameter(value.clone()))
    module.register_constraint(f"raw_{name}", Positive())
    set_constrained(module, name, value)


def constrained(module: gpytorch.Module, name: str) -> Tensor:
    """The value of ``raw_<name>`` under its constraint."""
    value: Tensor = getattr(module, f"raw_{name}_constraint").transform(getattr(module, f"raw_{name}"))
    return value


def set_constrained(module: gpytorch.Module, name: str, value: Tensor) -> None:
    """Set ``raw_<name>`` so that its value is the given one."""
    raw = getattr(module, f"raw_{name}_constraint").inverse_transform(value)
    module.initialize(**{f"raw_{name}": raw})
