"""A network that reads inputs over time and says a risk at each of them, and its training.

| head | outputs a task | loss | risk |
|---|---|---|---|
| "class" | 1 | cross entropy of the label at each grid time | σ(output) |
| "hazard" | one a bin of the horizon | discrete survival, up to the event's bin | 1 - Π (1 - σ(output)) |

Source: Gensheimer and Narasimhan (2019), A scalable discrete-time survival model for
neural networks, eq. 2 (hazards).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError

Array = NDArray[np.float64]


class RiskNetwork(torch.nn.Module):
    """A causal body and a linear head.

    Args:
        body: a `features.CausalNetwork`.
        head: a `features.CausalNetwork` without memory, of as many inputs as the body has outputs.
        tasks: T; the head has bins · T outputs.
    """

    def __init__(self, body: torch.nn.Module, head: torch.nn.Module, tasks: int) -> None:
        super().__init__()
        self.body, self.head, self.tasks = body, head, tasks

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(batch, time, bins, tasks)`` of inputs ``(batch, time, width)``."""
        out = self.head(self.body(x, mask), mask)
        return out.unflatten(-1, (-1, self.tasks))


def log_survival(logits: Tensor) -> Tensor:
    """log P(no event in the horizon) of logits ``(..., bins, tasks)``, ``(..., tasks)``."""
    return torch.nn.functional.logsigmoid(-logits).sum(-2)


def risk(logits: Tensor) -> Tensor:
    """P(event in the horizon), or of the class for a single bin, ``(..., tasks)``."""
    return -torch.expm1(log_survival(logits))


@dataclass(frozen=True)
class Targets:
    """What training compares logits with, of every grid time, bin and task.

    Attributes:
        event: 1 where the event (or the class) is in the bin, ``(G, bins, tasks)``.
        weight: 0 where nothing is known or the event lies before the bin, ``(G, bins, tasks)``.
    """

    event: Tensor
    weight: Tensor


def class_targets(labels: Array, positive_weight: float) -> Targets:
    """Of labels ``(G, tasks)``, NaN where unknown; positives count by their weight."""
    known = ~np.isnan(labels)
    event = np.where(known, labels, 0.0)
    weight = known * np.where(event > 0, positive_weight, 1.0)
    return Targets(_bins(event[:, None, :]), _bins(weight[:, None, :]))


def hazard_targets(
    grid: Array, event: Array, censoring: Array, horizon: float, n_bins: int, positive_weight: float
) -> Targets:
    """Of the times of event and of the end of observation, one a grid time.

    Bin b of a grid time t is (t + b h, t + (b + 1) h], h = horizon / n_bins. A bin that observation does not reach the
    end of tells nothing, unless the event is in it; neither do grid times after the event.

    Args:
        grid, event, censoring: ``(G,)`` each; event is infinite where none was seen.
        horizon: how far ahead the risk looks.
        n_bins: of the horizon.
        positive_weight: of the bin that holds an event.
    """
    width = horizon / n_bins
    start = grid[:, None] + width * np.arange(n_bins)
    here = (event[:, None] > start) & (event[:, None] <= start + width)
    survived = np.minimum(event, censoring)[:, None] >= start + width
    weight = np.where(here, positive_weight, (survived & (event > grid)[:, None]).astype(np.float64))
    return Targets(_bins(here[..., None].astype(np.float64)), _bins(weight[..., None]))


def _bins(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Sum of weighted cross entropies over grid times, bins and tasks, nats."""
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.event, targets.weight, reduction="sum")
    return each


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        max_epochs: how often each series is seen at most.
        batch_size: series a step.
        learning_rate: Adam's, after a warm-up of one epoch, falling by a cosine to a hundredth.
        weight_decay: of AdamW.
        patience: epochs without a better validation loss after which it stops.
        progress: called with (epoch, training loss, validation loss).
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    progress: Callable[[int, float, float], None] | None = None


Batch = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor, Targets, Tensor]]
"""Series numbers to padded inputs ``(b, time, width)``, mask, targets on that grid, and what to add to the loss."""


def train(
    network: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    batch: Batch,
    lengths: NDArray[np.int64],
    validation_loss: Callable[[], float],
    training: Training,
    seed: int,
) -> tuple[list[float], list[float], str]:
    """Minimise the mean loss by AdamW, and go back to the epoch with the least validation loss.

    Series of like length come into one minibatch, so that padding is little; the order of minibatches is random.

    Returns:
        Training and validation loss of each epoch, a unit of weight, and why it ended.
    """
    generator = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    steps = -(-len(lengths) // training.batch_size)
    total = steps * training.max_epochs

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / steps)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    best, kept, since, reason = math.inf, _copy(parameters), 0, f"{training.max_epochs} epochs"
    losses, checked = [], []
    for epoch in range(training.max_epochs):
        network.train()
        seen = weight = 0.0
        for rows in _minibatches(lengths, training.batch_size, generator):
            x, mask, targets, extra = batch(rows)
            optimiser.zero_grad(set_to_none=True)
            heavy = float(targets.weight.sum())
            value = loss(network(x, mask), targets)
            (value / max(heavy, 1.0) + extra).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            seen, weight = seen + float(value.detach()), weight + heavy
        network.eval()
        losses.append(seen / max(weight, 1.0))
        checked.append(validation_loss())
        if training.progress is not None:
            training.progress(epoch, losses[-1], checked[-1])
        if not math.isfinite(checked[-1]):
            raise InputError(f"the validation loss became {checked[-1]} in epoch {epoch}: lower `learning_rate`.")
        since += 1
        if checked[-1] < best:
            best, kept, since = checked[-1], _copy(parameters), 0
        if since >= training.patience:
            reason = f"no better validation loss in {training.patience} epochs"
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return losses, checked, reason


def _copy(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _minibatches(lengths: NDArray[np.int64], size: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Series by length, lengths blurred so that minibatches differ between epochs, in random order."""
    order = np.argsort(lengths * generator.uniform(0.8, 1.25, len(lengths)), kind="stable")
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def padded(rows: Tensor, lengths: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows of series one after another ``(sum of lengths, ...)`` side by side, zeros behind, and the mask.

    Returns:
        ``(b, longest, ...)`` and ``(b, longest)``.
    """
    longest = int(lengths.max(initial=0))
    mask = torch.arange(longest) < torch.from_numpy(lengths).unsqueeze(-1)
    out = rows.new_zeros(len(lengths), longest, *rows.shape[1:])
    out[mask] = rows
    return out, mask
