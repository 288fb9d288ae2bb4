"""The file format: one file, tensors in safetensors and all else as JSON in its header; no pickle.

A file names only classes that are known here or in `kernels.description`. Reading one builds those objects and
copies numbers into them; nothing in it is run.
"""

import importlib
import json
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpmoe import __version__
from gpmoe.errors import FileFormatError, GPMoEError

_FORMAT = 1
_MISFITS = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    OverflowError,
    RuntimeError,  # torch's, for shapes
    GPMoEError,
)
_LOADABLE = {  # classes that a file may name, and where they live
    "ClockClassifier": "gpmoe.estimators.series_baselines",
    "DTWNeighboursClassifier": "gpmoe.estimators.series_baselines",
    "EarlyWarningClassifier": "gpmoe.estimators.early_warning_classifier",
    "GPRegressor": "gpmoe.estimators.gp_regressor",
    "GridGPRegressor": "gpmoe.estimators.grid_gp_regressor",
    "HandFeatureClassifier": "gpmoe.estimators.series_baselines",
    "LocalExpertsRegressor": "gpmoe.estimators.local_experts_regressor",
    "MixtureOfExpertsClassifier": "gpmoe.estimators.mixture_of_experts_classifier",
    "MixtureOfExpertsRegressor": "gpmoe.estimators.mixture_of_experts_regressor",
    "MultitaskGPRegressor": "gpmoe.estimators.multitask_gp_regressor",
    "SparseGPRegressor": "gpmoe.estimators.sparse_gp_regressor",
    "TreeMixtureRegressor": "gpmoe.estimators.tree_mixture_regressor",
}


class Savable(Protocol):
    """A fitted estimator that can be taken apart into JSON-able data and tensors, and put together again."""

    __name__: ClassVar[str]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything that predictions and another fit need."""

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The fitted estimator of those parts."""


def save(estimator: Savable, path: str | PathLike[str], extra: dict[str, Any] | None = None) -> None:
    """Write a fitted estimator; the file appears whole or not at all.

    Args:
        estimator: a fitted estimator of `gpmoe.estimators`.
        path: the file, replaced if it exists.
        extra: JSON-able data to keep beside it.

    Raises:
        UnsupportedKernelError: for a kernel that a file can't describe.
        FileNotFoundError: if there is no such folder.
        OSError: if the folder can't be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first.")
    data, tensors = estimator.to_parts()
    header = {
        "format": _FORMAT,
        "version": __version__,
        "class": type(estimator).__name__,
        "data": data,
        "extra": extra,
    }
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        metadata = {"gpmoe": json.dumps(header)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | PathLike[str]) -> Any:
    """Read a fitted estimator that `save` wrote; it predicts as the original did.

    Raises:
        FileFormatError: if the file is not one, is damaged, or was written by a newer version.
        FileNotFoundError: if there is none.
    """
    return load_with_extra(path)[0]


def load_with_extra(path: str | PathLike[str]) -> tuple[Any, dict[str, Any] | None]:
    """As `load`, with the extra data that was saved beside the estimator."""
    header, tensors = _read(Path(path))
    name = header.get("class")
    if header.get("format") != _FORMAT:
        raise FileFormatError(
            f"{path}: written in format {header.get('format')!r} by gpmoe {header.get('version')!r}; this is gpmoe "
            f"{__version__}, which reads format {_FORMAT}. Install the version that wrote it."
        )
    if not isinstance(name, str) or name not in _LOADABLE:
        raise FileFormatError(f"{path}: holds a {name!r}, which is none of {', '.join(_LOADABLE)}.")
    kind = getattr(importlib.import_module(_LOADABLE[name]), name)
    try:
        return kind.from_parts(header["data"], tensors), header.get("extra")
    except _MISFITS as error:
        raise FileFormatError(
            f"{path}: its parts don't fit together ({type(error).__name__}: {error}). Save it again."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    advice = "Give a file that gpmoe saved; if it is one, it was damaged on the way: copy or save it again."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["gpmoe"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not a gpmoe model ({type(error).__name__}: {error}). {advice}") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: not a gpmoe model (its header is a {type(header).__name__}). {advice}")
    return header, tensors
