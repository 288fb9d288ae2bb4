"""Gates that look at what experts say: confidence and cascade, and learning on held-out predictions."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

from gpmoe.errors import InputError, NonFiniteError, ShapeError, UnsupportedKernelError
from gpmoe.gates import ConstantGate, SoftmaxGate
from gpmoe.gates.cascade import CascadeGate
from gpmoe.gates.confidence import ConfidenceGate
from gpmoe.gates.expert_outputs import ExpertOutput, HeldOut, outputs_of
from gpmoe.gates.logistic_regression import fit_logistic, logistic_objective
from gpmoe.gates.stacking import learn_from_held_out
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.testing import check_gate


def constant(X: Tensor) -> tuple[Tensor, Tensor]:
    return 0 * X[:, 0], 0 * X[:, 0] + 1.0


def linear(X: Tensor) -> tuple[Tensor, Tensor]:
    return X[:, 0], 0.1 + 0.1 * X[:, 0].square()


def wavy(X: Tensor) -> tuple[Tensor, Tensor]:
    return (3 * X[:, 0]).sin(), 0.02 + 0.5 * X[:, 0].square()


EXPERTS: list[ExpertOutput] = [constant, linear, wavy, constant]


def held_out(X: Tensor, y: Tensor, experts: list[ExpertOutput]) -> HeldOut:
    return HeldOut(X, y, *outputs_of(experts, X))


@pytest.fixture
def rows(normal) -> tuple[Tensor, Tensor]:
    """Eighty rows of a function that is linear on the left and wavy on the right, with noise of .1."""
    X = normal(80, 2)
    f = torch.where(X[:, 0] < 0, X[:, 0], (3 * X[:, 0]).sin())
    return X, f + 0.1 * normal(80)


def cascade(k: int = 3, **arguments: float) -> CascadeGate:
    return CascadeGate(EXPERTS[:k], [0.1, 1.0, 10.0, 100.0][:k], 2, **arguments)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_cascade_keeps_the_contract(k: int) -> None:
    check_gate(lambda: cascade(k), 2, exchangeable=False)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_confidence_keeps_the_contract(k: int, rows: tuple[Tensor, Tensor]) -> None:
    held = held_out(*rows, EXPERTS[:k])
    check_gate(lambda: ConfidenceGate(EXPERTS[:k], held, precision=1.0), 2, exchangeable=False)


def test_confidence_treats_experts_alike(rows: tuple[Tensor, Tensor]) -> None:
    order = [2, 0, 1]
    gates = [
        ConfidenceGate([EXPERTS[k] for k in labels], held_out(*rows, [EXPERTS[k] for k in labels]))
        for labels in ([0, 1, 2], order)
    ]
    for gate in gates:
        gate.learn()
    X = rows[0][:9] + 0.1
    assert_close(gates[1].log_probs(X).exp(), gates[0].log_probs(X).exp()[:, order], rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [cascade, lambda: None])
def test_bound_is_expectation_plus_log_prior(make: Callable, rows: tuple[Tensor, Tensor], normal) -> None:
    X, _ = rows
    gate = make() or ConfidenceGate(EXPERTS[:3], held_out(*rows, EXPERTS[:3]))
    r = normal(80, 3).softmax(-1)
    gate.fit_step(X, r)
    assert_close(gate.bound(X, r), (r * gate.expected_log_probs(X)).sum() + gate.log_prior(), rtol=1e-12, atol=1e-12)


def test_logistic_regression_equals_a_general_optimiser(normal) -> None:
    A, mass = normal(30, 3), normal(30).abs()
    positive = mass * normal(30).sigmoid()

    def loss(w: np.ndarray) -> float:
        return -float(logistic_objective(torch.from_numpy(w), A, positive, mass, 0.3))

    best = minimize(loss, np.zeros(3), method="BFGS")
    fitted = fit_logistic(torch.zeros(3, dtype=torch.float64), A, positive, mass, 0.3)
    assert_close(fitted, torch.from_numpy(best.x), rtol=0, atol=1e-4)


def test_held_out_densities_are_gaussian(rows: tuple[Tensor, Tensor]) -> None:
    held = held_out(*rows, EXPERTS[:3])
    wanted = Normal(held.mean, held.variance.sqrt()).log_prob(held.y.unsqueeze(-1))
    assert_close(held.log_density(), wanted, rtol=1e-10, atol=1e-10)


def test_held_out_predictions_of_wrong_shape_or_value_are_refused(rows: tuple[Tensor, Tensor]) -> None:
    held = held_out(*rows, EXPERTS[:3])
    with pytest.raises(ShapeError, match=r"`held_out\.mean` must have shape \(80, 2\).*got \(80, 3\)"):
        ConfidenceGate(EXPERTS[:2], held)
    with pytest.raises(NonFiniteError, match=r"held_out\.y"):
        CascadeGate(EXPERTS[:3], [1, 1, 1], 2, held_out=held._replace(y=held.y / 0))
    with pytest.raises(InputError, match="at least 2 held-out rows; got 1"):
        ConfidenceGate(EXPERTS[:3], HeldOut(*(part[:1] for part in held)))


@pytest.mark.parametrize("make", [lambda: ConstantGate(3), lambda: SoftmaxGate(3, 2), cascade])
def test_learning_from_held_out_rows_never_loses_and_beats_equal_weights(make: Callable, rows) -> None:
    gate, held = make(), held_out(*rows, EXPERTS[:3])
    trace = learn_from_held_out(gate, held)
    assert all(new >= old - 1e-9 for old, new in pairwise(trace))
    learned = torch.logsumexp(gate.log_probs(held.X) + held.log_density(), -1).mean()
    assert float(learned) > float(torch.logsumexp(held.log_density() - math.log(3), -1).mean())
    cost = float((gate.log_probs(held.X).exp() * getattr(gate, "total_costs", torch.zeros(3))).sum())
    assert cost >= 0


def test_the_objective_of_learning_is_the_log_score_plus_the_prior(rows: tuple[Tensor, Tensor]) -> None:
    gate, held = SoftmaxGate(3, 2), held_out(*rows, EXPERTS[:3])
    trace = learn_from_held_out(gate, held, max_iterations=200, tolerance=1e-10)
    score = torch.logsumexp(gate.log_probs(held.X) + held.log_density(), -1).sum()
    assert_close(trace[-1], float(score - 0.5 * gate.precision * gate.weights.square().sum()), rtol=0, atol=1e-4)


def test_cascade_probabilities_equal_a_loop(rows: tuple[Tensor, Tensor], normal) -> None:
    X, _ = rows
    gate = cascade()
    gate.fit_step(X, normal(80, 3).softmax(-1))
    for x in X[:5]:
        outputs = [expert(x[None]) for expert in EXPERTS[:3]]
        left, probs = 1.0, []
        for j in range(2):
            sigma = float(outputs[j][1].sqrt())
            u = [math.log(sigma), 0.0, 0.0]
            if j:
                u[1] = abs(float(outputs[j][0] - outputs[j - 1][0]))
                u[2] = math.log(sigma / float(outputs[j - 1][1].sqrt()))
            taken = float(torch.sigmoid(gate.weights[j] @ torch.tensor([1.0, *x, *u], dtype=torch.float64)))
            probs.append(left * taken)
            left *= 1 - taken
        wanted = torch.tensor([*probs, left], dtype=torch.float64)
        assert_close(gate.log_probs(x[None])[0].exp(), wanted, rtol=1e-10, atol=1e-12)
        cost = float(wanted @ torch.tensor([0.1, 1.1, 11.1], dtype=torch.float64))
        assert_close(float(gate.expected_cost(x[None])), cost, rtol=1e-10, atol=0)


def test_a_higher_price_buys_less(rows: tuple[Tensor, Tensor]) -> None:
    costs, scores = [], []
    for price in (0.0, 0.05, 0.3):
        gate, held = cascade(price=price), held_out(*rows, EXPERTS[:3])
        learn_from_held_out(gate, held)
        costs.append(float(gate.expected_cost(held.X).mean()))
        scores.append(float(torch.logsumexp(gate.log_probs(held.X) + held.log_density(), -1).mean()))
    assert costs[0] > costs[1] > costs[2]
    assert scores[0] > scores[2]


def test_cascade_responsibilities_harden_to_the_cheapest_sum_of_loss_and_cost(rows: tuple[Tensor, Tensor]) -> None:
    """JEI-DNN's target argmin_j [loss_j + λ C_j], for an even gate and sharp densities."""
    gate, held = cascade(price=0.3), held_out(*rows, EXPERTS[:3])
    even = gate.expected_log_probs(held.X) - gate.log_probs(held.X)
    target = (-held.log_density() + 0.3 * gate.total_costs).argmin(-1)
    assert torch.equal((held.log_density() + even).argmax(-1), target)


