"""Multi-task Gaussian process regression, front door."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe import io
from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, ShapeError
from gpmoe.estimators.arrays import Array, Scaling, checked_inputs
from gpmoe.estimators.probabilistic_regressor import set_tensors, tensors_of
from gpmoe.estimators.task_targets import TaskScaling, checked_task_targets, expect_each_task
from gpmoe.inference.fit import fit
from gpmoe.inference.fit_components import fit_components
from gpmoe.inference.report import FitReport
from gpmoe.kernels.coregionalisation import Coregionalisation, OutlierTaskGate
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.linalg import lapack
from gpmoe.models.multitask_gp import MultitaskGP
from gpmoe.models.task_starts import default_kernels, pairwise_correlation


class MultitaskGPRegressor(RegressorMixin, BaseEstimator):
    """Exact Gaussian process regression for several targets at once, any of which may be missing anywhere.

    A linear model of coregionalisation: y_t = c_t + Σ_q g_qt(x) + ε_t, cov(g_qt, g_qt') = B_q[t, t'] k_q, noise
    variance σ_t² of each task. What is missing is not imputed: only observed targets enter the likelihood. To predict
    a missing target, predict at its row.

    Args:
        rank: of each B_q beyond the tasks' own variances; 0 makes tasks independent.
        kernels: a GPyTorch kernel for each component, for inputs of unit variance (for inputs as they are with
            ``scale=None``), without a scale of its own; or kernels of rows (x, t), such as `ConvolvedTaskKernel`, which
            tell tasks apart themselves. Copied, never changed. None for Matérn-5/2 with a lengthscale per input.
        n_components: how many kernels, that is, scales of length or time, where none are given. One is cheap, with
            Kronecker algebra; two had the larger penalised evidence on soil, currency, weather and EEG tables. "auto"
            adds up to three as long as that rises.
        tasks: "free" for B_q = W W' + diag(v); "outlier" for one gate a task that tells outlying tasks from the rest,
            see `kernels.coregionalisation.OutlierTaskGate`, whose rank is three.
        noise: noise variances in units of y squared, a number or one for each task; None learns them.
        solver: "auto" for the cheapest exact way, or one of `models.task_plan.TaskMethod`; the report names it.
        n_restarts: further starts of the optimiser, which run through joblib.
        scale: "standardise" gives each input and each task zero mean and unit variance inside; None leaves them.
        random_state: fixes the further starts.

    Attributes:
        model_: the fitted `MultitaskGP`, whose `kernels` are the components, a BoTorch model of rows (x, task), in
            scaled units.
        report_: what the fit did.
        scaling_: of the inputs; target_scaling_: of the targets.
        n_tasks_: T.
        n_features_in_, feature_names_in_: of the training inputs.

    Raises:
        InputError: by `fit`, if a task has no target at all.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(0, 6, 30)[:, None]
        >>> Y = np.hstack([np.sin(x), 3 - np.sin(x)])
        >>> Y[12:18, 1] = np.nan
        >>> model = MultitaskGPRegressor().fit(x, Y)
        >>> bool(abs(model.predict(x)[12:18, 1] - 3 + np.sin(x[12:18, 0])).max() < 0.1)
        True
    """

    model_: MultitaskGP
    report_: FitReport
    scaling_: Scaling
    target_scaling_: TaskScaling

    def __init__(
        self,
        rank: int = 1,
        kernels: Sequence[Kernel] | None = None,
        n_components: int | str = 1,
        tasks: str = "free",
        noise: float | ArrayLike | None = None,
        solver: str = "auto",
        n_restarts: int = 0,
        scale: str | None = "standardise",
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.kernels = kernels
        self.n_components = n_components
        self.tasks = tasks
        self.noise = noise
        self.solver = solver
        self.n_restarts = n_restarts
        self.scale = scale
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        """Several targets, always as a table."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags

    def fit(self, X: Any, y: Any) -> "MultitaskGPRegressor":
        """Learn hyperparameters by the marginal likelihood and their priors, and condition on the data.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n, T)``, NaN where a target is missing.
        """
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_task_targets(self, y, len(inputs))
        expect_each_task(targets)
        self.scaling_ = Scaling.learn(inputs, np.zeros(len(inputs)), self.scale)
        self.target_scaling_ = TaskScaling.learn(targets, self.scale)
        X_scaled, Y = self.scaling_.inputs(inputs), self.target_scaling_.targets(targets)
        seed = int(check_random_state(self.random_state).randint(2**31)) if self.n_restarts else None
        if self.kernels is None and self.n_components == "auto":
            model, self.report_ = fit_components(
                lambda number: self._condition(X_scaled, Y, default_kernels(X_scaled.shape[1], number)),
                n_restarts=self.n_restarts,
                seed=seed,
            )
        else:
            model = self._condition(X_scaled, Y, self._new_kernels(X_scaled.shape[1]))
            self.report_ = fit(model, n_restarts=self.n_restarts, seed=seed)
        self.model_ = model.requires_grad_(False)
        return self

    def _new_kernels(self, d: int) -> Sequence[Kernel]:
        if self.kernels is not None:
            return deepcopy(self.kernels)
        if isinstance(self.n_components, str):
            raise InputError(f"`n_components` must be a number or 'auto'; got {self.n_components!r}.")
        return default_kernels(d, self.n_components)

    def _condition(self, X: Tensor, Y: Tensor, kernels: Sequence[Kernel]) -> MultitaskGP:
        """The model of scaled data."""
        self.n_tasks_ = T = Y.shape[1]
        return MultitaskGP(
            X,
            Y,
            kernels=kernels,
            rank=min(self.rank, T),
            coregionalisations=self._gates(Y, len(kernels)),
            noise=self._scaled_noise(T),
            method=self.solver,
        )

    def _gates(self, Y: Tensor, components: int) -> list[Coregionalisation] | None:
        if self.tasks not in ("free", "outlier"):
            raise InputError(f"`tasks` must be 'free' or 'outlier'; got {self.tasks!r}.")
        if self.tasks == "free":
            return None
        gates: list[Coregionalisation] = [OutlierTaskGate(Y.shape[1]) for _ in range(components)]
        for gate in gates:
            gate.start_at(pairwise_correlation(Y) / components)
        return gates

    def _scaled_noise(self, T: int) -> Tensor | None:
        if self.noise is None:
            return None
        noise = np.asarray(self.noise, dtype=np.float64)
        if noise.shape not in ((), (T,)):
            raise ShapeError(f"`noise` must be a number or have shape ({T},), one for each task; got {noise.shape}.")
        return torch.from_numpy(noise / self.target_scaling_.scale**2)

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Array | tuple[Array, Array]:
        """Mean of p(y | data) of every task at new inputs, with standard deviations or the covariance if asked for.

        Args:
            X: ``(m, d)``.
            return_std: return ``(mean, std)``, noise included.
            return_cov: return ``(mean, covariance)`` of all m T targets jointly, noise included.

        Returns:
            Mean ``(m, T)``, units of Y; standard deviation ``(m, T)``; covariance ``(m T, m T)``, task by task within
            each row of X.

        Raises:
            InputError: if both are asked for.
        """
        if return_std and return_cov:
            raise InputError("`return_std` and `return_cov` can't both be True; call `predict` twice.")
        rows, scaling = self._rows(X), self.target_scaling_
        if return_cov:
            mean, covariance = self._joint(rows)
            scale = np.tile(scaling.scale, len(mean) // self.n_tasks_)
            return self._in_units(mean), covariance.numpy() * scale * scale[:, None]
        mean, variance = self._marginals(rows, include_noise=True)
        return (
            (self._in_units(mean), self._table(variance**0.5) * scaling.scale) if return_std else self._in_units(mean)
        )

    def predict_dist(self, X: Any) -> list[Predictive]:
        """p(y_t | data) at each row of X ``(m, d)``, noise included, in units of Y: one `Predictive` for each task."""
        return self._distributions(X, include_noise=True)

    def predict_latent_dist(self, X: Any) -> list[Predictive]:
        """p(f_t | data) at each row of X ``(m, d)``, without noise, in units of Y: one `Predictive` for each task."""
        return self._distributions(X, include_noise=False)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper end, ``(m, T)`` each, of the central interval that holds y with the given probability."""
        ends = [each.interval(coverage) for each in self.predict_dist(X)]
        return np.stack([lower for lower, _ in ends], axis=1), np.stack([upper for _, upper in ends], axis=1)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """Samples of new observations, joint over rows and tasks.

        Args:
            X: ``(m, d)``.
            n_samples: how many.
            random_state: int, RandomState or None.

        Returns:
            ``(m, T, n_samples)``, units of Y.
        """
        seed = int(check_random_state(random_state).randint(2**31))
        generator = torch.Generator().manual_seed(seed)
        mean, covariance = self._joint(self._rows(X))
        standard = torch.randn(n_samples, len(mean), generator=generator, dtype=mean.dtype)
        samples = mean + standard @ torch.linalg.cholesky(covariance).mT
        table = samples.numpy().reshape(n_samples, -1, self.n_tasks_) * self.target_scaling_.scale
        return np.moveaxis(table + self.target_scaling_.shift, 0, -1)

    def log_score(self, X: Any, y: Any) -> float:
        """Mean log predictive density of the targets ``(m, T)`` that are not NaN, each by itself, nats."""
        distributions = self.predict_dist(X)
        targets = checked_task_targets(self, y, len(distributions[0]))
        known = ~np.isnan(targets)
        columns = zip(distributions, targets.T, known.T, strict=True)
        densities = [each.log_prob(np.where(k, t, 0.0))[k] for each, t, k in columns]
        return float(np.concatenate(densities).mean())

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R² averaged over tasks, each over its targets ``(m, T)`` that are not NaN."""
        mean = np.asarray(self.predict(X))
        targets = checked_task_targets(self, y, len(mean))
        known = ~np.isnan(targets)
        weights = None if sample_weight is None else np.asarray(sample_weight)
        each = [
            r2_score(targets[k, t], mean[k, t], sample_weight=None if weights is None else weights[k])
            for t, k in enumerate(known.T)
            if k.any()
        ]
        return float(np.mean(each))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator to one file, which `gpmoe.load` reads."""
        check_is_fitted(self, "report_")
        io.save(self, path)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        model = self.model_
        Y = torch.full(model.observed.shape, torch.nan, dtype=model.y.dtype)
        Y[model.observed] = model.y
        tensors = {"X": model.sites, "Y": Y, **tensors_of(model, "model")}
        for q, kernel in enumerate(self.kernels or []):
            tensors |= tensors_of(kernel, f"kernel_{q}")
        noise = None if self.noise is None else np.asarray(self.noise, dtype=np.float64).tolist()
        described = None if self.kernels is None else [describe_kernel(kernel) for kernel in self.kernels]
        seed = self.random_state if isinstance(self.random_state, (int, np.integer)) else None
        plain = {
            name: getattr(self, name) for name in ("rank", "n_components", "tasks", "solver", "n_restarts", "scale")
        }
        names = getattr(self, "feature_names_in_", None)
        data = {
            "arguments": {**plain, "kernels": described, "noise": noise, "random_state": seed},
            "kernels": [describe_kernel(kernel) for kernel in model.kernels],
            "scaling": self.scaling_.to_dict(),
            "target_scaling": self.target_scaling_.to_dict(),
            "report": asdict(self.report_),
            "feature_names": None if names is None else [str(name) for name in names],
        }
        return data, tensors

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "MultitaskGPRegressor":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        if arguments["kernels"] is not None:
            arguments["kernels"] = [build_kernel(kernel) for kernel in arguments["kernels"]]
            for q, kernel in enumerate(arguments["kernels"]):
                set_tensors(kernel, f"kernel_{q}", tensors)
        estimator = cls(**arguments)
        estimator.scaling_ = Scaling.from_dict(data["scaling"])
        estimator.target_scaling_ = TaskScaling.from_dict(data["target_scaling"])
        estimator.report_ = FitReport.from_dict(data["report"])
        X, Y, names = tensors["X"], tensors["Y"], data["feature_names"]
        estimator.n_features_in_ = d = len(estimator.scaling_.X_shift)
        if X.shape[-1] != d or Y.shape[-1] != len(estimator.target_scaling_.shift):
            raise ShapeError(
                f"X {tuple(X.shape)} and Y {tuple(Y.shape)} must fit scalings of {d} inputs and the tasks."
            )
        if names is not None:
            estimator.feature_names_in_ = np.array(names, dtype=object)
        model = estimator._condition(X, Y, [build_kernel(kernel) for kernel in data["kernels"]])
        set_tensors(model, "model", tensors)
        estimator.model_ = model.requires_grad_(False)
        return estimator

    def _rows(self, X: Any) -> Tensor:
        """Rows (x, t) of every task at every row of X, ``(m T, d + 1)``, in the model's units."""
        check_is_fitted(self, "report_")
        inputs = self.scaling_.inputs(checked_inputs(self, X, reset=False))
        tasks = torch.arange(self.n_tasks_, dtype=inputs.dtype).repeat(len(inputs))
        return torch.cat([inputs.repeat_interleave(self.n_tasks_, 0), tasks.unsqueeze(-1)], dim=-1)

    def _marginals(self, rows: Tensor, *, include_noise: bool) -> tuple[Tensor, Tensor]:
        mean, variance = self.model_.marginals(rows)
        return mean, variance + self.model_.noise_variance(rows) if include_noise else variance

    def _joint(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of new observations of rows (x, t)."""
        mean, covariance = self.model_.latent(rows)
        lapack.diagonal(covariance).add_(self.model_.noise_variance(rows))
        return mean, covariance

    def _distributions(self, X: Any, *, include_noise: bool) -> list[Predictive]:
        mean, variance = (self._table(part) for part in self._marginals(self._rows(X), include_noise=include_noise))
        scaling = self.target_scaling_
        pairs = zip(mean.T, variance.T, scaling.scale, scaling.shift, strict=True)
        return [Predictive.gaussian(m, v).affine(scale, shift) for m, v, scale, shift in pairs]

    def _table(self, values: Tensor) -> Array:
        return values.numpy().reshape(-1, self.n_tasks_)

    def _in_units(self, mean: Tensor) -> Array:
        table: Array = self._table(mean) * self.target_scaling_.scale + self.target_scaling_.shift
        return table
