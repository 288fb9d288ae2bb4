"""What networks say of many series at once: at all grid times, in blocks, from the posterior or from draws of it."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from gpmoe.early_warning.risk_inputs import RiskInputs
from gpmoe.early_warning.risk_network import RiskNetwork, log_survival, padded
from gpmoe.early_warning.series import RaggedSeries

Array = NDArray[np.float64]

_BLOCK = 256  # series at a time of passes over many


@dataclass(frozen=True)
class RiskScorer:
    """Networks that read the same inputs; their logits are averaged.

    Attributes:
        reader: makes the inputs.
        networks: in evaluation mode.
        n_draws: if positive, so many draws of the channels take the place of their mean, and risks are averaged.
    """

    reader: RiskInputs
    networks: list[RiskNetwork]
    n_draws: int = 0

    @torch.no_grad()
    def logits(self, scaled: RaggedSeries, seed: int = 0) -> Tensor:
        """Of all grid times ``(G, bins, tasks)``; risks of draws are averaged, logits of networks."""
        blocks = []
        for some in _blocks(scaled):
            if self.n_draws:
                each = torch.stack([self._of_draw(some, seed + i) for i in range(self.n_draws)])
                blocks.append(torch.logit(torch.sigmoid(each.double()).mean(0).clamp(1e-12, 1 - 1e-12)).float())
            else:
                blocks.append(self._through(self.reader(some), some))
        return torch.cat(blocks)

    @torch.no_grad()
    def one_draw(self, scaled: RaggedSeries, seed: int) -> Tensor:
        """Logits ``(G, bins, tasks)`` of one draw of the channels; that of a series depends on its id and the seed."""
        return torch.cat([self._of_draw(some, seed) for some in _blocks(scaled)])

    def last_logit(self, scaled: RaggedSeries, value: Tensor, task: int) -> Tensor:
        """Of the risk of one series at its last grid time, with other scaled values ``(n,)``, differentiable in them.

        Args:
            scaled: a single series.
            value: in place of its own.
            task: whose risk.
        """
        x = self.reader.of_values(scaled, value).unsqueeze(0).to(torch.float32)
        logits = torch.stack([network(x)[0, -1, :, task] for network in self.networks]).mean(0).double()
        survival = log_survival(logits.unsqueeze(-1)).squeeze(-1)
        return torch.log(-torch.expm1(survival)) - survival

    def _of_draw(self, some: RaggedSeries, seed: int) -> Tensor:
        return self._through(self.reader(some, _keys(some), seed), some)

    def _through(self, x: Tensor, series: RaggedSeries) -> Tensor:
        inputs, mask = padded(x.to(torch.float32), np.diff(series.grid_offsets))
        return torch.stack([network(inputs, mask)[mask] for network in self.networks]).mean(0)


def pooled(risks: Sequence[Array], first: float) -> Array:
    """Risks of trees and of networks ``(r, tasks)`` into one: the log odds are averaged.

    Args:
        risks: of one of them, or of both, trees first.
        first: weight of the first of two.
    """
    if len(risks) == 1:
        return risks[0]
    odds = (logit(np.clip(each, 1e-12, 1 - 1e-12)) for each in risks)
    both: Array = expit(first * next(odds) + (1 - first) * next(odds))
    return both


def _blocks(series: RaggedSeries) -> Iterator[RaggedSeries]:
    return (series[start : start + _BLOCK] for start in range(0, max(1, len(series)), _BLOCK))


def _keys(series: RaggedSeries) -> Tensor:
    """An integer of each series, from its id alone."""
    return torch.tensor([zlib.crc32(str(name).encode()) for name in series.ids], dtype=torch.int64)
