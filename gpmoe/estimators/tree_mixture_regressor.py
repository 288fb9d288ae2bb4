"""Regression by a mixture of GPs over random partitions, front door."""

from copy import deepcopy
from dataclasses import fields
from typing import Any

from gpytorch.kernels import Kernel
from sklearn.utils import check_random_state
from torch import Generator, Tensor

from gpmoe.distributions import Predictive
from gpmoe.estimators.arrays import Array, Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_count, expect_kernel
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor, set_tensors, tensors_of
from gpmoe.estimators.stored_arguments import kernel_from_parts, kernel_to_parts, stored_seed
from gpmoe.inference.fit_tree_mixture import fit_tree_mixture
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.models.random_partitions import RandomPartitions
from gpmoe.models.tree_mixture import TreeMixture


class TreeMixtureRegressor(ProbabilisticRegressor):
    """Gaussian processes on the cells of random partitions, mixed by the partitions' evidence, in the caller's units.

    A cheap answer to jumps and to many rows: a partition that splits at a jump has by far the most evidence, and time
    grows with the rows times the square of the leaf size. Predictions jump at the boundaries of cells.

    Args:
        n_partitions: number of random partitions.
        leaf_size: the most training points in a cell.
        kernel: a `ScaleKernel` of a Matérn or RBF kernel, copied; the default of `GPRegressor` if None.
        noise: the noise variance in units of y squared; None learns it.
        randomness: how far splits stray from the median: 0 not at all, 1 over the whole cell.
        scale: "standardise" gives each input and y zero mean and unit variance inside; None leaves them.
        random_state: fixes the partitions.

    Attributes:
        model_: the fitted `TreeMixture`, in scaled units.
        partition_weights_: posterior probability of each partition, ``(n_partitions,)``.
        report_: what the fit did.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Example:
        >>> from gpmoe.estimators.tree_mixture_regressor import TreeMixtureRegressor
        >>> import numpy as np
        >>> X = np.linspace(0, 1, 60).reshape(-1, 1)
        >>> y = 1 + (X[:, 0] > 0.5) + 0.05 * np.random.default_rng(0).standard_normal(60)
        >>> model = TreeMixtureRegressor(leaf_size=20, random_state=0).fit(X, y)
        >>> model.predict([[0.25], [0.75]]).round(1)
        array([1., 2.])
    """

    model_: TreeMixture

    def __init__(
        self,
        n_partitions: int = 32,
        leaf_size: int = 100,
        kernel: Kernel | None = None,
        noise: float | None = None,
        randomness: float = 0.5,
        scale: str | None = "standardise",
        random_state: Any = None,
    ) -> None:
        self.n_partitions = n_partitions
        self.leaf_size = leaf_size
        self.kernel = kernel
        self.noise = noise
        self.randomness = randomness
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "TreeMixtureRegressor":
        """Draw partitions, learn the hyperparameters by the evidence of their mixture, and condition on the data.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n,)``.

        Raises:
            InputError: for an argument out of its range.
            UnsupportedKernelError: for a kernel of another kind.
        """
        expect_count("n_partitions", self.n_partitions)
        expect_count("leaf_size", self.leaf_size)
        expect_kernel(self.kernel)
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_targets(self, y, len(inputs))
        self.scaling_ = Scaling.learn(inputs, targets, self.scale)
        rows = self.scaling_.inputs(inputs)
        seed = int(check_random_state(self.random_state).randint(2**31))
        partitions = RandomPartitions.draw(
            rows, int(self.n_partitions), leaf_size=int(self.leaf_size), randomness=self.randomness, seed=seed
        )
        model = self._model(rows, self.scaling_.targets(targets), partitions, deepcopy(self.kernel))
        self.report_ = fit_tree_mixture(model)
        return self._keep(model)

    def _model(self, X: Tensor, y: Tensor, partitions: RandomPartitions, kernel: Kernel | None) -> TreeMixture:
        noise = self.scaling_.one_noise(self.noise)
        return TreeMixture(X, y, partitions, kernel=kernel, noise=noise)

    def _keep(self, model: TreeMixture) -> "TreeMixtureRegressor":
        self.model_ = model.requires_grad_(False)
        self.partition_weights_: Array = model.weights().numpy()
        return self

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        model = self.model_
        kernel, tensors = kernel_to_parts(self.kernel)
        arguments = {
            "n_partitions": int(self.n_partitions),
            "leaf_size": int(self.leaf_size),
            "kernel": kernel,
            "noise": None if self.noise is None else float(self.noise),
            "randomness": float(self.randomness),
            "scale": self.scale,
            "random_state": stored_seed(self.random_state),
        }
        tensors |= {"X": model.X, "y": model.y, **tensors_of(model, "model")}
        tensors |= {
            f"partitions.{part.name}": getattr(model.partitions, part.name) for part in fields(RandomPartitions)
        }
        return {**self._common_parts(), "arguments": arguments, "kernel": describe_kernel(model.covar_module)}, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "TreeMixtureRegressor":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        arguments["kernel"] = kernel_from_parts(arguments["kernel"], tensors)
        estimator = cls(**arguments)
        estimator._restore_common(data, tensors)
        partitions = RandomPartitions(
            **{part.name: tensors[f"partitions.{part.name}"] for part in fields(RandomPartitions)}
        )
        partitions.expect_whole(int(data["n_features"]))
        model = estimator._model(tensors["X"], tensors["y"], partitions, build_kernel(data["kernel"]))
        set_tensors(model, "model", tensors)
        return estimator._keep(model)

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        return self.model_.predictive(X, include_noise=include_noise)

    def _covariance(self, X: Tensor) -> Tensor:
        covariance = self.model_.covariance(X)
        lapack.diagonal(covariance).add_(self.model_.likelihood.noise)
        return covariance

    def _draw(self, X: Tensor, n_samples: int, generator: Generator) -> Tensor:
        return self.model_.draw(X, n_samples, generator=generator)
