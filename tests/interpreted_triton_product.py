"""Triton's covariance products against dense float64; runs under TRITON_INTERPRET=1, see test_triton_product.py."""

from collections.abc import Callable

import gpytorch.kernels as gpk
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import DifferentiationError, DtypeError, ShapeError
from gpmoe.linalg.covariance_product import covariance_product
from gpmoe.linalg.fused import MATERN12, MATERN32, MATERN52, RATIONAL_QUADRATIC, RBF
from gpmoe.linalg.stationary import COSINE, Leaf, Term, pack, stationary_terms
from gpmoe.linalg.triton_compiler import jit, tl
from gpmoe.linalg.triton_product import triton_product
from gpmoe.linalg.triton_tiles import add_compensated

Normal = Callable[..., Tensor]
Parts = list[list[tuple[int, int]]]  # terms of leaves, a leaf being a family and its number of inputs

CASES: dict[str, Parts] = {
    "rbf of 1 input": [[(RBF, 1)]],
    "matern 1/2 of 3 inputs": [[(MATERN12, 3)]],
    "matern 3/2 of 8 inputs": [[(MATERN32, 8)]],
    "matern 5/2 of 3 inputs": [[(MATERN52, 3)]],
    "rational quadratic of 3 inputs": [[(RATIONAL_QUADRATIC, 3)]],
    "rbf of 13 inputs": [[(RBF, 13)]],
    "matern 1/2 of 9 inputs": [[(MATERN12, 9)]],
    "product": [[(RBF, 2), (RATIONAL_QUADRATIC, 1)]],
    "cosines of 2 inputs": [[(COSINE, 2), (RBF, 2), (COSINE, 2)]],
    "sum of products": [[(MATERN52, 2)], [(MATERN12, 1), (RBF, 3)]],
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def leaf_value(family: int, r2: Tensor, alpha: Tensor) -> Tensor:
    apart = r2 > 0
    r = r2.where(apart, 1.0).sqrt().where(apart, 0.0)  # with a derivative of zero at zero
    if family == RBF:
        return (-0.5 * r2).exp()
    if family == COSINE:
        return 1 - r2 / 2
    if family == RATIONAL_QUADRATIC:
        return (1 + r2 / (2 * alpha)) ** -alpha
    s = {MATERN12: 1.0, MATERN32: 3.0, MATERN52: 5.0}[family] ** 0.5 * r
    return {MATERN12: 1.0, MATERN32: 1 + s, MATERN52: 1 + s + s**2 / 3}[family] * (-s).exp()


def dense(terms: list[Term]) -> Tensor:
    total: Tensor | float = 0.0
    for term in terms:
        value = term.scale
        for leaf in term.leaves:
            columns = leaf.Z1 if leaf.Z2 is None else leaf.Z2
            r2 = ((leaf.Z1[:, None] - columns[None]) ** 2).sum(-1)
            value = value * leaf_value(leaf.family, r2, leaf.shape)
        total = total + value
    return total


def drawn(parts: Parts, n: int, m: int | None, normal: Normal) -> tuple[list[Term], list[Tensor]]:
    """Terms of points that float32 holds exactly, in float64, and the tensors in them; `m` None for one set."""
    tensors: list[Tensor] = []

    def leaf(*shape: int) -> Tensor:
        values = normal(*shape) if shape else normal(1)[0].abs() + 0.5
        tensors.append(values.float().double().requires_grad_())
        return tensors[-1]

    terms = [
        Term(leaf(), tuple(Leaf(family, leaf(n, d), None if m is None else leaf(m, d), leaf()) for family, d in part))
        for part in parts
    ]
    return terms, tensors


def cast(terms: list[Term], dtype: torch.dtype) -> list[Term]:
    def leaf(old: Leaf) -> Leaf:
        Z2 = None if old.Z2 is None else old.Z2.to(dtype)
        return Leaf(old.family, old.Z1.to(dtype), Z2, old.shape.to(dtype))

    return [Term(term.scale.to(dtype), tuple(leaf(old) for old in term.leaves)) for term in terms]


def check(parts: Parts, n: int, m: int | None, c: int, normal: Normal, dtype: torch.dtype = torch.float32) -> None:
    """Values and all gradients against the dense covariance in float64."""
    terms, tensors = drawn(parts, n, m, normal)
    V = normal(n if m is None else m, c).float().double().requires_grad_()
    G = normal(n, c).float().double()
    want = dense(terms) @ V
    got = triton_product(pack(cast(terms, dtype)), V.to(dtype))
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype]
    assert_close(got.double(), want, atol=tolerance, rtol=tolerance)
    wanted = torch.autograd.grad(want, [*tensors, V], G, allow_unused=True, materialize_grads=True)
    gotten = torch.autograd.grad(got, [*tensors, V], G.to(dtype), allow_unused=True, materialize_grads=True)
    for a, b in zip(gotten, wanted, strict=True):
        assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_dense_between_two_sets(name: str, normal: Normal) -> None:
    check(CASES[name], 33, 17, 2, normal)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_dense_within_one_set(name: str, normal: Normal) -> None:
    check(CASES[name], 17, None, 1, normal)


