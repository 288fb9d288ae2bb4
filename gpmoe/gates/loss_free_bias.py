"""Load balancing by a bias on the choice of experts, without a loss."""

import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError


class LossFreeBias(torch.nn.Module):
    """A bias b that top-K routing adds to the logits when it chooses experts, and leaves out when it weighs them.

    After each batch b_k rises by `rate` if expert k was chosen by less than the share K/k of rows, and falls if by
    more. Shares, not counts, are compared: against counts every used expert looks overloaded, and b only falls.

    Args:
        n_experts: k.
        n_active: K, the number of experts that each row takes.
        rate: step of the bias, in units of the logits.

    Attributes:
        bias: b, ``(k,)``.

    Raises:
        InputError: for K outside 1..k or a rate that is not positive.

    Source: Wang et al. (2024), Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, alg. 1.

    Example:
        >>> balance = LossFreeBias(2, rate=0.1)
        >>> logits = torch.tensor([[0.15, 0.0]], dtype=torch.float64)
        >>> balance.update(balance.choose(logits))
        >>> balance.choose(logits)
        tensor([[False,  True]])
    """

    bias: Tensor

    def __init__(self, n_experts: int, n_active: int = 1, rate: float = 1e-3) -> None:
        super().__init__()
        if not 1 <= n_active <= n_experts:
            raise InputError(f"`n_active` must be from 1 to the {n_experts} experts; got {n_active}.")
        if not 0 < rate < float("inf"):
            raise InputError(f"`rate` must be positive and finite; got {rate}.")
        self.n_experts, self.n_active, self.rate = n_experts, n_active, rate
        self.register_buffer("bias", torch.zeros(n_experts, dtype=torch.float64))

    def choose(self, logits: Tensor) -> Tensor:
        """Which experts each row takes: those of the K largest ℓ + b.

        Args:
            logits: ℓ, or log-probabilities, ``(..., k)``.

        Returns:
            ``(..., k)``, boolean, K true in each row.
        """
        chosen = (logits.detach() + self.bias.to(logits)).topk(self.n_active, -1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, True)

    def update(self, chosen: Tensor) -> None:
        """Move the bias by one step, given who was chosen, ``(n, k)``.

        Raises:
            ShapeError: for another number of experts, or no rows.
        """
        if chosen.dim() != 2 or chosen.shape[-1] != self.n_experts or len(chosen) == 0:
            raise ShapeError(f"`chosen` must have shape (n, {self.n_experts}) with n > 0; got {tuple(chosen.shape)}.")
        share = chosen.to(self.bias).mean(0)
        self.bias = self.bias + self.rate * torch.sign(self.n_active / self.n_experts - share)
