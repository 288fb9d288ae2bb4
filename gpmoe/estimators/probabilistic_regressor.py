"""What all regressors share: predictions in the caller's units from a fitted model in its own."""

from abc import abstractmethod
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe import io, metrics
from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, ShapeError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_count
from gpmoe.inference.report import FitReport

Array = NDArray[np.float64]


class ProbabilisticRegressor(RegressorMixin, BaseEstimator):
    """A regressor whose prediction is a distribution."""

    scaling_: Scaling
    report_: FitReport

    @abstractmethod
    def fit(self, X: Any, y: Any) -> "ProbabilisticRegressor":
        """Fit to inputs ``(n, d)`` and targets ``(n,)``."""

    @abstractmethod
    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        """Marginal distributions in the model's units."""

    @abstractmethod
    def _covariance(self, X: Tensor) -> Tensor:
        """Covariance of new observations, ``(m, m)``, in the model's units."""

    @abstractmethod
    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        """Joint samples of new observations, ``(n_samples, m)``, in the model's units."""

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Array | tuple[Array, Array]:
        """Mean of p(y | data) at new inputs, with its standard deviation or covariance if asked for.

        Args:
            X: ``(m, d)``.
            return_std: return ``(mean, std)``, noise included.
            return_cov: return ``(mean, covariance)``, noise included.

        Returns:
            Mean ``(m,)``, units of y; standard deviation ``(m,)``; covariance ``(m, m)``, units of y squared.

        Raises:
            InputError: if both are asked for.
        """
        if return_std and return_cov:
            raise InputError("`return_std` and `return_cov` can't both be True; call `predict` twice.")
        if return_cov:
            scaled = self._inputs(X)
            mean = self.scaling_.predictive(self._predictive(scaled, include_noise=True)).mean
            return mean, self._covariance(scaled).numpy() * self.scaling_.y_scale**2
        predictive = self.predict_dist(X)
        return (predictive.mean, predictive.stddev) if return_std else predictive.mean

    def predict_dist(self, X: Any) -> Predictive:
        """p(y | data) at each row of X ``(m, d)``, noise included, in units of y."""
        predictive = self._predictive(self._inputs(X), include_noise=True)
        return self.scaling_.predictive(predictive)

    def predict_latent_dist(self, X: Any) -> Predictive:
        """p(f | data) at each row of X ``(m, d)``, without noise, in units of y."""
        predictive = self._predictive(self._inputs(X), include_noise=False)
        return self.scaling_.predictive(predictive)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper end, ``(m,)`` each, of the central interval that holds y with the given probability."""
        return self.predict_dist(X).interval(coverage)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Joint samples of new observations.

        Args:
            X: ``(m, d)``.
            n_samples: how many.
            random_state: int, RandomState or None.

        Returns:
            ``(m, n_samples)``, units of y.

        Raises:
            InputError: if `n_samples` is no whole number of at least 0.
        """
        expect_count("n_samples", n_samples, least=0)
        seed = int(check_random_state(random_state).randint(2**31))
        generator = torch.Generator().manual_seed(seed)
        samples = self._draw(self._inputs(X), n_samples, generator).mT.numpy()
        return samples * self.scaling_.y_scale + self.scaling_.y_shift

    def log_score(self, X: Any, y: Any) -> float:
        """Mean log predictive density of y ``(m,)`` at X ``(m, d)``, nats, in the caller's units."""
        predictive = self.predict_dist(X)
        return metrics.log_score(predictive, checked_targets(self, y, len(predictive)))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator to one file, which `gpmoe.load` reads."""
        check_is_fitted(self, "report_")
        io.save(self, path)

    @abstractmethod
    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `io.save` writes: JSON-able data and tensors."""

    def _common_parts(self) -> dict[str, Any]:
        names = getattr(self, "feature_names_in_", None)
        return {
            "scaling": self.scaling_.to_dict(),
            "report": asdict(self.report_),
            "n_features": self.n_features_in_,
            "feature_names": None if names is None else [str(name) for name in names],
        }

    def _restore_common(self, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.scaling_ = Scaling.from_dict(data["scaling"])
        names = data["feature_names"]
        d = int(data["n_features"])
        sizes = {d, len(self.scaling_.X_shift), len(self.scaling_.X_scale), tensors["X"].shape[-1]}
        if len(sizes) > 1 or (names is not None and len(names) != d):
            raise ShapeError(f"`n_features`, `scaling`, `feature_names` and X must agree; n_features is {d}.")
        self.report_ = FitReport.from_dict(data["report"])
        self.n_features_in_ = int(data["n_features"])
        if data["feature_names"] is not None:
            self.feature_names_in_ = np.array(data["feature_names"], dtype=object)

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "report_")
        return self.scaling_.inputs(checked_inputs(self, X, reset=False))


def gaussian_samples(mean: Tensor, covariance: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    """Draws from N(mean ``(m,)``, covariance ``(m, m)``), ``(n_samples, m)``."""
    standard = torch.randn(n_samples, len(mean), generator=generator, dtype=mean.dtype)
    return mean + standard @ torch.linalg.cholesky(covariance).mT


def tensors_of(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's parameters, in the caller's own memory, under `prefix`."""
    return {f"{prefix}.{name}": parameter.detach().clone() for name, parameter in module.named_parameters()}


def set_tensors(module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """The inverse of `tensors_of`; each parameter must be there with the shape that it has."""
    for name, parameter in module.named_parameters():
        stored = tensors[f"{prefix}.{name}"]
        if stored.shape != parameter.shape:
            raise ShapeError(f"`{prefix}.{name}` must have shape {tuple(parameter.shape)}; got {tuple(stored.shape)}.")
        parameter.data.copy_(stored)
