"""Gaussian process regression through inducing points, front door."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_count, expect_kernel
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor, gaussian_samples, set_tensors, tensors_of
from gpmoe.estimators.stored_arguments import kernel_from_parts, kernel_to_parts, stored_seed
from gpmoe.inference.elbo import elbo
from gpmoe.inference.fit import fit, fit_quietly
from gpmoe.inference.fit_stochastic import fit_stochastic
from gpmoe.inference.report import FitReport
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.inducing_points import greedy_inducing_points
from gpmoe.models.sparse_gp import SparseGP
from gpmoe.models.stochastic_variational_gp import StochasticVariationalGP

_SUBSET = 1000  # random rows on which an exact GP finds the first hyperparameters
_CANDIDATES = 20_000  # random rows among which the first inducing points are chosen
_ITERATIONS = {"collapsed": 200, "stochastic": 50}


class SparseGPRegressor(ProbabilisticRegressor):
    """Gaussian process regression for many rows, whose data pass through inducing points, in the caller's units.

    An exact GP on a random thousand rows gives the first hyperparameters, greedy conditional variance among 20,000
    rows the first inducing points; then both are learned by a lower bound on the evidence of all rows.

    Args:
        n_inducing: the most inducing points; time grows with their square, accuracy with their number.
        kernel: as for `GPRegressor`.
        noise: the noise variance in units of y squared, a number or ``(n,)``; None learns it.
        inference: "collapsed" has the best posterior of the inducing values in closed form, by L-BFGS over all rows;
            "stochastic" learns it by natural gradients from minibatches, for rows too many to pass over often.
        max_iterations: L-BFGS iterations, 200 if None; or how often stochastic inference sees each row, 50 if None.
        scale: "standardise" gives each input and y zero mean and unit variance inside; None leaves them.
        random_state: fixes the random rows and minibatches.

    Attributes:
        model_: the fitted `SparseGP` or `StochasticVariationalGP`, a BoTorch model, in scaled units.
        report_: what the fit did.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Example:
        >>> import numpy as np
        >>> from gpmoe.estimators.sparse_gp_regressor import SparseGPRegressor
        >>> X = np.linspace(0, 6, 400).reshape(-1, 1)
        >>> y = np.sin(X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(400)
        >>> model = SparseGPRegressor(n_inducing=10, random_state=0).fit(X, y)
        >>> mean, std = model.predict([[1.5]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(1.5)) < 0.05 and abs(std[0] - 0.1) < 0.02)
        True
    """

    model_: SparseGP | StochasticVariationalGP

    def __init__(
        self,
        n_inducing: int = 500,
        kernel: Kernel | None = None,
        noise: float | ArrayLike | None = None,
        inference: str = "collapsed",
        max_iterations: int | None = None,
        scale: str | None = "standardise",
        random_state: Any = None,
    ) -> None:
        self.n_inducing = n_inducing
        self.kernel = kernel
        self.noise = noise
        self.inference = inference
        self.max_iterations = max_iterations
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "SparseGPRegressor":
        """Learn hyperparameters and inducing points by a bound on the evidence and the priors.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n,)``.
        """
        if self.inference not in _ITERATIONS:
            raise InputError(f"`inference` must be 'collapsed' or 'stochastic'; got {self.inference!r}.")
        expect_count("n_inducing", self.n_inducing)
        expect_count("max_iterations", self.max_iterations, None)
        expect_kernel(self.kernel)
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_targets(self, y, len(inputs))
        self.scaling_ = Scaling.learn(inputs, targets, self.scale)
        rows = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
        seed = int(check_random_state(self.random_state).randint(2**31))
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        first = self._on_subset(*rows, order[:_SUBSET])
        Z = greedy_inducing_points(first.covar_module, rows[0][order[:_CANDIDATES]], self.n_inducing)
        model = self._model(*rows, Z, first.covar_module)
        model.mean_module.load_state_dict(first.mean_module.state_dict())
        if self.noise is None:
            model.likelihood.load_state_dict(first.likelihood.state_dict())
        model.inducing_points.requires_grad_(len(Z) < len(inputs))
        self.report_ = self._learn(model, seed)
        self.model_ = model.requires_grad_(False)
        return self

    def _on_subset(self, X: Tensor, y: Tensor, chosen: Tensor) -> ExactGP:
        """An exact GP fitted to the chosen rows."""
        noise = self.scaling_.noise(self.noise, len(X))
        noise = noise[chosen] if noise is not None and noise.dim() else noise
        gp = ExactGP(X[chosen], y[chosen], kernel=deepcopy(self.kernel), noise=noise)
        fit_quietly(gp)
        return gp

    def _learn(self, model: SparseGP | StochasticVariationalGP, seed: int) -> FitReport:
        iterations = _ITERATIONS[self.inference] if self.max_iterations is None else self.max_iterations
        if isinstance(model, SparseGP):
            return fit(model, elbo, max_iterations=iterations)
        return fit_stochastic(model, epochs=iterations, seed=seed)

    def _model(self, X: Tensor, y: Tensor, Z: Tensor, kernel: Kernel) -> SparseGP | StochasticVariationalGP:
        noise = self.scaling_.noise(self.noise, len(y))
        if self.inference == "collapsed":
            return SparseGP(X, y, Z, kernel=kernel, noise=noise)
        if noise is None:
            return StochasticVariationalGP(X, y, Z, kernel=kernel)
        mean = float(noise.mean())  # rows of another noise count more or less in proportion
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(0.0)).double().requires_grad_(False)
        likelihood.noise = mean
        weights = mean / noise if noise.dim() else None
        return StochasticVariationalGP(X, y, Z, kernel=kernel, likelihood=likelihood, weights=weights)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        kernel, tensors = kernel_to_parts(self.kernel)
        arguments = {
            "n_inducing": int(self.n_inducing),
            "kernel": kernel,
            "noise": None if self.noise is None else np.asarray(self.noise, dtype=np.float64).tolist(),
            "inference": self.inference,
            "max_iterations": None if self.max_iterations is None else int(self.max_iterations),
            "scale": self.scale,
            "random_state": stored_seed(self.random_state),
        }
        model = self.model_
        tensors |= {"X": model.X, "y": model.y, **tensors_of(model, "model")}
        return {**self._common_parts(), "arguments": arguments, "kernel": describe_kernel(model.covar_module)}, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "SparseGPRegressor":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        arguments["kernel"] = kernel_from_parts(arguments["kernel"], tensors)
        estimator = cls(**arguments)
        estimator._restore_common(data, tensors)
        Z = tensors["model.inducing_points"]
        model = estimator._model(tensors["X"], tensors["y"], Z, build_kernel(data["kernel"]))
        set_tensors(model, "model", tensors)
        estimator.model_ = model.requires_grad_(False)
        return estimator

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        mean, variance = self.model_.marginals(X)
        noise = self.model_.new_noise() if include_noise else 0.0
        return Predictive.gaussian(mean.numpy(), (variance + noise).numpy())

    def _covariance(self, X: Tensor) -> Tensor:
        _, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.new_noise())
        return covariance

    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        mean, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.new_noise())
        return gaussian_samples(mean, covariance, n_samples, generator)
