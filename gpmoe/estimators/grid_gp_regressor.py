"""Gaussian process regression on grids, front door."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from gpytorch.kernels import Kernel
from sklearn.utils import check_random_state
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.grid_axes import GridRows, find_grid
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor, gaussian_samples, set_tensors, tensors_of
from gpmoe.estimators.stored_arguments import stored_seed
from gpmoe.inference.fit import fit
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.linalg.complement import Iterative
from gpmoe.models.kronecker_gp import KroneckerGP


class GridGPRegressor(ProbabilisticRegressor):
    """Gaussian process regression for rows on a grid, complete or with missing cells, in the caller's units.

    The kernel is a product over the axes of the grid. Cost grows like N^(1 + 1/k) for N cells on k axes, not like n³.

    Args:
        kernels: a GPyTorch kernel for each axis, for inputs of unit variance (for inputs as they are with
            ``scale=None``), in the order of the axes; copied, never changed. None for Matérn-5/2 on each.
        axes: the columns of each axis, as in ``[[0], [1, 2]]``; None to find them.
        noise: the noise variance in units of y squared; None learns it.
        solver: "auto", or a way of `linalg.latent_kronecker.plan`, or `Iterative(...)`. The report names it.
        n_restarts: further starts of the optimiser, which run through joblib.
        scale: "standardise" gives each input and y zero mean and unit variance inside; None leaves them.
        random_state: fixes the further starts.

    Attributes:
        model_: the fitted `KroneckerGP`, a BoTorch model, in scaled units; its inputs' columns are those of the axes,
            one axis after another.
        axes_: the columns of each axis.
        grid_shape_: the number of points on each axis.
        report_: what the fit did.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Raises:
        InputError: by `fit`, if the rows don't lie on a grid, or two in one cell.

    Example:
        >>> import numpy as np
        >>> X = np.array([[place, time] for place in range(5) for time in range(12)], dtype=float)
        >>> y = np.sin(X[:, 1]) * X[:, 0]
        >>> model = GridGPRegressor().fit(X[:-7], y[:-7])
        >>> model.grid_shape_
        (5, 12)
        >>> bool(abs(model.predict([[2.0, 2.5]])[0] - 2 * np.sin(2.5)) < 0.1)
        True
    """

    model_: KroneckerGP

    def __init__(
        self,
        kernels: Sequence[Kernel] | None = None,
        axes: Sequence[Sequence[int]] | None = None,
        noise: float | None = None,
        solver: str | Iterative = "auto",
        n_restarts: int = 0,
        scale: str | None = "standardise",
        random_state: Any = None,
    ) -> None:
        self.kernels = kernels
        self.axes = axes
        self.noise = noise
        self.solver = solver
        self.n_restarts = n_restarts
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "GridGPRegressor":
        """Learn hyperparameters by the marginal likelihood and their priors, and condition on the data.

        Args:
            X: ``(n, d)``, array or frame, rows on a grid.
            y: ``(n,)``.
        """
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_targets(self, y, len(inputs))
        self.scaling_ = Scaling.learn(inputs, targets, self.scale)
        scaled, values = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
        model = self._condition(find_grid(scaled.numpy(), self.axes), values, deepcopy(self.kernels))
        seed = int(check_random_state(self.random_state).randint(2**31)) if self.n_restarts else None
        self.report_ = fit(model, n_restarts=self.n_restarts, seed=seed)
        self.model_ = model.requires_grad_(False)
        return self

    def _condition(self, grid: GridRows, y: Tensor, kernels: Sequence[Kernel] | None) -> KroneckerGP:
        """The model of scaled data on a grid."""
        if kernels is not None and len(kernels) != len(grid.columns):
            raise InputError(
                f"`kernels` must have one kernel for each axis; got {len(kernels)}, and the axes are the columns "
                f"{[list(axis) for axis in grid.columns]} of X."
            )
        self.axes_ = [list(axis) for axis in grid.columns]
        self.grid_shape_ = grid.shape
        iterative = self.solver if isinstance(self.solver, Iterative) else None
        return KroneckerGP(
            [torch.from_numpy(points) for points in grid.points],
            torch.from_numpy(grid.on_grid(y.numpy())),
            kernels=kernels,
            noise=self.scaling_.one_noise(self.noise),
            method=self.solver if isinstance(self.solver, str) else "iterative",
            iterative=iterative,
        )

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        model = self.model_
        X = torch.empty_like(model.X)
        X[:, self._order()] = model.X
        tensors = {"X": X, "y": model.y, **tensors_of(model, "model")}
        for j, kernel in enumerate(self.kernels or []):
            tensors |= tensors_of(kernel, f"kernel_{j}")
        described = None if self.kernels is None else [describe_kernel(kernel) for kernel in self.kernels]
        arguments = {
            "kernels": described,
            "axes": None if self.axes is None else [[int(c) for c in axis] for axis in self.axes],
            "noise": None if self.noise is None else float(self.noise),
            "solver": self.solver if isinstance(self.solver, str) else asdict(self.solver),
            "n_restarts": int(self.n_restarts),
            "scale": self.scale,
            "random_state": stored_seed(self.random_state),
        }
        kernels = [describe_kernel(kernel) for kernel in model.kernels]
        return {**self._common_parts(), "arguments": arguments, "kernels": kernels, "axes": self.axes_}, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "GridGPRegressor":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        if arguments["kernels"] is not None:
            arguments["kernels"] = [build_kernel(kernel) for kernel in arguments["kernels"]]
            for j, kernel in enumerate(arguments["kernels"]):
                set_tensors(kernel, f"kernel_{j}", tensors)
        if isinstance(arguments["solver"], dict):
            arguments["solver"] = Iterative(**arguments["solver"])
        estimator = cls(**arguments)
        estimator._restore_common(data, tensors)
        kernels = [build_kernel(kernel) for kernel in data["kernels"]]
        model = estimator._condition(find_grid(tensors["X"].numpy(), data["axes"]), tensors["y"], kernels)
        set_tensors(model, "model", tensors)
        estimator.model_ = model.requires_grad_(False)
        return estimator

    def _order(self) -> list[int]:
        """The columns of X in the order of the axes, which is the model's."""
        return [column for axis in self.axes_ for column in axis]

    def _inputs(self, X: Any) -> Tensor:
        return super()._inputs(X)[:, self._order()]

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        mean, variance = self.model_.marginals(X)
        noise = self.model_.new_noise() if include_noise else 0.0
        return Predictive.gaussian(mean.numpy(), (variance + noise).numpy())

    def _covariance(self, X: Tensor) -> Tensor:
        _, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.new_noise())
        return covariance

    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        mean, _ = self.model_.latent(X)
        return gaussian_samples(mean, self._covariance(X), n_samples, generator)
