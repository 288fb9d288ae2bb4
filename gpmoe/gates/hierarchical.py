"""A tree of gates: first a branch, then an expert within it.

    π_bj(x) = π_b(x) π_j|b(x)

Source: Jordan and Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm, sec. 2.
"""

from collections.abc import Sequence
from typing import Any, cast

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.gate import Gate


class HierarchicalGate(gpytorch.Module):
    """A gate over branches, and one in each branch over its experts; either may be hierarchical itself.

    Experts are counted through the branches in their order.

    Args:
        root: of as many "experts" as there are branches.
        branches: gates, each over the experts of its branch.

    Raises:
        InputError: if the root's number does not fit.

    Example:
        >>> from gpmoe.gates import SoftmaxGate
        >>> gate = HierarchicalGate(SoftmaxGate(2, 1), [SoftmaxGate(2, 1), SoftmaxGate(3, 1)])
        >>> gate.log_probs(torch.zeros(1, 1, dtype=torch.float64)).exp().round(decimals=3)
        tensor([[0.2500, 0.2500, 0.1670, 0.1670, 0.1670]], dtype=torch.float64)
    """

    root: Gate

    def __init__(self, root: Gate, branches: Sequence[Gate]) -> None:
        super().__init__()
        if root.n_experts != len(branches):
            raise InputError(f"`root` must choose among {len(branches)} branches; got a gate of {root.n_experts}.")
        self.root = root
        self.branches = torch.nn.ModuleList([cast(torch.nn.Module, branch) for branch in branches])
        self.sizes = [branch.n_experts for branch in branches]
        self.n_experts = sum(self.sizes)

    def _all_branches(self) -> list[Gate]:
        return [cast(Gate, branch) for branch in self.branches]

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Fit the root to the branches' shares of the responsibilities, and each branch to its part of them."""
        parts = responsibilities.split(self.sizes, -1)
        self.root.fit_step(X, torch.stack([part.sum(-1) for part in parts], -1))
        for branch, part in zip(self._all_branches(), parts, strict=True):
            branch.fit_step(X, part.contiguous())

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        return self._joined(self.root.expected_log_probs(X), [b.expected_log_probs(X) for b in self._all_branches()])

    def log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        return self._joined(self.root.log_probs(X), [branch.log_probs(X) for branch in self._all_branches()])

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`: the sum of all gates' bounds."""
        parts = responsibilities.split(self.sizes, -1)
        total = self.root.bound(X, torch.stack([part.sum(-1) for part in parts], -1))
        for branch, part in zip(self._all_branches(), parts, strict=True):
            total = total + branch.bound(X, part)
        return total

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        total = self.root.log_prior()
        for branch in self._all_branches():
            total = total + branch.log_prior()
        return total

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        total = self.root.log_occam_factor(X)
        for branch in self._all_branches():
            total = total + branch.log_occam_factor(X)
        return total

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        from gpmoe.gates.description import describe_gate

        return {
            "n_experts": self.n_experts,
            "root": describe_gate(self.root),
            "branches": [describe_gate(branch) for branch in self._all_branches()],
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "HierarchicalGate":
        """See `Gate`."""
        from gpmoe.gates.description import build_gate

        return cls(build_gate(description["root"]), [build_gate(branch) for branch in description["branches"]])

    def _joined(self, root: Tensor, branches: list[Tensor]) -> Tensor:
        return torch.cat([root[..., b, None] + inner for b, inner in enumerate(branches)], -1)