@pytest.mark.parametrize("c", [4, 5, 17])
def test_any_number_of_columns_fits(c: int, normal: Normal) -> None:
    check([[(RBF, 3)]], 7, 5, c, normal)


@pytest.mark.parametrize("name", ["rational quadratic of 3 inputs", "matern 1/2 of 9 inputs"])
def test_float64_stays_float64(name: str, normal: Normal) -> None:
    check(CASES[name], 5, 3, 2, normal, torch.float64)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 129), (130, 1), (0, 3), (3, 0)])
def test_ragged_single_and_missing_points_are_right(n: int, m: int, normal: Normal) -> None:
    check([[(MATERN32, 2)]], n, m, 1, normal)


def test_columns_beyond_one_pass_and_none_are_right(normal: Normal) -> None:
    terms, _ = drawn([[(RBF, 1)]], 3, 2, normal)
    for c in (0, 70):
        V = normal(2, c)
        got = triton_product(pack(cast(terms, torch.float32)), V.float())
        assert_close(got.double(), dense(terms) @ V, atol=1e-5, rtol=1e-5)


def test_many_column_blocks_shared_among_programs_sum_to_the_product(normal: Normal) -> None:
    terms, _ = drawn([[(MATERN52, 9)]], 2, 3000, normal)
    V = normal(3000, 1)
    got = triton_product(pack(cast(terms, torch.float32)), V.float())
    assert_close(got.double(), dense(terms) @ V, atol=1e-5, rtol=1e-5)


def test_repeated_points_have_the_derivative_zero_of_their_distance(normal: Normal) -> None:
    Z, one, V, G = normal(4, 2).repeat(2, 1).requires_grad_(), normal(1)[0] ** 0, normal(8, 1), normal(8, 1)
    terms = [Term(one, (Leaf(MATERN12, Z, None, one),))]
    (want,), (got,) = (torch.autograd.grad(K_V, Z, G) for K_V in (dense(terms) @ V, triton_product(pack(terms), V)))
    assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_points_that_nearly_meet_keep_their_derivative() -> None:
    Z1 = torch.tensor([[1.0, 0.0]], requires_grad=True)
    Z2 = torch.tensor([[1.0, 1e-10]])  # of a sum of g and a sum of g z, g = 1e10, the difference would be lost
    got = triton_product(pack([Term(None, (Leaf(MATERN12, Z1, Z2),))]), torch.ones(1, 1))
    assert_close(torch.autograd.grad(got.sum(), Z1)[0], torch.tensor([[0.0, 1.0]]))


def test_rational_quadratic_of_large_alpha_is_rbf(normal: Normal) -> None:
    Z, alpha = normal(9, 2).float(), torch.tensor(1e6)
    V = normal(9, 1).float()
    rq = triton_product(pack([Term(None, (Leaf(RATIONAL_QUADRATIC, Z, None, alpha),))]), V)
    assert_close(rq, triton_product(pack([Term(None, (Leaf(RBF, Z, None),))]), V), atol=1e-5, rtol=1e-5)