def test_route_asks_only_who_is_needed(rows: tuple[Tensor, Tensor]) -> None:
    asked = [0, 0, 0]

    def counted(j: int) -> ExpertOutput:
        def expert(X: Tensor) -> tuple[Tensor, Tensor]:
            asked[j] += len(X)
            return EXPERTS[j](X)

        return expert

    X, _ = rows
    gate = CascadeGate(
        [counted(j) for j in range(3)], [0.1, 1.0, 10.0], 2, price=0.04, held_out=held_out(*rows, EXPERTS[:3])
    )
    learn_from_held_out(gate, gate.held_out)
    asked[:] = [0, 0, 0]
    route = gate.route(X)
    assert asked == [80, int((route.stage > 0).sum()), int((route.stage > 1).sum())]
    assert 80 > asked[2] > 0
    mean, variance = outputs_of(EXPERTS[:3], X)
    assert_close(route.mean, mean.gather(-1, route.stage[:, None])[:, 0])
    assert_close(route.variance, variance.gather(-1, route.stage[:, None])[:, 0])
    assert_close(float(route.cost.sum()), 0.1 * asked[0] + asked[1] + 10.0 * asked[2])
    probs = gate.log_probs(X).exp()
    stops = probs[:, 0] >= 0.5
    assert torch.equal(route.stage == 0, stops)


