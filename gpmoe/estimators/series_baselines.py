"""What an early-warning model must beat: the clock, hand-made features, and neighbours by dynamic time warping."""

import warnings
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from gpmoe.early_warning.boosted_trees import BoostedTrees
from gpmoe.early_warning.hand_features import hand_features
from gpmoe.early_warning.risk_inputs import carried_forward
from gpmoe.early_warning.scaling import SeriesScaling
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError
from gpmoe.estimators.early_warning_parts import restored_trees, trees_parts
from gpmoe.estimators.series_classifier import SeriesClassifier

Array = NDArray[np.float64]

_FAR = 3.0  # bins a warping path may leave the diagonal by


class ClockClassifier(SeriesClassifier):
    """The risk as a rising function of the grid time, and of nothing else.

    Where late times hold more events, a model can look good for its clock alone.

    Args:
        validation_fraction: of the series, from which "calibration" learns.
        calibration: "isotonic", "temperature" or None.
        random_state: of the split.
    """

    def __init__(
        self, validation_fraction: float = 0.5, calibration: str | None = "isotonic", random_state: Any = None
    ) -> None:
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.random_state = random_state

    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        times = training.grid_times
        self.middle_, self.width_ = float(np.median(times)), max(float(times.std()), 1e-12)

    def _raw(self, series: RaggedSeries) -> Array:
        risks: Array = 1 / (1 + np.exp(-(series.grid_times - self.middle_) / self.width_))
        return np.repeat(risks[:, None], self.n_tasks_, axis=1)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        return {**self._common_parts(), "middle": self.middle_, "width": self.width_}, self._common_tensors()

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "ClockClassifier":
        """See `io.Savable`."""
        model = cls._restored(data, tensors)
        model.middle_, model.width_ = float(data["middle"]), float(data["width"])
        return model