def test_a_periodic_kernel_of_gpytorch_reaches_its_parameters(normal: Normal) -> None:
    kernel = gpk.ScaleKernel(gpk.PeriodicKernel() * gpk.MaternKernel(nu=2.5)).double()
    X, V, G = normal(6, 2), normal(6, 2), normal(6, 2)
    terms = stationary_terms(kernel, X)
    if terms is None:
        pytest.skip("the CPU's fused pass, which writes terms, needs Numba")
    got = triton_product(pack(terms), V)
    want = kernel(X).to_dense() @ V
    assert_close(got, want, atol=1e-10, rtol=1e-10)
    parameters = list(kernel.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters, G), torch.autograd.grad(want, parameters, G), strict=True):
        assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_results_repeat_bit_for_bit(normal: Normal) -> None:
    terms = cast(drawn([[(RBF, 2)]], 20, None, normal)[0], torch.float32)
    V = normal(20, 3).float()
    assert torch.equal(triton_product(pack(terms), V), triton_product(pack(terms), V))


def test_differentiating_twice_is_refused(normal: Normal) -> None:
    Z = normal(3, 1).requires_grad_()
    got = triton_product(pack([Term(None, (Leaf(RBF, Z, None),))]), normal(3, 1))
    with pytest.raises(DifferentiationError, match="once"):
        torch.autograd.grad(got.sum(), Z, create_graph=True)


def test_wrong_right_hand_sides_are_refused(normal: Normal) -> None:
    packed = pack([Term(None, (Leaf(RBF, normal(3, 1), None),))])
    with pytest.raises(ShapeError, match=r"`V` must have shape \(3, any\)"):
        triton_product(packed, normal(4, 1))
    with pytest.raises(DtypeError, match="float64"):
        triton_product(packed, normal(3, 1).float())


@jit
def _sum_of_equal_numbers(out, count, PLAIN: tl.constexpr):  # type: ignore[no-untyped-def]
    total, lost = tl.zeros((1,), tl.float32), tl.zeros((1,), tl.float32)
    part = tl.full((1,), 0.1, tl.float32)
    for _ in range(count):
        if PLAIN:
            total += part
        else:
            total, lost = add_compensated(total, lost, part)
    tl.store(out + tl.arange(0, 1), total)


def test_compensated_sums_lose_nothing_where_plain_ones_do() -> None:
    out = torch.empty(2)
    for place, plain in enumerate((True, False)):
        _sum_of_equal_numbers[(1,)](out[place:], 5000, plain)
    exact = 5000 * torch.tensor(0.1).double()
    plain, compensated = (out.double() - exact).abs() / exact
    assert plain > 1e-6
    assert compensated < 1e-7


def spectral_mixture(normal: Normal) -> gpk.Kernel:
    kernel = gpk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2)
    kernel.mixture_means = normal(2, 1, 2).abs()
    kernel.mixture_scales = 0.3 * normal(2, 1, 2).abs() + 0.1
    return kernel


@pytest.mark.parametrize(
    "make",
    [
        spectral_mixture,
        lambda normal: gpk.ScaleKernel(gpk.MaternKernel(nu=2.5, ard_num_dims=2)) + gpk.PeriodicKernel(),
    ],
    ids=["spectral mixture", "sum"],
)
def test_covariance_products_of_kernels_run_on_this_engine(
    make: Callable[[Normal], gpk.Kernel], normal: Normal
) -> None:
    kernel, X, V = make(normal).double(), normal(9, 2).requires_grad_(), normal(9, 2)
    got = covariance_product(kernel, X, None, V, engine="triton")
    want = kernel(X).to_dense() @ V
    assert_close(got, want, atol=1e-10, rtol=1e-10)
    inputs = [X, *kernel.parameters()]
    G = normal(9, 2)
    pairs = zip(torch.autograd.grad(got, inputs, G), torch.autograd.grad(want, inputs, G), strict=True)
    for a, b in pairs:
        assert_close(a, b, atol=1e-8, rtol=1e-8)