def test_a_stage_that_nothing_reaches_keeps_its_prior(rows: tuple[Tensor, Tensor]) -> None:
    X, _ = rows
    gate, r = cascade(), torch.eye(3, dtype=torch.float64)[:1].expand(80, 3)
    gate.fit_step(X, r)
    assert_close(gate.weights[1], torch.zeros(6, dtype=torch.float64))
    assert bool(gate.bound(X, r).isfinite())
    assert gate.route(X).stage.tolist() == [0] * 80


def test_cascades_refuse_wrong_costs_and_files() -> None:
    with pytest.raises(InputError, match="a cost for each; got 2 experts and 1 costs"):
        CascadeGate(EXPERTS[:2], [1.0], 2)
    with pytest.raises(InputError, match="must not be negative"):
        CascadeGate(EXPERTS[:2], [1.0, -1.0], 2)
    with pytest.raises(UnsupportedKernelError, match="experts are functions"):
        cascade().description()


def test_confidence_features_equal_a_loop(rows: tuple[Tensor, Tensor]) -> None:
    X, _ = rows
    held = held_out(*rows, EXPERTS[:2])
    gate = ConfidenceGate(EXPERTS[:2], held)
    shares = held.log_density().softmax(-1)
    h = torch.cdist(X, X).sort(-1).values[:, 10].sort().values[39]
    raw = []
    for i in range(80):
        weight = torch.tensor(
            [0.0 if j == i else math.exp(-0.5 * float((X[i] - X[j]).norm() / h) ** 2) for j in range(80)]
        )
        rho = weight.double() @ shares / weight.double().sum()
        gap = float((held.mean[i, 0] - held.mean[i, 1]).abs()) / 2
        raw.append(
            torch.cat([0.5 * held.variance[i].log(), torch.tensor([gap, gap]).double(), rho.clamp_min(1e-3).log()])
        )
    raw = torch.stack(raw)
    wanted = (raw - raw.mean(0)) / raw.std(0, unbiased=False).clamp_min(1e-3)
    assert_close(gate.held_out_features, wanted, rtol=1e-5, atol=1e-5)


