"""Rates on softmax mixtures whose truth is known, in small; benchmarks/mixtures_theory.py is the whole."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks import mixtures_theory as theory


def errors(kind: str, figure: str, sizes: tuple[int, ...], repeats: int) -> np.ndarray:
    return np.array([[theory.estimate(n, kind, 1000 * n + seed)[figure] for seed in range(repeats)] for n in sizes])


@pytest.mark.parametrize("n_active", [1, 2])
def test_distances_of_a_mixture_to_itself_vanish(n_active: int) -> None:
    true = theory.truth(n_active)
    assert max(theory.density_distances(true, true, 50)) < 1e-6
    assert theory.voronoi_loss(true, true) == 0.0


def test_distances_are_those_of_two_gaussians_where_one_expert_is_certain() -> None:
    true = replace(theory.truth(1), offsets=theory.vector(50, 0), slopes=theory.vector(0, 0))
    moved = replace(true, b=true.b + theory.vector(0.3, 0))
    hellinger, variation = theory.density_distances(moved, true, 50)
    assert hellinger == pytest.approx(math.sqrt(1 - math.exp(-1 / 8)), abs=1e-6)  # means one standard deviation apart
    assert variation == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=1e-3)


def test_the_voronoi_loss_adds_weighted_errors_and_errors_of_weights() -> None:
    true = theory.truth(2)
    found = replace(true, a=true.a + theory.vector(0.5, -0.25), offsets=theory.vector(-7, 0))
    expected = 0.5 * math.exp(-7) + 0.25 + math.exp(-7) - math.exp(-8)
    assert theory.voronoi_loss(found, true) == pytest.approx(expected, rel=1e-12)


def test_starts_hold_every_true_expert_and_its_weight() -> None:
    generator, true = torch.Generator().manual_seed(0), theory.truth(2)
    for _ in range(5):
        start = theory.near(true, 1000, 3, 2, generator)
        cell = (start.a.unsqueeze(-1) - true.a).abs().argmin(-1)
        held = torch.zeros_like(true.offsets).index_add(0, cell, start.offsets.exp())
        assert_close(held.log(), true.offsets, atol=0.02, rtol=0.0)


def test_parameters_and_density_of_a_dense_fit_converge_at_the_parametric_rate() -> None:
    sizes = (100, 1000, 10_000)
    for figure in ("voronoi", "hellinger"):
        value, error = theory.slope(sizes, errors(theory.DENSE, figure, sizes, 10))
        assert abs(value + 0.5) < 0.1 + 2 * error


def test_a_top_1_gate_learns_its_boundary() -> None:
    sizes = (100, 1000, 10_000)
    assert theory.slope(sizes, errors(theory.SPARSE, "misrouted", sizes, 10))[0] < -0.45


def test_density_needs_two_active_experts_where_the_truth_has_two() -> None:
    sizes = (1000, 10_000)
    few = errors(theory.FEW, "hellinger", sizes, 1).mean(1)
    over = errors(theory.OVER, "hellinger", sizes, 1).mean(1)
    assert few[1] > 0.7 * few[0]
    assert over[1] < 0.6 * over[0]  # n^-1/2 is 0.32


def test_a_temperature_can_be_learned_with_an_activation_alone() -> None:
    found = theory.least_eigenvalues()
    assert abs(found.pop("linear")) < 1e-12
    assert found.pop("linear, temperature known") > 1e-3
    for name, value in found.items():
        assert value > theory.LEAST[name]


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_fisher_information_is_the_covariance_of_scores(activation: str) -> None:
    information = theory.fisher_information(activation)
    assert_close(information, information.mT, atol=1e-12, rtol=0.0)
    assert float(information.diagonal().min()) > 0


def test_a_linear_gate_keeps_its_prior_temperature_and_a_tanh_gate_learns() -> None:
    linear = theory.temperature_error(5000, "linear", 0)["temperature"]
    assert linear == pytest.approx(1.0, abs=0.05)
    assert theory.temperature_error(5000, "tanh", 0)["temperature"] == pytest.approx(0.7, abs=0.15)


def test_slopes_of_exact_powers_are_found() -> None:
    n = (100, 1000, 10_000)
    values = np.array(n)[:, None] ** -1.0 * np.array([0.5, 1.0, 1.5])
    value, error = theory.slope(n, values, root=2)
    assert value == pytest.approx(-0.5)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_the_suite_tells_what_is_not_measured_yet() -> None:
    results = theory.Results(replace(theory.SUITE, name="nothing_of_this_name"))
    tables = theory.SUITE.tables(results, False)
    assert len(tables) == 9
    assert {case.parameters["kind"] for case in theory.SUITE.cases(True)} == {*theory.SHOWN, theory.FISHER}
