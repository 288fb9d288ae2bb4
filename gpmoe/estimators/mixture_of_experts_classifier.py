"""Classification with a mixture of GP experts, front door."""

import math
import warnings
from dataclasses import asdict
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import BernoulliLikelihood, Likelihood
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from gpmoe import io
from gpmoe.errors import GPMoEWarning, InputError, NonFiniteError, ShapeError
from gpmoe.estimators.arrays import Scaling, checked_inputs
from gpmoe.estimators.checked_arguments import expect_count, expect_kernel
from gpmoe.estimators.number_of_experts import expect_enough_rows, most_experts
from gpmoe.estimators.sparse_mixture_parts import sparse_from_parts, sparse_to_parts
from gpmoe.estimators.stored_arguments import (
    gate_from_parts,
    gate_to_parts,
    kernel_from_parts,
    kernel_to_parts,
    stored_seed,
)
from gpmoe.gates import Gate
from gpmoe.inference.fit_sparse_mixture import fit_sparse_mixture
from gpmoe.inference.hard_em import sparse_from_clusters
from gpmoe.inference.report import FitReport, warn_about
from gpmoe.inference.vbem import log_evidence
from gpmoe.models.categorical_likelihood import CategoricalLikelihood
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

Array = NDArray[np.float64]


class MixtureOfExpertsClassifier(ClassifierMixin, BaseEstimator):
    """Mixture of sparse GP experts, each with a latent function for each class, and a probabilistic gate.

    Two classes take one latent function and the probit (Bernoulli) likelihood, more take softmax. Inputs are given zero
    mean and unit variance inside.

    Args:
        n_experts: number of experts; "auto" adds experts, from one to four, as long as the approximate evidence rises,
            and takes the time of each fit.
        kernel: GPyTorch kernel of each expert (copied); `kernels.expert_matern` if None.
        gate: "softmax" (linear boundaries), "top_k" (each input to one expert), "activation", "annealed", "neural",
            "gp", "gp_softmax", "gp_probit" (two experts at most), "gaussian_mixture", "dirichlet_process" (prunes
            experts), "uncertainty_router", "constant", or a `gpmoe.gates.Gate` of `n_experts`.
        n_inducing: inducing points of each expert at most.
        max_iterations: how often each row is seen; if None ten times, and more often on fewer than 100,000 rows.
        random_state: fixes starts, random rows and minibatches.

    Attributes:
        classes_: the labels, sorted.
        model_: the fitted `SparseMixtureOfExperts`, in scaled units.
        n_experts_: number of experts fitted.
        report_: what the fit did; its objective is the evidence bound.
        n_features_in_, feature_names_in_: of the training inputs.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 1))
        >>> y = np.where(np.abs(X[:, 0]) < 0.5, "in", "out")
        >>> model = MixtureOfExpertsClassifier(n_inducing=16, max_iterations=100, random_state=0).fit(X, y)
        >>> model.predict([[0.0], [0.9]]).tolist()
        ['in', 'out']
    """

    model_: SparseMixtureOfExperts
    report_: FitReport
    scaling_: Scaling

    def __init__(
        self,
        n_experts: int | str = 2,
        kernel: Kernel | None = None,
        gate: str | Gate = "softmax",
        n_inducing: int = 64,
        max_iterations: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_experts = n_experts
        self.kernel = kernel
        self.gate = gate
        self.n_inducing = n_inducing
        self.max_iterations = max_iterations
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "MixtureOfExpertsClassifier":
        """Fit experts and gate.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n,)``, labels of at least two classes.
        """
        self._check_arguments()
        inputs = checked_inputs(self, X, reset=True)
        self.classes_, index = _checked_labels(self, y, len(inputs))
        if self.n_experts != "auto":
            expect_enough_rows(int(self.n_experts), len(inputs))
        self.scaling_ = Scaling.learn(inputs, np.zeros(len(inputs)), "standardise")
        rows, labels = self.scaling_.inputs(inputs), torch.from_numpy(index.astype(np.float64))
        seed = int(check_random_state(self.random_state).randint(2**31))
        model, self.report_ = self._fit_as_asked(rows, labels, seed)
        warn_about(self.report_, stacklevel=2)
        return self._keep(model)

    def _fit_as_asked(self, X: Tensor, y: Tensor, seed: int) -> tuple[SparseMixtureOfExperts, FitReport]:
        """So many experts, or one more as long as the approximate evidence rises."""
        if self.n_experts != "auto":
            return self._fit_number(int(self.n_experts), X, y, seed)
        best = self._fit_number(1, X, y, seed)
        highest = _log_evidence(*best)
        for k in range(2, min(most_experts(self.gate), len(y) // 10) + 1):
            larger = self._fit_number(k, X, y, seed)
            evidence = _log_evidence(*larger)
            if evidence <= highest:
                break
            best, highest = larger, evidence
        return best

    def _fit_number(self, k: int, X: Tensor, y: Tensor, seed: int) -> tuple[SparseMixtureOfExperts, FitReport]:
        model = sparse_from_clusters(
            X,
            y,
            n_experts=k,
            likelihood=self._likelihood(),
            kernel=self.kernel,
            gate=self.gate,
            n_inducing=int(self.n_inducing),
            seed=seed,
        )
        with warnings.catch_warnings():  # of the one that is kept, `fit` warns
            warnings.simplefilter("ignore", GPMoEWarning)
            return model, fit_sparse_mixture(model, epochs=self.max_iterations, seed=seed)

    def _keep(self, model: SparseMixtureOfExperts) -> "MixtureOfExpertsClassifier":
        self.model_ = model.requires_grad_(False)
        self.n_experts_ = model.n_experts
        return self

    def _check_arguments(self) -> None:
        expect_count("n_experts", self.n_experts, "auto")
        expect_count("n_inducing", self.n_inducing)
        expect_count("max_iterations", self.max_iterations, None)
        expect_kernel(self.kernel)
        if self.n_experts == "auto" and not isinstance(self.gate, str):
            raise InputError("a `gate` object has a fixed number of experts: pass that number as `n_experts` too.")

    def _likelihood(self) -> Likelihood:
        classes = len(self.classes_)
        return BernoulliLikelihood() if classes == 2 else CategoricalLikelihood(classes)

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class of `classes_` at each row of X ``(m, d)``, ``(m, c)``; rows sum to one."""
        inputs = self._inputs(X)
        probs = self.model_.class_probs(inputs).numpy()
        return cast(Array, probs / probs.sum(-1, keepdims=True))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class at each row of X ``(m, d)``, ``(m,)``."""
        inputs = self._inputs(X)
        chosen: NDArray[Any] = self.classes_[self.model_.class_probs(inputs).numpy().argmax(-1)]
        return chosen

    def predict_gate_probs(self, X: Any) -> Array:
        """Probability of each expert at each row of X ``(m, d)``, ``(m, k)``; rows sum to one."""
        inputs = self._inputs(X)
        with torch.no_grad():
            return cast(Array, self.model_.gate_probs(inputs).numpy())

    def log_score(self, X: Any, y: Any) -> float:
        """Mean log probability of labels y ``(m,)`` at X ``(m, d)``, nats.

        Raises:
            InputError: for a label that was not in the training data.
        """
        probs = self.predict_proba(X)
        labels = column_or_1d(y)
        if len(labels) != len(probs):
            raise ShapeError(f"`X` and `y` must have the same number of rows; got {len(probs)} and {len(labels)}.")
        strange = np.setdiff1d(labels, self.classes_)
        if len(strange):
            raise InputError(
                f"`y` holds {strange.tolist()[0]!r}, which is none of the classes {self.classes_.tolist()}."
            )
        own = probs[np.arange(len(labels)), np.searchsorted(self.classes_, labels)]
        return float(np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator to one file, which `gpmoe.load` reads."""
        check_is_fitted(self, "report_")
        io.save(cast(io.Savable, self), path)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`.

        Raises:
            InputError: for labels that are neither numbers nor strings.
        """
        parts, tensors = sparse_to_parts(self.model_)
        (kernel, of_kernel), (gate, of_gate) = kernel_to_parts(self.kernel), gate_to_parts(self.gate)
        names = getattr(self, "feature_names_in_", None)
        data = {
            "arguments": {
                "n_experts": self.n_experts if self.n_experts == "auto" else int(self.n_experts),
                "kernel": kernel,
                "gate": gate,
                "n_inducing": int(self.n_inducing),
                "max_iterations": None if self.max_iterations is None else int(self.max_iterations),
                "random_state": stored_seed(self.random_state),
            },
            "classes": _plain_labels(self.classes_),
            "dtype": "str" if self.classes_.dtype == object else self.classes_.dtype.str,
            "scaling": self.scaling_.to_dict(),
            "report": asdict(self.report_),
            "n_features": self.n_features_in_,
            "feature_names": None if names is None else [str(name) for name in names],
            **parts,
        }
        return data, {**tensors, **of_kernel, **of_gate}

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "MixtureOfExpertsClassifier":
        """See `io.Savable`."""
        arguments = dict(data["arguments"])
        arguments["kernel"] = kernel_from_parts(arguments["kernel"], tensors)
        arguments["gate"] = gate_from_parts(arguments["gate"], tensors)
        estimator = cls(**arguments)
        estimator.scaling_ = Scaling.from_dict(data["scaling"])
        estimator.report_ = FitReport.from_dict(data["report"])
        estimator.n_features_in_ = int(data["n_features"])
        if data["feature_names"] is not None:
            estimator.feature_names_in_ = np.array(data["feature_names"], dtype=object)
        kind = np.dtype(object if data["dtype"] == "str" else data["dtype"])
        if kind.kind not in "OUiufb":
            raise InputError(f"classes can't be of dtype {kind}.")
        estimator.classes_ = np.array(data["classes"], dtype=kind)
        if tensors["X"].shape[-1] != estimator.n_features_in_ or len(estimator.scaling_.X_shift) != data["n_features"]:
            raise ShapeError(f"`n_features`, `scaling` and X must agree; n_features is {data['n_features']}.")
        return estimator._keep(sparse_from_parts(data, tensors))

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self, "report_")
        return self.scaling_.inputs(checked_inputs(self, X, reset=False))


def _log_evidence(model: SparseMixtureOfExperts, report: FitReport) -> float:
    return log_evidence(model, report.starts[-1])  # which is the bound over all rows, at the end


def _checked_labels(estimator: BaseEstimator, y: Any, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The classes and the index of each row's."""
    if y is None:
        raise InputError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    missing = _missing(labels)
    if missing.any():
        row = int(np.argmax(missing))
        raise NonFiniteError(f"Input y contains NaN, None or infinity: first at row {row}. Drop such rows first.")
    check_classification_targets(labels)
    if len(labels) != n:
        raise ShapeError(f"`X` and `y` must have the same number of rows; got {n} and {len(labels)}.")
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"`y` must hold at least two classes; got one class, {classes.tolist()}.")
    return classes, index


def _missing(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which labels are none, ``(n,)``."""
    if labels.dtype.kind == "f":
        return ~np.isfinite(labels)
    return np.array([label is None or (isinstance(label, float) and math.isnan(label)) for label in labels], dtype=bool)


def _plain_labels(classes: NDArray[Any]) -> list[Any]:
    plain = classes.tolist()
    if not all(isinstance(label, (str, int, float, bool)) for label in plain):
        raise InputError(
            f"labels of type {type(plain[0]).__name__} can't be written to a file; use numbers or strings."
        )
    return cast(list[Any], plain)
