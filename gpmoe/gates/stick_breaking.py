"""Probabilities that are broken off a stick, one expert after another.

    π_j = v_j prod_{i<j} (1 - v_i),     the last expert takes what remains

| symbol | name in code | shape |
|---|---|---|
| log v_j | `taken` | (..., k - 1) |
| log (1 - v_j) | `passed` | (..., k - 1) |

Source: Sethuraman (1994), A constructive definition of Dirichlet priors; Linderman, Johnson and Adams (2015), Dependent
multinomial models made easy, sec. 3.
"""

import torch
from torch import Tensor


def break_sticks(taken: Tensor, passed: Tensor) -> Tensor:
    """log π from the logarithms of what each stick takes and passes on.

    Args:
        taken: log v_j, ``(..., k - 1)``; or its expectation, or that of v.
        passed: log (1 - v_j), ``(..., k - 1)``.

    Returns:
        ``(..., k)``; rows sum to one after exp if those of `taken` and `passed` do.

    Example:
        >>> half = torch.full((2,), 0.5, dtype=torch.float64).log()
        >>> break_sticks(half, half).exp()
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    zero = passed.new_zeros(*passed.shape[:-1], 1)
    return torch.cat([zero, passed.cumsum(-1)], -1) + torch.cat([taken, zero], -1)


def mass_left(mass: Tensor) -> Tensor:
    """What experts after each one hold, sum_{i>j} m_i, ``(..., k - 1)``, from what each holds, ``(..., k)``."""
    return mass[..., 1:].flip(-1).cumsum(-1).flip(-1)


def even_sticks(k: int) -> Tensor:
    """Logits of v_j under which every expert has probability 1/k: v_j = 1/(k - j), ``(k - 1,)``."""
    left = torch.arange(k, 1, -1, dtype=torch.float64)
    return -(left - 1).log()
