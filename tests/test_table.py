"""Tables read from files, and the arrays they become."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal

from gpmoe.errors import FileFormatError, GPMoEError
from gpmoe.table import TableSchema, read_table, write_table

COMPLETE = "x,colour,y\n1,red,2\n2,blue,4\n3,red,6.5\n"


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_text_and_levels_become_one_array(tmp_path: Path) -> None:
    frame = read_table(written(tmp_path, COMPLETE))
    schema, notes = TableSchema.learn(frame, "y")
    assert_array_equal(schema.features(frame), [[1, 0, 1], [2, 1, 0], [3, 0, 1]])
    assert_array_equal(schema.targets(frame), [2.0, 4.0, 6.5])
    assert len(notes) == 1
    assert "'colour' holds text: one-hot encoded as 2 columns (blue, red)" in notes[0]


@pytest.mark.parametrize(
    ("ending", "delimiter"), [("csv", None), ("tsv", None), ("parquet", None), ("txt", ","), ("tsv", r"\t")]
)
def test_every_format_gives_the_same_arrays(tmp_path: Path, ending: str, delimiter: str | None) -> None:
    expected = read_table(written(tmp_path, COMPLETE, "expected.csv"))
    path = tmp_path / f"table.{ending}"
    write_table(expected, path)
    frame = read_table(path, delimiter)
    schema, _ = TableSchema.learn(frame, "y")
    assert_array_equal(schema.features(frame), [[1, 0, 1], [2, 1, 0], [3, 0, 1]])


def test_spaces_marks_and_quotes_around_values_do_not_matter(tmp_path: Path) -> None:
    text = '\ufeffx , "colour", y\n 1,red , 2\n 2, blue,4\n3,"red",6.5\n'
    frame = read_table(written(tmp_path, text.replace(', "', ',"')))
    assert frame.columns == ["x", "colour", "y"]
    assert frame["x"].to_list() == [1.0, 2.0, 3.0]
    assert frame["colour"].to_list() == ["red", "blue", "red"]


def test_truth_values_agree_however_they_are_spelt() -> None:
    y = [1.0, 2.0, 3.0]
    schema, _ = TableSchema.learn(pl.DataFrame({"on": [True, False, True], "y": y}), "y")
    expected = [[0, 1], [1, 0], [0, 1]]
    assert_array_equal(schema.features(pl.DataFrame({"on": ["True", "False", "True"]})), expected)
    assert_array_equal(schema.features(pl.DataFrame({"on": ["TRUE", "FALSE", "TRUE"]})), expected)


def test_enum_and_categorical_columns_count_as_text() -> None:
    frame = pl.DataFrame({"size": ["s", "l", "s"], "y": [1.0, 2.0, 3.0]})
    for dtype in (pl.Categorical(), pl.Enum(["s", "m", "l"])):
        schema, _ = TableSchema.learn(frame.with_columns(pl.col("size").cast(dtype)), "y")
        assert schema.columns[0].levels == ("l", "s")


def test_a_schema_survives_json() -> None:
    schema, _ = TableSchema.learn(pl.DataFrame({"x": [1, 2], "c": ["a", "b"], "y": [1, 2]}), "y")
    assert TableSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize("stored", [{}, {"target": "y", "columns": [{"name": "x"}]}, {"target": "y", "columns": 3}])
def test_a_damaged_schema_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(FileFormatError, match="damaged"):
        TableSchema.from_dict(stored)


def test_constant_and_identifying_columns_are_left_out_with_a_note() -> None:
    n = 12
    frame = pl.DataFrame(
        {
            "one": [5] * n,
            "name": [f"n{i}" for i in range(n)],
            "id": range(1, n + 1),
            "x": np.random.default_rng(0).normal(size=n),
            "y": np.arange(n) ** 2.0,
        }
    )
    schema, notes = TableSchema.learn(frame, "y")
    assert [column.name for column in schema.columns] == ["id", "x"]
    assert "'one' is left out: every row holds 5" in notes[0]
    assert "'name' is left out: its text differs in every row" in notes[1]
    assert "'id' counts the rows" in notes[2]
    assert "--drop" in notes[2]


UNREADABLE = {
    "empty": ("", "is empty"),
    "blank": ("\n\n", "empty line"),
    "header only": ("x,y\n", "no rows"),
    "semicolons": ("x;y\n1;2\n", "--delimiter ';'"),
    "decimal commas in semicolons": ("x;y\n1,5;2,5\n", "--delimiter ';'"),
    "tabs": ("x\ty\n1\t2\n", r"Add --delimiter '\\t'"),
    "bars": ("x|y\n1|2\n", r"--delimiter '\|'"),
    "long row": ("x,y\n1,2\n1,2,3\n", "row 2 has 3 values, the header 2 names"),
    "repeated name": ("x,x,y\n1,2,3\n", "two columns named 'x'"),
}


@pytest.mark.parametrize(("text", "complaint"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(GPMoEError, match=complaint):
        read_table(written(tmp_path, text))


def test_bytes_that_are_no_table_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "table.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01,\x80\n")
    with pytest.raises(GPMoEError, match="UTF-8"):
        read_table(binary)
    with pytest.raises(GPMoEError, match="not a Parquet file"):
        read_table(written(tmp_path, COMPLETE, "table.parquet"))
    with pytest.raises(GPMoEError, match="no file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(GPMoEError, match="a folder"):
        read_table(tmp_path)
    for delimiter in (";;", "", '"', "é"):
        with pytest.raises(GPMoEError, match="one ASCII character"):
            read_table(written(tmp_path, COMPLETE), delimiter)


def test_bytes_that_are_no_text_below_the_header_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "table.csv"
    binary.write_bytes(b"x,y\n" + b"1,2\n" * 5000 + b"\xff\xfe,2\n")
    with pytest.raises(GPMoEError, match="can't be read as a table"):
        read_table(binary)


UNUSABLE = {
    "target misspelt": ("x,Price\n1,2\n2,3\n", "Did you mean 'Price'"),
    "target unknown": ("x,weight\n1,2\n2,3\n", "no column 'price' among 'x', 'weight'. Name one"),
    "only the target": ("price\n1\n2\n", "no feature column"),
    "missing values": ("x,z,price\n1,1,2\n2,NA,3\n,,4\n", "3 values are missing in 2 of 3 rows.*row 2, column 'z'"),
    "one missing value": ("x,price\n1,2\n2,\n", "1 value is missing.*row 2, column 'price'"),
    "short row": ("x,z,price\n1,1,2\n2,3\n", "row 2, column 'price'"),
    "target text": ("x,price\n1,2\n2,cheap\n", "must hold numbers; row 2 holds 'cheap'"),
    "infinite feature": ("x,price\n1,2\ninf,3\n", "row 2, column 'x': inf is not finite"),
    "infinite target": ("x,price\n1,2\n3,-inf\n", "row 2, column 'price': -inf is not finite"),
    "stray text": ("x,price\n1,2\n2,3\n?,4\n", "'x' holds numbers, but row 3 holds"),
    "decimal commas": ('x,price\n"1,5",2\n"2,5",3\n', "decimal commas such as '1,5'"),
    "dates": ("day,price\n2020-01-01,2\n2020-01-02,3\n", "'day' holds dates or times.*--drop day"),
    "European dates": ("day,price\n31.12.2020,2\n1.1.2021,3\n", "'day' holds dates or times"),
}


@pytest.mark.parametrize(("text", "complaint"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_table_that_can_not_be_fitted_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    frame = read_table(written(tmp_path, text))
    with pytest.raises(GPMoEError, match=complaint):
        TableSchema.learn(frame, "price")


def test_typed_dates_and_lists_are_refused() -> None:
    y = pl.Series("y", [1.0, 2.0])
    with pytest.raises(GPMoEError, match="dates or times"):
        TableSchema.learn(pl.DataFrame([pl.Series("day", ["2020-01-01", "2020-01-02"]).str.to_date(), y]), "y")
    with pytest.raises(GPMoEError, match="must hold numbers or text"):
        TableSchema.learn(pl.DataFrame([pl.Series("pair", [[1, 2], [3, 4]]), y]), "y")


def test_nan_in_a_typed_column_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_table(pl.DataFrame({"x": [1.0, float("nan")], "y": [1.0, 2.0]}), path)
    with pytest.raises(GPMoEError, match="missing in 1 of 2 rows"):
        TableSchema.learn(read_table(path), "y")


@pytest.fixture
def schema(tmp_path: Path) -> TableSchema:
    return TableSchema.learn(read_table(written(tmp_path, COMPLETE)), "y")[0]


def test_new_tables_may_have_further_columns_in_any_order(schema: TableSchema) -> None:
    frame = pl.DataFrame({"further": [None], "colour": ["blue"], "x": [7]})
    assert_array_equal(schema.features(frame), [[7.0, 1.0, 0.0]])


def test_an_unseen_level_names_row_column_value_and_known_levels(schema: TableSchema) -> None:
    frame = pl.DataFrame({"x": [1, 2], "colour": ["red", "green"]})
    with pytest.raises(GPMoEError, match=r"row 2, column 'colour': 'green' .* \(blue, red\)"):
        schema.features(frame)


def test_text_in_a_column_of_numbers_names_the_row(schema: TableSchema) -> None:
    frame = pl.DataFrame({"x": ["1", "two"], "colour": ["red", "red"]})
    with pytest.raises(GPMoEError, match="row 2, column 'x': 'two' is not a number"):
        schema.features(frame)


def test_lacking_columns_are_all_named(schema: TableSchema) -> None:
    with pytest.raises(GPMoEError, match=r"lacks 'x', 'colour'.*its columns are 'z'"):
        schema.features(pl.DataFrame({"z": [1]}))


def test_missing_values_of_columns_not_needed_do_not_matter(schema: TableSchema) -> None:
    frame = pl.DataFrame({"x": [1], "colour": ["red"], "y": [None]})
    assert schema.features(frame).shape == (1, 3)
    with pytest.raises(GPMoEError, match="row 1, column 'x'"):
        schema.features(frame.with_columns(x=None))


def test_notes_do_not_change_the_frame_passed_in() -> None:
    frame = pl.DataFrame({"x": [1, 2], "colour": ["red", "blue"], "y": [1, 2]})
    before = frame.clone()
    schema, _ = TableSchema.learn(frame, "y")
    schema.features(frame)
    assert frame.equals(before)
