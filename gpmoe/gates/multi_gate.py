"""One gate for each task, over experts that tasks share or keep to themselves."""

from collections.abc import Sequence
from typing import Any, cast

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.gates.gate import Gate

_NEVER = -746.0  # a finite log probability that is zero in float64: an expert that is not seen weighs nothing


class MultiGate(gpytorch.Module):
    """A gate a task, chosen by a column of X that holds the task's number; the gates see the other columns.

    Args:
        gates: one a task, each over the experts that the task sees.
        column: of X, with whole numbers from 0.
        visible: which experts each task sees, bool ``(tasks, k)``: experts of all tasks, of a group of tasks, of one.
            All of them for all if None.

    Raises:
        ShapeError: if a gate's number of experts is not that of its row of `visible`.
        InputError: if some expert is seen by no task, or, when it is used, for a task number out of range.

    Source: Ma et al. (2018), Modeling task relationships in multi-task learning with multi-gate mixture-of-experts;
        the masks, Wang et al. (2024), HoME, sec. 3.2.

    Example:
        >>> from gpmoe.gates import ConstantGate
        >>> visible = torch.tensor([[True, True, False], [True, False, True]])
        >>> gate = MultiGate([ConstantGate(2), ConstantGate(2)], column=0, visible=visible)
        >>> gate.log_probs(torch.tensor([[0.0, 5.0], [1.0, 5.0]]).double()).exp()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.0000, 0.5000]], dtype=torch.float64)
    """

    visible: Tensor

    def __init__(self, gates: Sequence[Gate], column: int, visible: Tensor | None = None) -> None:
        super().__init__()
        if not gates:
            raise InputError("`gates` must hold one gate for each task; got none.")
        if visible is None:
            visible = torch.ones(len(gates), gates[0].n_experts, dtype=torch.bool)
        sizes = [gate.n_experts for gate in gates]
        if visible.dim() != 2 or visible.sum(-1).tolist() != sizes:
            raise ShapeError(
                f"`visible` must have a row for each gate with as many True as it has experts, {sizes}; got "
                f"{tuple(visible.shape)} with {visible.sum(-1).tolist()}."
            )
        if not bool(visible.any(0).all()):
            raise InputError(f"`visible` must show each expert to some task; got {visible.tolist()}.")
        self.gates = torch.nn.ModuleList([cast(torch.nn.Module, gate) for gate in gates])
        self.column = column
        self.n_experts = visible.shape[-1]
        self.register_buffer("visible", visible)

    def fit_step(self, X: Tensor, responsibilities: Tensor) -> None:
        """Fit each task's gate to the task's rows."""
        for task, (gate, rows) in enumerate(self._tasks(X)):
            if bool(rows.any()):
                gate.fit_step(self._others(X[rows]), responsibilities[rows][:, self.visible[task]].contiguous())

    def expected_log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        out = X.new_full((len(X), self.n_experts), _NEVER)
        for task, (gate, rows) in enumerate(self._tasks(X)):
            if bool(rows.any()):
                out[torch.outer(rows, self.visible[task])] = gate.expected_log_probs(self._others(X[rows])).reshape(-1)
        return out

    def log_probs(self, X: Tensor) -> Tensor:
        """See `Gate`; -746 for experts that a task does not see."""
        flat = X.reshape(-1, X.shape[-1])
        out = flat.new_full((len(flat), self.n_experts), _NEVER)
        for task, (gate, rows) in enumerate(self._tasks(flat)):
            if bool(rows.any()):
                where = torch.outer(rows, self.visible[task])
                out = out.masked_scatter(where, gate.log_probs(self._others(flat[rows])))
        return out.reshape(*X.shape[:-1], self.n_experts)

    def bound(self, X: Tensor, responsibilities: Tensor) -> Tensor:
        """See `Gate`: the sum of all tasks' bounds."""
        total = X.new_zeros(())
        for task, (gate, rows) in enumerate(self._tasks(X)):
            own = responsibilities[rows]
            hidden = own[:, ~self.visible[task]].sum()
            total = total + gate.bound(self._others(X[rows]), own[:, self.visible[task]]) + _NEVER * hidden
        return total

    def log_prior(self) -> Tensor:
        """See `Gate`."""
        return torch.stack([cast(Gate, gate).log_prior() for gate in self.gates]).sum()

    def log_occam_factor(self, X: Tensor) -> Tensor:
        """See `Gate`."""
        total = X.new_zeros(())
        for gate, rows in self._tasks(X):
            if bool(rows.any()):
                total = total + gate.log_occam_factor(self._others(X[rows]))
        return total

    def description(self) -> dict[str, Any]:
        """See `Gate`."""
        from gpmoe.gates.description import describe_gate

        gates = [describe_gate(cast(Gate, gate)) for gate in self.gates]
        return {
            "n_experts": self.n_experts,
            "gates": gates,
            "column": self.column,
            "visible": self.visible.tolist(),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "MultiGate":
        """See `Gate`."""
        from gpmoe.gates.description import build_gate

        gates = [build_gate(gate) for gate in description["gates"]]
        return cls(gates, int(description["column"]), torch.tensor(description["visible"], dtype=torch.bool))

    def _tasks(self, X: Tensor) -> list[tuple[Gate, Tensor]]:
        """Each task's gate, and which rows of X ``(n, d)`` are its."""
        task = X[:, self.column].detach()
        known = (task >= 0) & (task < len(self.gates)) & (task == task.round())
        if not bool(known.all()):
            raise InputError(
                f"column {self.column} of `X` must hold task numbers from 0 to {len(self.gates) - 1}; got "
                f"{float(task[~known][0])}."
            )
        return [(cast(Gate, gate), task == number) for number, gate in enumerate(self.gates)]

    def _others(self, X: Tensor) -> Tensor:
        """X without the task's column."""
        return torch.cat([X[:, : self.column], X[:, self.column + 1 :]], -1)
