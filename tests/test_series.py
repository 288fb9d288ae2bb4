"""Ragged series: what comes in is checked row by row; cut, picked, split and scaled, they agree with loops."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gpmoe.early_warning import RaggedSeries, SeriesScaling
from gpmoe.early_warning.concatenate import concatenate
from gpmoe.early_warning.readers import (
    load_challenge_2012,
    load_challenge_2019,
    read_challenge_2012,
    read_challenge_2019,
)
from gpmoe.errors import FileFormatError, InputError, NonFiniteError, ShapeError

DATA = Path(os.environ.get("GPMOE_DATA", Path(__file__).parents[2] / "shared" / "data"))
FRAMES = [pd.DataFrame, pl.DataFrame]


def random_series(n: int = 6, seed: int = 0, n_channels: int = 3) -> RaggedSeries:
    """Series of 0 to 11 measurements, an hourly grid of 5 to 9, and one label a grid time."""
    rng = np.random.default_rng(seed)
    sizes, hours = rng.integers(0, 12, n), rng.integers(5, 10, n)
    time = np.concatenate([np.sort(rng.uniform(0, h, m)) for m, h in zip(sizes, hours, strict=True)])
    total = int(hours.sum())
    return RaggedSeries.from_arrays(
        time,
        rng.integers(0, n_channels, len(time)),
        rng.normal(size=len(time)),
        np.concatenate([[0], np.cumsum(sizes)]),
        n_channels=n_channels,
        grid_times=np.concatenate([np.arange(1.0, h + 1) for h in hours]),
        grid_offsets=np.concatenate([[0], np.cumsum(hours)]),
        labels=rng.integers(0, 2, total),
        static=rng.normal(size=(n, 2)),
        event_time=np.where(rng.random(n) < 0.5, 4.0, np.nan),
        censoring_time=hours.astype(float),
    )


def small(**changes: Any) -> RaggedSeries:
    parts: dict[str, Any] = {
        "time": [0.0, 1.0, 2.0, 0.5],
        "channel": [0, 1, 0, 1],
        "value": [5.0, 6.0, 7.0, 8.0],
        "offsets": [0, 3, 4],
        "n_channels": 2,
        "grid_times": [1.0, 2.0, 1.0],
        "grid_offsets": [0, 2, 3],
        "ids": ["anna", "bert"],
        **changes,
    }
    return RaggedSeries.from_arrays(**parts)


FAULTS: list[tuple[dict[str, Any], type[Exception], str, str, int]] = [
    ({"value": [5.0, np.nan, 7.0, 8.0]}, NonFiniteError, r"row 1 \(series anna, time 1, channel 1\)", "non-finite", 3),
    ({"time": [0.0, np.inf, 2.0, 0.5]}, NonFiniteError, "row 1 .*finite", "non-finite", 3),
    ({"channel": [0, 1, 0, 2]}, InputError, r"row 3 \(series bert.*there are 2 channels", "unknown channel", 3),
    ({"time": [0.0, 1.0, 2.0, 1.5]}, InputError, "row 3 .*after the end of its series, 1 ", "future-stamped", 3),
    ({"time": [1.0, 0.0, 2.0, 0.5]}, InputError, "row 1 .*before the row above it, at time 1", "unsorted", 4),
    ({"time": [0.0, 2.0, 2.0, 0.5], "channel": [0, 0, 0, 1]}, InputError, "row 2 .*repeats row 1", "duplicated", 3),
    ({"grid_times": [2.0, 2.0, 1.0]}, InputError, r"grid row 1 \(series anna, time 2\)", "grid", 4),
]


@pytest.mark.parametrize(("changes", "error", "text", "repair", "left"), FAULTS)
def test_a_faulty_row_is_named_or_repaired_when_asked(
    changes: dict[str, Any], error: type[Exception], text: str, repair: str, left: int
) -> None:
    with pytest.raises(error, match=text):
        small(**changes)
    series = small(**changes, repair=True)
    assert series.repairs[repair] == 1
    assert sum(series.repairs.values()) == 1
    assert len(series.value) == left
    assert (np.diff(series.time) >= 0)[np.diff(series.owner) == 0].all()


def test_repair_averages_duplicates_and_sorts() -> None:
    series = small(time=[2.0, 1.0, 2.0, 0.5], channel=[0, 1, 0, 1], repair=True)
    assert_array_equal(series.time, [1.0, 2.0, 0.5])
    assert_array_equal(series.value, [6.0, 6.0, 8.0])
    assert series.repairs["unsorted"] == 1
    assert series.repairs["duplicated"] == 1


def test_rows_of_one_time_come_in_the_order_of_their_channels() -> None:
    series = small(time=[1.0, 1.0, 2.0, 0.5], channel=[1, 0, 0, 1])
    assert_array_equal(series.channel, [0, 1, 0, 1])
    assert_array_equal(series.value, [6.0, 5.0, 7.0, 8.0])


def test_repaired_grid_keeps_the_last_label_of_equal_times() -> None:
    series = small(grid_times=[2.0, 2.0, 1.0], labels=[0, 1, 0], repair=True)
    assert_array_equal(series.grid_times, [2.0, 1.0])
    assert_array_equal(series.labels, [1, 0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"offsets": [0, 3, 5]}, "`offsets` must be integers"),
        ({"offsets": [0, 4]}, "`ids` must have shape"),
        ({"offsets": [0, 4], "ids": None}, "`grid_offsets` must have shape"),
        ({"value": [5.0]}, r"`value` must have shape \(4,\)"),
        ({"channel": [0.0, 1.0, 0.0, 1.0]}, "`channel` must hold integers"),
        ({"n_channels": None}, "pass `n_channels`"),
        ({"channel_names": ["a"]}, "must hold n_channels=2 names"),
        ({"channel_names": ["a", "a"]}, "must differ"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "one row a grid time"),
        ({"labels": [0.0, np.inf, 0.0]}, "infinite"),
        ({"static": [[0.0]]}, "`static` must have shape"),
        ({"event_time": [1.0]}, "`event_time` must have shape"),
        ({"grid_offsets": None}, "go together"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises((InputError, ShapeError), match=text):
        small(**changes)


def test_arrays_are_copies_that_nobody_can_change() -> None:
    value = np.array([5.0, 6.0, 7.0, 8.0])
    series = small(value=value)
    value[0] = 99.0
    assert series.value[0] == 5.0
    with pytest.raises(ValueError, match="read-only"):
        series.value[0] = 1.0


def test_without_a_grid_each_time_of_measurement_is_scored() -> None:
    series = RaggedSeries.from_arrays([0, 0, 1, 5], [0, 1, 0, 0], [1, 2, 3, 4], [0, 3, 3, 4], n_channels=2)
    assert_array_equal(series.grid_times, [0, 1, 5])
    assert_array_equal(series.grid_offsets, [0, 2, 2, 3])


def test_series_without_measurements_are_kept() -> None:
    series = RaggedSeries.from_arrays([], [], [], [0, 0, 0], n_channels=1, labels=[0, 1])
    assert len(series) == 2
    assert series.label_per == "series"


@pytest.mark.parametrize("t", [3.0, np.linspace(0.0, 9.0, 6)])
def test_until_agrees_with_a_loop(t: float | np.ndarray) -> None:
    series = random_series()
    cut = series.until(t)
    for i, limit in enumerate(np.broadcast_to(t, (6,))):
        known = series[i].time <= limit
        assert_array_equal(cut[i].value, series[i].value[known])
        grid = series[i].grid_times <= limit
        assert_array_equal(cut[i].grid_times, series[i].grid_times[grid])
        assert_array_equal(cut[i].labels, series[i].labels[grid])  # type: ignore[index]
    assert_array_equal(cut.event_time, series.event_time)


def test_picking_series_agrees_with_concatenating_them() -> None:
    series = random_series()
    picked = series[[4, 0, 4]]
    joined = concatenate([series[4], series[0], series[4]])
    for name in ("time", "channel", "value", "offsets", "grid_times", "grid_offsets", "labels", "static", "ids"):
        assert_array_equal(getattr(picked, name), getattr(joined, name))
    assert_array_equal(series[np.arange(6) == 2].value, series[2].value)
    assert_array_equal(series[1:3].ids, [1, 2])
    assert sum(len(one.value) for one in series) == len(series.value)


def test_parts_of_different_channels_are_not_joined() -> None:
    with pytest.raises(InputError, match="must agree"):
        concatenate([random_series(), random_series(n_channels=4)])


def test_labels_of_a_series_are_the_largest_known_of_its_grid() -> None:
    series = small(labels=[0.0, 1.0, np.nan])
    assert_array_equal(series.series_labels, [1.0, np.nan])
    assert_array_equal(small(labels=[0, 1]).series_labels, [0.0, 1.0])
    with pytest.raises(InputError, match="no labels"):
        _ = small().series_labels


def test_a_split_keeps_groups_whole_and_takes_every_series_once() -> None:
    series = random_series(200)
    groups = np.repeat(np.arange(100), 2)
    parts = series.split([0.7, 0.1, 0.2], groups=groups, seed=1)
    assert [len(part) for part in parts] == [140, 20, 40]
    assert sorted(np.concatenate([part.ids for part in parts])) == list(range(200))
    assert not set(groups[parts[0].ids]) & set(groups[parts[2].ids])
    assert_array_equal(parts[2].ids, series.split([0.7, 0.1, 0.2], groups=groups, seed=1)[2].ids)


def test_scaling_is_learned_on_training_series_alone_and_undone() -> None:
    train, test = random_series(50).split([0.5, 0.5], seed=0)
    scaling = SeriesScaling.fit(train)
    scaled = scaling.apply(train)
    for m in range(3):
        chosen = scaled.value[scaled.channel == m]
        assert_allclose([chosen.mean(), chosen.std()], [0.0, 1.0], atol=1e-12)
    assert_allclose(scaled.static.mean(0), 0.0, atol=1e-12)
    assert_allclose(scaling.unscaled(test.channel, scaling.apply(test).value), test.value)
    assert_array_equal(scaling.values(test.channel, test.value), scaling.apply(test).value)


def test_normal_scores_tame_skew_and_slips_of_the_pen() -> None:
    rng = np.random.default_rng(0)
    value = np.concatenate([rng.lognormal(0, 2, 5000), rng.normal(size=5000)])
    series = RaggedSeries.from_arrays(np.arange(10_000.0), np.repeat([0, 1], 5000), value, [0, 10_000], n_channels=3)
    scaling = SeriesScaling.fit(series, "normal")
    scaled = scaling.values(series.channel, value)
    for m in range(2):
        chosen = scaled[series.channel == m]
        assert_allclose([chosen.mean(), chosen.std()], [0.0, 1.0], atol=0.02)
        assert abs((chosen**3).mean()) < 0.05
        assert (np.diff(chosen[np.argsort(value[series.channel == m])]) >= 0).all()
    inside = np.abs(scaled) < 2.8
    assert_allclose(scaling.unscaled(series.channel, scaled)[inside], value[inside], rtol=1e-9)
    assert_allclose(scaling.values([0, 1], [1e9, -1e9]), [2.878, -2.878], atol=1e-3)
    assert scaling.values([2], [5.0])[0] == 0.0  # never measured
    with pytest.raises(InputError, match="one of standard, normal"):
        SeriesScaling.fit(series, "log")


def test_normal_scores_of_ties_are_their_mean_level() -> None:
    scores = SeriesScaling.fit(small(value=[1.0, 1.0, 1.0, 2.0]), "normal").values([0, 1], [1.0, 1.0])
    assert np.isfinite(scores).all()


def test_unknown_covariates_stay_unknown_and_constant_channels_keep_their_unit() -> None:
    series = small(value=[5.0, 6.0, 5.0, 6.0], static=[[1.0, np.nan], [3.0, np.nan]])
    scaled = SeriesScaling.fit(series).apply(series)
    assert_array_equal(scaled.value, np.zeros(4))
    assert_array_equal(scaled.static, [[-1.0, np.nan], [1.0, np.nan]])
    with pytest.raises(ShapeError, match="learned on 2 channels and 2 static"):
        SeriesScaling.fit(series).apply(random_series())


@pytest.mark.parametrize("frame", FRAMES)
def test_long_wide_and_arrays_are_the_same_series(frame: Callable[..., Any]) -> None:
    series = random_series(8, seed=3)
    grid = frame({"who": series.ids[series.grid_owner], "hour": series.grid_times, "sick": series.labels})
    columns = {"who": series.ids[series.owner], "hour": series.time}
    long = frame({**columns, "what": series.channel.astype(str), "reading": series.value})
    outcomes = frame(
        {"who": series.ids, "onset": series.event_time, "end": series.censoring_time, "age": series.static[:, 0]}
    )
    same = RaggedSeries.from_table(
        long, id="who", time="hour", channel="what", value="reading", channel_names=series.channel_names, grid=grid,
        outcomes=outcomes, label="sick", event_time="onset", censoring_time="end", static=["age"],
    )  # fmt: skip
    for name in ("time", "channel", "value", "offsets", "grid_times", "labels", "event_time", "censoring_time"):
        assert_array_equal(getattr(same, name), getattr(series, name))
    assert_array_equal(same.static[:, 0], series.static[:, 0])
    wide = {f"m{m}": np.where(series.channel == m, series.value, np.nan) for m in range(3)}
    from_wide = RaggedSeries.from_wide(frame({**columns, **wide}), id="who", time="hour", channels=list(wide))
    assert_array_equal(from_wide.value, series.value)
    assert_array_equal(from_wide.grid_times, series.time)


@pytest.mark.parametrize("frame", FRAMES)
def test_rows_of_a_series_need_not_stand_together(frame: Callable[..., Any]) -> None:
    table = frame({"id": ["b", "a", "b"], "t": [0.0, 1.0, 2.0], "c": ["x", "y", "y"], "v": [1, 2, 3]})
    series = RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v")
    assert series.ids.tolist() == ["b", "a"]
    assert_array_equal(series.value, [1.0, 3.0, 2.0])
    table = frame({"id": ["b", "a", "b"], "t": [3.0, 1.0, 2.0], "c": ["x", "y", "y"], "v": [1, 2, 3]})
    with pytest.raises(InputError, match=r"row 2 \(series b, time 2, channel y\) lies before"):
        RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v")


@pytest.mark.parametrize("frame", FRAMES)
def test_an_unknown_channel_of_a_table_is_called_by_its_name(frame: Callable[..., Any]) -> None:
    table = frame({"id": [1, 1], "t": [0.0, 1.0], "c": ["x", "z"], "v": [1.0, 2.0]})
    with pytest.raises(InputError, match=r"row 1 \(series 1, time 1, channel z\)"):
        RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v", channel_names=["x", "y"])
    kept = RaggedSeries.from_table(
        table, id="id", time="t", channel="c", value="v", channel_names=["x", "y"], repair=True
    )
    assert kept.value.tolist() == [1.0]


@pytest.mark.parametrize("frame", FRAMES)
def test_dates_are_counted_in_the_unit_asked_for(frame: Callable[..., Any]) -> None:
    days = pd.to_datetime(["2020-01-01 06:00", "2020-01-02 12:00", "2021-01-01 00:00"]).to_numpy()
    table = frame({"id": [1, 1, 2], "t": days, "c": ["x"] * 3, "v": [1.0, 2.0, 3.0]})
    series = RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v", unit="h")
    assert_array_equal(series.time, [0.0, 30.0, 0.0])
    with pytest.raises(InputError, match="pass `unit`"):
        RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v")


def test_tables_name_a_missing_column_and_a_stranger() -> None:
    table = pl.DataFrame({"id": [1], "t": [0.0], "c": ["x"], "v": ["high"]})
    with pytest.raises(InputError, match=r"no column 'w'; it has 'id', 't', 'c', 'v'"):
        RaggedSeries.from_table(table, id="id", time="t", channel="c", value="w")
    with pytest.raises(InputError, match="must hold numbers"):
        RaggedSeries.from_table(table, id="id", time="t", channel="c", value="v")
    outcomes = pl.DataFrame({"id": [2], "died": [1]})
    with pytest.raises(InputError, match="row 0 of `frame` has 'id' 1"):
        RaggedSeries.from_table(
            table.with_columns(v=1.0), id="id", time="t", channel="c", value="v", outcomes=outcomes, label="died"
        )


def test_psv_files_are_read_with_the_clock_as_time(tmp_path: Path) -> None:
    head = "HR|Temp|Age|HospAdmTime|ICULOS|SepsisLabel"
    (tmp_path / "p1.psv").write_text(f"{head}\n80|NaN|60|-3.5|1|0\nNaN|37|60|-3.5|2|0\n81|38|60|-3.5|3|1\n")
    (tmp_path / "p2.psv").write_text(f"{head}\nNaN|NaN|50|0|4|0\n")
    series = read_challenge_2019(tmp_path)
    assert series.channel_names == ("HR", "Temp")
    assert series.static_names == ("Age", "HospAdmTime")
    assert_array_equal(series.time, [1, 2, 3, 3])
    assert_array_equal(series.value, [80, 37, 81, 38])
    assert_array_equal(series.grid_times, [1, 2, 3, 4])
    assert_array_equal(series.labels, [0, 0, 1, 0])
    assert_array_equal(series.event_time, [9, np.inf])
    assert series.ids.tolist() == ["p1", "p2"]
    (tmp_path / "p3.psv").write_text("HR|ICULOS\n80|1\n")
    with pytest.raises(FileFormatError, match="p3"):
        read_challenge_2019(tmp_path)
    with pytest.raises(InputError, match="holds no file"):
        read_challenge_2019(tmp_path / "none")


def test_txt_files_are_read_with_their_outcomes(tmp_path: Path) -> None:
    lines = ["Time,Parameter,Value", "00:00,RecordID,17", "00:00,Age,54", "00:00,Height,-1", "00:00,Weight,70"]
    lines += ["00:07,HR,73", "00:07,HR,75", "10:30,Weight,71", "10:30,GCS,15"]
    (tmp_path / "17.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "Outcomes.txt").write_text("RecordID,In-hospital_death\n17,1\n")
    series = read_challenge_2012(tmp_path, tmp_path / "Outcomes.txt")
    assert series.channel_names == ("Weight", "GCS", "HR")
    assert_allclose(series.time, [7 / 60, 10.5, 10.5])
    assert_array_equal(series.value, [74.0, 71.0, 15.0])
    assert_array_equal(series.static[0], [54, np.nan, np.nan, np.nan, 70])
    assert series.repairs["duplicated"] == 1
    assert_array_equal(series.labels, [1.0])
    assert len(series.grid_times) == 48


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "physionet2019_b").exists(), reason="no data folder")
def test_the_challenge_files_are_read_whole() -> None:
    sepsis = load_challenge_2019(DATA / "physionet2019_b" / "stays.npz")
    assert (len(sepsis), len(sepsis.grid_times), sepsis.n_channels) == (16_000, 610_285, 34)
    assert np.isfinite(sepsis.event_time).sum() == 896  # type: ignore[arg-type]
    mortality = load_challenge_2012(DATA / "physionet2012" / "set_a.npz")
    assert np.nansum(mortality.labels) == 554  # type: ignore[arg-type]
    assert mortality.n_channels == 37
