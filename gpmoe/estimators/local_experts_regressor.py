"""Local experts, front door."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from gpmoe.data.row_blocks import ArrayBlocks, RowFile, blocks_in_memory
from gpmoe.distributions import Predictive
from gpmoe.errors import InputError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_count, expect_flag, expect_kernel
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor, gaussian_samples, set_tensors, tensors_of
from gpmoe.estimators.stored_arguments import kernel_from_parts, kernel_to_parts, stored_seed
from gpmoe.inference.fit_from_file import fit_from_file
from gpmoe.inference.fit_local_experts import ExpertPlan, FittedExperts, fit_local_experts
from gpmoe.inference.report import warn_about
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.models.aggregation import Aggregation
from gpmoe.models.expert_layout import ExpertLayout
from gpmoe.models.local_experts import LocalExperts

Array = NDArray[np.float64]


class LocalExpertsRegressor(ProbabilisticRegressor):
    """Exact Gaussian processes on parts of the rows, whose predictions are combined; for many rows, in O(n).

    Args:
        points_per_expert: rows of each expert, about; more are better and dearer, O(n points²) in all.
        aggregation: how posteriors of the latent function are combined, see `LocalExperts`: "grbcm", "cpoe" (correlated
            experts; the most accurate, up to some 100,000 rows), "nested" (accurate, O(n²) a prediction), "rbcm",
            "bcm", "gpoe", "gpoe_softmax", "poe", "minimum_variance" or "barycentre".
        degree: with how many experts at a time "cpoe" correlates, each one included.
        partition: "kmeans" or "tree" for experts on neighbouring rows, "random".
        n_nearest: how many experts answer for a point, those around it; None for all.
        shared: True for one set of hyperparameters, False for one of each expert, for the rules that allow it.
        kernel: as for `GPRegressor`.
        noise: the noise variance in units of y squared; None learns it.
        scale: "standardise" gives each input and y zero mean and unit variance inside; None leaves them.
        n_jobs: of joblib, for experts with hyperparameters of their own. With ``joblib.parallel_config(backend="ray")``
            they are fitted on other machines; the numbers are the same.
        random_state: fixes the random rows.

    Attributes:
        model_: the fitted `LocalExperts`, a BoTorch model, in scaled units.
        report_: what the fit did.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Example:
        >>> import numpy as np
        >>> from gpmoe.estimators.local_experts_regressor import LocalExpertsRegressor
        >>> X = np.linspace(0, 6, 400).reshape(-1, 1)
        >>> y = np.sin(X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(400)
        >>> model = LocalExpertsRegressor(points_per_expert=50, random_state=0).fit(X, y)
        >>> mean, std = model.predict([[1.5]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(1.5)) < 0.1 and abs(std[0] - 0.1) < 0.03)
        True
    """

    model_: LocalExperts

    def __init__(
        self,
        points_per_expert: int = 200,
        aggregation: Aggregation = "grbcm",
        degree: int = 2,
        partition: str = "kmeans",
        n_nearest: int | None = 8,
        shared: bool = True,
        kernel: Kernel | None = None,
        noise: float | None = None,
        scale: str | None = "standardise",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.points_per_expert = points_per_expert
        self.aggregation = aggregation
        self.degree = degree
        self.partition = partition
        self.n_nearest = n_nearest
        self.shared = shared
        self.kernel = kernel
        self.noise = noise
        self.scale = scale
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "LocalExpertsRegressor":
        """Divide the rows among experts and learn hyperparameters.

        A memory-mapped X, or blocks, are read a part at a time, and the model's rows stay in a temporary file.

        Args:
            X: ``(n, d)``, array or frame; or an iterable of blocks (X, y), such as `data.row_blocks.ParquetBlocks`.
            y: ``(n,)``; None for blocks.
        """
        expect_count("points_per_expert", self.points_per_expert)
        expect_count("degree", self.degree)
        expect_flag("shared", self.shared)
        expect_count("n_nearest", self.n_nearest, None)
        expect_kernel(self.kernel)
        seed = int(check_random_state(self.random_state).randint(2**31))
        blocks = ArrayBlocks(X, y) if isinstance(X, np.memmap) and y is not None else X
        if y is None or blocks is not X:
            if isinstance(blocks, (str, bytes)) or hasattr(blocks, "shape") or not isinstance(blocks, Iterable):
                checked_targets(self, y, 0)  # says that y is missing
            fitted = self._fit_blocks(blocks, seed)
        else:
            inputs = checked_inputs(self, X, reset=True)
            targets = checked_targets(self, y, len(inputs))
            self.scaling_ = Scaling.learn(inputs, targets, self.scale)
            rows = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
            fitted = fit_local_experts(*rows, self._plan(seed), n_jobs=self.n_jobs)
        self.model_, self.report_ = fitted.model.requires_grad_(False), fitted.report
        warn_about(self.report_, stacklevel=2)
        return self

    def _plan(self, seed: int = 0) -> ExpertPlan:
        noise = self.scaling_.one_noise(self.noise)
        return ExpertPlan(
            points_per_expert=int(self.points_per_expert),
            aggregation=self.aggregation,
            degree=int(self.degree),
            partition=self.partition,
            n_nearest=None if self.n_nearest is None else int(self.n_nearest),
            shared=self.shared,
            kernel=deepcopy(self.kernel),
            noise=noise,
            seed=seed,
        )

    def _fit_blocks(self, blocks: Iterable[Any], seed: int) -> FittedExperts:
        """Copy blocks to a file, learn the scaling on the way, and fit from the file."""
        rows = RowFile(self._checked(blocks)).rows
        self.scaling_ = _scaling_of(rows, self.scale)
        center = np.append(self.scaling_.X_shift, self.scaling_.y_shift)
        spread = np.append(self.scaling_.X_scale, self.scaling_.y_scale)
        for part, at in blocks_in_memory(rows):
            rows[at] = (part - center) / spread
        return fit_from_file(rows, self._plan(seed), n_jobs=self.n_jobs)

    def _checked(self, blocks: Iterable[Any]) -> Iterator[tuple[Array, Array]]:
        for number, block in enumerate(blocks):
            if not isinstance(block, tuple) or len(block) != 2:
                raise InputError(f"each block must be a pair (X, y); block {number} is a {type(block).__name__}.")
            inputs = checked_inputs(self, block[0], reset=number == 0)
            yield inputs, checked_targets(self, block[1], len(inputs))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        model = self.model_
        kernel, tensors = kernel_to_parts(self.kernel)
        tensors |= {"X": model.X, "y": model.y, **tensors_of(model, "model"), **model.layout.to_tensors()}
        arguments = {
            "points_per_expert": int(self.points_per_expert),
            "aggregation": self.aggregation,
            "degree": int(self.degree),
            "partition": self.partition,
            "n_nearest": None if self.n_nearest is None else int(self.n_nearest),
            "shared": bool(self.shared),
            "kernel": kernel,
            "noise": None if self.noise is None else float(self.noise),
            "scale": self.scale,
            "n_jobs": None if self.n_jobs is None else int(self.n_jobs),
            "random_state": stored_seed(self.random_state),
        }
        return {**self._common_parts(), "arguments": arguments, "kernel": describe_kernel(model.covar_module)}, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "LocalExpertsRegressor":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        arguments["kernel"] = kernel_from_parts(arguments["kernel"], tensors)
        estimator = cls(**arguments)
        estimator._restore_common(data, tensors)
        plan = estimator._plan()
        model = LocalExperts(
            tensors["X"],
            tensors["y"],
            ExpertLayout.from_tensors(tensors, plan.n_nearest),
            aggregation=plan.aggregation,
            degree=plan.degree,
            kernel=build_kernel(data["kernel"]),
            noise=plan.noise,
        )
        set_tensors(model, "model", tensors)
        estimator.model_ = model.requires_grad_(False)
        return estimator

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        mean, variance, noise = self.model_.answers(X)
        return Predictive.gaussian(mean.numpy(), (variance + noise if include_noise else variance).numpy())

    def _covariance(self, X: Tensor) -> Tensor:
        _, covariance = self.model_.latent(X)
        lapack.diagonal(covariance).add_(self.model_.answers(X)[2])
        return covariance

    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        mean = self.model_.answers(X)[0]
        return gaussian_samples(mean, self._covariance(X), n_samples, generator)


def _scaling_of(rows: Array, kind: str | None) -> Scaling:
    """`Scaling.learn` from a file of inputs and target."""
    width = rows.shape[1]
    total, square, largest = np.zeros(width), np.zeros(width), np.zeros(width)
    for part, _ in blocks_in_memory(rows):
        largest = np.maximum(largest, np.abs(part).max(0))
    unit = np.where(largest > 0, largest, 1.0)
    for part, _ in blocks_in_memory(rows):
        total += (part / unit).sum(0)
    center = total / len(rows)
    for part, _ in blocks_in_memory(rows):
        square += ((part / unit - center) ** 2).sum(0)
    spread = np.sqrt(square / len(rows))
    none = Scaling.learn(np.zeros((1, width - 1)), np.zeros(1), kind)  # refuses other words
    if kind is None:
        return none
    varies = spread > 10 * np.finfo(np.float64).eps * np.sqrt(len(rows))
    shift, scale = center * unit, np.where(varies, spread * unit, 1.0)
    return Scaling(shift[:-1], scale[:-1], float(shift[-1]), float(scale[-1]))
