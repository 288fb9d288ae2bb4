"""Where inducing points are put: against a naive choice by conditional variances, and at the edges."""

import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DtypeError, InputError, NonFiniteError, ShapeError
from gpmoe.models.inducing_points import greedy_inducing_points, kmeans_inducing_points


def naive_choice(K: Tensor, p: int) -> list[int]:
    """Each time the row of largest variance given the rows before, by a dense solve."""
    chosen: list[int] = []
    for _ in range(p):
        C = K[chosen][:, chosen]
        variance = K.diagonal() - (K[:, chosen] * torch.linalg.solve(C, K[chosen]).mT).sum(-1)
        variance[chosen] = -1.0
        chosen.append(int(variance.argmax()))
    return chosen


@pytest.mark.parametrize("make", [MaternKernel, lambda: LinearKernel() + RBFKernel()], ids=["matern", "linear + rbf"])
def test_greedy_points_are_those_of_largest_conditional_variance(make, normal) -> None:
    X, kernel = normal(30, 2), make().double()
    K = kernel(X).to_dense().detach()
    assert_close(greedy_inducing_points(kernel, X, 8), X[naive_choice(K, 8)])


def test_greedy_points_leave_less_unexplained_than_random_ones(generator) -> None:
    X = 6 * torch.rand(300, 2, dtype=torch.float64, generator=generator)
    kernel = ScaleKernel(RBFKernel()).double()

    def unexplained(Z: Tensor) -> float:
        K = kernel(Z, X).to_dense()
        C = kernel(Z).to_dense() + 1e-10 * torch.eye(len(Z), dtype=Z.dtype)
        return (kernel(X, diag=True) - (K * torch.linalg.solve(C, K)).sum(0)).sum().item()

    assert unexplained(greedy_inducing_points(kernel, X, 60)) < 0.5 * unexplained(X[:60])


def test_all_rows_are_chosen_if_as_many_are_asked_for(normal) -> None:
    X = normal(12, 2)
    Z = greedy_inducing_points(MaternKernel(nu=0.5).double(), X, 50)
    assert_close(Z[Z[:, 0].argsort()], X[X[:, 0].argsort()])


def test_repeated_rows_and_low_rank_kernels_give_fewer_points(normal) -> None:
    X = normal(5, 3).repeat(4, 1)
    assert len(greedy_inducing_points(RBFKernel().double(), X, 20)) == 5
    assert len(greedy_inducing_points(LinearKernel().double(), normal(30, 3), 20)) == 3


def test_one_row_is_its_own_inducing_point(normal) -> None:
    X = normal(1, 2)
    assert_close(greedy_inducing_points(RBFKernel().double(), X, 4), X)
    assert_close(kmeans_inducing_points(X, 4, seed=0), X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_keep_their_dtype_and_no_gradient(dtype, normal) -> None:
    X = normal(30, 2).to(dtype)
    for Z in (greedy_inducing_points(RBFKernel().to(dtype), X, 5), kmeans_inducing_points(X, 5, seed=0)):
        assert (Z.dtype, Z.requires_grad, tuple(Z.shape)) == (dtype, False, (5, 2))


def test_centres_of_clusters_are_found(normal) -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    X = (centers.unsqueeze(1) + 0.1 * normal(3, 40, 2)).reshape(-1, 2)
    Z = kmeans_inducing_points(X, 3, seed=0)
    assert float(torch.cdist(centers, Z).min(-1).values.max()) < 0.1


def test_a_seed_fixes_the_centres(normal) -> None:
    X = normal(200, 3)
    first, again, other = (kmeans_inducing_points(X, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fewer_distinct_rows_give_fewer_centres(normal) -> None:
    X = normal(4, 2)
    assert len(kmeans_inducing_points(X.repeat(5, 1), 10, seed=0)) == 4


@pytest.mark.parametrize(
    ("X", "p", "error"),
    [
        (torch.zeros(3, 2), 0, InputError),
        (torch.zeros(3), 2, ShapeError),
        (torch.zeros(3, 2, dtype=torch.int64), 2, DtypeError),
        (torch.full((3, 2), float("nan")), 2, NonFiniteError),
        (torch.zeros(0, 2), 2, ShapeError),
    ],
    ids=["no points", "one dimension", "integers", "nan", "no rows"],
)
def test_what_can_not_be_done_is_named(X: Tensor, p: int, error) -> None:
    with pytest.raises(error, match=r"`[Xp]`"):
        greedy_inducing_points(RBFKernel(), X, p)
    with pytest.raises(error, match=r"`[Xp]`"):
        kmeans_inducing_points(X, p, seed=0)
