"""What fits by minibatches share: their optimisers, how steps fall, and whether the objective has settled."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from gpytorch.optim import NGD

from gpmoe.errors import InputError

SETTLED = 0.01  # nats an observation that the last tenth of the epochs may still have gained


class Variational(Protocol):
    """A model whose posterior is learned by natural gradients."""

    def natural_parameters(self) -> list[torch.nn.Parameter]:
        """Those of the posterior."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All of them."""
        ...


def optimisers_of(
    gp: Variational, natural_step: float, learning_rate: float, held: Iterable[torch.nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """Natural gradients for q, Adam for all other parameters but those held."""
    natural = gp.natural_parameters()
    known = {id(parameter) for parameter in (*natural, *held)}
    others = [each for each in gp.parameters() if id(each) not in known and each.requires_grad]
    adam = [torch.optim.Adam(others, lr=learning_rate)] if others else []
    return [NGD(natural, num_data=1, lr=natural_step), *adam]


def falling_steps(optimisers: list[torch.optim.Optimizer], epochs: int) -> list[torch.optim.lr_scheduler.LambdaLR]:
    """Schedules by which step sizes fall linearly in the second half of the epochs, to a hundredth."""

    def share(epoch: int) -> float:
        return max(0.01, min(1.0, 2.0 * (1.0 - epoch / epochs)))

    return [torch.optim.lr_scheduler.LambdaLR(each, share) for each in optimisers]


def late_gain(trace: list[float]) -> float:
    """How much higher the last tenth of the epochs lies than the tenth before."""
    tenth = max(1, len(trace) // 10)
    if len(trace) < 2 * tenth:
        return float("inf")
    return (sum(trace[-tenth:]) - sum(trace[-2 * tenth : -tenth])) / tenth


def expect_passes(epochs: int | None, batch_size: int) -> None:
    """Check that minibatches pass over the rows at least once; None for epochs leaves their number to the engine."""
    if (epochs is not None and epochs < 1) or batch_size < 1:
        raise InputError(f"`epochs` and `batch_size` must be at least 1; got {epochs} and {batch_size}.")
