"""Stochastic Lanczos quadrature against eigenvalues."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.linalg.lanczos import log_determinant, trace_of
from gpmoe.linalg.low_rank import pivoted_cholesky
from gpmoe.linalg.operator import DenseOperator
from gpmoe.linalg.preconditioners import precondition


@pytest.fixture
def operator(normal: Callable[..., Tensor]) -> DenseOperator:
    """200 points, noise that differs."""
    X = normal(200, 2)
    noise = torch.linspace(0.02, 0.2, 200, dtype=torch.float64)
    return DenseOperator((-0.5 * torch.cdist(X, X).square()).exp(), noise)


def eigenvalues(operator: DenseOperator) -> Tensor:
    return torch.linalg.eigvalsh(operator.K + operator.noise.diag())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("rank", [None, 0, 10, 40])
def test_the_log_determinant_is_within_its_standard_error(operator: DenseOperator, rank: int | None) -> None:
    P = None if rank is None else precondition(operator, pivoted_cholesky(operator, rank))
    estimate = log_determinant(operator, preconditioner=P, probes=30, steps=60, generator=generator())
    exact = float(eigenvalues(operator).log().sum())
    assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-6
    assert estimate.standard_error < 10


def test_a_preconditioner_shrinks_the_standard_error(operator: DenseOperator) -> None:
    P = precondition(operator, pivoted_cholesky(operator, 40))
    plain = log_determinant(operator, steps=60, generator=generator())
    assert log_determinant(operator, preconditioner=P, generator=generator()).standard_error < (
        0.05 * plain.standard_error
    )


@pytest.mark.parametrize("function", [torch.reciprocal, torch.sqrt, torch.log], ids=["inverse", "root", "log"])
def test_traces_of_functions_are_within_their_standard_error(
    operator: DenseOperator, function: Callable[[Tensor], Tensor]
) -> None:
    estimate = trace_of(operator, function, probes=40, steps=150, generator=generator())
    assert abs(estimate.value - float(function(eigenvalues(operator)).sum())) < 4 * estimate.standard_error


def test_the_trace_of_a_covariance_with_few_eigenvalues_needs_few_steps() -> None:
    operator = DenseOperator(torch.ones(50, 50).double(), torch.ones(50).double())  # eigenvalues 51 and 49 times 1
    estimate = trace_of(operator, torch.log, probes=200, generator=generator())
    assert estimate.iterations <= 3
    assert abs(estimate.value - math.log(51)) < 4 * estimate.standard_error


def test_the_identity_and_one_row_are_exact() -> None:
    identity = DenseOperator(torch.zeros(5, 5).double(), torch.full((5,), 2.0).double())
    P = precondition(identity, pivoted_cholesky(identity, 2))
    assert log_determinant(identity, preconditioner=P).value == pytest.approx(5 * math.log(2))
    one = DenseOperator(torch.ones(1, 1).double(), torch.ones(1).double())
    P = precondition(one, pivoted_cholesky(one, 1))
    assert log_determinant(one, preconditioner=P).value == pytest.approx(math.log(2))


def test_one_probe_has_no_standard_error_and_none_is_refused(operator: DenseOperator) -> None:
    assert log_determinant(operator, probes=1, generator=generator()).standard_error == math.inf
    with pytest.raises(InputError, match="probes"):
        log_determinant(operator, probes=0)
