"""Terms that keep experts in use, apart from the likelihood.

An engine adds what it wants of these, times a weight of the caller's choice, to its objective; priors and entropies are
added, losses taken away. Of all of them only the Dirichlet prior leaves the fit a posterior mode: it is the one to
prefer where a likelihood is fitted, since the losses bias it.

| symbol | name in code | shape |
|---|---|---|
| π_k(x_n) | `log_probs.exp()` | (n, k) |
| P_k = mean_n π_k(x_n) | `usage` | (k,) |

What is sparse, a gate's -inf, is taken as probability zero.
"""

import math

import torch
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.shapes import expect_shape


def usage(log_probs: Tensor) -> Tensor:
    """Mean probability of each expert, P_k.

    Args:
        log_probs: log π_k(x_n), ``(*batch, n, k)``.

    Returns:
        ``(*batch, k)``; sums to one.
    """
    expect_shape("log_probs", log_probs, last=(-1, -1))
    return log_probs.exp().mean(-2)


def usage_log_prior(log_probs: Tensor, concentration: float = 2.0) -> Tensor:
    """Log density of a Dirichlet prior on mean usage, without its normaliser; add it to the objective.

    (c - 1) sum_k log P_k, the prior's worth of c - 1 rows for each expert. It is the default: a proper prior, whose
    weight against n rows of data falls as it should.

    Args:
        log_probs: ``(*batch, n, k)``.
        concentration: c, at least 1; at 1 the prior is flat.

    Returns:
        ``(*batch,)``, nats; -inf if an expert has no probability anywhere.

    Raises:
        InputError: for a concentration below 1, which would reward collapse.

    Source: Ormoneit and Tresp (1998), Averaging, maximum penalized likelihood and Bayesian estimation for improving
        Gaussian mixture probability density estimates, with usage for mixing weights.
    """
    if not 1 <= concentration < math.inf:
        raise InputError(f"`concentration` must be at least 1 and finite; got {concentration}.")
    if concentration == 1:
        return log_probs.new_zeros(log_probs.shape[:-2])
    log_usage = torch.logsumexp(log_probs, -2) - math.log(log_probs.shape[-2])
    return (concentration - 1) * log_usage.sum(-1)


def importance_loss(log_probs: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' total probability, Var_k(I_k) / mean_k(I_k)².

    Args:
        log_probs: ``(*batch, n, k)``.

    Returns:
        ``(*batch,)``; 0 if all are used alike, k - 1 if one is used alone.

    Source: Shazeer et al. (2017), Outrageously Large Neural Networks, eq. 6-7 (there with the weights' sum, which the
        ratio is free of).
    """
    return _squared_variation(usage(log_probs))


def load_loss(logits: Tensor, noisy_logits: Tensor, noise_scale: Tensor, n_active: int) -> Tensor:
    """Squared coefficient of variation of the experts' expected number of rows under noisy top-K routing.

    Expert k would stay among the chosen, were its own noise drawn anew, with probability
    Φ((ℓ_k - t_k) / s_k), where t_k is the K-th largest of the others' noisy logits.

    Args:
        logits: ℓ, without noise, ``(n, k)``.
        noisy_logits: what the choice was made on, ``(n, k)``.
        noise_scale: s, the noise's standard deviation, positive, ``(n, k)`` or a scalar.
        n_active: K, less than k.

    Returns:
        A scalar.

    Raises:
        ShapeError: if the logits differ in shape.
        InputError: for K below 1 or not below k: with all experts chosen there is nothing to balance.

    Source: Shazeer et al. (2017), appendix A, eq. 8-11.
    """
    k = logits.shape[-1]
    if logits.shape != noisy_logits.shape:
        raise ShapeError(f"`noisy_logits` must have shape {tuple(logits.shape)}; got {tuple(noisy_logits.shape)}.")
    if not 1 <= n_active < k:
        raise InputError(f"`n_active` must be at least 1 and less than the {k} experts; got {n_active}.")
    highest = noisy_logits.topk(n_active + 1, -1).values
    chosen = noisy_logits >= highest[..., n_active - 1 : n_active]
    threshold = torch.where(chosen, highest[..., n_active : n_active + 1], highest[..., n_active - 1 : n_active])
    load = torch.special.ndtr((logits - threshold) / noise_scale).sum(-2)
    return _squared_variation(load)


def switch_loss(log_probs: Tensor) -> Tensor:
    """k sum_k f_k P_k, where f_k is the share of rows whose most probable expert is k.

    The gradient passes through P alone.

    Args:
        log_probs: ``(*batch, n, k)``.

    Returns:
        ``(*batch,)``; 1 if balanced, k if one expert takes all.

    Source: Fedus, Zoph and Shazeer (2022), Switch Transformers, eq. 4-6.
    """
    k = log_probs.shape[-1]
    share = torch.nn.functional.one_hot(log_probs.argmax(-1), k).to(log_probs).mean(-2)
    return k * (share * usage(log_probs)).sum(-1)


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log normaliser of the logits, mean_n (log sum_k exp ℓ_nk)²; keeps logits from growing.

    Args:
        logits: before normalisation, ``(*batch, n, k)``; of log-probabilities it is zero.

    Returns:
        ``(*batch,)``.

    Source: Zoph et al. (2022), ST-MoE, eq. 5.
    """
    return torch.logsumexp(logits, -1).square().mean(-1)


def routing_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the gate at each row, -sum_k π_k log π_k.

    Args:
        log_probs: ``(..., k)``.

    Returns:
        ``(...,)``, nats; 0 if one expert is certain, log k if none is preferred.
    """
    known = torch.where(log_probs == -math.inf, 0.0, log_probs)
    return -(log_probs.exp() * known).sum(-1)


def usage_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of mean usage, -sum_k P_k log P_k, ``(*batch,)``, nats; its exponential is the effective number of
    experts."""
    shares = usage(log_probs)
    return -(shares * torch.where(shares > 0, shares, 1.0).log()).sum(-1)


def mutual_information(log_probs: Tensor) -> Tensor:
    """I(z; x), what the input tells of the expert: entropy of usage less mean entropy of the gate.

    Args:
        log_probs: ``(*batch, n, k)``.

    Returns:
        ``(*batch,)``, nats; 0 for a gate that ignores its input, log k for balanced and certain routing.

    Source: Bridle, Heading and MacKay (1991), Unsupervised classifiers, mutual information and phantom targets.
    """
    return usage_entropy(log_probs) - routing_entropy(log_probs).mean(-1)


def _squared_variation(amounts: Tensor) -> Tensor:
    """Var/mean² over the last axis, the variance with k in its denominator."""
    return amounts.var(-1, unbiased=False) / amounts.mean(-1).square()
