"""Fitting a gate alone, to experts that stay as they are."""

import torch

from gpmoe.gates.expert_outputs import HeldOut
from gpmoe.gates.gate import Gate


def learn_from_held_out(
    gate: Gate, held_out: HeldOut, *, max_iterations: int = 100, tolerance: float = 1e-6
) -> list[float]:
    """Fit any gate, in place, to experts that stay as they are, by expectation-maximisation.

    It climbs sum_n log sum_k exp(E[log π_k(x_n)] + log p_k(y_n | other rows)) + log prior: stacking of predictive
    densities with weights that depend on the input.

    Args:
        gate: any gate of as many experts.
        held_out: rows that the experts had not seen.
        max_iterations: the most.
        tolerance: nats a row by which an iteration must gain to go on.

    Returns:
        The objective after each iteration, nats; it never falls.

    Raises:
        ShapeError, NonFiniteError: see `HeldOut.check`.

    Example:
        >>> from gpmoe.gates import ConstantGate
        >>> y = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
        >>> mean = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(3, 2)
        >>> gate = ConstantGate(2)
        >>> trace = learn_from_held_out(gate, HeldOut(y[:, None], y, mean, torch.full((3, 2), 0.01).double()))
        >>> gate.log_probs(y[:1, None]).exp().round(decimals=2)
        tensor([[0.6200, 0.3800]], dtype=torch.float64)

    Source: Yao, Pirš, Vehtari and Gelman (2022), Bayesian hierarchical stacking; EM as Jordan and Jacobs (1994).
    """
    held_out.check(gate.n_experts)
    log_density = held_out.log_density()
    responsibilities = log_density.softmax(-1)
    trace: list[float] = []
    with torch.no_grad():
        for _ in range(max_iterations):
            gate.fit_step(held_out.X, responsibilities)
            joint = gate.expected_log_probs(held_out.X) + log_density
            responsibilities = joint.softmax(-1)
            value = gate.bound(held_out.X, responsibilities) + torch.special.entr(responsibilities).sum()
            trace.append(float(value + (responsibilities * log_density).sum()))
            if len(trace) > 1 and trace[-1] - trace[-2] < tolerance * len(held_out.y):
                break
    return trace
