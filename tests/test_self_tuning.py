"""Self-tuning networks: layers that answer hyperparameters, ranges, and a penalty known in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpmoe.bo.offline.hyper_layers import HyperConv, HyperLinear
from gpmoe.bo.offline.hyper_ranges import HalfLine, HyperDraw, Interval
from gpmoe.bo.offline.self_tuner import SelfTuner
from gpmoe.errors import DtypeError, InputError, NonFiniteError, ShapeError

RATES = {"n_steps": 2500, "batch_size": 10_000, "learning_rate": 0.02, "hyper_rate": 0.03}
Normal = Callable[..., Tensor]


class Ridge:
    """Linear regression with an L2 penalty λ: L_T = |y - Xw|²/n + λ|w|², L_V = |y_V - X_V w|²/n_V.

    w*(λ) = (X'X/n + λ I)⁻¹ X'y/n. Each row stands 32 times, so that perturbations average and the minima stay.
    """

    def __init__(self, seed: int, n: int = 40, d: int = 30) -> None:
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(2 * n, d, dtype=torch.float64, generator=generator)
        w = 0.5 * torch.randn(d, dtype=torch.float64, generator=generator)
        y = X @ w + 2 * torch.randn(2 * n, dtype=torch.float64, generator=generator)
        self.training = X[:n].repeat(32, 1), y[:n].repeat(32)
        self.validation = X[n:].repeat(32, 1), y[n:].repeat(32)
        self.layer = HyperLinear(d, 1, n_hyper=1)
        for bias in (self.layer.bias, self.layer.response_bias):
            bias.data.zero_()
            bias.requires_grad_(False)

    def error(self, X: Tensor, y: Tensor, hyper: HyperDraw) -> Tensor:
        return (self.layer(X, hyper.raw).squeeze(-1) - y).square().mean()

    def penalised(self, X: Tensor, y: Tensor, hyper: HyperDraw) -> Tensor:
        weight, _ = self.layer.best_response(hyper.raw)
        return self.error(X, y, hyper) + (hyper["penalty"] * weight.square().sum((-2, -1))).mean()

    def weights(self, penalty: float) -> Tensor:
        X, y = self.training
        return torch.linalg.solve(X.mT @ X / len(X) + penalty * torch.eye(X.shape[1], dtype=X.dtype), X.mT @ y / len(X))

    def optimum(self) -> float:
        X, y = self.validation
        loss = lambda log: float((X @ self.weights(math.exp(log)) - y).square().mean())  # noqa: E731
        return math.exp(minimize_scalar(loss, bounds=(-6, 4), method="bounded", options={"xatol": 1e-8}).x)


@pytest.fixture(scope="module", params=[0, 1])
def tuned(request: pytest.FixtureRequest) -> tuple[Ridge, SelfTuner]:
    ridge = Ridge(seed=request.param)
    tuner = SelfTuner(ridge.layer, {"penalty": HalfLine(2.0)}, entropy_weight=0.05)
    tuner.fit(ridge.penalised, ridge.error, ridge.training, ridge.validation, **RATES)
    return ridge, tuner


def test_the_learned_ridge_penalty_is_within_five_percent_of_the_closed_form(tuned: tuple[Ridge, SelfTuner]) -> None:
    ridge, tuner = tuned
    assert tuner.values["penalty"] == pytest.approx(ridge.optimum(), rel=0.05)


def test_the_best_response_equals_the_closed_form_near_the_learned_penalty(tuned: tuple[Ridge, SelfTuner]) -> None:
    ridge, tuner = tuned
    for offset in (-0.1, 0.0, 0.1):
        raw = tuner.raw.detach() + offset
        weight, _ = ridge.layer.best_response(raw)
        exact = ridge.weights(float(tuner.ranges["penalty"].value(raw)))
        assert float((weight[0].detach() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_equals_an_ordinary_one_with_its_best_response(kind: str, normal: Normal) -> None:
    linear = kind == "linear"
    layer = HyperLinear(3, 2, n_hyper=2) if linear else HyperConv(3, 2, 3, n_hyper=2, stride=2, padding=1)
    x, raw = normal(4, 3) if linear else normal(4, 3, 6, 7), 10 * normal(4, 2)
    weight, bias = layer.best_response(raw)
    for i, answer in enumerate(layer(x, raw)):
        if isinstance(layer, HyperConv):
            plain = torch.nn.functional.conv2d(x[i : i + 1], weight[i], bias[i], stride=2, padding=1)[0]
        else:
            plain = torch.nn.functional.linear(x[i], weight[i], bias[i])
        torch.testing.assert_close(answer, plain, rtol=0, atol=1e-12)


def test_one_set_of_hyperparameters_serves_a_whole_batch(normal: Normal) -> None:
    layer, x, raw = HyperLinear(3, 2, n_hyper=1), normal(5, 4, 3), normal(1)
    assert layer(x, raw).shape == (5, 4, 2)
    torch.testing.assert_close(layer(x, raw), layer(x, raw.expand(5, 4, 1)))
    image = normal(2, 3, 5, 5)
    convolution = HyperConv(3, 4, 3, n_hyper=1)
    torch.testing.assert_close(convolution(image, raw), convolution(image, raw.expand(2, 1)))


def test_gradients_of_layers_are_right(normal: Normal) -> None:
    linear, convolution = HyperLinear(3, 2, n_hyper=2), HyperConv(1, 2, 2, n_hyper=2)
    x, image, raw = normal(2, 3), normal(2, 1, 3, 3), normal(2, 2)
    for part in (x, image, raw):
        part.requires_grad_()
    assert torch.autograd.gradcheck(linear, (x, raw))
    assert torch.autograd.gradcheck(convolution, (image, raw))


@pytest.mark.parametrize("where", [Interval(-1.0, 3.0, start=0.5), HalfLine(0.3), HalfLine(2.0, low=1.5)])
def test_a_range_returns_what_it_was_given_and_keeps_its_ends(where: Interval | HalfLine) -> None:
    raw = torch.tensor(where.raw(where.start), dtype=torch.float64)
    assert float(where.value(raw)) == pytest.approx(where.start, abs=1e-12)
    far = where.value(torch.tensor([-30.0, 30.0], dtype=torch.float64))
    assert float(far[0]) == pytest.approx(where.low, abs=1e-9)
    assert float(far[1]) == pytest.approx(where.high if isinstance(where, Interval) else 30.0 + where.low, abs=1e-9)


def test_a_draw_reads_by_name_in_the_order_of_the_ranges(normal: Normal) -> None:
    ranges = {"dropout": Interval(0.0, 1.0, start=0.5), "penalty": HalfLine(1.0)}
    raw = normal(6, 2)
    draw = HyperDraw(ranges, raw)
    assert list(draw) == ["dropout", "penalty"]
    torch.testing.assert_close(draw["dropout"], raw[:, 0].sigmoid())
    torch.testing.assert_close(draw["penalty"], torch.nn.functional.softplus(raw[:, 1]))


def test_a_step_moves_its_own_parameters_alone() -> None:
    ridge = Ridge(seed=0, n=6, d=2)
    tuner = SelfTuner(ridge.layer, {"penalty": HalfLine(1.0)})
    weights = torch.optim.Adam(ridge.layer.parameters(), lr=0.1)
    hyper = torch.optim.Adam([tuner.raw, tuner.raw_scale], lr=0.1)

    def state() -> tuple[Tensor, Tensor]:
        of_layer = torch.cat([p.detach().reshape(-1) for p in ridge.layer.parameters()])
        return of_layer, torch.cat([tuner.raw, tuner.raw_scale]).detach().clone()

    before = state()
    tuner.training_step(ridge.penalised, ridge.training, weights)
    trained = state()
    tuner.validation_step(ridge.error, ridge.validation, hyper)
    validated = state()
    assert not torch.equal(before[0], trained[0])
    assert torch.equal(before[1], trained[1])
    assert torch.equal(trained[0], validated[0])
    assert bool((trained[1] != validated[1]).all())


def test_two_of_three_steps_after_the_warm_up_train() -> None:
    ridge = Ridge(seed=0, n=6, d=2)
    tuner = SelfTuner(ridge.layer, {"penalty": HalfLine(1.0)})
    report = tuner.fit(ridge.penalised, ridge.error, ridge.training, ridge.validation, n_steps=40, n_warm_up=10)
    assert (len(report.training_trace), len(report.validation_trace)) == (30, 10)
    assert report.value_trace["penalty"][-1] == report.values["penalty"] == tuner.values["penalty"]


def test_the_entropy_is_that_of_the_perturbations() -> None:
    tuner = SelfTuner(HyperLinear(1, 1, n_hyper=2), {"a": HalfLine(1.0), "b": HalfLine(2.0)}, scale=0.3)
    by_torch = torch.distributions.Normal(0.0, torch.tensor([0.3, 0.3], dtype=torch.float64)).entropy().sum()
    torch.testing.assert_close(tuner.entropy().detach(), by_torch)


def test_a_bonus_for_entropy_widens_the_perturbations() -> None:
    scales = []
    for weight in (0.0, 10.0):
        ridge = Ridge(seed=0, n=6, d=2)
        tuner = SelfTuner(ridge.layer, {"penalty": HalfLine(1.0)}, entropy_weight=weight)
        report = tuner.fit(ridge.penalised, ridge.error, ridge.training, ridge.validation, n_steps=60, n_warm_up=0)
        scales.append(report.scales["penalty"])
    assert scales[0] < scales[1]


def test_a_seed_fixes_the_run_and_leaves_the_global_generator() -> None:
    def run(seed: int) -> list[float]:
        ridge = Ridge(seed=0, n=6, d=2)
        tuner = SelfTuner(ridge.layer, {"penalty": HalfLine(1.0)}, seed=seed)
        fit = {"n_steps": 20, "n_warm_up": 5, "batch_size": 7}
        return tuner.fit(ridge.penalised, ridge.error, ridge.training, ridge.validation, **fit).training_trace

    state = torch.get_rng_state()
    assert run(1) == run(1)
    assert run(1) != run(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_in_float32_stays_in_float32() -> None:
    layer = HyperLinear(2, 1, n_hyper=1).float()
    tuner = SelfTuner(layer, {"penalty": HalfLine(1.0)})
    assert tuner.raw.dtype == torch.float32
    assert layer(torch.ones(3, 2), tuner.raw).dtype == torch.float32
    with pytest.raises(DtypeError, match="`raw` must be"):
        layer(torch.ones(3, 2), tuner.raw.double())


def test_wrong_arguments_are_refused() -> None:
    layer, ranges = HyperLinear(2, 1, n_hyper=1), {"penalty": HalfLine(1.0)}
    with pytest.raises(InputError, match="low < start < high"):
        Interval(0.0, 1.0, start=1.0)
    with pytest.raises(InputError, match="low < start"):
        HalfLine(-1.0)
    with pytest.raises(InputError, match="n_hyper"):
        HyperLinear(2, 1, n_hyper=0)
    with pytest.raises(InputError, match="empty"):
        SelfTuner(layer, {})
    with pytest.raises(InputError, match="scale > 0"):
        SelfTuner(layer, ranges, scale=0.0)
    with pytest.raises(ShapeError, match="`raw` must have shape"):
        layer(torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))


def test_data_that_cannot_be_learned_from_are_refused() -> None:
    layer = HyperLinear(2, 1, n_hyper=1)
    tuner = SelfTuner(layer, {"penalty": HalfLine(1.0)})
    X, y = torch.ones(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def loss(X: Tensor, y: Tensor, hyper: HyperDraw) -> Tensor:
        return (layer(X, hyper.raw).squeeze(-1) - y).square().mean()

    with pytest.raises(ShapeError, match="equally many rows"):
        tuner.fit(loss, loss, (X, y[:2]), (X, y))
    with pytest.raises(InputError, match="n_steps"):
        tuner.fit(loss, loss, (X, y), (X, y), n_steps=50)
    with pytest.raises(NonFiniteError, match=r"training loss is inf.*penalty"):
        tuner.fit(loss, loss, (X, y + math.inf), (X, y))
