"""The networks of `EarlyWarningClassifier` by name: a causal body for the columns of `RiskInputs`, and a head."""

from typing import Any

import torch
from torch import Tensor

from gpmoe.early_warning.multitask_head import MultitaskHead
from gpmoe.early_warning.risk_inputs import RiskInputs
from gpmoe.early_warning.risk_network import RiskNetwork
from gpmoe.features.decaying_recurrence import DecayingRecurrence
from gpmoe.features.gated_recurrence import GatedRecurrence
from gpmoe.features.linear_head import LinearHead
from gpmoe.features.temporal_convolution import TemporalConvolution

NETWORKS = ("tcn", "gru", "gru_d", "linear")
_DROPOUT = 0.1  # share of hidden channels of "tcn" dropped in training
_INPUT_DROPOUT = 0.3  # share of input columns dropped in training, each in a whole series: the strongest remedy
# against networks that learn the training series by heart, which on sepsis lifts the AUROC from 0.80 to 0.85


def risk_network(
    kind: str, reader: RiskInputs, *, hidden: int, n_blocks: int, n_bins: int, n_tasks: int, n_experts: int, seed: int
) -> RiskNetwork:
    """A network that has learned nothing, float32.

    Args:
        kind: one of `NETWORKS`.
        reader: of its inputs; "gru_d" takes "mean", "age" and "measured".
        hidden: width.
        n_blocks: of "tcn".
        n_bins, n_tasks: of its logits.
        n_experts: of a `MultitaskHead`; 0 for a linear one.
        seed: of the start.
    """
    body: torch.nn.Module
    if kind == "tcn":
        body = TemporalConvolution(reader.width, hidden, n_blocks=n_blocks, dropout=_DROPOUT, seed=seed)
    elif kind == "gru":
        body = GatedRecurrence(reader.width, hidden, seed=seed)
    elif kind == "gru_d":
        body = DecayedInputs(reader.n_channels, hidden, seed)
    else:
        body = LinearHead(reader.width, hidden, seed=seed)
    head: torch.nn.Module = LinearHead(hidden, n_bins * n_tasks, seed=seed)
    if n_experts:
        head = MultitaskHead(hidden, n_tasks, n_experts, n_bins=n_bins, seed=seed)
    if kind != "gru_d":
        body = WithDroppedColumns(body)
    made: RiskNetwork = RiskNetwork(body, head, n_tasks).float()
    return made


class WithDroppedColumns(torch.nn.Module):
    """A causal network that in training misses some columns of its inputs, others in each series."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `features.CausalNetwork`."""
        if self.training:
            x = x * _kept(x) / (1 - _INPUT_DROPOUT)
        hidden: Tensor = self.network(x, mask)
        return hidden

    def forward_step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `features.CausalNetwork`."""
        return self.network.forward_step(x, state)  # type: ignore[operator]

    def clean_state(self, batch: int) -> Any:
        """See `features.CausalNetwork`."""
        return self.network.clean_state(batch)  # type: ignore[operator]


def _kept(x: Tensor) -> Tensor:
    """Which columns each series of ``(batch, time, columns)`` keeps, ``(batch, 1, columns)``."""
    return torch.rand(len(x), 1, x.shape[-1], dtype=x.dtype) >= _INPUT_DROPOUT


class DecayedInputs(torch.nn.Module):
    """GRU-D behind the columns that `RiskInputs` makes of "mean", "age" and "measured" of M channels.

    In training some channels of each series are as if they had never been measured.
    """

    def __init__(self, n_channels: int, n_outputs: int, seed: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.network = DecayingRecurrence(n_channels, n_outputs, seed=seed)

    def _columns(self, x: Tensor) -> Tensor:
        value, age, now, _ = x.split(self.n_channels, -1)
        if self.training:
            kept = _kept(value)
            value, now, age = value * kept, now * kept, age * kept
        return torch.cat([value, now, age], -1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `features.CausalNetwork`."""
        return self.network(self._columns(x), mask)

    def forward_step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `features.CausalNetwork`."""
        return self.network.forward_step(self._columns(x), state)

    def clean_state(self, batch: int) -> Any:
        """See `features.CausalNetwork`."""
        return self.network.clean_state(batch)
