"""The posterior of a mixture of GP experts in the form that BoTorch's Monte Carlo acquisitions take."""

from typing import Any

import torch
from botorch.posteriors.posterior import Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import IIDNormalSampler
from torch import Tensor


class MixturePosterior(Posterior):
    """A mixture of k joint Gaussians whose component is drawn at each point.

    Args:
        gate_probs: ``(*batch, q, k)``.
        component_mean: ``(*batch, k, q)``.
        component_covariance: ``(*batch, k, q, q)``.
    """

    def __init__(self, gate_probs: Tensor, component_mean: Tensor, component_covariance: Tensor) -> None:
        self.gate_probs = gate_probs
        self.component_mean = component_mean
        self.component_covariance = component_covariance

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return self.gate_probs.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return self.gate_probs.dtype

    @property
    def mean(self) -> Tensor:
        """``(*batch, q, 1)``."""
        return (self.gate_probs * self.component_mean.mT).sum(-1, keepdim=True)

    @property
    def variance(self) -> Tensor:
        """By the law of total variance, ``(*batch, q, 1)``."""
        second = self.component_covariance.diagonal(dim1=-2, dim2=-1).mT + self.component_mean.mT.square()
        return (self.gate_probs * second).sum(-1, keepdim=True) - self.mean.square()

    @property
    def covariance(self) -> Tensor:
        """``(*batch, q, q)``: two points share what their experts share."""
        weight = self.gate_probs.mT
        shared = (weight.unsqueeze(-1) * weight.unsqueeze(-2) * self.component_covariance).sum(-3)
        return shared + torch.diag_embed(self.variance.squeeze(-1) - shared.diagonal(dim1=-2, dim2=-1))

    @property
    def base_sample_shape(self) -> torch.Size:
        """``(*batch, q, k + 1)``: a normal for each expert and one that picks the expert."""
        return torch.Size([*self.gate_probs.shape[:-1], self.gate_probs.shape[-1] + 1])

    @property
    def batch_range(self) -> tuple[int, int]:
        """Dimensions of the base samples that are batch."""
        return (0, -2)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size([*sample_shape, *self.gate_probs.shape[:-1], 1])

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples from given standard normals.

        Gradients pass through each expert's sample; the choice of the expert is piecewise constant.

        Args:
            sample_shape: of the samples.
            base_samples: ``(*sample_shape, *batch, q, k + 1)``.

        Returns:
            ``(*sample_shape, *batch, q, 1)``.
        """
        k = self.gate_probs.shape[-1]
        pick = torch.special.ndtr(base_samples[..., -1:])
        chosen = (pick > self.gate_probs.cumsum(-1)).sum(-1, keepdim=True).clamp_max(k - 1)
        scale = self.component_covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(self.component_covariance.shape[-1], dtype=self.dtype, device=self.device)
        jitter = (1e-8 * scale).clamp_min(1e-24)  # an expert may be certain
        L = torch.linalg.cholesky(self.component_covariance + jitter * eye)
        normals = base_samples[..., :-1].mT.unsqueeze(-1)
        samples = self.component_mean + (L @ normals).squeeze(-1)
        return samples.mT.gather(-1, chosen)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Samples ``(*sample_shape, *batch, q, 1)`` from torch's generator."""
        shape = torch.Size() if sample_shape is None else sample_shape
        base = torch.randn(*shape, *self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(shape, base)


@GetSampler.register(MixturePosterior)
def _sampler(posterior: MixturePosterior, sample_shape: torch.Size, *, seed: int | None = None) -> Any:
    return IIDNormalSampler(sample_shape=sample_shape, seed=seed)
