"""Offline optimisation by translation: gradients, the bridge, and designs better than the table's."""

import math

import pytest
import torch
from torch import Tensor

from gpmoe.bo.offline.bridge import Bridge, BridgeSettings, bridge_step, bridge_variance, train_bridge
from gpmoe.bo.offline.root import propose_designs
from gpmoe.bo.offline.synthetic_pairs import PosteriorMean, SyntheticSettings, synthetic_pairs
from gpmoe.errors import InputError, NonFiniteError, ShapeError

FEW = SyntheticSettings(n_functions=8, n_rows=100, n_starts=64, n_steps=60, step=0.1, lengthscale=1.0)
SHORT = BridgeSettings(hidden=32, n_steps=400, batch_size=128, n_sampling_steps=30)


@pytest.fixture
def hill(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The lower half of 200 values of -|x - (½, ½)|² on the square (-2, 2)²: the hilltop is missing."""
    X = 4 * torch.rand(200, 2, generator=generator) - 2
    y = -(X - 0.5).square().sum(-1)
    kept = y <= y.median()
    return X[kept], y[kept]


def value(X: Tensor) -> Tensor:
    return -(X - 0.5).square().sum(-1)


def test_the_posterior_mean_and_its_gradient_equal_dense_algebra(table: tuple[Tensor, Tensor]) -> None:
    X, y = table
    g = PosteriorMean(X, y, lengthscale=1.3, outputscale=2.0, noise=0.1)
    x = (X[:3] + 0.2).requires_grad_()

    def k(a: Tensor, b: Tensor) -> Tensor:
        return 2.0 * (-(a.unsqueeze(1) - b).square().sum(-1) / (2 * 1.3**2)).exp()

    by_hand = k(x, X) @ torch.linalg.solve(k(X, X) + 0.1 * torch.eye(20, dtype=X.dtype), y)
    (gradient,) = torch.autograd.grad(by_hand.sum(), x)
    found, slope = g.value_and_gradient(x.detach())
    torch.testing.assert_close(found, by_hand.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(slope, gradient, rtol=0, atol=1e-10)


def test_the_good_end_of_every_pair_is_better_than_the_poor_one(hill: tuple[Tensor, Tensor]) -> None:
    pairs = synthetic_pairs(*hill, FEW, torch.Generator().manual_seed(0))
    assert bool((pairs.y_high > pairs.y_low + 1e-3).all())
    assert pairs.x_high.shape == pairs.x_low.shape == (len(pairs.y_low), 2)
    assert pairs.best.shape == (8,)


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_a_step_keeps_the_marginals_of_the_bridge(eta: float, generator: torch.Generator) -> None:
    n, m = 40_000, (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
    x_high, x_low = torch.full((n, 1), 2.0, dtype=torch.float64), torch.full((n, 1), -1.0, dtype=torch.float64)

    def normal() -> Tensor:
        return torch.randn(n, 1, dtype=torch.float64, generator=generator)

    x = 0.3 * x_high + 0.7 * x_low + bridge_variance(m[0]).sqrt() * normal()
    x = bridge_step(x, x_high, x_low, m, eta, normal())
    variance = 2 * (0.4 - 0.4**2)
    assert abs(float(x.mean()) - (0.6 * 2.0 - 0.4)) < 4 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4 * variance * math.sqrt(2 / n)


def test_a_walk_with_the_true_direction_ends_at_the_good_end() -> None:
    class Knowing(Bridge):
        def forward(self, x: Tensor, m: Tensor, y_high: Tensor, y_low: Tensor) -> Tensor:
            return x - 3.0

    bridge = Knowing(2, SHORT, torch.Generator().manual_seed(0))
    designs = bridge.sample(torch.zeros(5, 2), torch.ones(5), torch.zeros(5), torch.Generator().manual_seed(1))
    torch.testing.assert_close(designs, torch.full((5, 2), 3.0))


def test_training_and_sampling_give_the_two_values_in_one_order() -> None:
    seen: list[tuple[float, float]] = []

    class Noting(Bridge):
        def forward(self, x: Tensor, m: Tensor, y_high: Tensor, y_low: Tensor) -> Tensor:
            seen.append((float(y_high[0]), float(y_low[0])))
            return torch.zeros_like(x)

    bridge = Noting(1, BridgeSettings(n_sampling_steps=2), torch.Generator().manual_seed(0))
    bridge.sample(torch.zeros(1, 1), torch.tensor([2.0]), torch.tensor([-1.0]), torch.Generator().manual_seed(0))
    assert seen == [(2.0, -1.0), (0.0, 0.0)] * 2


def test_proposals_beat_the_best_design_of_the_table(hill: tuple[Tensor, Tensor]) -> None:
    X, y = hill
    found = propose_designs(X, y, 16, synthetic=FEW, bridge=SHORT)
    assert float(value(found.designs).median()) > float(y.max())
    assert found.target > float(y.max())


def test_a_seed_fixes_the_proposals_and_leaves_the_global_generator(hill: tuple[Tensor, Tensor]) -> None:
    state = torch.get_rng_state()
    short = BridgeSettings(hidden=8, n_steps=5, n_sampling_steps=5)
    first, again, other = (propose_designs(*hill, 4, synthetic=FEW, bridge=short, seed=s).designs for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_network_learns_a_translation_from_pairs(hill: tuple[Tensor, Tensor]) -> None:
    pairs = synthetic_pairs(*hill, FEW, torch.Generator().manual_seed(0))
    losses = []
    for n_steps in (1, 300):
        bridge = train_bridge(pairs, BridgeSettings(hidden=32, n_steps=n_steps), torch.Generator().manual_seed(1))
        m = torch.full_like(pairs.y_low, 0.5)
        off = 0.5 * (pairs.x_low - pairs.x_high)
        with torch.no_grad():
            losses.append(float((bridge(pairs.x_high + off, m, pairs.y_high, pairs.y_low) - off).abs().mean()))
    assert losses[1] < 0.5 * losses[0]


def test_fewer_rows_than_designs_start_several_each(hill: tuple[Tensor, Tensor]) -> None:
    short = BridgeSettings(hidden=8, n_steps=2, n_sampling_steps=2)
    found = propose_designs(hill[0][:3], hill[1][:3], 7, synthetic=FEW, bridge=short)
    assert found.designs.shape == (7, 2)
    assert sorted(found.starts.bincount().tolist()) == [2, 2, 3]


def test_tables_that_teach_nothing_are_refused(hill: tuple[Tensor, Tensor]) -> None:
    X, y = hill
    with pytest.raises(InputError, match="equal y"):
        propose_designs(X, torch.ones(len(X)))
    with pytest.raises(ShapeError, match="one value for each of the"):
        propose_designs(X, y[:-1])
    with pytest.raises(NonFiniteError, match="`y` has nan"):
        propose_designs(X, torch.where(y == y[0], math.nan, y))
    with pytest.raises(InputError, match="n_designs"):
        propose_designs(X, y, 0)
    with pytest.raises(InputError, match="sizes positive"):
        SyntheticSettings(step=0.0)
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        BridgeSettings(drop=1.5)
