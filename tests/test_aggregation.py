"""Rules that combine experts: against what their formulas say, one point at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gpmoe.models import aggregation as rules

Normal = Callable[..., Tensor]
K, Q = 4, 6


@pytest.fixture
def experts(normal: Normal) -> tuple[Tensor, Tensor, Tensor]:
    """Means, variances below the prior's, and prior variances."""
    priors = torch.full((Q, K), 2.0).double()
    return normal(Q, K), priors * torch.sigmoid(normal(Q, K)), priors


def test_a_product_is_a_product_of_densities(experts) -> None:
    means, variances, _ = experts
    y = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    for votes in (torch.ones(Q, K).double(), rules.uniform_votes(variances)):
        mean, variance = rules.product_of_experts(means, variances, votes)
        for i in range(Q):
            log_density = (-0.5 * votes[i] * (y[:, None] - means[i]) ** 2 / variances[i]).sum(1)
            density = (log_density - log_density.max()).exp()
            density /= density.sum()
            centre = (density * y).sum()
            assert_close(mean[i], centre, rtol=1e-6, atol=1e-8)
            assert_close(variance[i], (density * (y - centre) ** 2).sum(), rtol=1e-6, atol=1e-8)
    plain = rules.product_of_experts(means, variances)
    assert_close(plain, rules.product_of_experts(means, variances, torch.ones(Q, K).double()))


def test_committees_are_the_published_sums(experts) -> None:
    means, variances, priors = experts
    prior = priors[:, 0]
    mean, variance = rules.committee_machine(means, variances, priors, prior)
    for i in range(Q):
        precision = sum(1 / variances[i, k] for k in range(K)) + (1 - K) / prior[i]
        assert_close(variance[i], 1 / precision)
        assert_close(mean[i], sum(means[i, k] / variances[i, k] for k in range(K)) / precision)
    votes = rules.differential_entropy_votes(variances, priors)
    mean, variance = rules.committee_machine(means, variances, priors, prior, votes)
    for i in range(Q):
        beta = [0.5 * (math.log(prior[i]) - math.log(variances[i, k])) for k in range(K)]
        precision = sum(beta[k] / variances[i, k] for k in range(K)) + (1 - sum(beta)) / prior[i]
        assert_close(variance[i], 1 / precision)
        assert_close(mean[i], sum(beta[k] * means[i, k] / variances[i, k] for k in range(K)) / precision)


def test_the_generalised_committee_is_the_published_sum(experts, normal: Normal) -> None:
    means, variances, _ = experts
    base_mean, base = normal(Q), variances.amax(-1) + 0.1
    mean, variance = rules.generalised_robust_committee(means, variances, base_mean, base)
    for i in range(Q):
        beta = [1.0] + [0.5 * (math.log(base[i]) - math.log(variances[i, k])) for k in range(1, K)]
        precision = sum(beta[k] / variances[i, k] for k in range(K)) - (sum(beta) - 1) / base[i]
        told = sum(beta[k] * means[i, k] / variances[i, k] for k in range(K)) - (sum(beta) - 1) * base_mean[i] / base[i]
        assert_close(variance[i], 1 / precision)
        assert_close(mean[i], told / precision)


def test_a_barycentre_averages_means_and_deviations(experts) -> None:
    means, variances, priors = experts
    votes = rules.softmax_votes(variances, priors)
    assert_close(votes.sum(-1), torch.ones(Q).double())
    mean, variance = rules.wasserstein_barycentre(means, variances, votes)
    assert_close(mean, (votes * means).sum(-1))
    assert_close(variance.sqrt(), (votes * variances.sqrt()).sum(-1))


def test_the_surest_expert_has_the_word(experts) -> None:
    means, variances, _ = experts
    mean, variance = rules.minimum_variance(means, variances)
    assert_close(variance, variances.amin(-1))
    assert_close(mean, torch.stack([means[i, variances[i].argmin()] for i in range(Q)]))


def test_a_high_power_of_the_entropy_leaves_the_surest_alone(experts) -> None:
    means, variances, priors = experts
    votes = rules.entropy_power_votes(variances, priors, 2000.0)
    assert_close(rules.product_of_experts(means, variances, votes), rules.minimum_variance(means, variances))
    even = rules.entropy_power_votes(variances, priors, 0.0)
    assert_close(even, rules.uniform_votes(variances))


def test_experts_that_know_nothing_leave_committees_at_the_prior(normal: Normal) -> None:
    means, prior = torch.zeros(Q, K).double(), torch.full((Q,), 2.0).double()
    variances = prior.unsqueeze(-1).expand(Q, K)
    votes = rules.differential_entropy_votes(variances, variances)
    for found in (
        rules.committee_machine(means, variances, variances, prior),
        rules.committee_machine(means, variances, variances, prior, votes),
        rules.generalised_robust_committee(means, variances, means[:, 0], prior),
    ):
        assert_close(found, (means[:, 0], prior))
    assert_close(rules.product_of_experts(means, variances)[1], prior / K)  # here lies its overconfidence


def test_one_expert_is_left_as_it_is(experts) -> None:
    means, variances, priors = (part[:, :1] for part in experts)
    one = rules.uniform_votes(variances)
    for found in (
        rules.product_of_experts(means, variances),
        rules.committee_machine(means, variances, priors, priors[:, 0]),
        rules.minimum_variance(means, variances),
        rules.wasserstein_barycentre(means, variances, one),
        rules.product_of_experts(means, variances, rules.softmax_votes(variances, priors)),
    ):
        assert_close(found, (means[:, 0], variances[:, 0]))
