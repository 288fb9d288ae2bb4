"""Saving and loading: the same numbers in a new process, clear errors for other files, and never any code run."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import (
    ConstantKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    PiecewisePolynomialKernel,
    PolynomialKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
    SpectralMixtureKernel,
)
from gpytorch.priors import GammaPrior, HalfCauchyPrior, LogNormalPrior, NormalPrior, SmoothedBoxPrior, UniformPrior
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.linear_model import Ridge

from gpmoe import GPRegressor, MixtureOfExpertsRegressor, io, load
from gpmoe.errors import FileFormatError, UnsupportedKernelError
from gpmoe.gates import ConstantGate, GPGate, SoftmaxGate
from gpmoe.kernels.description import build_kernel, describe_kernel
from gpmoe.kernels.feature_kernel import FeatureKernel

GRID = np.random.default_rng(1).uniform(-3, 3, (30, 2))


def user_kernel():
    """Sums and products, priors, constraints and active dimensions."""
    first = RBFKernel(active_dims=(0,), lengthscale_prior=LogNormalPrior(0.3, 1.7), lengthscale_constraint=Positive())
    second = MaternKernel(nu=1.5, active_dims=(1,), lengthscale_constraint=Interval(0.1, 9.0))
    third = RQKernel(ard_num_dims=2, lengthscale_constraint=GreaterThan(0.01), lengthscale_prior=NormalPrior(1.0, 2.0))
    return ScaleKernel(first * second, outputscale_prior=HalfCauchyPrior(1.0)) + ScaleKernel(third)


def exact(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


MODELS: dict[str, Callable[[], GPRegressor | MixtureOfExpertsRegressor]] = {
    "gp": GPRegressor,
    "gp, kernel": lambda: GPRegressor(user_kernel()),
    "gp, noise": lambda: GPRegressor(noise=np.linspace(0.01, 0.2, 24)),
    "gp, noise for all": lambda: GPRegressor(noise=0.05),
    "gp, no scale": lambda: GPRegressor(scale=None, n_restarts=1, random_state=3),
    "moe, softmax": lambda: MixtureOfExpertsRegressor(2, random_state=0),
    "moe, constant": lambda: MixtureOfExpertsRegressor(3, gate="constant", random_state=0),
    "moe, gp": lambda: MixtureOfExpertsRegressor(2, gate="gp", random_state=0),
    "moe, auto": lambda: MixtureOfExpertsRegressor(random_state=0),
    "moe, kernel": lambda: MixtureOfExpertsRegressor(2, GPRegressor(user_kernel()), random_state=0),
    "moe, noise": lambda: MixtureOfExpertsRegressor(2, GPRegressor(noise=0.05), random_state=0),
    "moe, kinds": lambda: MixtureOfExpertsRegressor(expert=["gp", "linear", "constant", "null"], random_state=0),
    "moe, noisy kinds": lambda: MixtureOfExpertsRegressor(expert=["heteroscedastic", "student_t"], random_state=0),
    "moe, one noisy": lambda: MixtureOfExpertsRegressor(1, "heteroscedastic", random_state=0),
    "moe, own gate": lambda: MixtureOfExpertsRegressor(2, gate=SoftmaxGate(2, 2, precision=2.0), random_state=0),
}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (24, 2))
    return X, np.sin(X[:, 0]) + 0.3 * X[:, 1] + 0.1 * rng.standard_normal(24)


def answers(model) -> dict[str, np.ndarray]:
    predictive = model.predict_dist(GRID)
    mean, covariance = model.predict(GRID, return_cov=True)
    return {
        "mean": mean,
        "covariance": covariance,
        "log_prob": predictive.log_prob(0.5),
        "latent": model.predict_latent_dist(GRID).variance,
        "samples": model.sample_y(GRID, 2, random_state=3),
    }


@cache
def fitted(name: str) -> GPRegressor | MixtureOfExpertsRegressor:
    return MODELS[name]().fit(*data())


@pytest.fixture(scope="module")
def gp():
    return fitted("gp")


@pytest.fixture(scope="module")
def moe():
    return fitted("moe, gp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every model as a file, and its answers as another process gives them."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        with suppress(Exception):  # the model's own tests tell
            fitted(name).save(folder / f"{name}.gpmoe")
    script = (
        "import sys, numpy as np, gpmoe\nfrom pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\nfrom test_io import answers\n"
        "for path in Path(sys.argv[1]).glob('*.gpmoe'):\n"
        "    np.savez(path.with_suffix('.npz'), **answers(gpmoe.load(path)))\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_new_process_predicts_the_same_to_the_last_bit(folder: Path, name: str) -> None:
    here = answers(fitted(name))
    with np.load(folder / f"{name}.npz") as there:
        assert [key for key, value in here.items() if not np.array_equal(there[key], value)] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_fitted_again_as_the_original_is(folder: Path, name: str) -> None:
    X, y = data()
    loaded, model = load(folder / f"{name}.gpmoe"), clone(fitted(name))
    assert np.array_equal(loaded.fit(X, -2 * y).predict(GRID), model.fit(X, -2 * y).predict(GRID))


def saved_and_loaded(model, tmp_path: Path):
    model.save(tmp_path / "model.gpmoe")
    return load(tmp_path / "model.gpmoe")


def test_arguments_report_and_scaling_come_back(tmp_path: Path, moe) -> None:
    loaded = saved_and_loaded(moe, tmp_path)
    assert loaded.get_params() == moe.get_params()
    assert loaded.report_ == moe.report_
    assert loaded.scaling_.to_dict() == moe.scaling_.to_dict()
    assert loaded.n_experts_ == 2
    assert np.array_equal(loaded.responsibilities_, moe.responsibilities_)


def test_feature_names_come_back(tmp_path: Path) -> None:
    X, y = data()
    frame = pd.DataFrame(X, columns=["width", "height"])
    loaded = saved_and_loaded(GPRegressor().fit(frame, y), tmp_path)
    assert list(loaded.feature_names_in_) == ["width", "height"]
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame[["height", "width"]])


def test_a_loaded_model_can_be_saved_again(tmp_path: Path, moe) -> None:
    moe.save(tmp_path / "first")
    load(tmp_path / "first").save(tmp_path / "second")
    assert np.array_equal(load(tmp_path / "second").predict(GRID), moe.predict(GRID))


def test_extra_data_travel_beside_the_model(tmp_path: Path, gp) -> None:
    io.save(gp, tmp_path / "model", extra={"target": "y", "levels": [1, 2]})
    assert io.load_with_extra(tmp_path / "model")[1] == {"target": "y", "levels": [1, 2]}


KERNELS = {
    "user": user_kernel,
    "linear": lambda: LinearKernel(variance_prior=GammaPrior(2.0, 1.0)),
    "linear, ARD": lambda: LinearKernel(ard_num_dims=2) + ConstantKernel(),
    "polynomial": lambda: PolynomialKernel(2),
    "piecewise": lambda: ScaleKernel(PiecewisePolynomialKernel(q=2, ard_num_dims=2)),
    "periodic": lambda: ScaleKernel(PeriodicKernel(ard_num_dims=2)),
    "spectral mixture": lambda: SpectralMixtureKernel(3, ard_num_dims=2),
    "scaled column": lambda: ScaleKernel(RBFKernel(), active_dims=(0,)),
    "column": lambda: ScaleKernel(RBFKernel(active_dims=(1,))),
    "bounds": lambda: RBFKernel(ard_num_dims=2, lengthscale_constraint=GreaterThan(torch.tensor([[0.1, 0.3]]))),
    "uniform prior": lambda: RBFKernel(lengthscale_prior=UniformPrior(0.1, 9.3)),
    "float64 prior": lambda: RBFKernel(lengthscale_prior=GammaPrior(exact(2.3), exact(0.7))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_each_kernel_predicts_and_fits_the_same_after_loading(name: str, tmp_path: Path) -> None:
    X, y = data()
    model = GPRegressor(KERNELS[name]()).fit(X, y)
    loaded = saved_and_loaded(model, tmp_path)
    assert np.array_equal(loaded.predict(GRID), model.predict(GRID))
    assert np.array_equal(loaded.fit(X, 2 * y).predict(GRID), model.fit(X, 2 * y).predict(GRID))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_built_from_its_description_has_the_same_description(name: str) -> None:
    description = describe_kernel(KERNELS[name]().double())
    assert describe_kernel(build_kernel(json.loads(json.dumps(description)))) == description


class TwistedKernel(RBFKernel):
    """Computes something else than its base class."""


UNSUPPORTED = {
    "feature": (lambda: FeatureKernel(torch.nn.Linear(2, 2), RBFKernel()), "FeatureKernel"),
    "subclass": (lambda: TwistedKernel(), "TwistedKernel"),
    "nested": (lambda: ScaleKernel(RBFKernel() + TwistedKernel()), "TwistedKernel"),
    "prior": (lambda: RBFKernel(lengthscale_prior=SmoothedBoxPrior(0.1, 2.0)), "SmoothedBoxPrior"),
    "transform": (
        lambda: RBFKernel(lengthscale_constraint=Positive(transform=torch.exp, inv_transform=torch.log)),
        "transform",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_a_file_can_not_describe_is_refused_before_writing(name: str, tmp_path: Path) -> None:
    make, text = UNSUPPORTED[name]
    model = GPRegressor(make()).fit(*data())
    with pytest.raises(UnsupportedKernelError, match=text):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_expert_with_such_a_kernel_is_refused_too(tmp_path: Path) -> None:
    model = MixtureOfExpertsRegressor(2, GPRegressor(TwistedKernel()), random_state=0).fit(*data())
    with pytest.raises(UnsupportedKernelError, match="TwistedKernel"):
        model.save(tmp_path / "model")


def test_a_gate_passed_in_keeps_its_kernels_parameters_for_another_fit(tmp_path: Path) -> None:
    kernel = ScaleKernel(RBFKernel()).requires_grad_(False)
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.4, 7.0
    model = MixtureOfExpertsRegressor(2, gate=GPGate(2, 2, kernel), random_state=0).fit(*data())
    loaded = saved_and_loaded(model, tmp_path)
    assert np.array_equal(loaded.predict(GRID), model.predict(GRID))
    assert loaded.gate.kernel.outputscale.item() == pytest.approx(7.0)


# Files that are not models.


def parts_of(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["gpmoe"]), tensors


def write(path: Path, header: object, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, metadata={"gpmoe": header if isinstance(header, str) else json.dumps(header)})


@pytest.fixture
def path(tmp_path: Path, moe) -> Path:
    moe.save(tmp_path / "model.gpmoe")
    return tmp_path / "model.gpmoe"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match=r"model\.gpmoe: not a gpmoe model.*copy or save it again"):
        load(path)


@pytest.mark.parametrize("size", [1, 8, 9, 4096])
def test_random_bytes_are_refused(path: Path, size: int) -> None:
    path.write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(FileFormatError, match="not a gpmoe model"):
        load(path)


def outcome(path: Path) -> str:
    """What loading and predicting did: "refused", "accepted", or the error that got through."""
    try:
        load(path).predict(GRID)
    except FileFormatError:
        return "refused"
    except Exception as error:
        return repr(error)
    return "accepted"


def test_flipped_bytes_are_refused_or_change_numbers_only(path: Path) -> None:
    whole, outcomes = path.read_bytes(), {}
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(0).integers(header, size=60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        outcomes[int(place)] = outcome(path)
    assert {place: text for place, text in outcomes.items() if text not in ("refused", "accepted")} == {}


def test_another_safetensors_file_is_refused(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(FileFormatError, match="not a gpmoe model"):
        load(path)


def test_a_pickle_is_refused_and_not_run(path: Path) -> None:
    path.write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit'\ntR.")
    with pytest.raises(FileFormatError, match="not a gpmoe model"):
        load(path)


@pytest.mark.parametrize("text", ["{", "[1]", "null", '"gpmoe"', "NaN", "[" * 100_000])
def test_a_header_that_is_no_object_is_refused(path: Path, text: str) -> None:
    write(path, text, parts_of(path)[1])
    with pytest.raises(FileFormatError, match="not a gpmoe model"):
        load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            load(path)


def test_a_newer_format_asks_for_the_version_that_wrote_it(path: Path) -> None:
    header, tensors = parts_of(path)
    write(path, {**header, "format": 2, "version": "9.1"}, tensors)
    with pytest.raises(FileFormatError, match=r"format 2 by gpmoe '9\.1'.*reads format 1\. Install the version"):
        load(path)


EVIL = ["os.system", "posix.system", "__import__", "builtins.eval", "Kernel", "Scaling", "", None, 3, ["GPRegressor"]]


@pytest.mark.parametrize("name", EVIL)
def test_a_class_that_is_not_known_is_refused(path: Path, name: object) -> None:
    header, tensors = parts_of(path)
    write(path, {**header, "class": name}, tensors)
    with pytest.raises(FileFormatError, match=r"which is none of ClockClassifier, .*GPRegressor"):
        load(path)


@pytest.mark.parametrize("name", [*EVIL, "Kernel", "GridKernel"])
@pytest.mark.parametrize("place", ["experts", "kernels", "gate", "constraint", "prior"])
def test_a_part_that_is_not_known_is_refused(path: Path, place: str, name: object) -> None:
    header, tensors = parts_of(path)
    kernel = header["data"]["experts"][0]["kernel"]
    named = {
        "experts": header["data"]["experts"][0],
        "kernels": kernel,
        "gate": header["data"]["gate"],
        "constraint": kernel["constraints"]["raw_outputscale"],
        "prior": kernel["priors"]["outputscale_prior"],
    }
    named[place]["type"] = name
    write(path, header, tensors)
    with pytest.raises(FileFormatError, match="parts don't fit together"):
        load(path)


def test_evil_names_run_nothing(path: Path, tmp_path: Path) -> None:
    header, tensors = parts_of(path)
    mark = tmp_path / "ran"
    first, second = (part["kernel"] for part in header["data"]["experts"])
    header["data"]["experts"][0]["kernel"] = {**first, "type": f"os.system('touch {mark}')"}
    second["priors"] = {"__class__": {"type": "GammaPrior", "arguments": {}}}
    write(path, header, tensors)
    with pytest.raises(FileFormatError):
        load(path)
    assert not mark.exists()


def test_each_missing_tensor_is_named(path: Path) -> None:
    header, tensors = parts_of(path)
    for name in tensors:
        write(path, header, {key: value for key, value in tensors.items() if key != name})
        with pytest.raises(FileFormatError, match=f"parts don't fit together.*{name}"):
            load(path)


def changed(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, str]:
    """What loading does after a change of each tensor in turn."""
    header, tensors = parts_of(path)
    outcomes = {}
    for name, value in tensors.items():
        write(path, header, {**tensors, name: change(value)})
        outcomes[name] = outcome(path)
    return outcomes


SHAPES = {
    "shorter": lambda value: value[:-1].clone() if value.dim() else value[None].clone(),
    "flat and twice as long": lambda value: torch.cat([value.reshape(-1), value.reshape(-1)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_of_another_shape_are_refused(path: Path, shape: str) -> None:
    assert {name: text for name, text in changed(path, SHAPES[shape]).items() if text != "refused"} == {}


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=str)
def test_tensors_of_another_dtype_are_refused_or_read_as_numbers(path: Path, dtype: torch.dtype) -> None:
    outcomes = changed(path, lambda value: value.to(dtype))
    assert {name: text for name, text in outcomes.items() if text not in ("refused", "accepted")} == {}


@pytest.mark.parametrize("key", ["arguments", "expert", "experts", "gate", "scaling", "report", "n_features"])
def test_missing_data_are_refused(path: Path, key: str) -> None:
    header, tensors = parts_of(path)
    del header["data"][key]
    write(path, header, tensors)
    with pytest.raises(FileFormatError, match=f"parts don't fit together.*{key}"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scaling", {"X_shift": [0.0], "X_scale": [1.0], "y_shift": 0.0, "y_scale": 1.0}),
        ("scaling", {"X_shift": ["a", "b"], "X_scale": [1.0, 1.0], "y_shift": 0.0, "y_scale": 1.0}),
        ("n_features", 3),
        ("n_features", "two"),
        ("feature_names", ["only one"]),
        ("report", {}),
        ("experts", []),
        ("experts", "gp"),
        ("gate", {"type": "gp", "n_experts": 5, "n_features": 2, "kernel": {}}),
        ("arguments", {"n_experts": 2, "gate": "gp", "inference": "vbem", "random_state": 0, "evil": 1}),
        ("expert", {"kernel": {"type": "os.system"}}),
    ],
)
def test_edited_data_are_refused(path: Path, key: str, value: object) -> None:
    header, tensors = parts_of(path)
    header["data"][key] = value
    write(path, header, tensors)
    with pytest.raises(FileFormatError, match="parts don't fit together"):
        load(path)


# Writing.


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, gp, monkeypatch) -> None:
    before = path.read_bytes()

    def half(tensors: dict, target: str, metadata: dict) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(io, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        gp.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_and_leaves_nothing_beside_it(path: Path, gp) -> None:
    gp.save(path)
    assert type(load(path)) is GPRegressor
    assert list(path.parent.iterdir()) == [path]


def test_a_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_a_missing_folder_is_named(tmp_path: Path, gp) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gp.save(tmp_path / "nowhere" / "model")


def test_a_model_may_be_saved_over_the_file_it_was_loaded_from(path: Path) -> None:
    loaded = load(path)
    before = loaded.predict(GRID)
    loaded.save(path)
    assert np.array_equal(loaded.predict(GRID), before)
    assert np.array_equal(load(path).predict(GRID), before)


def test_a_file_holds_no_pickle(path: Path) -> None:
    header, tensors = parts_of(path)
    assert header["class"] == "MixtureOfExpertsRegressor"
    assert {value.dtype for value in tensors.values()} == {torch.float64}
    size = sum(value.numel() * 8 for value in tensors.values()) + len(json.dumps(header))
    assert path.stat().st_size < 1.3 * size + 4000


def test_a_foreign_estimator_can_not_be_saved(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError)):
        io.save(Ridge(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_gates_of_the_model_come_back_with_their_type(folder: Path) -> None:
    kinds = {"moe, softmax": SoftmaxGate, "moe, constant": ConstantGate, "moe, gp": GPGate}
    assert {name: type(load(folder / f"{name}.gpmoe").model_.gate) for name in kinds} == kinds
