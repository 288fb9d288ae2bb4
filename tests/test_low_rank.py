"""Low-rank approximations of a covariance from its rows."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.low_rank import LowRank, nystrom, pivoted_cholesky, randomly_pivoted_cholesky
from gpmoe.linalg.operator import DenseOperator

Approximation = Callable[[DenseOperator, int], LowRank]


def seeded(function: Callable[..., LowRank], operator: DenseOperator, rank: int) -> LowRank:
    return function(operator, rank, generator=torch.Generator().manual_seed(1))


ALL = [pivoted_cholesky, partial(seeded, nystrom), partial(seeded, randomly_pivoted_cholesky)]
NAMES = ["pivoted", "nystrom", "randomly pivoted"]


@pytest.fixture
def smooth(normal: Callable[..., Tensor]) -> DenseOperator:
    """A covariance of 150 points whose spectrum falls fast."""
    X = normal(150, 2)
    return DenseOperator((-0.5 * torch.cdist(X, X).square()).exp(), torch.full((150,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("approximate", ALL, ids=NAMES)
def test_the_approximation_is_the_nystrom_approximation_of_its_pivots(
    approximate: Approximation, smooth: DenseOperator
) -> None:
    low_rank = approximate(smooth, 20)
    S = low_rank.pivots
    K = smooth.K
    naive = K[:, S] @ torch.linalg.solve(K[S][:, S], K[S])
    assert len(S.unique()) == 20
    torch.testing.assert_close(low_rank.F.mT @ low_rank.F, naive, atol=1e-7, rtol=0)
    torch.testing.assert_close(torch.tensor(low_rank.left), (K - naive).trace(), atol=1e-6, rtol=0, check_dtype=False)


@pytest.mark.parametrize("approximate", ALL, ids=NAMES)
def test_the_approximation_never_exceeds_the_covariance(approximate: Approximation, smooth: DenseOperator) -> None:
    F = approximate(smooth, 30).F
    assert float(torch.linalg.eigvalsh(smooth.K - F.mT @ F).min()) > -1e-9


@pytest.mark.parametrize("approximate", ALL, ids=NAMES)
def test_a_covariance_of_low_rank_is_exhausted_early(approximate: Approximation, normal: Callable[..., Tensor]) -> None:
    A = normal(60, 4)
    K = torch.cat([A, A]) @ torch.cat([A, A]).mT  # every row twice
    low_rank = approximate(DenseOperator(K, K.new_ones(120)), 50)
    assert low_rank.F.shape[0] <= 6
    torch.testing.assert_close(low_rank.F.mT @ low_rank.F, K, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("approximate", ALL, ids=NAMES)
def test_rank_zero_and_more_than_there_are_rows(approximate: Approximation, smooth: DenseOperator) -> None:
    assert approximate(smooth, 0).F.shape == (0, 150)
    assert len(approximate(smooth, 1000).F) <= 150
    with pytest.raises(InputError, match="rank"):
        approximate(smooth, -1)


@pytest.mark.parametrize("approximate", ALL, ids=NAMES)
def test_float32_stays_float32(approximate: Approximation, smooth: DenseOperator) -> None:
    low_rank = approximate(DenseOperator(smooth.K.float(), smooth.noise.float()), 10)
    assert low_rank.F.dtype == torch.float32
    S = low_rank.pivots
    naive = smooth.K[:, S] @ torch.linalg.solve(smooth.K[S][:, S], smooth.K[S])
    torch.testing.assert_close((low_rank.F.mT @ low_rank.F).double(), naive, atol=2e-3, rtol=0)


def test_greedy_pivots_are_the_largest_remaining_diagonal(smooth: DenseOperator) -> None:
    E = smooth.K.clone() + torch.diag(torch.linspace(0.3, 0, 150).double())
    operator, naive = DenseOperator(E.clone(), smooth.noise), []
    for _ in range(5):
        i = int(E.diagonal().argmax())
        naive.append(i)
        E -= torch.outer(E[:, i], E[:, i]) / E[i, i].clone()
    assert pivoted_cholesky(operator, 5).pivots.tolist() == naive


def test_random_pivots_follow_the_remaining_diagonal(normal: Callable[..., Tensor]) -> None:
    """The second pivot given the first, over many draws, against its exact law."""
    X = normal(6, 1)
    K = (-torch.cdist(X, X).square()).exp()
    operator = DenseOperator(K, K.new_ones(6))
    draws = [
        tuple(randomly_pivoted_cholesky(operator, 2, generator=torch.Generator().manual_seed(seed)).pivots.tolist())
        for seed in range(2000)
    ]
    expected = torch.zeros(6, dtype=torch.float64)
    for first in range(6):
        left = (K.diagonal() - K[:, first] ** 2 / K[first, first]).clamp_min(0)
        expected += left / left.sum() / 6
    seen = torch.bincount(torch.tensor([pair[1] for pair in draws]), minlength=6) / len(draws)
    error = (expected * (1 - expected) / len(draws)).sqrt()
    assert bool(((seen - expected).abs() < 4 * error).all())


def test_random_pivots_beat_uniform_ones_where_points_cluster(normal: Callable[..., Tensor]) -> None:
    X = torch.cat([0.01 * normal(300, 2), 3 * normal(60, 2)])
    operator = DenseOperator((-0.5 * torch.cdist(X, X).square()).exp(), torch.ones(360, dtype=torch.float64))
    assert seeded(randomly_pivoted_cholesky, operator, 30).left < 0.6 * seeded(nystrom, operator, 30).left


def test_the_same_seed_gives_the_same_pivots(smooth: DenseOperator) -> None:
    a, b = (seeded(randomly_pivoted_cholesky, smooth, 20) for _ in range(2))
    assert a.pivots.tolist() == b.pivots.tolist()
    assert bool((a.F == b.F).all())
