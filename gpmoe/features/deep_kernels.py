"""Kernels of experts that share a feature network."""

from gpytorch.kernels import Kernel

from gpmoe.features.feature_network import FeatureNetwork
from gpmoe.features.modulated_network import ModulatedNetwork
from gpmoe.kernels.dimension_scaled import expert_matern
from gpmoe.kernels.feature_kernel import FeatureKernel


def deep_kernels(body: FeatureNetwork, n_experts: int, *, modulated: bool = True) -> list[Kernel]:
    """For each expert a scaled Matérn-5/2 kernel on the features of one network.

    Pass them as `kernel` of a `MixtureOfExperts`, which copies them but keeps them sharing: variational EM moves the
    network by the sum of the experts' evidences. A `gates.FeatureGate` on the same network needs experts that are not
    copied: ``experts=[ExactGP(X, y, kernel=kernel) for kernel in deep_kernels(body, k)]``.

    Args:
        body: the network.
        n_experts: k.
        modulated: whether each expert scales and shifts the hidden units in its own way, or sees the same features.

    Example:
        >>> import torch
        >>> from gpmoe.models import MixtureOfExperts
        >>> X = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(-1)
        >>> kernels = deep_kernels(FeatureNetwork(1), 2)
        >>> moe = MixtureOfExperts(X, X.squeeze(-1).sin(), n_experts=2, kernel=kernels)
        >>> first, second = (expert.covar_module.feature_map for expert in moe.all_experts)
        >>> first.body is second.body
        True
    """
    maps = [ModulatedNetwork(body) if modulated else body for _ in range(n_experts)]
    return [FeatureKernel(each, expert_matern(body.n_features)) for each in maps]
