"""What all classifiers of ragged series share: risks at grid times from the past alone, and their calibration."""

from abc import abstractmethod
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe import io
from gpmoe.early_warning.recalibration import Calibration, expect_kind
from gpmoe.early_warning.series import RaggedSeries
from gpmoe.errors import InputError

Array = NDArray[np.float64]


class SeriesClassifier(BaseEstimator):
    """Says a risk in [0, 1] for each grid time of each series.

    Attributes:
        channel_names_: of the training series; others must have the same.
        label_per_: "grid" or "series", as the training labels were.
        n_tasks_: labels a grid time or series.
        calibrations_: one a task, or empty.
    """

    validation_fraction: float
    calibration: str | None
    random_state: Any

    def fit(self, series: RaggedSeries) -> Self:
        """Learn from labelled series; a random part of them is held back to stop and to calibrate.

        Args:
            series: with labels.

        Raises:
            InputError: without labels, with one class alone, or with too few series.
        """
        seed = int(check_random_state(self.random_state).randint(2**31))
        labels = self._expect_labelled(series)
        if self.calibration is not None:
            expect_kind(self.calibration)
        self.channel_names_, self.static_names_ = series.channel_names, series.static_names
        self.label_per_, self.n_tasks_ = series.label_per, labels.shape[1]
        training, validation = _parts(series, labels, self.validation_fraction, seed)
        self._fit(training, validation, seed)
        self.calibrations_: list[Calibration] = []
        if self.calibration is not None:
            held, truth = self._raw(validation), self._targets(validation)
            found = [Calibration.fit(self.calibration, held[:, t], truth[:, t]) for t in range(self.n_tasks_)]
            self.calibrations_ = found
        return self

    def predict_proba(self, series: RaggedSeries) -> Array:
        """Risk at each grid time from the measurements up to it alone, in the order of `grid_times`.

        Returns:
            ``(G,)``, or ``(G, tasks)`` for several tasks.
        """
        self._expect_known(series)
        return self._shaped(self._calibrated(self._raw(series)))

    def predict_proba_last(self, series: RaggedSeries) -> Array:
        """The risk at the last grid time of each series, as `predict_proba` has it: where they all stand now.

        Returns:
            ``(N,)``, or ``(N, tasks)``.

        Raises:
            InputError: if a series has no grid time.
        """
        self._expect_known(series)
        _expect_grid_times(series)
        return self._shaped(self._calibrated(self._raw_last(series)))

    def predict_proba_series(self, series: RaggedSeries) -> Array:
        """One risk a series: at its last grid time where labels are one a series, else the largest of its grid times.

        Returns:
            ``(N,)``, or ``(N, tasks)``.

        Raises:
            InputError: if a series has no grid time.
        """
        if self.label_per_ == "series":
            return self.predict_proba_last(series)
        _expect_grid_times(series)
        return np.maximum.reduceat(self.predict_proba(series), series.grid_offsets[:-1], axis=0)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator to one file, which `gpmoe.load` reads."""
        check_is_fitted(self, "channel_names_")
        io.save(self, path)

    @abstractmethod
    def _fit(self, training: RaggedSeries, validation: RaggedSeries, seed: int) -> None:
        """Learn everything but the calibration."""

    @abstractmethod
    def _raw(self, series: RaggedSeries) -> Array:
        """Uncalibrated risks ``(G, tasks)``."""

    def _raw_last(self, series: RaggedSeries) -> Array:
        """Those of the last grid times ``(N, tasks)``, for classifiers that need not look at the others."""
        return self._raw(series)[series.grid_offsets[1:] - 1]

    def _common_parts(self) -> dict[str, Any]:
        """What every classifier of series keeps in a file."""
        arguments = self.get_params(deep=False)
        seed = arguments["random_state"]
        arguments["random_state"] = int(seed) if isinstance(seed, (int, np.integer)) else None
        return {
            "arguments": arguments,
            "channel_names": list(self.channel_names_),
            "static_names": list(self.static_names_),
            "label_per": self.label_per_,
            "n_tasks": self.n_tasks_,
            "calibrations": [each.kind for each in self.calibrations_],
        }

    def _common_tensors(self) -> dict[str, Tensor]:
        parts = {}
        for t, each in enumerate(self.calibrations_):
            parts[f"calibration{t}.x"], parts[f"calibration{t}.y"] = map(torch.from_numpy, (each.x, each.y))
        return parts

    @classmethod
    def _restored(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """A classifier with its arguments and what every one keeps."""
        model = cls(**data["arguments"])
        model.channel_names_, model.static_names_ = tuple(data["channel_names"]), tuple(data["static_names"])
        model.label_per_, model.n_tasks_ = data["label_per"], int(data["n_tasks"])
        model.calibrations_ = [
            Calibration(kind, tensors[f"calibration{t}.x"].numpy(), tensors[f"calibration{t}.y"].numpy())
            for t, kind in enumerate(data["calibrations"])
        ]
        return model

    def _targets(self, series: RaggedSeries) -> Array:
        """Label of each grid time ``(G, tasks)``, that of its series where labels are one a series."""
        labels = self._expect_labelled(series)
        return labels[series.grid_owner] if series.label_per == "series" else labels

    def _calibrated(self, risks: Array) -> Array:
        if not self.calibrations_:
            return risks
        return np.column_stack([each.apply(risks[:, t]) for t, each in enumerate(self.calibrations_)])

    def _shaped(self, risks: Array) -> Array:
        return risks[:, 0] if self.n_tasks_ == 1 else risks

    def _expect_labelled(self, series: RaggedSeries) -> Array:
        if not isinstance(series, RaggedSeries):
            raise InputError(
                f"`series` must be a RaggedSeries; got {type(series).__name__}. See RaggedSeries.from_table."
            )
        if series.labels is None:
            raise InputError("`series` has no labels; pass `labels` when making it.")
        labels = series.labels.reshape(len(series.labels), -1)
        for task in range(labels.shape[1]):
            found = np.unique(labels[~np.isnan(labels[:, task]), task])
            if not np.isin(found, (0.0, 1.0)).all():
                raise InputError(f"labels must be 0, 1 or NaN; got {found[~np.isin(found, (0.0, 1.0))][0]}.")
        return labels

    def _expect_known(self, series: RaggedSeries) -> None:
        check_is_fitted(self, "channel_names_")
        if not isinstance(series, RaggedSeries):
            raise InputError(f"`series` must be a RaggedSeries; got {type(series).__name__}.")
        if series.channel_names != self.channel_names_:
            strange = [name for name in series.channel_names if name not in self.channel_names_]
            missing = [name for name in self.channel_names_ if name not in series.channel_names]
            raise InputError(
                f"the series must have the {len(self.channel_names_)} channels of training in their order; "
                f"unknown: {strange[:5]}, missing: {missing[:5]}."
            )
        if series.static_names != self.static_names_:
            raise InputError(f"static covariates must be {self.static_names_}; got {series.static_names}.")


def _expect_grid_times(series: RaggedSeries) -> None:
    empty = np.flatnonzero(np.diff(series.grid_offsets) == 0)
    if len(empty):
        raise InputError(f"series {series.ids[empty[0]]!r} has no grid time, so that there is no risk to say.")


def _parts(series: RaggedSeries, labels: Array, fraction: float, seed: int) -> tuple[RaggedSeries, RaggedSeries]:
    """Training and validation series; series with a positive label and the others are split alike.

    Where labels are one a grid time all series may be positive, such as those of engines run to failure: their negative
    labels are those of earlier times. A kind of which there is one series alone trains.
    """
    if not 0 < fraction < 1:
        raise InputError(f"`validation_fraction` must be between 0 and 1; got {fraction}.")
    positive, negative = (_series_with(series, (labels == kind).any(1)) for kind in (1.0, 0.0))
    for word, rows in (("positive", positive), ("negative", negative)):
        if rows.sum() < 2:
            raise InputError(
                f"training needs at least two series with a {word} label; got {rows.sum()} among {len(series)}."
            )
    order = np.random.default_rng(seed).permutation(len(series))
    held = np.zeros(len(series), dtype=bool)
    for group in (True, False):
        members = order[positive[order] == group]
        if len(members) > 1:
            held[members[: max(1, round(fraction * len(members)))]] = True
    return series[~held], series[held]


def _series_with(series: RaggedSeries, found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a series, or one of its grid times where labels are one a grid time, is among those found, ``(N,)``."""
    if series.label_per == "series":
        return found
    return np.bincount(series.grid_owner[found], minlength=len(series)) > 0
