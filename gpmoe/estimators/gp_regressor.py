"""Gaussian process regression, front door."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_kernel
from gpmoe.estimators.memory import solver_for
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor, gaussian_samples, set_tensors, tensors_of
from gpmoe.estimators.stored_arguments import kernel_from_parts, kernel_to_parts, stored_seed
from gpmoe.inference.fit import fit
from gpmoe.inference.solver import Cholesky, Solver
from gpmoe.inference.solver_description import build_solver, describe_solver
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.iterative_gp import IterativeGP


class GPRegressor(ProbabilisticRegressor):
    """Gaussian process regression with exact inference, in the caller's units.

    Args:
        kernel: a GPyTorch kernel for inputs of unit variance (for inputs as they are with ``scale=None``); copied,
            never changed. None takes a Matérn-5/2 kernel with a lengthscale for each input, whose prior widens with
            the number of inputs, and an outputscale.
        noise: the noise variance in units of y squared, a number or ``(n,)``; None learns it.
        solver: how linear systems are solved; exact by `Cholesky()` if None, at every n. An iterative one, such as
            `ConjugateGradients()`, needs no matrix of n x n in float64; "auto" takes it where Cholesky would not fit
            into memory, with a warning, and `report_.solver` says what ran.
        n_restarts: further starts of the optimiser, which run through joblib.
        scale: "standardise" gives each input and y zero mean and unit variance inside; None leaves them.
        random_state: fixes the further starts.

    Attributes:
        model_: the fitted `ExactGP`, or `IterativeGP` for an iterative solver, a BoTorch model, in scaled units.
        report_: what the fit did.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Raises:
        MemoryLimitError: by `fit`, if the covariance matrix would not fit into memory.

    Example:
        >>> import numpy as np
        >>> X = np.linspace(0, 6, 40).reshape(-1, 1)
        >>> model = GPRegressor().fit(X, np.sin(X[:, 0]))
        >>> mean, std = model.predict([[1.5]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(1.5)) < 0.01 and std[0] < 0.05)
        True
    """

    model_: ExactGP | IterativeGP

    def __init__(
        self,
        kernel: Kernel | None = None,
        noise: float | ArrayLike | None = None,
        solver: Solver | str | None = None,
        n_restarts: int = 0,
        scale: str | None = "standardise",
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.noise = noise
        self.solver = solver
        self.n_restarts = n_restarts
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "GPRegressor":
        """Learn hyperparameters by the marginal likelihood and their priors, and condition on the data.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n,)``.
        """
        expect_kernel(self.kernel)
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_targets(self, y, len(inputs))
        solver = solver_for(len(inputs), self.solver, stacklevel=2)
        self.scaling_ = Scaling.learn(inputs, targets, self.scale)
        kernel = deepcopy(self.kernel)
        noise = self.scaling_.noise(self.noise, len(targets))
        model = _model(self.scaling_.inputs(inputs), self.scaling_.targets(targets), kernel, noise, solver)
        seed = int(check_random_state(self.random_state).randint(2**31)) if self.n_restarts else None
        self.report_ = fit(model, solver=solver, n_restarts=self.n_restarts, seed=seed)
        self.model_ = model.requires_grad_(False)
        return self

    def leave_one_out(self) -> Predictive:
        """p(y_i | all other training targets) for each i, in closed form with the fitted hyperparameters.

        Raises:
            InputError: with an iterative solver, which has no factor to read it from.

        Source: Rasmussen and Williams (2006), eq. 5.12.
        """
        check_is_fitted(self, "report_")
        if isinstance(self.model_, IterativeGP):
            raise InputError(f"leave-one-out needs a Cholesky factor; this model was fitted by {self.model_.solver}.")
        mean, variance = self.model_.leave_one_out()
        return self.scaling_.predictive(Predictive.gaussian(mean.numpy(), variance.numpy()))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        arguments, tensors = self.arguments_to_parts()
        model = self.model_
        tensors |= {"X": model.X, "y": model.y, **tensors_of(model, "model")}
        solver = describe_solver(model.solver if isinstance(model, IterativeGP) else Cholesky())
        data = {"arguments": arguments, "kernel": describe_kernel(model.covar_module), "solver": solver}
        return {**self._common_parts(), **data}, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "GPRegressor":
        """See `io.Savable`."""
        estimator = cls.arguments_from_parts(data["arguments"], tensors)
        estimator._restore_common(data, tensors)
        X, y = tensors["X"], tensors["y"]
        noise = estimator.scaling_.noise(estimator.noise, len(y))
        model = _model(X, y, build_kernel(data["kernel"]), noise, build_solver(data.get("solver", True)))
        set_tensors(model, "model", tensors)
        estimator.model_ = model.requires_grad_(False)
        return estimator

    def arguments_to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The constructor's arguments as JSON-able data and tensors."""
        kernel, tensors = kernel_to_parts(self.kernel)
        arguments = {
            "kernel": kernel,
            "noise": None if self.noise is None else np.asarray(self.noise, dtype=np.float64).tolist(),
            "solver": describe_solver(self.solver),
            "n_restarts": int(self.n_restarts),
            "scale": self.scale,
            "random_state": stored_seed(self.random_state),
        }
        return arguments, tensors

    @classmethod
    def arguments_from_parts(cls, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> "GPRegressor":
        """An unfitted estimator of stored arguments."""
        kernel = kernel_from_parts(arguments["kernel"], tensors)
        return cls(**{**arguments, "kernel": kernel, "solver": build_solver(arguments["solver"])})

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        mean, variance = self.model_.marginals(X)
        noise = self.model_.new_noise() if include_noise else 0.0
        return Predictive.gaussian(mean.numpy(), (variance + noise).numpy())

    def _covariance(self, X: Tensor) -> Tensor:
        _, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.new_noise())
        return covariance

    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        if isinstance(self.model_, IterativeGP):
            latent = self.model_.draw_paths(n_samples, generator=generator)(X)
            noise = torch.randn(latent.shape, generator=generator, dtype=X.dtype)
            return latent + self.model_.new_noise().sqrt() * noise
        mean, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.new_noise())
        return gaussian_samples(mean, covariance, n_samples, generator)


def _model(X: Tensor, y: Tensor, kernel: Kernel | None, noise: Tensor | None, solver: Solver) -> ExactGP | IterativeGP:
    if isinstance(solver, Cholesky):
        return ExactGP(X, y, kernel=kernel, noise=noise)
    return IterativeGP(X, y, solver=solver, kernel=kernel, noise=noise)
