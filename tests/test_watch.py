"""`gpmoe watch`: tables to a model, to risks and to a stream of alarms, and one line about what is wrong."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gpmoe.cli import main
from gpmoe.early_warning import StayModel, simulate_stays

STAYS = StayModel(
    (0.5, 0.5, 0.3), n_labs=1, prevalence=0.4, shift=0.85, lengths=(8, 16), ramp=6.0, timescale=2.0, excursions=0.0
)
FIT = [
    "--outcomes",
    "outcomes.csv",
    "--event-time",
    "onset",
    "--horizon",
    "4",
    "--static",
    "age",
    "--network",
    "linear",
]


def write_tables(folder: Path, n: int, seed: int) -> None:
    """Stays as tables of measurements and of outcomes, with ids that look like numbers but are names."""
    series = simulate_stays(n, model=STAYS, seed=seed).series
    ids = np.array([f"{i:03d}" for i in range(n)])
    names = np.array(series.channel_names)[series.channel]
    table = {"id": ids[series.owner], "time": series.time, "channel": names, "value": series.value}
    pl.DataFrame(table).write_csv(folder / "measurements.csv")
    onset = [None if np.isinf(t) else t for t in series.event_time]
    pl.DataFrame({"id": ids, "onset": onset, "age": np.arange(n) % 7 + 40.0}).write_csv(folder / "outcomes.csv")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables and a model of them."""
    folder = tmp_path_factory.mktemp("watch")
    write_tables(folder, 120, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--alarms-per-day", "5", "--epochs", "8", "--out", "m.gpmoe"]
        assert main(["watch", "fit", "measurements.csv", *FIT, *words]) == 0
    return folder


@pytest.fixture
def folder(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(fitted)
    monkeypatch.setenv("COLUMNS", "100")
    return fitted


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call prints; checks that it is one, the code is 2 and no file is new."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["watch", *words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("gpmoe: ")
    assert sorted(Path().rglob("*")) == before
    return lines[0]


def lines_of(path: str) -> list[str]:
    """The measurements as lines of a stream: series interleaved, covariates first."""
    ages = [json.dumps({"id": row[0], "static": [row[2]]}) for row in pl.read_csv("outcomes.csv", infer_schema=False)
            .with_columns(pl.col("age").cast(pl.Float64)).iter_rows()]  # fmt: skip
    frame = pl.read_csv(path, schema_overrides={"id": pl.String}).sort("time", maintain_order=True)
    return ages + [json.dumps(row) for row in frame.iter_rows(named=True)]


def streamed(lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys, *words: str) -> list[dict]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    assert main(["watch", "stream", "m.gpmoe", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_fit_prints_the_scores_beside_those_of_the_clock(folder: Path, capsys) -> None:
    table = pl.read_csv("measurements.csv", schema_overrides={"id": pl.String})
    table.rename({"value": "reading", "channel": "what"}).write_csv("renamed.csv")
    words = [*FIT, "--columns", "id, time, what, reading", "--epochs", "1", "--out", "other.gpmoe"]
    assert main(["watch", "fit", "renamed.csv", *words]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("model", "clock", "AUROC of times", "utility", "other.gpmoe: fitted to 84"))
    for name in ("other.gpmoe", "renamed.csv"):
        Path(name).unlink()


def test_score_writes_a_risk_for_each_time(folder: Path) -> None:
    assert main(["watch", "score", "m.gpmoe", "measurements.csv", "--outcomes", "outcomes.csv", "--out", "r.csv"]) == 0
    risks = pl.read_csv("r.csv", schema_overrides={"id": pl.String})
    assert risks.columns == ["id", "time", "risk", "alarm"]
    assert risks["id"].n_unique() == 120
    assert risks["id"][0] == "000"  # a name, not the number 0
    assert risks["risk"].is_between(0, 1).all()
    assert risks.group_by("id").agg(pl.col("alarm").sum())["alarm"].max() == 1


def test_a_stream_says_what_the_table_says(folder: Path, monkeypatch, capsys) -> None:
    words = ["--outcomes", "outcomes.csv", "--out", "r.parquet", "--threshold"]
    assert main(["watch", "score", "m.gpmoe", "measurements.csv", *words, "0.3"]) == 0
    threshold = str(pl.read_parquet("r.parquet")["risk"].quantile(0.8))
    assert main(["watch", "score", "m.gpmoe", "measurements.csv", *words, threshold]) == 0
    table = pl.read_parquet("r.parquet").sort("id", "time")
    found = pl.DataFrame(streamed(lines_of("measurements.csv"), monkeypatch, capsys, "--threshold", threshold))
    found = found.sort("id", "time")
    assert found["time"].to_list() == table["time"].to_list()
    np.testing.assert_allclose(found["risk"], table["risk"], atol=1e-6)
    assert found["alarm"].to_list() == table["alarm"].to_list()
    assert found["alarm"].any()


def test_a_stream_answers_before_it_ends(folder: Path) -> None:
    code = "import sys; from gpmoe.cli import main; sys.exit(main(['watch', 'stream', 'm.gpmoe']))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        for time in (0.5, 1.5):
            row = {"id": 7, "time": time, "channel": "vital 0", "value": 1.0}
            process.stdin.write(json.dumps(row) + "\n")
            process.stdin.flush()
        first = json.loads(process.stdout.readline())  # would wait for ever if it were not flushed
        assert (first["id"], first["time"]) == (7, 1.0)
        rest, _ = process.communicate(timeout=60)
        assert [json.loads(line)["time"] for line in rest.splitlines()] == [2.0]
        assert process.returncode == 0


def test_an_ended_series_is_scored_and_forgotten(folder: Path, monkeypatch, capsys) -> None:
    row = {"id": "a", "time": 2.5, "channel": "vital 0", "value": 1.0}
    lines = [json.dumps(each) for each in (row, {"id": "a", "end": True}, {**row, "time": 0.5})]
    assert [each["time"] for each in streamed(lines, monkeypatch, capsys)] == [3.0, 1.0]


WRONG_LINES = {
    "not JSON": ('{"id": "a", ', "line 2: it is not JSON"),
    "other keys": ('{"id": "a", "time": 3}', "line 2: it must be"),
    "list": ("[1, 2]", "line 2: it must be"),
    "id": ('{"id": [1], "time": 3, "channel": "vital 0", "value": 1}', "line 2: it must be"),
    "text": ('{"id": "a", "time": "3", "channel": "vital 0", "value": 1}', "'time' must be a number; got \"3\""),
    "nan": ('{"id": "a", "time": 3, "channel": "vital 0", "value": NaN}', "must be finite"),
    "channel": ('{"id": "a", "time": 3, "channel": "pulse", "value": 1}', "one of the 3 of training; got 'pulse'"),
    "late": ('{"id": "a", "time": 0.2, "channel": "vital 0", "value": 1}', "comes too late"),
    "static": ('{"id": "b", "static": [1, 2]}', "must hold 1 covariates"),
    "static again": ('{"id": "a", "static": [1]}', "is known already"),
    "end": ('{"id": "b", "end": true}', "is unknown"),
}


@pytest.mark.parametrize(("line", "text"), WRONG_LINES.values(), ids=WRONG_LINES.keys())
def test_a_wrong_line_is_named(folder: Path, monkeypatch, capsys, line: str, text: str) -> None:
    good = '{"id": "a", "time": 0.5, "channel": "vital 0", "value": 1}'
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{good}\n{line}\n"))
    assert text in complaint(capsys, "stream", "m.gpmoe")
    assert [each["time"] for each in streamed([good, line], monkeypatch, capsys, "--skip-wrong-lines")] == [1.0]


WRONG_CALLS = {
    "no labels": (["fit", "measurements.csv", "--out", "x.gpmoe"], "give --label or --horizon"),
    "no events": (["fit", "measurements.csv", "--out", "x.gpmoe", "--horizon", "4"], "need --event-time"),
    "columns": (
        ["fit", "measurements.csv", *FIT, "--columns", "id,time", "--out", "x.gpmoe"],
        "must name four columns",
    ),
    "no table": (["score", "m.gpmoe", "absent.csv", "--out", "r.csv"], "absent.csv is no file"),
    "no model": (["score", "absent.gpmoe", "measurements.csv", "--out", "r.csv"], "no model file absent.gpmoe"),
    "not a model": (["score", "outcomes.csv", "measurements.csv", "--out", "r.csv"], "not a gpmoe model"),
    "column": (["score", "m.gpmoe", "outcomes.csv", "--out", "r.csv"], "has no column 'time'"),
    "ending": (["score", "m.gpmoe", "measurements.csv", "--out", "r.txt"], "--out must end in"),
    "overwrites": (["score", "m.gpmoe", "measurements.csv", "--out", "measurements.csv"], "a file to read from"),
    "folder": (["score", "m.gpmoe", "measurements.csv", "--out", "absent/r.csv"], "there is no folder absent"),
    "outcomes": (["score", "m.gpmoe", "measurements.csv", "--out", "r.csv"], "pass that table"),
    "page": (["report", "m.gpmoe", "measurements.csv", "--out", "r.pdf"], "--out must end in .html"),
    "option": (["stream", "m.gpmoe", "--thresholds", "1"], "No such option"),
}


@pytest.mark.parametrize(("words", "text"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_calls_say_so_in_one_line(folder: Path, capsys, words: list[str], text: str) -> None:
    assert text in complaint(capsys, *words)


WRONG_ROWS = {
    "text time": ("1,noon,vital 0,2", "holds noon, which is not a number"),
    "gap": ("1,2.0,vital 0,", "holds the value nan"),
    "channel": ("1,2.0,pulse,1", "channel pulse"),
    "unsorted": ("1,0.5,vital 0,1", "lies before the row above it"),
    "repeated": ("1,1.0,vital 0,1", "repeats row 0"),
}


@pytest.mark.parametrize(("row", "text"), WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_wrong_row_is_named(folder: Path, capsys, tmp_path: Path, row: str, text: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"id,time,channel,value\n1,1.0,vital 0,2\n{row}\n", encoding="utf-8")
    (tmp_path / "o.csv").write_text("id,age\n1,50\n", encoding="utf-8")
    words = ["m.gpmoe", str(table), "--outcomes", str(tmp_path / "o.csv"), "--out", str(tmp_path / "r.csv")]
    line = complaint(capsys, "score", *words)
    assert text in line
    assert "row 1" in line
    if "pass --repair" in line:
        assert main(["watch", "score", *words, "--repair"]) == 0


def test_report_writes_a_page(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["measurements.csv", "--outcomes", "outcomes.csv", "--out", "page.html"]
    assert main(["watch", "report", "m.gpmoe", *words]) == 0
    assert "clock" in Path("page.html").read_text(encoding="utf-8")