class HandFeatureClassifier(SeriesClassifier):
    """scikit-learn's gradient boosting or logistic regression on causal hand features, one model a task.

    Args:
        model: "boosting" or "logistic", on features with gaps filled by their training means.
        half_lives: of the features' forgetting means, in units of time; see `early_warning.hand_features`.
        max_iter: trees, or steps of the logistic solver.
        learning_rate: of boosting.
        validation_fraction, calibration, random_state: as in `EarlyWarningClassifier`.
    """

    def __init__(
        self,
        model: str = "boosting",
        half_lives: tuple[float, float] = (4.0, 24.0),
        max_iter: int = 150,
        learning_rate: float = 0.06,
        validation_fraction: float = 0.1,
        calibration: str | None = "temperature",
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.half_lives = half_lives
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.random_state = random_state

    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        if self.model not in ("boosting", "logistic"):
            raise InputError(f"`model` must be 'boosting' or 'logistic'; got {self.model!r}.")
        X, labels = hand_features(training, self.half_lives), self._targets(training)
        known = ~np.isnan(labels)
        tasks = list(zip(known.T, labels.T, strict=True))
        self.trees_: list[BoostedTrees] = []
        self.centers_, self.weights_ = np.zeros(0, dtype=np.float32), np.zeros((0, 0))
        if self.model == "boosting":
            self.trees_ = [
                BoostedTrees.grow(X[rows], y[rows], max_iter=self.max_iter, learning_rate=self.learning_rate, seed=seed)
                for rows, y in tasks
            ]
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of columns without any value
            self.centers_ = np.nan_to_num(np.nanmean(X, axis=0))
        X = self._filled(X)
        self.weights_ = np.stack([_logistic_weights(X[rows], y[rows], self.max_iter) for rows, y in tasks])

    def _filled(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.isnan(X), self.centers_, X)

    def _raw(self, series: RaggedSeries) -> Array:
        X = hand_features(series, self.half_lives)
        if self.trees_:
            return np.column_stack([each.predict(X) for each in self.trees_])
        risks: Array = expit(self._filled(X) @ self.weights_[:, :-1].T + self.weights_[:, -1])
        return risks

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        data, tensors = trees_parts(self.trees_)
        tensors |= {name: torch.from_numpy(getattr(self, f"{name}_")) for name in ("centers", "weights")}
        return {**self._common_parts(), **data}, {**self._common_tensors(), **tensors}

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "HandFeatureClassifier":
        """See `io.Savable`."""
        model = cls._restored(data, tensors)
        fast, slow = model.half_lives
        model.half_lives = (fast, slow)
        model.trees_ = restored_trees(data, tensors)
        model.centers_, model.weights_ = tensors["centers"].numpy(), tensors["weights"].numpy()
        return model


def _logistic_weights(X: NDArray[np.float32], y: Array, max_iter: int) -> Array:
    """Coefficients of columns as they come, and the intercept, ``(columns + 1,)``, of standardised ridge regression."""
    scaler = StandardScaler().fit(X)
    line = LogisticRegression(C=0.01, max_iter=max_iter).fit(scaler.transform(X), y)
    weights: Array = line.coef_[0].astype(np.float64) / scaler.scale_
    return np.append(weights, line.intercept_[0] - weights @ scaler.mean_)


class DTWNeighboursClassifier(SeriesClassifier):
    """Nearest neighbours of the whole past, by dynamic time warping of each channel.

    At a grid time the past is the last `window` steps of each channel, carried forward, on the grid (0, the training
    mean, before a channel's first measurement). Neighbours are the pasts of training series at their last grid times:
    labelled with the last known label. The compiled core is dtaidistance's.

    Args:
        n_neighbours: k.
        combine: "distances" averages the channels' distances and takes one set of neighbours; "scores" takes
            neighbours for each channel and averages their shares of positives.
        window: steps of the past that are compared.
        n_training: training series at most, positives first, then random others: cost grows with their number.
        n_jobs: joblib's.
        validation_fraction, calibration, random_state: as in `EarlyWarningClassifier`.

    Source: Moor, Horn, Rieck, Roqueiro and Borgwardt (2019), sec. 4.2 (per-channel DTW); Sakoe and
        Chiba (1978).
    """

    def __init__(
        self,
        n_neighbours: int = 15,
        combine: str = "distances",
        window: int = 24,
        n_training: int = 1000,
        n_jobs: int | None = None,
        validation_fraction: float = 0.1,
        calibration: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_neighbours = n_neighbours
        self.combine = combine
        self.window = window
        self.n_training = n_training
        self.n_jobs = n_jobs
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.random_state = random_state

    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        if self.combine not in ("distances", "scores"):
            raise InputError(f"`combine` must be 'distances' or 'scores'; got {self.combine!r}.")
        self.scaling_ = SeriesScaling.fit(training, "normal")
        targets, ends = self._targets(training), training.grid_offsets[1:] - 1
        usable = np.flatnonzero((np.diff(training.grid_offsets) > 0) & ~np.isnan(targets[ends]).any(-1))
        order = np.random.default_rng(seed).permutation(usable)
        positive = targets[ends[order]].max(-1) > 0
        chosen = np.sort(np.concatenate([order[positive], order[~positive]])[: self.n_training])
        values = carried_forward(self.scaling_.apply(training)).numpy()
        self.library_ = [_past(values, training, i, ends[i], self.window) for i in chosen]
        self.labels_ = targets[ends[chosen]]

    def _raw(self, series: RaggedSeries) -> Array:
        return self._at(series, np.arange(len(series.grid_times)))

    def _raw_last(self, series: RaggedSeries) -> Array:
        return self._at(series, series.grid_offsets[1:] - 1)

    def _at(self, series: RaggedSeries, rows: NDArray[np.int64]) -> Array:
        """Risks at some grid rows, ``(len(rows), tasks)``."""
        values, owner = carried_forward(self.scaling_.apply(series)).numpy(), series.grid_owner
        pasts = [_past(values, series, int(owner[g]), int(g), self.window) for g in rows]
        jobs = effective_n_jobs(self.n_jobs)
        parts = np.array_split(np.arange(len(pasts)), max(1, min(jobs * 4, len(pasts))))
        found = Parallel(n_jobs=self.n_jobs)(delayed(self._scores)([pasts[j] for j in part]) for part in parts)
        return np.concatenate(found) if len(pasts) else np.zeros((0, self.n_tasks_))

    def _scores(self, pasts: list[Array]) -> Array:
        """Share of positives among the neighbours, ``(len(pasts), tasks)``."""
        distances = np.stack([_distances(past, self.library_) for past in pasts])  # (p, library, M)
        if self.combine == "distances":
            distances = distances.mean(-1, keepdims=True)
        k = min(self.n_neighbours, len(self.library_))
        nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]  # (p, k, M or 1)
        shares: Array = self.labels_[nearest].mean(axis=(1, 2))
        return shares

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        lengths = [past.shape[1] for past in self.library_]
        tensors = {
            "library": np.concatenate(self.library_, axis=1), "labels": self.labels_,
            "knots": np.array(self.scaling_.knots), "scores": np.array(self.scaling_.scores),
        }  # fmt: skip
        parts = {name: torch.from_numpy(array) for name, array in tensors.items()}
        return {**self._common_parts(), "lengths": lengths}, {**self._common_tensors(), **parts}

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "DTWNeighboursClassifier":
        """See `io.Savable`."""
        model = cls._restored(data, tensors)
        pasts = np.split(tensors["library"].numpy(), np.cumsum(data["lengths"])[:-1], axis=1)
        model.library_ = [np.ascontiguousarray(past) for past in pasts]
        model.labels_ = tensors["labels"].numpy()
        knots, scores = (tensors[name].numpy() for name in ("knots", "scores"))
        model.scaling_ = SeriesScaling("normal", knots, scores, len(model.channel_names_))
        return model


def _past(values: Array, series: RaggedSeries, i: int, g: int, window: int) -> Array:
    """Channels up to a grid row, ``(M, at most window)``, contiguous."""
    start = max(int(series.grid_offsets[i]), g + 1 - window)
    return np.ascontiguousarray(values[start : g + 1].T)


def _distances(past: Array, library: list[Array]) -> Array:
    """Warped distance of each channel to each past of a library, ``(len(library), M)``."""
    from dtaidistance import dtw

    bound = int(max(_FAR, *(abs(past.shape[1] - other.shape[1]) + _FAR for other in library)))
    return np.array(
        [[dtw.distance_fast(past[m], other[m], window=bound) for m in range(len(past))] for other in library]
    )
