"""Tables as people have them: every separator, mark, encoding and compression gives the same numbers."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from isoloop.fitting.tables.reading import is_table_file, read_raw, to_numbers

ROWS = [
    {"params": 22821773, "tokens": 7302967433, "loss": 3.769625},
    {"params": 45643546, "tokens": 3651483717, "loss": 3.6562},
]
PLAIN = "params,tokens,loss\n22821773,7302967433,3.769625\n45643546,3651483717,3.6562\n"
MARKDOWN = "|params|tokens|loss|\n|:--|--:|:---:|\n| 22821773|7302967433 |3.769625|\n|45643546|3651483717|3.6562|\n"
WRITE_TABLE = '"params" "tokens" "loss"\n"1" 22821773 7302967433 3.769625\n"2" 45643546 3651483717 3.6562\n'
POINTS = "params;tokens;loss\n22821773;7.302.967.433;3,769625\n45643546;3651483717;3,6562\n"


def numbers(path):
    """Return the table of `path` as numbers, and what was guessed."""
    raw = read_raw(path)
    return {name: to_numbers(raw.frame[name])[0].tolist() for name in ROWS[0]}, raw.notes


def expect(path, note=None):
    columns, notes = numbers(path)
    assert columns == {name: [float(row[name]) for row in ROWS] for name in ROWS[0]}
    assert notes == () if note is None else note in notes[0], notes


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("plain.csv", PLAIN, None),
        ("UPPER.CSV", PLAIN, None),
        ("spaces.csv", PLAIN.replace(",", " , "), None),
        ("tabs.tsv", PLAIN.replace(",", "\t"), "separator tab"),
        ("bars.txt", PLAIN.replace(",", "|"), "separator bar"),
        ("blanks.dat", PLAIN.replace(",", "   "), "separator spaces"),
        ("semicolons.csv", PLAIN.replace(",", ";"), "separator semicolon"),
        ("comma.csv", PLAIN.replace(",", ";").replace(".", ","), "decimal comma"),
        ("comment.csv", "# from a wiki\n" + PLAIN, "1 comment line left out"),
        ("titled.txt", "# " + PLAIN.replace(",", " "), "column names from the comment"),
        ("mark.csv", "\ufeff" + PLAIN, None),
        ("trailing.csv", PLAIN.replace("25\n", "25,\n").replace("62\n", "62,\n"), "a separator at the end of each row"),
        ("windows.csv", PLAIN.replace("\n", "\r\n"), None),
        ("empty-lines.csv", PLAIN.replace("\n", "\n\n"), None),
        ("quoted.csv", PLAIN.replace("7302967433", '"7,302,967,433"'), None),
        ("unnamed.csv", PLAIN.replace("loss\n", "loss,\n").replace("25\n", "25,\n").replace("62\n", "62,\n"), None),
        ("twice.csv", "\n".join(f"{line},{line.split(',')[2]}" for line in PLAIN.split()), "stands 2 times"),
        ("markdown.txt", MARKDOWN, "separator bar"),
        ("excel.csv", "sep=,\n" + PLAIN.replace("\n", ",,\n") + ",,,,\n,,,,\n", "2 empty rows left out"),
        ("title.csv", "Our sweep,,\n,,\n" + PLAIN, "2 lines above the column names"),
        ("title.tsv", "Our sweep of 2026\n" + PLAIN.replace(",", "\t"), "1 line above the column names"),
        ("write.table.txt", WRITE_TABLE, "row numbers left out"),
        ("points.csv", POINTS, "decimal comma"),
        ("drawn.txt", "+---+---+\n" + MARKDOWN.replace(":--|--:|:---:", "---+--") + "+---+---+\n", "separator bar"),
        ("split.json", json.dumps({"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}), None),
        ("named.json", json.dumps({"a": ROWS[0], "b": ROWS[1]}), None),
        ("nested.json", json.dumps({"made": "2026", "runs": ROWS}), None),
        ("lines.jsonl", "\n".join(map(json.dumps, ROWS)), None),
        ("array.json", json.dumps(ROWS), None),
        ("columns.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}), None),
    ],
)  # fmt: skip
def test_text_of_any_form(tmp_path, name, text, note):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert is_table_file(name)
    expect(path, note)


def test_other_encodings(tmp_path):
    (tmp_path / "wide.csv").write_bytes(PLAIN.encode("utf-16"))
    expect(tmp_path / "wide.csv", "UTF-16")
    (tmp_path / "old.csv").write_bytes(("# für mich\n" + PLAIN).encode("cp1252"))
    expect(tmp_path / "old.csv", "Windows-1252")


def test_compressed(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("runs.csv", PLAIN)
    made = {
        "gz": gzip.compress(PLAIN.encode()),
        "bz2": bz2.compress(PLAIN.encode()),
        "xz": lzma.compress(PLAIN.encode()),
    }
    for suffix, content in {**made, "zip": packed.getvalue()}.items():
        (tmp_path / f"runs.csv.{suffix}").write_bytes(content)
        expect(tmp_path / f"runs.csv.{suffix}")
    pd.DataFrame(ROWS).to_csv(tmp_path / "runs.csv.zst", index=False, compression=None)
    import pyarrow as pa

    with pa.output_stream(str(tmp_path / "runs.csv.zst"), compression="zstd") as stream:
        stream.write(PLAIN.encode())
    expect(tmp_path / "runs.csv.zst")


def test_parquet_with_decimals_nested_names_and_an_index(tmp_path):
    frame = pd.DataFrame({"run": ["NA", "None"], "config": [{"n": row["params"], "d": row["tokens"]} for row in ROWS]})
    frame["loss"] = [Decimal(str(row["loss"])) for row in ROWS]
    frame.set_index("run").to_parquet(tmp_path / "runs.parquet")
    raw = read_raw(tmp_path / "runs.parquet").frame
    assert list(raw["run"]) == ["NA", "None"]
    for name, what in (("config.n", "params"), ("config.d", "tokens"), ("loss", "loss")):
        assert to_numbers(raw[name])[0].tolist() == [float(row[what]) for row in ROWS]


def test_whole_numbers_of_any_length_in_json(tmp_path):
    (tmp_path / "runs.json").write_text(f'[{{"seed": {2**70}, "tokens": 1{"0" * 400}, "loss": {"9" * 5000}}}]')
    raw = read_raw(tmp_path / "runs.json").frame
    assert raw["seed"].tolist() == [2**70]
    assert to_numbers(raw["tokens"])[0].tolist() == to_numbers(raw["loss"])[0].tolist() == [np.inf]


def test_nested_json(tmp_path):
    rows = [{"id": "a", "config": {"n_params": 5}, "summary": {"eval": {"loss": 3.5}}}]
    (tmp_path / "runs.jsonl").write_text(json.dumps(rows[0]))
    assert list(read_raw(tmp_path / "runs.jsonl").frame.columns) == ["id", "config/n_params", "summary/eval/loss"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "must be a file, but there is none"),
        ("sheet.xlsx", "x", "is a spreadsheet; save it as .csv"),
        ("runs.npz", "x", "must end in one of .csv, .tsv"),
        ("empty.csv", "", "is empty; export it again"),
        ("comments.csv", "# nothing\n", "column names and rows, but .* has none"),
        ("header-short.csv", PLAIN.replace("loss\n", "loss\n").replace("3.7", "1e18,3.7"), "line 2 of .* has 4"),
        ("cut.csv", PLAIN + "45643546,36", "line 4 of .* has 2"),
        ("twice.csv", PLAIN.replace("tokens", "loss"), "'loss' stands 2 times, with different values"),
        ("numbers.csv", "1,2,3\n4,5,6\n", "first line must name its columns, but .* begins with 1, 2, 3"),
        ("broken.jsonl", '{"a": 1}\n{"a": \n', "line 2 of .* is not"),
        ("deep.json", "[" * 100_000 + "]" * 100_000, "nested too deeply; export it again"),
        ("deep.jsonl", '{"a": 1}\n' + "[" * 100_000, "nested too deeply; export it again"),
        ("number.json", "5", "must be objects, one per row"),
        ("broken.csv.gz", "no gzip", "must be readable"),
        ("broken.parquet", "no parquet", "must be a readable parquet file"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_raw(path)


def test_a_point_among_decimal_commas_is_not_taken_for_thousands(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params;tokens;loss\n22,8;7302967433;3.769\n45,6;3651483717;3.656\n")
    with pytest.raises(ValueError, match=r"one decimal mark, but .* has 22,8 and 3\.769"):
        read_raw(path)


def test_numbers():
    found, notes = to_numbers(pd.Series(["1.3B", "140M", "NA", "", "1_000", "1,234,567", "-", "inf", "6e18", "7 302"]))
    np.testing.assert_array_equal(found, [1.3e9, 140e6, np.nan, np.nan, 1000, 1234567, np.nan, np.inf, 6e18, 7302])
    np.testing.assert_array_equal(
        to_numbers(pd.Series(["1.5 × 10^19", "7'302'000", "7 million"]))[0], [1.5e19, 7302000, 7e6]
    )
    assert notes == ["2 values with a suffix, as 1.3B = 1.3e9", "2 values with marks between thousands"]
    with pytest.raises(ValueError, match="row 2 has 'about 3'"):
        to_numbers(pd.Series(["3", "about 3"]))
    with pytest.raises(ValueError, match="row 1 has '7 30'"):
        to_numbers(pd.Series(["7 30"]))
    with pytest.raises(ValueError, match="row 1 has 'True'"):
        to_numbers(pd.Series([True, False]))
