"""How a gate uses its experts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.gates.balance import mutual_information, routing_entropy, usage, usage_entropy
from gpmoe.gates.gate import Gate
from gpmoe.shapes import expect_shape


@dataclass(frozen=True)
class GateDiagnostics:
    """What a gate does on a set of inputs; made by `gate_diagnostics` or `routing_diagnostics`.

    Attributes:
        usage: mean probability of each expert.
        top_share: share of rows at which each expert is the most probable.
        effective_experts: exp(entropy of usage), from 1 to k.
        starved: experts whose usage is less than `starved_below`, in order.
        collapsed: whether all experts but one are starved, of two or more.
        routing_entropy: mean entropy of the gate at a row, nats; 0 for certain routing, log k for none.
        mutual_information: I(z; x), what an input tells of the expert, nats.
        starved_below: the threshold, a tenth of an even share unless told otherwise.

    Example:
        >>> from gpmoe.gates import ConstantGate
        >>> print(gate_diagnostics(ConstantGate(2), torch.zeros(3, 1)))
        2 experts, 2.0 of them effective
        usage: 50.0 %, 50.0 %
        starved (usage below 5.0 %): none
        routing entropy 0.69 of 0.69 nats, mutual information 0.00 nats
    """

    usage: tuple[float, ...]
    top_share: tuple[float, ...]
    effective_experts: float
    starved: tuple[int, ...]
    collapsed: bool
    routing_entropy: float
    mutual_information: float
    starved_below: float

    def __str__(self) -> str:
        k = len(self.usage)
        shares = ", ".join(f"{100 * share:.1f} %" for share in self.usage)
        starved = ", ".join(map(str, self.starved)) or "none"
        collapse = "; the gate has collapsed on one expert" if self.collapsed else ""
        return (
            f"{k} expert{'s' * (k != 1)}, {self.effective_experts:.1f} of them effective{collapse}\n"
            f"usage: {shares}\n"
            f"starved (usage below {100 * self.starved_below:.1f} %): {starved}\n"
            f"routing entropy {self.routing_entropy:.2f} of {math.log(k):.2f} nats, "
            f"mutual information {self.mutual_information:.2f} nats"
        )


def gate_diagnostics(gate: Gate, X: Tensor, *, starved_below: float | None = None) -> GateDiagnostics:
    """Usage, effective number of experts, collapse, starvation and entropies of a gate on inputs.

    Args:
        gate: any gate.
        X: ``(n, d)``, rows that stand for those it will meet.
        starved_below: usage below which an expert counts as starved; 0.1/k if None.

    Returns:
        The numbers.

    Raises:
        ShapeError, InputError: as `routing_diagnostics`.
    """
    with torch.no_grad():
        return routing_diagnostics(gate.log_probs(X), starved_below=starved_below)


def routing_diagnostics(log_probs: Tensor, *, starved_below: float | None = None) -> GateDiagnostics:
    """`gate_diagnostics` from log-probabilities, or log-responsibilities, ``(n, k)``.

    Raises:
        ShapeError: if they are not a matrix.
        InputError: if there are no rows.
    """
    expect_shape("log_probs", log_probs, ndim=2, last=(-1, -1))
    n, k = log_probs.shape
    if n == 0:
        raise InputError("a gate's diagnostics need at least one row; `log_probs` has none.")
    log_probs = log_probs.detach()
    threshold = 0.1 / k if starved_below is None else starved_below
    shares = usage(log_probs)
    starved = (shares < threshold).nonzero().squeeze(-1).tolist()
    top = torch.bincount(log_probs.argmax(-1), minlength=k) / n
    return GateDiagnostics(
        usage=tuple(shares.tolist()),
        top_share=tuple(top.tolist()),
        effective_experts=math.exp(float(usage_entropy(log_probs))),
        starved=tuple(starved),
        collapsed=k > 1 and len(starved) == k - 1,
        routing_entropy=float(routing_entropy(log_probs).mean()),
        mutual_information=max(0.0, float(mutual_information(log_probs))),
        starved_below=threshold,
    )