def test_confidence_tells_the_seen_region_from_what_lies_outside(normal) -> None:
    """A linear expert that stays sure far away, and the prior; only leave-one-out rows tell where it may be trusted."""
    inside, outside = normal(150, 1) * 0.5, 3 + normal(50, 1) * 0.5
    X = torch.cat([inside, outside])
    y = torch.cat([inside[:, 0] + 0.2 * normal(150), normal(50)])

    def sure(X: Tensor) -> tuple[Tensor, Tensor]:
        return X[:, 0], 0 * X[:, 0] + 0.05

    gate = ConfidenceGate([sure, constant], held_out(X, y, [sure, constant]))
    trace = gate.learn()
    assert all(new >= old - 1e-9 for old, new in pairwise(trace))
    trusted = gate.log_probs(torch.cat([normal(200, 1) * 0.5, 3 + normal(200, 1) * 0.5])).exp()[:, 0]
    seen, unseen = trusted[:200], trusted[200:]
    assert float((seen[:, None] > unseen).double().mean()) > 0.98  # area under the curve
    assert float(seen.mean()) > 0.9
    assert float(unseen.mean()) < 0.15


def test_confidence_sends_rows_far_from_a_gps_data_to_the_prior(normal) -> None:
    X = normal(60, 1)
    y = (2 * X[:, 0]).sin() + 0.1 * normal(60)
    gp = ExactGP(X, y)
    gp.likelihood.noise = 0.02

    def expert(X: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = gp.marginals(X)
        return mean.detach(), variance.detach() + 0.02

    with torch.no_grad():
        loo_mean, loo_variance = gp.leave_one_out()
    held = HeldOut(X, y, torch.stack([loo_mean, 0 * y], -1), torch.stack([loo_variance, 0 * y + 1], -1))
    gate = ConfidenceGate([expert, constant], held)
    gate.learn()
    trusted = gate.log_probs(torch.tensor([[0.0], [0.5], [9.0], [-12.0]], dtype=torch.float64)).exp()[:, 0]
    assert float(trusted[:2].min()) > 0.9
    assert float(trusted[2:].max()) < float(trusted[:2].min())


def test_flattening_is_the_mixture_written_out(rows: tuple[Tensor, Tensor]) -> None:
    gate = ConfidenceGate(EXPERTS[:3], held_out(*rows, EXPERTS[:3]))
    gate.learn()
    X = rows[0][:5]
    pi = gate.log_probs(X).exp()
    mean, variance = outputs_of(EXPERTS[:3], X)
    y = torch.linspace(-1, 1, 5, dtype=torch.float64)
    prior = Normal(0.5, 2.0**0.5).log_prob(y).exp()
    each = Normal(mean, variance.sqrt()).log_prob(y[:, None]).exp()
    wanted = (pi * (pi * each + (1 - pi) * prior[:, None])).sum(-1).log()
    flat = gate.flattened(X, prior_mean=0.5, prior_variance=2.0)
    assert_close(torch.from_numpy(flat.log_prob(y.numpy())), wanted, rtol=0, atol=1e-6)  # the prior's scale is float32


def test_a_mixture_takes_a_confidence_gate(rows: tuple[Tensor, Tensor]) -> None:
    X, y = rows
    moe = MixtureOfExperts(X, y, n_experts=2, noise=0.05)
    loo = moe.leave_one_out()
    held = HeldOut(X, y, torch.tensor(loo.component_means), torch.tensor(loo.component_variances))

    def expert(k: int) -> ExpertOutput:
        def output(X_new: Tensor) -> tuple[Tensor, Tensor]:
            mean, variance = moe.all_experts[k].marginals(X_new)
            return mean, variance + 0.05

        return output

    gate = ConfidenceGate([expert(0), expert(1)], held)
    gate.learn()
    moe.gate = gate
    assert np.isfinite(moe.predictive(X[:4] + 0.1).log_prob(y[:4].numpy())).all()
    with pytest.raises(UnsupportedKernelError, match="experts are functions"):
        gate.description()


def test_repeated_rows_are_taken() -> None:
    X, y = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    gate = ConfidenceGate(EXPERTS[:2], held_out(X, y, EXPERTS[:2]))
    gate.learn()
    assert bool(gate.log_probs(X).isfinite().all())
