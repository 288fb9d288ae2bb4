"""What a network must do to score a series as it comes in.

A causal network maps a whole series at once, for training, and one step at a time, for a stream, to the same numbers:
an output depends on inputs up to its own time alone. A batch is padded behind each series' last step, so that padding
can't reach an output either.
"""

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from gpmoe.errors import DtypeError, InputError, ShapeError

State = TypeVar("State")


class CausalNetwork(Protocol, Generic[State]):
    """A module whose outputs at a time come from the inputs up to that time.

    Attributes:
        n_inputs, n_outputs: channels in and out.
    """

    n_inputs: int
    n_outputs: int

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs of whole series.

        Args:
            x: ``(batch, time, n_inputs)``; where the mask is False any values, NaN too.
            mask: True at steps that a series has, ``(batch, time)``, none after a gap; all if None.

        Returns:
            ``(batch, time, n_outputs)``, zero where the mask is False.

        Raises:
            ShapeError, DtypeError, InputError: if x or the mask are otherwise.
        """

    def forward_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next output of each series; work and memory do not grow with its length.

        Args:
            x: ``(batch, n_inputs)``.
            state: of the steps before, which is used up: its memory may become the next state's. No gradient passes
                through.

        Returns:
            The output, ``(batch, n_outputs)``, and the next state.
        """

    def clean_state(self, batch: int) -> State:
        """The state before the first step of so many series."""


def checked_series(x: Tensor, mask: Tensor | None, n_inputs: int, like: Tensor) -> Tensor:
    """Check what `CausalNetwork.forward` takes, and put zeros where the mask is False.

    Args:
        x: ``(batch, time, n_inputs)``.
        mask: ``(batch, time)`` or None.
        n_inputs: channels wanted.
        like: a parameter of the network, whose dtype and device x must have.

    Raises:
        ShapeError, DtypeError, InputError: naming what came and what was wanted.
    """
    if x.dim() != 3 or x.shape[-1] != n_inputs:
        raise ShapeError(f"`x` must have shape (batch, time, {n_inputs}); got {tuple(x.shape)}.")
    if (x.dtype, x.device) != (like.dtype, like.device):
        raise DtypeError(f"`x` must be {like.dtype} on {like.device}, as the network is; got {x.dtype} on {x.device}.")
    if mask is None:
        return x
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ShapeError(
            f"`mask` must be bool and have shape {tuple(x.shape[:2])}; got {mask.dtype}, {tuple(mask.shape)}."
        )
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise InputError("`mask` must be True for the first steps of a series and False behind: pad at the end.")
    return torch.where(mask.unsqueeze(-1), x, 0.0)


def masked(output: Tensor, mask: Tensor | None) -> Tensor:
    """The output ``(batch, time, channels)``, zero where the mask ``(batch, time)`` is False."""
    return output if mask is None else output * mask.unsqueeze(-1)
