"""Sparse mixtures as plain data and tensors, for the files of estimators."""

from typing import Any

import torch
from gpytorch.constraints import GreaterThan
from gpytorch.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.estimators.probabilistic_regressor import set_tensors, tensors_of
from gpmoe.gates.description import buffers_of, build_gate, describe_gate, set_buffers
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.models.categorical_likelihood import CategoricalLikelihood
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts


def sparse_to_parts(model: SparseMixtureOfExperts) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able data and tensors of a fitted sparse mixture, its training data included.

    Raises:
        UnsupportedKernelError: for a kernel or gate that a file can't describe.
        InputError: for another likelihood than those of the estimators.
    """
    data = {
        "kernels": [describe_kernel(expert.covar_module) for expert in model.all_experts],
        "likelihoods": [_describe_likelihood(expert.likelihood) for expert in model.all_experts],
        "gate": describe_gate(model.gate),
    }
    tensors = {"X": model.X, "y": model.y, **tensors_of(model, "model"), **buffers_of(model.gate, "gate")}
    return data, tensors


def sparse_from_parts(data: dict[str, Any], tensors: dict[str, Tensor]) -> SparseMixtureOfExperts:
    """The inverse of `sparse_to_parts`."""
    kernels = [build_kernel(part) for part in data["kernels"]]
    Z = [tensors[f"model.experts.{k}.inducing_points"] for k in range(len(kernels))]
    model = SparseMixtureOfExperts(
        tensors["X"],
        tensors["y"],
        [each if each.dim() == 2 else each[0] for each in Z],
        n_experts=len(kernels),
        kernel=kernels,
        likelihood=[_build_likelihood(part) for part in data["likelihoods"]],
        gate=build_gate(data["gate"]),
    )
    set_tensors(model, "model", tensors)
    set_buffers(model.gate, "gate", tensors)
    return model.requires_grad_(False)


def _describe_likelihood(likelihood: Likelihood) -> dict[str, Any]:
    if type(likelihood) is GaussianLikelihood:
        return {"type": "gaussian", "floor": float(likelihood.noise_covar.raw_noise_constraint.lower_bound)}
    if type(likelihood) is BernoulliLikelihood:
        return {"type": "bernoulli"}
    if type(likelihood) is CategoricalLikelihood:
        return {"type": "categorical", "n_classes": likelihood.n_classes}
    raise InputError(f"a {type(likelihood).__name__} can't be written to a file.")


def _build_likelihood(description: dict[str, Any]) -> Likelihood:
    kind = description["type"]
    if kind == "gaussian":
        floor = torch.tensor(float(description["floor"]), dtype=torch.float64)
        return GaussianLikelihood(noise_constraint=GreaterThan(floor)).double()
    if kind == "bernoulli":
        return BernoulliLikelihood()
    if kind == "categorical":
        return CategoricalLikelihood(int(description["n_classes"]))
    raise InputError(f"unknown likelihood {kind!r}.")
