"""Factorisations and solves by both libraries against torch.linalg on whole matrices; jitter and memory."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.testing import assert_close

from gpmoe.errors import NonFiniteError, NotPositiveDefiniteError
from gpmoe.linalg import Workspace, cholesky_with_jitter_, lapack, provider, use_provider

SIZES = [1, 2, 15, 17, 255, 257]
Normal = Callable[..., Tensor]


@pytest.fixture(params=["torch", "scipy"])
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_provider(request.param):
        yield request.param


def covariance(normal: Normal, *shape: int) -> Tensor:
    """Well conditioned, positive definite."""
    A = normal(*shape, shape[-1])
    return A @ A.mT / shape[-1] + torch.eye(shape[-1], dtype=A.dtype)


def spoilt_above(A: Tensor) -> Tensor:
    """A copy with NaN above the diagonal, which nothing may read."""
    return torch.where(torch.ones_like(A).tril().bool(), A, torch.nan)


@pytest.mark.parametrize("n", SIZES)
def test_factor_times_its_transpose_is_the_matrix(library: str, n: int, normal: Normal) -> None:
    C = covariance(normal, n)
    L = spoilt_above(C) if library == "scipy" else C.clone()
    assert lapack.cholesky_(L) == 0
    L = L.tril()
    assert (L.diagonal() > 0).all()
    assert_close(L @ L.mT, C, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_inverse_from_the_factor_is_the_inverse(library: str, n: int, normal: Normal) -> None:
    C = covariance(normal, n)
    L = spoilt_above(torch.linalg.cholesky(C))
    lapack.inverse_from_cholesky_(L)
    assert_close(L.tril(), torch.linalg.inv(C).tril(), rtol=1e-10, atol=1e-11)


def test_factor_and_inverse_in_float32(library: str, normal: Normal) -> None:
    C = covariance(normal, 40)
    L = C.float()
    assert lapack.cholesky_(L) == 0
    assert_close(L.tril(), torch.linalg.cholesky(C).float(), rtol=1e-4, atol=1e-5)
    lapack.inverse_from_cholesky_(L)
    assert_close(L.tril(), torch.linalg.inv(C).tril().float(), rtol=1e-4, atol=1e-5)


def test_the_order_of_the_first_bad_minor_is_returned(library: str) -> None:
    assert lapack.cholesky_(torch.diag(torch.tensor([2.0, 1.0, -1.0, 3.0, -1.0], dtype=torch.float64))) == 3


def layouts(B: Tensor) -> list[Tensor]:
    """The same matrix row-major, column-major, and as every other column of a wider one."""
    wide = torch.full((len(B), 2 * B.shape[1]), torch.nan, dtype=B.dtype)
    wide[:, ::2] = B
    return [B.clone(), B.mT.clone(memory_format=torch.contiguous_format).mT, wide[:, ::2]]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (7, 1), (17, 5), (300, 3)])
def test_triangular_solve_equals_the_inverse_times_b_in_every_layout(
    library: str, n: int, m: int, transpose: bool, normal: Normal
) -> None:
    L = torch.linalg.cholesky(covariance(normal, n))
    B = normal(n, m)
    wanted = torch.linalg.inv(L.mT if transpose else L) @ B
    for before in layouts(B):
        got = lapack.solve_triangular(spoilt_above(L), before, transpose=transpose)
        assert_close(got, wanted, rtol=1e-10, atol=1e-11)
        assert torch.equal(before, B), "B must be left alone"
        got = lapack.solve_triangular(L, before, transpose=transpose, overwrite=True)
        assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_triangular_solve_over_a_transposed_block_copies_nothing(normal: Normal) -> None:
    L, Bt = torch.linalg.cholesky(covariance(normal, 12)), normal(5, 12)
    with use_provider("scipy"):
        assert lapack.solve_triangular(L, Bt.mT, overwrite=True).data_ptr() == Bt.data_ptr()


@pytest.mark.parametrize("shape", [(1,), (2,), (33,), (3, 9)])
def test_cholesky_solve_equals_a_dense_solve(library: str, shape: tuple[int, ...], normal: Normal) -> None:
    C, b = covariance(normal, *shape), normal(*shape)
    got = lapack.cholesky_solve(torch.linalg.cholesky(C), b)
    assert_close(got, torch.linalg.solve(C, b), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 40), (2, 4, 6)])
def test_rank_k_is_a_times_its_transpose_and_exactly_symmetric(
    library: str, shape: tuple[int, ...], normal: Normal
) -> None:
    for A in (normal(*shape), normal(*shape).mT.contiguous().mT):
        product = lapack.rank_k(A)
        assert_close(product, A @ A.mT, rtol=1e-12, atol=1e-12)
        assert torch.equal(product, product.mT)


def test_a_batch_equals_a_loop(library: str, normal: Normal) -> None:
    C, B = covariance(normal, 3, 8), normal(3, 8, 2)
    L = C.clone()
    assert lapack.cholesky_(L) == 0
    assert_close(L.tril(), torch.stack([torch.linalg.cholesky(one) for one in C]), rtol=1e-12, atol=1e-12)
    solved = lapack.solve_triangular(L, B, transpose=True)
    loop = [lapack.solve_triangular(one, b, transpose=True) for one, b in zip(L, B, strict=True)]
    assert_close(solved, torch.stack(loop), rtol=1e-12, atol=1e-12)


def test_threads_of_blas_are_as_before_after_small_work(normal: Normal) -> None:
    with use_provider("scipy"), ThreadpoolController().limit(limits=2):
        before = [(lib.filepath, lib.num_threads) for lib in ThreadpoolController().lib_controllers]
        lapack.cholesky_(covariance(normal, 20))
        assert [(lib.filepath, lib.num_threads) for lib in ThreadpoolController().lib_controllers] == before


def test_a_block_with_a_provider_ends_with_the_one_before() -> None:
    before = provider()
    other = "torch" if before == "scipy" else "scipy"
    with use_provider(other):
        assert provider() == other
        with pytest.raises(KeyError), use_provider(before):
            raise KeyError
        assert provider() == other
    assert provider() == before


def test_the_measurement_restores_the_threads_and_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPMOE_LAPACK", raising=False)
    monkeypatch.setattr(lapack, "_chosen", None)
    threads = torch.get_num_threads()
    assert provider() in ("torch", "scipy")
    assert torch.get_num_threads() == threads
    assert provider() == lapack._chosen


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("torch", "torch"),
        ("scipy", "scipy"),
        ("mkl", "InputError: GPMOE_LAPACK must be 'torch' or 'scipy', or not set; got 'mkl'."),
    ],
)
def test_the_environment_decides_the_provider(value: str, printed: str) -> None:
    ask = "from gpmoe.linalg import provider\ntry: print(provider())\n"
    code = ask + "except Exception as error: print(f'{type(error).__name__}: {error}')"
    environment = {**os.environ, "GPMOE_LAPACK": value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert done.stdout.splitlines()[-1] == printed


def test_a_workspace_gives_the_same_memory_until_size_or_dtype_change(normal: Normal) -> None:
    workspace = Workspace()
    first = workspace.matrix(5, like=normal(1)).fill_(3.0)
    assert torch.equal(workspace.matrix(5, like=normal(1)), first)
    assert workspace.matrix(5, like=normal(1)).data_ptr() == first.data_ptr()
    assert workspace.matrix(6, like=normal(1)).shape == (6, 6)
    assert workspace.matrix(6, like=torch.ones(1)).dtype == torch.float32


def test_a_well_conditioned_covariance_gets_no_jitter(library: str, normal: Normal) -> None:
    C = covariance(normal, 10)
    L = torch.empty_like(C)
    assert cholesky_with_jitter_(lambda out: out.copy_(C), L) == 0.0
    assert_close(L.tril(), torch.linalg.cholesky(C), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [-3e-10, -3e-8])
def test_jitter_is_the_first_step_of_the_ladder_that_suffices_and_is_what_was_added(library: str, shift: float) -> None:
    C = torch.ones(4, 4, dtype=torch.float64) + shift * torch.eye(4, dtype=torch.float64)
    L = torch.empty_like(C)
    jitter = cholesky_with_jitter_(lambda out: out.copy_(C), L)
    assert jitter == pytest.approx({-3e-10: 1e-9, -3e-8: 1e-7}[shift], rel=1e-6)
    assert_close(L.tril() @ L.tril().mT, C + jitter * torch.eye(4, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_jitter_goes_with_the_scale_of_the_covariance(library: str) -> None:
    C = torch.ones(4, 4, dtype=torch.float64) - 3e-9 * torch.eye(4, dtype=torch.float64)
    small = cholesky_with_jitter_(lambda out: out.copy_(C), torch.empty_like(C))
    large = cholesky_with_jitter_(lambda out: out.copy_(1e6 * C), torch.empty_like(C))
    assert large == pytest.approx(1e6 * small, rel=1e-6)


def test_an_indefinite_covariance_is_refused_with_the_usual_causes(library: str) -> None:
    C = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    text = r"\(2, 2\), torch\.float64, is not positive definite at jitter 1\.0e-06\.\nUsual causes"
    with pytest.raises(NotPositiveDefiniteError, match=text + r".*repeated rows of X.*float32.*noise"):
        cholesky_with_jitter_(lambda out: out.copy_(C), torch.empty_like(C))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 1), (4, 4)])
def test_a_covariance_that_is_not_finite_is_refused_as_such(library: str, value: float, place: tuple[int, int]) -> None:
    C = torch.eye(5, dtype=torch.float64)
    C[place] = C[place[::-1]] = value
    with pytest.raises(NonFiniteError, match=r"\(5, 5\) has NaN or infinite entries.*hyperparameter"):
        cholesky_with_jitter_(lambda out: out.copy_(C), torch.empty_like(C))
