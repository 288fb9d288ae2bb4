"""The command line: its outputs, its errors of one line, and that nothing is left half-written."""

import importlib
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from gpmoe import __version__
from gpmoe.cli import main
from gpmoe.distributions import Predictive
from gpmoe.errors import FileFormatError, NotConvergedWarning


class StraightLine:
    """Stands for an estimator where a test is of the command line alone: least squares with a constant variance."""

    def __init__(self, random_state: int | None = None) -> None:
        self.random_state = random_state

    def fit(self, X, y):
        if 13.0 in y:
            warnings.warn("stopped\nafter 3 steps", NotConvergedWarning, stacklevel=2)
        self.weights_ = np.linalg.lstsq(np.c_[X, np.ones(len(X))], y, rcond=None)[0]
        return self

    def predict_dist(self, X) -> Predictive:
        return Predictive.gaussian(np.c_[X, np.ones(len(X))] @ self.weights_, np.ones(len(X)))


class Mixture(StraightLine):
    """Told apart by its name in the file."""


def save(estimator, path, extra=None) -> None:
    stored = {"kind": type(estimator).__name__, "weights": estimator.weights_.tolist(), "extra": extra}
    Path(path).write_text(json.dumps(stored), encoding="utf-8")


def load_with_extra(path):
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path} is not a gpmoe model file.") from error
    estimator = StraightLine()
    estimator.weights_ = np.array(stored["weights"])
    return estimator, stored["extra"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty working folder, with estimators and files of models replaced unless the test asks for the real ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    if "real" not in request.fixturenames:
        importlib.import_module("gpmoe.plotting")  # imports some of what is replaced
        estimators, io = ModuleType("gpmoe.estimators"), ModuleType("gpmoe.io")
        estimators.GPRegressor, estimators.MixtureOfExpertsRegressor = StraightLine, Mixture
        io.save, io.load_with_extra = save, load_with_extra
        monkeypatch.setitem(sys.modules, "gpmoe.estimators", estimators)
        monkeypatch.setitem(sys.modules, "gpmoe.io", io)
    return tmp_path


@pytest.fixture
def real() -> None:
    """Asks for the real estimators."""


@pytest.fixture
def table(folder: Path) -> str:
    generator = np.random.default_rng(0)
    x = generator.uniform(size=40)
    colours = ["red" if u < 0.5 else "blue" for u in generator.uniform(size=40)]
    y = 3 * x + np.array([colour == "red" for colour in colours]) + 0.1 * generator.normal(size=40)
    pl.DataFrame({"x": x, "colour": colours, "y": y}).write_csv("table.csv")
    return "table.csv"


@pytest.fixture
def model(table: str) -> str:
    assert main(["fit", table, "--target", "y", "--out", "line.gpmoe"]) == 0
    return "line.gpmoe"


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call prints; checks that it is one, that the code is 2 and that no file is new."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("gpmoe: ")
    assert captured.out == ""
    assert sorted(Path().rglob("*")) == before
    return lines[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"gpmoe {__version__}"


def test_no_words_give_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("fit", "predict", "demo"))


def test_fit_prints_held_out_scores_and_notes(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", table, "--target", "y", "--out", "line.gpmoe", "--test-fraction", "0.25"]) == 0
    captured = capsys.readouterr()
    assert "Scores on 10 held-out rows, fitted to 30" in captured.out
    for score in ("log score", "CRPS", "RMSE", "MAE", "coverage", "calibration"):
        assert score in captured.out
    assert "line.gpmoe: fitted to all 40 rows" in captured.out
    assert "note: column 'colour' holds text: one-hot encoded" in captured.err
    assert [path.name for path in Path().iterdir() if path.name != "table.csv"] == ["line.gpmoe"]


def test_the_saved_model_is_fitted_to_all_rows(table: str, model: str) -> None:
    frame = pl.read_csv(table)
    X = np.c_[frame["x"], frame["colour"] == "blue", frame["colour"] == "red"].astype(float)
    expected = StraightLine().fit(X, frame["y"].to_numpy()).weights_
    stored = json.loads(Path(model).read_text(encoding="utf-8"))
    np.testing.assert_allclose(stored["weights"], expected, rtol=1e-10)
    assert stored["extra"]["model"] == "gp"
    assert set(stored["extra"]["held_out_scores"]) >= {"log_score", "crps", "rmse"}


def test_the_model_option_chooses_the_estimator(table: str) -> None:
    assert main(["fit", table, "--target", "y", "--model", "moe", "--out", "m.gpmoe"]) == 0
    assert json.loads(Path("m.gpmoe").read_text(encoding="utf-8"))["kind"] == "Mixture"


def test_a_seed_fixes_the_printed_scores(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for seed in ("1", "1", "2"):
        assert main(["fit", table, "--target", "y", "--seed", seed, "--out", "m.gpmoe"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_dropped_columns_are_not_needed_for_prediction(table: str) -> None:
    assert main(["fit", table, "--target", "y", "--drop", "colour", "--out", "m.gpmoe"]) == 0
    pl.DataFrame({"x": [0.0, 1.0]}).write_csv("new.csv")
    assert main(["predict", "m.gpmoe", "new.csv", "--out", "p.csv"]) == 0


def test_predictions_have_one_row_a_row(table: str, model: str) -> None:
    assert main(["predict", model, table, "--out", "p.csv", "--coverage", "0.5"]) == 0
    predictions = pl.read_csv("p.csv")
    assert predictions.columns == ["row", "mean", "std", "lower", "upper", "target"]
    assert predictions["row"].to_list() == list(range(1, 41))
    width = (predictions["upper"] - predictions["lower"]).to_numpy()
    np.testing.assert_allclose(width, 2 * 0.6744897501960817, rtol=1e-9)  # the normal's upper quartile


@pytest.mark.parametrize("name", ["p.tsv", "p.parquet"])
def test_predictions_take_the_format_of_the_ending(table: str, model: str, name: str) -> None:
    assert main(["predict", model, table, "--out", name]) == 0
    read = pl.read_parquet(name) if name.endswith("parquet") else pl.read_csv(name, separator="\t")
    assert read.shape == (40, 6)


def test_predictions_without_a_target_have_no_target_column(table: str, model: str) -> None:
    pl.read_csv(table).drop("y").write_csv("new.csv")
    assert main(["predict", model, "new.csv", "--out", "p.csv", "--plot", "p.png"]) == 0
    assert "target" not in pl.read_csv("p.csv").columns
    assert Path("p.png").stat().st_size > 5000


def test_existing_outputs_are_replaced(table: str, model: str) -> None:
    Path("p.csv").write_text("old", encoding="utf-8")
    assert main(["predict", model, table, "--out", "p.csv", "--plot", "p.svg"]) == 0
    assert pl.read_csv("p.csv").height == 40
    assert "<svg" in Path("p.svg").read_text(encoding="utf-8")


def test_a_fit_that_fails_leaves_the_old_model(table: str, model: str, monkeypatch, capsys) -> None:
    old = Path(model).read_bytes()

    def save_half(estimator, path, extra=None) -> None:
        Path(path).write_text("half", encoding="utf-8")
        raise OSError("no space left on the disk")

    monkeypatch.setattr(sys.modules["gpmoe.io"], "save", save_half)
    before = sorted(Path().iterdir())
    assert main(["fit", table, "--target", "y", "--out", model]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "gpmoe: no space left on the disk"
    assert Path(model).read_bytes() == old
    assert sorted(Path().iterdir()) == before


def test_a_warning_becomes_a_note_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    y = [13.0, *np.arange(19) ** 2.0]
    pl.DataFrame({"x": np.arange(20) ** 1.5, "y": y}).write_csv("table.csv")
    assert main(["fit", "table.csv", "--target", "y", "--out", "m.gpmoe"]) == 0
    assert "note: stopped after 3 steps\n" in capsys.readouterr().err


WRONG_FIT = {
    "missing file": (["absent.csv"], "absent.csv is no file"),
    "target": (["table.csv", "--target", "Y_"], "no column 'Y_'"),
    "drop": (["table.csv", "--drop", "z"], "--drop z: the column is not among x, colour, y"),
    "drop target": (["table.csv", "--drop", "y"], "--drop y: the column is the target"),
    "fraction": (["table.csv", "--test-fraction", "1"], "--test-fraction must lie between 0 and 1"),
    "fraction nan": (["table.csv", "--test-fraction", "nan"], "--test-fraction must lie between 0 and 1"),
    "fraction text": (["table.csv", "--test-fraction", "half"], "'--test-fraction': Input should be a valid number"),
    "seed": (["table.csv", "--seed", "-1"], "'--seed': Input should be greater than or equal to 0"),
    "model": (["table.csv", "--model", "svm"], "'svm' is not one of"),
    "option": (["table.csv", "--targets", "y"], "No such option"),
    "folder": (["table.csv", "--out", "absent/m.gpmoe"], "there is no folder absent"),
    "out is folder": (["table.csv", "--out", "."], "is a folder"),
    "overwrites table": (["table.csv", "--out", "./table.csv"], "is a file to read from"),
    "delimiter": (["table.csv", "--delimiter", ";"], "Add --delimiter ','"),
}


@pytest.mark.parametrize(("words", "text"), WRONG_FIT.values(), ids=WRONG_FIT.keys())
def test_wrong_calls_of_fit_say_so_in_one_line(table: str, capsys, words: list[str], text: str) -> None:
    defaults = [] if "--targets" in words else ["--target", "y", "--out", "m.gpmoe"]
    assert text in complaint(capsys, "fit", *defaults, *words)


def test_too_few_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("few.csv").write_text("x,y\n1,2\n2,3\n4,5\n", encoding="utf-8")
    line = complaint(capsys, "fit", "few.csv", "--target", "y", "--out", "m.gpmoe")
    assert "3 rows; at least 10 are needed" in line


def test_missing_values_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("gaps.csv").write_text("x,y\n1,2\n,3\n4,5\n", encoding="utf-8")
    line = complaint(capsys, "fit", "gaps.csv", "--target", "y", "--out", "m.gpmoe")
    assert "row 2, column 'x'" in line


WRONG_PREDICT = {
    "no model": (["absent.gpmoe", "table.csv"], "no model file absent.gpmoe"),
    "not a model": (["table.csv", "table.csv"], "is not a gpmoe model file"),
    "no table": (["line.gpmoe", "absent.csv"], "absent.csv is no file"),
    "lacks columns": (["line.gpmoe", "other.csv"], "lacks 'x', 'colour'"),
    "coverage": (["line.gpmoe", "table.csv", "--coverage", "90"], "--coverage must lie between 0 and 1"),
    "out ending": (["line.gpmoe", "table.csv", "--out", "p.xlsx"], "--out must end in .csv, .tsv, .parquet"),
    "plot ending": (["line.gpmoe", "table.csv", "--plot", "p.doc"], "--plot must end in"),
    "plot folder": (["line.gpmoe", "table.csv", "--plot", "absent/p.png"], "there is no folder absent"),
    "overwrites model": (["line.gpmoe", "table.csv", "--plot", "line.gpmoe"], "is a file to read from"),
}


@pytest.mark.parametrize(("words", "text"), WRONG_PREDICT.values(), ids=WRONG_PREDICT.keys())
def test_wrong_calls_of_predict_say_so_in_one_line(model: str, capsys, words: list[str], text: str) -> None:
    Path("other.csv").write_text("z\n1\n", encoding="utf-8")
    assert text in complaint(capsys, "predict", "--out", "p.csv", *words)


def test_an_unseen_level_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.csv").write_text("x,colour\n1,red\n2,green\n", encoding="utf-8")
    line = complaint(capsys, "predict", model, "new.csv", "--out", "p.csv")
    assert "row 2, column 'colour': 'green'" in line
    assert "(blue, red)" in line


def test_a_model_without_a_table_is_refused(table: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(load_with_extra(model)[0], "bare.gpmoe")
    assert "gpmoe.load" in complaint(capsys, "predict", "bare.gpmoe", table, "--out", "p.csv")


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["gp", "moe"])
def test_a_table_becomes_a_model_and_a_model_predictions(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).uniform(0, 6, size=60)
    pl.DataFrame({"x": x, "y": 100 + 10 * np.sin(x)}).write_csv("table.csv")
    assert main(["fit", "table.csv", "--target", "y", "--model", kind, "--out", "m.gpmoe"]) == 0
    assert main(["predict", "m.gpmoe", "table.csv", "--out", "p.csv", "--plot", "p.png"]) == 0
    predictions = pl.read_csv("p.csv")
    np.testing.assert_allclose(predictions["mean"], predictions["target"], atol=0.5)
    assert Path("p.png").stat().st_size > 5000
    Path("bad.gpmoe").write_bytes(Path("m.gpmoe").read_bytes()[:100])
    assert "bad.gpmoe" in complaint(capsys, "predict", "bad.gpmoe", "table.csv", "--out", "q.csv")
