"""Many small problems at once against a loop over dense algebra, one problem at a time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from gpmoe.errors import (
    DifferentiationError,
    DtypeError,
    InputError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from gpmoe.linalg import small_dense
from gpmoe.linalg.ragged import Ragged
from gpmoe.linalg.ragged_blocks import solve_blocks
from gpmoe.linalg.small_batch import Family, SmallGPs
from gpmoe.linalg.threads import at_most_threads

Normal = Callable[..., Tensor]
FAMILIES = get_args(Family)
SIZES = (3, 0, 17, 1, 8, 30)


def offsets_of(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *np.cumsum(sizes)])


class Problem:
    """Data and hyperparameters of a few problems, each with its own."""

    def __init__(self, normal: Normal, family: Family = "matern52", sizes: tuple[int, ...] = SIZES, d: int = 2) -> None:
        count, total = len(sizes), sum(sizes)
        self.family, self.offsets = family, offsets_of(sizes)
        self.data = {"X": normal(total, d), "y": normal(total)}
        self.hyper = {
            "lengthscale": normal(count, d).exp(),
            "noise": 0.1 * normal(count).exp(),
            "outputscale": normal(count).exp(),
            "mean": normal(count),
        }
        if family == "rational_quadratic":
            self.hyper["shape"] = normal(count).exp()
        self.X_new = normal(9, d)
        self.new_offsets = torch.tensor([0, 2, 3, 3, *[5] * (count - 4), 9])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.data.values(), *self.hyper.values())

    def model(self, X: Tensor, y: Tensor, *hyper: Tensor, **more: Any) -> SmallGPs:
        named = dict(zip(self.hyper, hyper, strict=True))
        return SmallGPs(X, y, self.offsets, family=self.family, **named, **more)

    def likelihoods(self, *tensors: Tensor) -> Tensor:
        return self.model(*tensors).log_marginal_likelihood()

    def posterior(self, X_new: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(*tensors).posterior(X_new, self.new_offsets)

    def kernel(self, b: int, X1: Tensor, X2: Tensor) -> Tensor:
        """k of problem b as the books write it; GPyTorch's distances are good to 1e-8 only where rows coincide."""
        r2 = (((X1[:, None] - X2) / self.hyper["lengthscale"][b]) ** 2).sum(-1)
        s, alpha = r2.sqrt(), self.hyper.get("shape", {b: torch.ones(())})[b]
        k: Tensor = {
            "rbf": (-0.5 * r2).exp(),
            "matern12": (-s).exp(),
            "matern32": (1 + math.sqrt(3) * s) * (-math.sqrt(3) * s).exp(),
            "matern52": (1 + math.sqrt(5) * s + 5 * r2 / 3) * (-math.sqrt(5) * s).exp(),
            "rational_quadratic": (1 + r2 / (2 * alpha)) ** -alpha,
        }[self.family]
        return self.hyper["outputscale"][b] * k

    def dense(self, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """X, residual and covariance of problem b."""
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        X = self.data["X"][rows]
        C = self.kernel(b, X, X) + self.hyper["noise"][b] * torch.eye(len(X)).double()
        return X, self.data["y"][rows] - self.hyper["mean"][b], C


@pytest.fixture(params=["compiled", "padded"])
def path(request: pytest.FixtureRequest) -> str:
    with taking(request.param):
        yield request.param


@contextmanager
def taking(path: str) -> Iterator[None]:
    """Make every call take one of the two implementations; on one thread, since torch's wait for each other."""
    with pytest.MonkeyPatch.context() as patch, at_most_threads(1):
        if path == "padded":
            patch.setattr("gpmoe.linalg.small_problems.AVAILABLE", False)
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_equal_a_loop_over_dense_densities(family: Family, path: str, normal: Normal) -> None:
    problem = Problem(normal, family)
    got = problem.likelihoods(*problem.tensors)
    for b, size in enumerate(SIZES):
        _, residual, C = problem.dense(b)
        wanted = MultivariateNormal(torch.zeros(size).double(), C).log_prob(residual) if size else C.new_zeros(())
        assert_close(got[b], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_posteriors_equal_a_loop_over_dense_solves(family: Family, path: str, normal: Normal) -> None:
    problem = Problem(normal, family)
    mean, variance = problem.posterior(problem.X_new, *problem.tensors)
    for b in range(len(SIZES)):
        X, residual, C = problem.dense(b)
        rows = slice(int(problem.new_offsets[b]), int(problem.new_offsets[b + 1]))
        K = problem.kernel(b, problem.X_new[rows], X)
        weights = torch.linalg.solve(C, K.mT).mT
        assert_close(mean[rows], problem.hyper["mean"][b] + weights @ residual, rtol=1e-9, atol=1e-10)
        wanted = problem.hyper["outputscale"][b] - (weights * K).sum(-1)
        assert_close(variance[rows], wanted, rtol=1e-9, atol=1e-10)


def test_every_size_has_the_dense_likelihood_and_gradient(normal: Normal) -> None:
    problem = Problem(normal, sizes=(*range(1, 42), 97, 150), d=3)
    tensors = [tensor.requires_grad_() for tensor in problem.tensors]
    value = problem.likelihoods(*tensors)
    with taking("padded"):
        wanted = problem.likelihoods(*tensors)
    assert_close(value, wanted, rtol=1e-10, atol=1e-10)
    weights = normal(len(value))
    pairs = (torch.autograd.grad((weights * one).sum(), tensors) for one in (value, wanted))
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_likelihood_pass_gradcheck(family: Family, path: str, normal: Normal) -> None:
    problem = Problem(normal, family, sizes=(3, 0, 5, 1))
    problem.new_offsets = torch.tensor([0, 2, 3, 3, 9])
    assert gradcheck(problem.likelihoods, [tensor.requires_grad_() for tensor in problem.tensors])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_posterior_pass_gradcheck(family: Family, path: str, normal: Normal) -> None:
    problem = Problem(normal, family, sizes=(3, 0, 5, 1))
    problem.new_offsets = torch.tensor([0, 2, 3, 3, 9])
    assert gradcheck(problem.posterior, [tensor.requires_grad_() for tensor in (problem.X_new, *problem.tensors)])


def test_shared_hyperparameters_are_those_of_each(path: str, normal: Normal) -> None:
    problem = Problem(normal)
    one, number = normal(2).exp().requires_grad_(), normal(3).exp().requires_grad_()
    shared = SmallGPs(
        *problem.data.values(), problem.offsets, lengthscale=one, noise=number[0], outputscale=number[1], mean=number[2]
    )
    count = len(SIZES)
    each = problem.likelihoods(
        *problem.data.values(), one.expand(count, 2), *(number[i].expand(count) for i in range(3))
    )
    got = shared.log_marginal_likelihood()
    assert_close(got, each, rtol=0, atol=0)
    for a, b in zip(*(torch.autograd.grad(value.sum(), [one, number]) for value in (got, each)), strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_one_lengthscale_serves_all_inputs(path: str, normal: Normal) -> None:
    problem = Problem(normal)
    lengthscale = problem.hyper["lengthscale"][:, :1]
    narrow = {**problem.hyper, "lengthscale": lengthscale}
    wide = {**problem.hyper, "lengthscale": lengthscale.expand(-1, 2)}
    one, other = (problem.likelihoods(*problem.data.values(), *hyper.values()) for hyper in (narrow, wide))
    assert_close(one, other, rtol=0, atol=0)


def test_weights_divide_the_noise(path: str, normal: Normal) -> None:
    problem = Problem(normal, sizes=(4, 1, 2, 3))
    weights = torch.arange(1.0, 11.0).double()
    got = problem.model(*problem.tensors, weights=weights).log_marginal_likelihood()
    _, residual, C = problem.dense(0)
    C += problem.hyper["noise"][0] * torch.diag(1 / weights[:4] - 1)
    assert_close(got[0], MultivariateNormal(torch.zeros(4).double(), C).log_prob(residual), rtol=1e-10, atol=1e-10)


def test_results_do_not_depend_on_the_number_of_threads(normal: Normal) -> None:
    problem = Problem(normal, sizes=tuple(range(60)))
    before, found = torch.get_num_threads(), []
    tensors = [tensor.requires_grad_() for tensor in problem.tensors]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        value = problem.likelihoods(*tensors)
        found.append([value, *torch.autograd.grad(value.sum(), tensors)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_float32_stays_float32_and_close(normal: Normal) -> None:
    problem = Problem(normal)
    got = problem.likelihoods(*(tensor.float() for tensor in problem.tensors))
    assert got.dtype == torch.float32
    assert_close(got.double(), problem.likelihoods(*problem.tensors), rtol=1e-3, atol=1e-2)
    mean, variance = problem.posterior(problem.X_new.float(), *(tensor.float() for tensor in problem.tensors))
    assert mean.dtype == variance.dtype == torch.float32


def test_no_problems_and_no_rows_have_no_likelihood(path: str, normal: Normal) -> None:
    one = torch.ones(2).double()
    none = SmallGPs(normal(0, 2), normal(0), torch.tensor([0]), lengthscale=one, noise=one[0])
    assert none.log_marginal_likelihood().shape == (0,)
    empty = SmallGPs(normal(0, 2), normal(0), torch.tensor([0, 0, 0]), lengthscale=one, noise=one[0], mean=2 * one)
    assert_close(empty.log_marginal_likelihood(), torch.zeros(2).double())
    mean, variance = empty.posterior(normal(3, 2), torch.tensor([0, 1, 3]))
    assert_close(mean, torch.full((3,), 2.0).double())
    assert_close(variance, torch.ones(3).double())


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_rows_with_hardly_any_noise_are_solved_with_reported_jitter(
    family: Family, path: str, normal: Normal
) -> None:
    X, shape = normal(5, 2).repeat(2, 1), torch.ones(()).double() if family == "rational_quadratic" else None
    y = X.sum(-1).requires_grad_()
    tiny, one = torch.tensor(1e-30).double(), torch.ones(2).double()
    both = (torch.cat([X, X[:4]]), torch.cat([y, y[:4]]), torch.tensor([0, 10, 14]))
    gps = SmallGPs(*both, family=family, lengthscale=one, noise=tiny, shape=shape)
    (slope,) = torch.autograd.grad(gps.log_marginal_likelihood().sum(), y)
    assert 0 < gps.jitter[0] <= 1e-6
    assert gps.jitter[1] == 0
    assert bool(slope.isfinite().all())
    mean, variance = gps.posterior(X[:1], torch.tensor([0, 1, 1]))
    assert_close(mean, y[:1], rtol=0, atol=1e-3)
    assert 0 < float(variance.detach()) < 1e-3


def test_the_lengthscale_gradient_survives_a_large_offset_of_the_inputs(normal: Normal) -> None:
    problem = Problem(normal)
    problem.data["X"] = problem.data["X"].round(decimals=3)
    lengthscale = problem.hyper["lengthscale"].requires_grad_()
    (near,) = torch.autograd.grad(problem.likelihoods(*problem.tensors).sum(), lengthscale)
    problem.data["X"] = problem.data["X"] + 1e6
    (far,) = torch.autograd.grad(problem.likelihoods(*problem.tensors).sum(), lengthscale)
    assert_close(near, far, rtol=1e-6, atol=1e-6)


def test_differentiating_twice_is_refused(normal: Normal) -> None:
    problem = Problem(normal)
    tensors = [tensor.requires_grad_() for tensor in problem.tensors]
    value = problem.likelihoods(*tensors).sum()
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(value, tensors, create_graph=True)


def test_arguments_that_do_not_fit_are_refused(normal: Normal) -> None:
    X, y, offsets, one = normal(5, 2), normal(5), torch.tensor([0, 2, 5]), torch.ones(2).double()
    good: dict[str, Any] = {"lengthscale": one, "noise": one[0]}
    for wrong in ([0, 2, 4], [1, 5], [0, 3, 2, 5], []):
        with pytest.raises(ShapeError, match=r"offsets.*rise from 0"):
            SmallGPs(X, y, torch.tensor(wrong, dtype=torch.long), **good)
    with pytest.raises(ShapeError, match="offsets"):
        SmallGPs(X, y, offsets.double(), **good)
    for name, value, error in (
        ("lengthscale", torch.ones(3).double(), ShapeError),
        ("noise", torch.ones(3).double(), ShapeError),
        ("noise", torch.zeros(()).double(), InputError),
        ("outputscale", -one, InputError),
        ("mean", torch.ones(()), DtypeError),
        ("family", "cosine", InputError),
        ("family", "rational_quadratic", InputError),
        ("weights", torch.zeros(5).double(), InputError),
    ):
        with pytest.raises(error, match=name):
            SmallGPs(X, y, offsets, **{**good, name: value})
    with pytest.raises(NonFiniteError):
        SmallGPs(X * torch.nan, y, offsets, **good)
    with pytest.raises(ShapeError, match="new_offsets"):
        SmallGPs(X, y, offsets, **good).posterior(X, torch.tensor([0, 5]))


def test_size_classes_hold_each_problem_once_and_pad_little() -> None:
    sizes = np.random.default_rng(0).integers(0, 200, 300)
    ragged = Ragged.of(offsets_of(tuple(sizes)), rows=int(sizes.sum()))
    groups = list(ragged.size_classes())
    assert sorted(np.concatenate(groups)) == sorted(np.flatnonzero(sizes))
    assert all(sizes[group].max() <= 1.25 * sizes[group].min() for group in groups)


# The parts that go through one small matrix


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 9, 31, 32, 33, 75])
def test_small_factors_inverses_and_solves_equal_numpy(n: int) -> None:
    rng = np.random.default_rng(n)
    B = rng.standard_normal((n, n))
    C, m = B @ B.T + n * np.eye(n), small_dense.padded(n)
    A, T, tile = np.eye(m), np.empty(m * m), np.empty(32)
    A[:n, :n] = C
    A = A.ravel()
    assert small_dense.factorise(A, m, tile)
    np.testing.assert_allclose(np.triu(A.reshape(m, m)[:n, :n]), np.linalg.cholesky(C).T, atol=1e-12)
    x = b = rng.standard_normal(n)
    x = x.copy()
    small_dense.solve_forward(A, n, m, x)
    small_dense.solve_backward(A, n, m, x)
    np.testing.assert_allclose(x, np.linalg.solve(C, b), atol=1e-12)
    small_dense.invert_factor(A, m, T, tile)
    small_dense.invert(A, m, T, tile)
    np.testing.assert_allclose(np.triu(A.reshape(m, m)[:n, :n]), np.triu(np.linalg.inv(C)), atol=1e-12)


@pytest.mark.parametrize("pivot", [0.0, -1.0, np.nan, np.inf])
def test_a_matrix_without_a_factor_is_told(pivot: float) -> None:
    A = np.eye(8)
    A[5, 5] = pivot
    assert not small_dense.factorise(A.ravel(), 8, np.empty(32))


# Dense blocks


def blocks_of(normal: Normal, sizes: tuple[int, ...]) -> list[Tensor]:
    roots = [normal(n, n) for n in sizes]
    return [B @ B.mT + n * torch.eye(n).double() for B, n in zip(roots, sizes, strict=True)]


def flat(matrices: list[Tensor]) -> Tensor:
    return torch.cat([matrix.reshape(-1) for matrix in matrices])


@pytest.mark.parametrize("p", [None, 0, 1, 3])
def test_block_solves_equal_a_loop(p: int | None, path: str, normal: Normal) -> None:
    matrices = blocks_of(normal, SIZES)
    b = normal(sum(SIZES)) if p is None else normal(sum(SIZES), p)
    x, log_determinants = solve_blocks(flat(matrices), b, offsets_of(SIZES))
    wanted = [torch.linalg.solve(C, part) for C, part in zip(matrices, b.split(SIZES), strict=True)]
    assert_close(x, torch.cat(wanted), rtol=1e-10, atol=1e-10)
    assert_close(log_determinants, torch.stack([C.logdet() for C in matrices]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", [None, 2])
def test_gradients_of_block_solves_pass_gradcheck(p: int | None, path: str, normal: Normal) -> None:
    sizes = (3, 0, 1, 4)
    matrices = [C.requires_grad_() for C in blocks_of(normal, sizes)]
    b = (normal(8) if p is None else normal(8, p)).requires_grad_()

    def solve(b: Tensor, *matrices: Tensor) -> tuple[Tensor, Tensor]:
        return solve_blocks(flat([0.5 * (C + C.mT) for C in matrices]), b, offsets_of(sizes))

    assert gradcheck(solve, [b, *matrices])


def test_blocks_give_the_likelihood_that_the_kernel_gives(path: str, normal: Normal) -> None:
    problem = Problem(normal)
    parts = [problem.dense(b) for b in range(len(SIZES))]
    residual = torch.cat([part[1] for part in parts])
    x, log_determinants = solve_blocks(flat([part[2] for part in parts]), residual, problem.offsets)
    quadratic = torch.stack([part.sum() for part in (x * residual).split(SIZES)])
    value = -0.5 * (quadratic + log_determinants + torch.tensor(SIZES).double() * math.log(2 * math.pi))
    assert_close(value, problem.likelihoods(*problem.tensors), rtol=1e-9, atol=1e-9)


def test_a_block_that_is_not_positive_definite_is_named(path: str, normal: Normal) -> None:
    matrices = blocks_of(normal, (2, 3, 4))
    matrices[1] = -matrices[1]
    with pytest.raises(NotPositiveDefiniteError, match="1 of 3 problems, the first of them problem 1 with 3 rows"):
        solve_blocks(flat(matrices), normal(9), offsets_of((2, 3, 4)))


def test_blocks_of_the_wrong_length_are_refused(normal: Normal) -> None:
    with pytest.raises(ShapeError, match=r"blocks.*13"):
        solve_blocks(normal(12), normal(5), torch.tensor([0, 2, 5]))
    with pytest.raises(ShapeError, match="`b`"):
        solve_blocks(normal(13), normal(5, 1, 1), torch.tensor([0, 2, 5]))


def test_blocks_in_float32_stay_so(normal: Normal) -> None:
    x, log_determinants = solve_blocks(flat(blocks_of(normal, (2, 3))).float(), normal(5).float(), offsets_of((2, 3)))
    assert x.dtype == log_determinants.dtype == torch.float32
