"""An expert that knows nothing and learns nothing."""

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.models.exact_gp import expect_data
from gpmoe.models.expert import Components, one_component
from gpmoe.models.gaussian_model import expect_inputs


class NullExpert(gpytorch.Module):
    """N(mean, variance) everywhere: takes the points that no other expert explains, at no cost.

    Args:
        X: ``(n, d)``.
        y: ``(n,)``.
        mean: of y; zero suits standardised targets.
        variance: of y; broader than standardised targets if not given, so that it claims outliers only.

    Example:
        >>> import torch
        >>> X = torch.zeros(3, 1, dtype=torch.float64)
        >>> expert = NullExpert(X, X.squeeze(-1), variance=1.0)
        >>> round(float(expert.evidence()), 3)  # three points at the mean of N(0, 1)
        -2.757
    """

    def __init__(self, X: Tensor, y: Tensor, *, mean: float = 0.0, variance: float = 4.0) -> None:
        super().__init__()
        if not 0 < variance < math.inf:
            raise InputError(f"`variance` must be positive and finite; got {variance}.")
        self.mean = mean
        self.variance = variance
        for name in ("X", "y", "weights"):
            self.register_buffer(name, None)
        self.set_data(X, y)

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """See `Expert`."""
        expect_data(X, y, weights)
        self.X, self.y, self.weights = X, y, weights

    def fit_step(self) -> None:
        """Nothing."""

    def evidence(self) -> Tensor:
        """See `Expert`: sum_n r_n log N(y_n; mean, variance)."""
        density = self.expected_log_likelihood(self.X, self.y)
        return density.sum() if self.weights is None else (self.weights * density).sum()

    def expected_log_likelihood(self, X: Tensor, y: Tensor) -> Tensor:
        """See `Expert`."""
        return -0.5 * (math.log(2 * math.pi * self.variance) + (y - self.mean).square() / self.variance)

    def components(self, X: Tensor, *, include_noise: bool = True) -> Components:
        """See `Expert`: one Gaussian; without noise it is the mean, with a variance next to nothing."""
        expect_inputs(X, self.X)
        mean = torch.full_like(X[:, 0], self.mean)
        return one_component(mean, torch.full_like(mean, self.variance if include_noise else 1e-12 * self.variance))

    def components_left_out(self, X: Tensor, y: Tensor, weights: Tensor) -> Components:
        """See `Expert`: the same with and without any point."""
        return self.components(X)

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `Expert`: the mean, for sure."""
        q = X.shape[-2]
        return torch.full_like(X[..., 0], self.mean), X.new_zeros(*X.shape[:-2], q, q)

    def noise_variance(self, X: Tensor) -> Tensor:
        """See `Expert`."""
        return X.new_tensor([self.variance])

    def description(self) -> dict[str, Any]:
        """The arguments that make such an expert of given data, for a file."""
        return {"mean": float(self.mean), "variance": float(self.variance)}

    @classmethod
    def from_description(cls, description: dict[str, Any], X: Tensor, y: Tensor) -> "NullExpert":
        """The inverse of `description`."""
        return cls(X, y, mean=float(description["mean"]), variance=float(description["variance"]))

    def jitter_needed(self) -> float:
        """Zero."""
        return 0.0
