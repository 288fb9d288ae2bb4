"""Rules that make one Gaussian of several experts' posteriors, point by point.

| symbol | name in code | shape |
|---|---|---|
| experts' latent means, less the prior mean, and variances | `means`, `variances` | (*batch, k) |
| prior variance of each expert's latent function | `priors` | (*batch, k) |
| votes β_i | `votes` | (*batch, k) |
| those of the communication expert | `base_mean`, `base_variance` | (*batch,) |

All work on latent functions: add the noise variance once to what comes out. (Inside, it would be averaged away like
an independent error of every expert, so that bands get too narrow.)

Sources: Hinton (2002) for the product; Tresp (2000); Cao and Fleet (2014); Deisenroth and Ng (2015); Liu, Cai, Wang
and Ong (2018); Cohen, Mbuvha, Marwala and Deisenroth (2020).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from gpmoe.errors import InputError

Aggregation = Literal[
    "grbcm", "cpoe", "nested", "rbcm", "bcm", "gpoe", "gpoe_softmax", "poe", "minimum_variance", "barycentre"
]
_ONE_PROCESS = ("grbcm", "cpoe", "nested")  # which need experts of the same hyperparameters

_TEMPERATURE = 100.0  # of softmax votes in Cohen et al. (2020)


def expect_rule(aggregation: Aggregation, *, shared: bool) -> None:
    """Check the name of a rule, and that it can combine experts whose hyperparameters are shared or not.

    Raises:
        InputError: if it is another name, or needs experts of one process.
    """
    if aggregation not in get_args(Aggregation):
        known = ", ".join(get_args(Aggregation))
        raise InputError(f"`aggregation` must be one of {known}; got {aggregation!r}.")
    if aggregation in _ONE_PROCESS and not shared:
        raise InputError(
            f"`aggregation` {aggregation!r} needs experts that share hyperparameters; take 'rbcm', "
            "'minimum_variance' or another, or let them share."
        )


def differential_entropy_votes(variances: Tensor, priors: Tensor) -> Tensor:
    """β_i = ½ log(prior_i / σ_i²): what an expert's data told it at this point, in nats."""
    return 0.5 * (priors.log() - variances.log()).clamp_min(0.0)


def uniform_votes(variances: Tensor) -> Tensor:
    """β_i = 1/k."""
    return torch.full_like(variances, 1.0 / variances.shape[-1])


def softmax_votes(variances: Tensor, priors: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """β_i ∝ exp(-T σ_i² / prior_i), which sum to one: of variances as shares of the prior's, so units don't matter."""
    return torch.softmax(-temperature * variances / priors, -1)


def entropy_power_votes(variances: Tensor, priors: Tensor, power: float) -> Tensor:
    """β_i ∝ (½ log(prior_i / σ_i²))^power, which sum to one.

    Source: Schürch, Azzimonti, Benavoli and Zaffalon (2023), Correlated product of experts, sec. 3.4.
    """
    told = differential_entropy_votes(variances, priors).clamp_min(torch.finfo(variances.dtype).tiny)
    return torch.softmax(power * told.log(), -1)


def product_of_experts(means: Tensor, variances: Tensor, votes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Density ∝ Π_i N(μ_i, σ_i²)^β_i; without votes each counts fully, and k experts that know nothing look sure.

    Args:
        means, variances: see above.
        votes: β; ones if None.

    Returns:
        Mean and variance, ``(*batch,)`` each.
    """
    precisions = 1 / variances if votes is None else votes / variances
    variance = 1 / precisions.sum(-1)
    return variance * (precisions * means).sum(-1), variance


def committee_machine(
    means: Tensor, variances: Tensor, priors: Tensor, prior: Tensor, votes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bayesian committee machine: a product in which the prior counts once.

    σ⁻² = Σ β_i (σ_i⁻² - prior_i⁻¹) + prior⁻¹, μ = σ² Σ β_i σ_i⁻² μ_i; with differential entropy votes it is robust.

    Args:
        means, variances, priors: see above.
        prior: the prior variance of the result, ``(*batch,)``.
        votes: β; ones if None.
    """
    told = (1 / variances - 1 / priors).clamp_min(0.0)
    precisions = 1 / variances
    if votes is not None:
        told, precisions = votes * told, votes * precisions
    variance = 1 / (told.sum(-1) + 1 / prior)
    return variance * (precisions * means).sum(-1), variance


def generalised_robust_committee(
    means: Tensor, variances: Tensor, base_mean: Tensor, base_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """grBCM: experts that also saw the communication expert's rows correct it, each by what it knows beyond them.

    β_1 = 1, β_i = ½ log(σ_c² / σ_i²); σ⁻² = Σ β_i σ_i⁻² - (Σ β_i - 1) σ_c⁻²,
    μ = σ² [Σ β_i σ_i⁻² μ_i - (Σ β_i - 1) σ_c⁻² μ_c].

    Args:
        means, variances: of the enhanced experts, the one that counts fully first: the nearest.
        base_mean, base_variance: of the communication expert.

    Source: Liu, Cai, Wang and Ong (2018), Generalized robust Bayesian committee machine, eq. 13-14.
    """
    votes = differential_entropy_votes(variances, base_variance.unsqueeze(-1))
    votes = torch.cat([torch.ones_like(votes[..., :1]), votes[..., 1:]], -1)
    excess = votes.sum(-1) - 1
    told = (votes * (1 / variances - 1 / base_variance.unsqueeze(-1)).clamp_min(0.0)).sum(-1)
    variance = 1 / (told + 1 / base_variance)
    information = (votes / variances * means).sum(-1) - excess / base_variance * base_mean
    return variance * information, variance


def minimum_variance(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of whichever expert is surest."""
    surest = variances.argmin(-1, keepdim=True)
    return means.gather(-1, surest).squeeze(-1), variances.gather(-1, surest).squeeze(-1)


def wasserstein_barycentre(means: Tensor, variances: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """The Gaussian nearest to all experts' in squared 2-Wasserstein distance: means and deviations are averaged.

    Args:
        means, variances: see above.
        votes: β, which sum to one.

    Source: Agueh and Carlier (2011), Barycenters in the Wasserstein space, sec. 6, in one dimension.
    """
    return (votes * means).sum(-1), (votes * variances.sqrt()).sum(-1).square()
