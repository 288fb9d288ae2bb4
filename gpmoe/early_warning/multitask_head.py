"""Risks of several tasks from one body: experts that all tasks share, and a gate for each task.

    logit_bt(h) = v_bt' Σ_k π_tk(h) relu(W_k h + b_k) + c_bt

| symbol | name in code | shape |
|---|---|---|
| h, what the body says | `x` | (batch, time, n_inputs) |
| W, b | `experts` | K · width outputs |
| π_t | `gates[t]`, a `gates.NeuralGate` | K |
| v, c | `weight`, `bias` | (bins, tasks, width), (bins, tasks) |

Source: Ma et al. (2018), Modeling task relationships in multi-task learning with multi-gate mixture-of-experts, sec. 4.
"""

import math

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.features.causal_network import checked_series, masked
from gpmoe.features.linear_head import seeded_linear
from gpmoe.gates.neural import NeuralGate


class MultitaskHead(torch.nn.Module):
    """A `features.CausalNetwork` without memory for a `RiskNetwork` of several tasks, float64 until it is cast.

    Tasks that agree come to use the same experts, and tasks that don't different ones, where a linear head would have
    them pull the body both ways.

    Args:
        n_inputs: outputs of the body.
        n_tasks: T.
        n_experts: K.
        n_bins: outputs a task.
        width: of each expert; that of the inputs if None.
        seed: of the start.

    Raises:
        InputError: for a size below 1.

    Example:
        >>> from gpmoe.early_warning.risk_network import RiskNetwork, risk
        >>> from gpmoe.features import GatedRecurrence
        >>> network = RiskNetwork(GatedRecurrence(3, 8), MultitaskHead(8, n_tasks=2), tasks=2)
        >>> risk(network(torch.zeros(5, 12, 3, dtype=torch.float64))).shape  # of 5 series at 12 times, of 2 tasks
        torch.Size([5, 12, 2])
    """

    def __init__(
        self,
        n_inputs: int,
        n_tasks: int,
        n_experts: int = 4,
        *,
        n_bins: int = 1,
        width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = n_inputs if width is None else width
        if min(n_inputs, n_tasks, n_experts, n_bins, width) < 1:
            raise InputError(
                "`n_inputs`, `n_tasks`, `n_experts`, `n_bins` and `width` must be at least 1; got "
                f"{n_inputs}, {n_tasks}, {n_experts}, {n_bins}, {width}."
            )
        generator = torch.Generator().manual_seed(seed)
        self.n_inputs, self.n_outputs, self.n_experts = n_inputs, n_bins * n_tasks, n_experts
        self.experts = seeded_linear(n_inputs, n_experts * width, generator)
        self.gates = torch.nn.ModuleList(NeuralGate(n_experts, n_inputs, seed=seed + task) for task in range(n_tasks))
        start = torch.rand(n_bins, n_tasks, width, dtype=torch.float64, generator=generator)
        self.weight = torch.nn.Parameter((2 * start - 1) / math.sqrt(width))
        self.bias = torch.nn.Parameter(torch.zeros(n_bins, n_tasks, dtype=torch.float64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `features.CausalNetwork`; outputs are ordered by bin, then by task."""
        return masked(self._logits(checked_series(x, mask, self.n_inputs, self.bias)), mask)

    @torch.no_grad()
    def forward_step(self, x: Tensor, state: None) -> tuple[Tensor, None]:
        """See `features.CausalNetwork`."""
        return self._logits(x), None

    def clean_state(self, batch: int) -> None:
        """See `features.CausalNetwork`: nothing."""
        return None

    def gate_probs(self, x: Tensor) -> Tensor:
        """Which experts each task listens to, for inputs ``(..., n_inputs)``: ``(..., tasks, experts)``."""
        return torch.stack([gate.log_probs(x) for gate in self.gates], -2).exp()  # type: ignore[operator]

    def _logits(self, x: Tensor) -> Tensor:
        said = torch.relu(self.experts(x)).unflatten(-1, (self.n_experts, -1))  # (..., experts, width)
        heard = self.gate_probs(x) @ said  # (..., tasks, width)
        return (torch.einsum("...tw,btw->...bt", heard, self.weight) + self.bias).flatten(-2)
