"""What every gate must do to route inputs to experts in variational EM."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.gates import Gate


def check_gate(
    make_gate: Callable[[], Gate], d: int, *, exchangeable: bool = True, n: int = 12, rounds: int = 4, seed: int = 0
) -> None:
    """Run the whole contract on a gate, in well under a second.

    Probabilities sum to one, a batch equals a loop, `fit_step` never lowers the bound and changes nothing that it was
    given, the gradient for X is right, E[log π] is at most log E[π], what is left out of the evidence is a finite
    number, and, where experts are exchangeable, relabelling them permutes the probabilities.

    Args:
        make_gate: makes the gate afresh, before any `fit_step`.
        d: number of inputs.
        exchangeable: whether the gate treats all experts alike; stick-breaking, which orders them, does not.
        n: number of points, drawn from a standard normal distribution.
        rounds: number of `fit_step` calls, each for other responsibilities.
        seed: of points and responsibilities.

    Raises:
        AssertionError: naming the rule that is broken.

    Example:
        >>> from gpmoe.gates import SoftmaxGate
        >>> check_gate(lambda: SoftmaxGate(3, 2), 2)
    """
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, dtype=torch.float64, generator=generator)
    k = make_gate().n_experts
    logits = 3 * torch.randn(rounds, n, k, dtype=torch.float64, generator=generator)
    assignments = logits.softmax(-1)
    with torch.no_grad():
        _check_steps(make_gate(), X, assignments)
        _check_probabilities(make_gate(), X, assignments[0])
        _check_gradient(make_gate(), X, assignments[0])
        if exchangeable:
            _check_relabelling(make_gate, X, assignments[0])


def _check_steps(gate: Gate, X: Tensor, assignments: Tensor) -> None:
    def step(responsibilities: Tensor) -> None:
        given = X.clone(), responsibilities.clone()
        gate.fit_step(*given)
        untouched = torch.equal(given[0], X) and torch.equal(given[1], responsibilities)
        assert untouched, "`fit_step` must not change what it is given"

    step(assignments[0])
    for responsibilities in assignments:
        for _ in range(2):
            value = float(gate.bound(X, responsibilities))
            step(responsibilities)
            new = float(gate.bound(X, responsibilities))
            assert new >= value - 1e-9 * max(1.0, abs(value)), f"`fit_step` must not lower the bound: {value} to {new}"


def _check_probabilities(gate: Gate, X: Tensor, responsibilities: Tensor) -> None:
    gate.fit_step(X, responsibilities)
    log_probs = gate.log_probs(X)
    assert log_probs.shape == responsibilities.shape, (
        f"`log_probs` must have shape (n, k); got {tuple(log_probs.shape)}"
    )
    total = log_probs.exp().sum(-1)
    assert_close(
        total, torch.ones_like(total), rtol=1e-10, atol=1e-10, msg=lambda text: f"rows must sum to one\n{text}"
    )
    batch = gate.log_probs(torch.stack([X, -X]))
    loop = torch.stack([log_probs, gate.log_probs(-X)])
    assert_close(batch, loop, rtol=1e-10, atol=1e-10, msg=lambda text: f"a batch must equal a loop\n{text}")
    excess = float((gate.expected_log_probs(X) - log_probs).max())
    assert excess <= 1e-9, f"E[log π] must be at most log E[π]; it is larger by {excess:.1e}"
    occam = gate.log_occam_factor(X)
    scalar = occam.numel() == 1 and bool(occam.isfinite())
    assert scalar, f"`log_occam_factor` must be one finite number; got {occam}"


def _check_gradient(gate: Gate, X: Tensor, responsibilities: Tensor) -> None:
    gate.fit_step(X, responsibilities)
    inputs = (X[:3] + 0.1).requires_grad_()
    with torch.enable_grad():
        right = torch.autograd.gradcheck(gate.log_probs, (inputs,), rtol=1e-4, atol=1e-6, raise_exception=False)
    assert right, "`log_probs` must have the gradient for X that finite differences give"


def _check_relabelling(make_gate: Callable[[], Gate], X: Tensor, responsibilities: Tensor) -> None:
    order = torch.arange(responsibilities.shape[-1]).roll(1)
    gate, relabelled = make_gate(), make_gate()
    gate.fit_step(X, responsibilities)
    relabelled.fit_step(X, responsibilities[:, order])
    rule = "relabelling experts must permute the probabilities"
    wanted = gate.log_probs(X).exp()[:, order]
    assert_close(relabelled.log_probs(X).exp(), wanted, rtol=1e-5, atol=1e-6, msg=lambda text: f"{rule}\n{text}")
