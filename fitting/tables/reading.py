"""Files that hold a table: separated text, JSON or parquet, compressed or not, read into named columns.

Values of text files stay text, exactly as written; `to_numbers` converts a column. What was guessed is in the notes.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoloop.fitting.tables.contract import counted

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".tab")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "<na>"})
"""Texts that stand for a missing number, in lower case."""

_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "spaces"}
_SAMPLE_ROWS = 200
_EXPONENT = r"([eE][+-]?\d+)?"
_NUMBER = re.compile(rf"[+-]?(\d[\d_]*\.?\d*|\.\d+){_EXPONENT}|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_COMMA_NUMBER = re.compile(rf"[+-]?(\d+|\d{{1,3}}(\.\d{{3}})+)?(,\d+)?{_EXPONENT}")
"""A number whose decimal mark is a comma; points may stand between thousands."""
_ONLY_DECIMAL = re.compile(rf"[+-]?(\d*,(\d{{1,2}}|\d{{4,}})|0,\d+|\d{{4,}},\d+|\d+(\.\d{{3}})+,\d+){_EXPONENT}")
"""A number whose comma can't stand between thousands."""
_ONLY_THOUSANDS = re.compile(r"[+-]?\d{1,3}((,\d{3}){2,}(\.\d+)?|(,\d{3})+\.\d+)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d{1,3}(\.\d{3}){2,}")
_POINTS_BETWEEN = re.compile(r"[+-]?\d{1,3}((\.\d{3})+,\d+|(\.\d{3}){2,})")
_POINTED = re.compile(rf"[+-]?\d*\.\d+{_EXPONENT}")
_SCALED = re.compile(r"([+-]?\d+(?:\.\d+)?)(k|m|mn|million|b|bn|billion|t|trillion)", re.IGNORECASE)
_EXPONENTS = {"k": 3, "m": 6, "mn": 6, "b": 9, "bn": 9, "t": 12, "million": 6, "billion": 9, "trillion": 12}
_SPACES = str.maketrans("", "", " \u00a0\u2009\u202f")
_BETWEEN_THOUSANDS = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'’](?=\d{3}(?!\d))")
_POWER = re.compile(r"[x×*·]10\^?([+-]?\d+)|[x×*·]10\*\*([+-]?\d+)")
_RULE = re.compile(r"[\s|:+=-]*-{3}[\s|:+=-]*")
"""A line that is drawn in a table of markdown or the like."""
_MAGIC = (
    (b"PAR1", "a parquet file", "name it .parquet"),
    (b"\x1f\x8b", "a file compressed with gzip", "name it .csv.gz"),
    (b"BZh", "a file compressed with bzip2", "name it .csv.bz2"),
    (b"\xfd7zXZ", "a file compressed with xz", "name it .csv.xz"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", "name it .csv.zst"),
    (b"PK\x03\x04", "a spreadsheet or a zip file", "save the spreadsheet as .csv, or name the zip file .csv.zip"),
)


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table as its file has it: `frame` with the file's own column names, and `notes` on what was guessed."""

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def is_table_file(name: str | Path) -> bool:
    """Return True if the name ends like that of a table (`TABLE_SUFFIXES`), in any case, compressed or not."""
    return _suffixes(Path(name))[0] in TABLE_SUFFIXES


def read_raw(path: str | Path) -> RawTable:
    """Read the table in a file; see `is_table_file` for the kinds of files.

    Raises:
        ValueError: there is no such file, it is of another kind, broken or without rows, it names a column twice with
            different values, or a row has more or fewer values than there are columns.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"a table must be a file, but {path} is a folder; give the table's own path")
    if not path.is_file():
        raise ValueError(f"a table must be a file, but there is none at {path}; check the path")
    suffix, compression = _suffixes(path)
    if suffix in _SPREADSHEETS:
        raise ValueError(f"a table must be text, JSON or parquet, but {path.name} is a spreadsheet; save it as .csv")
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(
            f"a table's file must end in one of {', '.join(TABLE_SUFFIXES)}, compressed or not, but got {path.name}; "
            "convert or rename it"
        )
    content = _content(path, compression)
    if not content.strip():
        raise ValueError(f"a table must have column names and rows, but {path} is empty; export it again")
    if suffix in PARQUET_SUFFIXES:
        return _tidy(_parquet(content, path), [], path)
    text, guesses = _decoded(content, path)
    frame = _json(text, path) if suffix in JSON_SUFFIXES else _separated(text, path, guesses)
    return _tidy(frame, guesses, path)


def to_numbers(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Convert a column to floats (rows,), NaN where missing, with notes on how where that is not obvious.

    Text is read exactly, as `float` does. Separators of thousands and the suffixes K, M, B and T (1.3B) are understood.

    Raises:
        ValueError: a value is no number; the message holds its row, counted from 1, and the value.
    """
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=float, na_value=np.nan), []
    items = values.tolist()
    plain_numbers = _floats(items)
    if plain_numbers is not None:
        return np.array(plain_numbers, dtype=float), []
    numbers, scaled, grouped = np.full(len(items), np.nan), 0, 0
    for row, item in enumerate(items):
        if isinstance(item, int | float | np.number | Decimal) and not isinstance(item, bool):
            numbers[row] = float(item)
            continue
        text = "" if item is None or item is pd.NA or item is pd.NaT else str(item).strip()
        if text.lower() in MISSING:
            continue
        plain = _BETWEEN_THOUSANDS.sub("", text)
        grouped += plain != text
        if not re.search(r"\d\s+\d", plain):  # two numbers are not one
            plain = _POWER.sub(lambda power: f"e{power[1] or power[2]}", plain.translate(_SPACES))
        if _GROUPED.fullmatch(plain):
            plain = plain.replace(".", "") if "," not in plain else plain.replace(",", "")
            grouped += 1
        match = _SCALED.fullmatch(plain)
        if match:
            numbers[row] = float(f"{match[1]}e{_EXPONENTS[match[2].lower()]}")
            scaled += 1
        elif _NUMBER.fullmatch(plain):
            numbers[row] = float(plain)
        else:
            raise ValueError(f"row {row + 1} has {text!r}")
    notes = [f"{counted(scaled, 'value')} with a suffix, as 1.3B = 1.3e9"] if scaled else []
    return numbers, notes + ([f"{counted(grouped, 'value')} with marks between thousands"] if grouped else [])


def _floats(items: list[Any]) -> list[float] | None:
    """Return the floats that texts and numbers stand for, NaN where missing; None if one has another form."""
    if not set(map(type, items)) <= {str, float, int, type(None)}:
        return None
    try:
        return list(map(float, items))
    except (ValueError, TypeError, OverflowError):
        pass  # some are missing, or of another form
    try:
        return [
            math.nan if item is None or (isinstance(item, str) and item.strip().lower() in MISSING) else float(item)
            for item in items
        ]
    except (ValueError, OverflowError):
        return None


def is_missing(value: Any) -> bool:
    """Return True for an absent value: None, NaN, or a text that stands for a missing number."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return value.strip().lower() in MISSING if isinstance(value, str) else isinstance(value, float) and value != value


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the table itself and that of its compression, in lower case; empty where it has none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _content(path: Path, compression: str) -> bytes:
    """Return the bytes of a file, decompressed."""
    try:
        content = path.read_bytes()
        if compression == ".gz":
            return gzip.decompress(content)
        if compression == ".bz2":
            return bz2.decompress(content)
        if compression == ".xz":
            return lzma.decompress(content)
        if compression == ".zst":
            import pyarrow as pa

            with pa.input_stream(io.BytesIO(content), compression="zstd") as stream:
                return bytes(stream.read())
        if compression == ".zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
                if len(names) != 1:
                    raise ValueError(f"a zip file must hold one table, but {path} holds {len(names)} files; unpack it")
                return archive.read(names[0])
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(f"a table must be readable, but {path} is not: {error}; fetch or export it again") from error
    return content


def _decoded(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Return the text in `content`, and what was guessed about its encoding. Raises ValueError for what is no text."""
    for magic, kind, advice in _MAGIC:
        if content.startswith(magic):
            raise ValueError(f"the file must be text, as its name says, but {path} is {kind}; {advice}")
    guesses = []
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text, guesses = content.decode("utf-16", errors="replace"), ["encoding UTF-16"]
    elif len(content) > 3 and not any(content[1:200:2]):
        text, guesses = content.decode("utf-16-le", errors="replace"), ["encoding UTF-16"]
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text, guesses = content.decode("cp1252", errors="replace"), ["encoding Windows-1252"]
    if "\0" in text:
        raise ValueError(f"the file must be text, as its name says, but {path} holds binary data; export it again")
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<body")):
        raise ValueError(f"a table must be separated text or JSON, but {path} is a web page; download the file itself")
    if start.startswith("version https://git-lfs"):
        raise ValueError(f"a table must hold its rows, but {path} is a pointer of git-lfs; run `git lfs pull`")
    return text, guesses


def _separated(text: str, path: Path, guesses: list[str]) -> pd.DataFrame:
    """Return the columns of separated text, all of them text; what is guessed is appended to `guesses`."""
    if text.lstrip()[:1] in ("{", "["):
        raise ValueError(f"a table must be separated text, as its name says, but {path} holds JSON; name it .json")
    # Lines: comments and empty ones are left out.
    lines = [line for line in io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")) if _is_row(line)]
    if lines and re.fullmatch(r'"?sep=."?\s*', lines[0]):
        del lines[0]  # a spreadsheet's own mark
    comments = []
    if "#" in text:
        comments = [line for line in lines if line.lstrip().startswith("#")]
        lines = [line for line in lines if not line.lstrip().startswith("#")]
    title = _title_length(lines)
    if title:
        lines = lines[title:]
        guesses.append(f"{counted(title, 'line')} above the column names left out")
    if not lines:
        raise ValueError(f"a table must have column names and rows, but {path} has none; export it again")

    # Header: the first line, or the comment above the numbers.
    separator = _separator(lines[:_SAMPLE_ROWS])
    header, *rows = _split(lines, separator, path)
    header = [name.strip() for name in header]
    if all(_NUMBER.fullmatch(name) for name in header):
        header, rows = _commented_header(comments, header, path), [header, *rows]
        guesses.append("column names from the comment above the rows")
        comments = comments[:-1]
    if comments:
        guesses.append(f"{counted(len(comments), 'comment line')} left out")
    if separator != ",":
        guesses.append(f"separator {_SEPARATORS[separator]}")
    if not rows:
        raise ValueError(f"a table must have rows, but {path} has only column names; export it again")

    # Rows: as many values as column names.
    width = len(header)
    if all(len(row) == width + 1 for row in rows) and _are_row_numbers(pd.Series([row[0] for row in rows])):
        header, width = ["", *header], width + 1  # R's write.table does not name the row numbers
    if all(len(row) == width + 1 and not row[-1].strip() for row in rows):
        rows = [row[:-1] for row in rows]
        guesses.append("a separator at the end of each row ignored")
    for index, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"each row must have as many values as there are column names, {width}, but line "
                f"{_line_number(text, index, separator, len(rows))} of {path} has {len(row)} ({', '.join(row[:6])}"
                f"{', ...' if len(row) > 6 else ''}); name every column in the first line, or correct the row"
            )
    columns = [list(map(str.strip, column)) for column in zip(*rows, strict=True)]
    if "," in text and (separator != "," or '"' in text):
        columns = _with_points(columns, separator, path, guesses)
    frame = _frame(header, columns)
    for name, column in zip(header, columns, strict=True):
        objects = list(map(_object_of, column)) if column[0].startswith("{") else [None]
        if None not in objects:
            nested = pd.DataFrame([_flat({name: value}) for value in objects], dtype=object)
            nested = nested.where(nested.notna(), None)
            frame = pd.concat([frame.drop(columns=name, errors="ignore"), nested], axis=1)
    return frame


def _object_of(text: str) -> dict[str, Any] | None:
    """Return the object that `text` is in JSON, or as Python prints it; None if it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        try:
            value = ast.literal_eval(re.sub(r"\binf\b", "1e999", re.sub(r"\bnan\b", "None", text)))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return value if isinstance(value, dict) else None


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not _RULE.fullmatch(line)


def _title_length(lines: Sequence[str]) -> int:
    """Return the number of lines (at most 4) above the column names: each holds a text alone, or nothing."""
    for place, line in enumerate(lines[:5]):
        fields = re.split(r"[,;\t|]", line.strip(' ,;\t|"\n'))
        if len(fields) > 1:
            return 0 if any(_NUMBER.fullmatch(field.strip()) for field in fields) else place
    return 0


def _commented_header(comments: Sequence[str], first: Sequence[str], path: Path) -> list[str]:
    """Return the column names in the last comment line. Raises ValueError if it does not name each column."""
    title = comments[-1].strip().lstrip("# ") if comments else ""
    names = next((names for names in (title.split(s) for s in ("\t", ";", ",", None)) if len(names) == len(first)), [])
    if not names:
        raise ValueError(
            f"a table's first line must name its columns, but {path} begins with {', '.join(first[:4])}; add a line "
            "with the names"
        )
    return [name.strip() for name in names]


def _frame(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Return a table of objects whose column names may be repeated."""
    frame = pd.DataFrame({place: pd.Series(column, dtype=object) for place, column in enumerate(columns)})
    return frame.set_axis(pd.Index(names, dtype=object), axis=1)


def _separator(lines: Sequence[str]) -> str:
    """Return the separator for which most rows have as many values as the header, and the most of them."""
    best, best_score = ",", (-1.0, 1)
    for separator in _SEPARATORS:
        try:
            header, *rows = list(_fields(lines, separator, strict=False))
        except csv.Error:
            continue
        if header and not header[-1].strip():
            header = header[:-1]
        width = len(header)
        fits = [len(row) in (width, width + 1) for row in rows]
        score = (round(float(np.mean(fits)), 1) if rows else 1.0, width if separator != " " else 2)
        if width > 1 and score > best_score:
            best, best_score = separator, score
    return best


def _fields(lines: Sequence[str], separator: str, *, strict: bool = True) -> Iterator[list[str]]:
    if separator == " ":
        return csv.reader((" ".join(line.split()) for line in lines), delimiter=" ", strict=strict)
    return csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=strict)


def _split(lines: Sequence[str], separator: str, path: Path) -> list[list[str]]:
    """Return the values of each line. Raises ValueError for quotes that do not match."""
    try:
        return list(_fields(lines, separator))
    except csv.Error as error:
        raise ValueError(
            f"a quoted value must end with a quote, but {path} breaks that ({error}); correct it"
        ) from error


def _line_number(text: str, index: int, separator: str, rows: int) -> int:
    """Return the number of the file's line at which row `index` of its `rows` ends, counted from 1."""
    numbered = [
        (number, line)
        for number, line in enumerate(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")), start=1)
        if _is_row(line) and not line.lstrip().startswith("#")
    ]
    if separator == " ":
        return numbered[index + len(numbered) - rows][0]
    reader = csv.reader((line for _, line in numbered), delimiter=separator, skipinitialspace=True)
    ends = [reader.line_num for _ in reader]
    return numbered[ends[index + len(ends) - rows] - 1][0]


def _with_points(columns: list[list[str]], separator: str, path: Path, guesses: list[str]) -> list[list[str]]:
    """Return the columns with decimal commas replaced by points, if commas are decimal marks in this file.

    Raises ValueError if the file has numbers with a decimal comma and numbers with a decimal point.
    """
    with_commas = [place for place, column in enumerate(columns) if _holds_comma_numbers(column)]
    values = [value for place in with_commas for value in columns[place] if "," in value]
    decimal = next(filter(_ONLY_DECIMAL.fullmatch, values), None)
    marks = (value for value in values if "." in value or value.count(",") > 1)
    thousands = next(filter(_ONLY_THOUSANDS.fullmatch, marks), None)
    if decimal is None and (thousands is not None or separator != ";" or not values):
        return columns  # commas stand between thousands, or nowhere
    points = [value for column in columns for value in column if _POINTED.fullmatch(value)]
    # 2.962 could be a decimal or thousands: thousands only if another value of the file has points that must be.
    marked = any(_POINTS_BETWEEN.fullmatch(value) for column in columns for value in column)
    pointed = thousands or next((v for v in points if not (marked and _COMMA_NUMBER.fullmatch(v))), None)
    if pointed:
        raise ValueError(
            f"numbers must have one decimal mark, but {path} has {decimal or values[0]} and {pointed}; write decimals "
            "with one mark, and thousands without"
        )
    guesses.append("decimal comma")
    return [
        [value.replace(".", "").replace(",", ".") for value in column] if _holds_comma_numbers(column) else column
        for column in columns
    ]


def _holds_comma_numbers(column: list[str]) -> bool:
    """Return True if a value has a comma or a point, and each is a number with a decimal comma, or missing."""
    text = "".join(column)
    if "." not in text:
        return ("," in text and _floats([value.replace(",", ".") for value in column]) is not None) or (
            "," in text and all(_GROUPED.fullmatch(v) or _COMMA_NUMBER.fullmatch(v) or is_missing(v) for v in column)
        )
    return all(_COMMA_NUMBER.fullmatch(v) or _GROUPED.fullmatch(v) or is_missing(v) for v in column)


def _json(text: str, path: Path) -> pd.DataFrame:
    """Return the rows of JSON lines, of a list of objects, or of an object of columns; nested names get a '/'."""
    try:
        content: Any = _parsed(text, path)
    except json.JSONDecodeError as whole:
        content = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                content.append(_parsed(line, path))
            except json.JSONDecodeError as error:
                where = f"line {number} of {path} is not: {error.msg}" if number > 1 else f"{path} is not: {whole}"
                raise ValueError(f"a JSON table must be JSON, but {where}; correct or drop the line") from error
    if isinstance(content, dict):
        content = _rows_of_columns(content, path)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"a JSON table must be objects, one per row, but {path} holds something else; convert it")
    rows = [_flat(row) for row in content]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError(f"a table must have column names and rows, but {path} has none; export it again")
    return _frame(names, [[row.get(name) for row in rows] for name in names])


def _parsed(text: str, path: Path) -> Any:
    """Parse JSON, with numbers of hundreds of digits as floats. Raises ValueError for what is nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=lambda d: int(d) if len(d) < 300 else float(d))
    except RecursionError as error:
        raise ValueError(f"a JSON table must be objects, but {path} is nested too deeply; export it again") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it has a name twice with different values."""
    content = dict(pairs)
    if len(content) < len(pairs):
        for name, value in pairs:
            if content[name] != value:
                raise ValueError(
                    f"a name must stand once in a JSON object, but {name!r} has {value!r} and {content[name]!r}; "
                    "keep one"
                )
    return content


def _rows_of_columns(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the rows of an object of columns, each a list or an object by row number; else the object is the row."""
    names, data = content.get("columns"), content.get("data")
    lists = [row for row in data if isinstance(row, list)] if isinstance(data, list) else []
    if isinstance(names, list) and lists == data and all(len(row) == len(names) for row in lists):
        return [dict(zip(map(str, names), row, strict=True)) for row in lists]
    columns = [list(value.values()) if isinstance(value, dict) else value for value in content.values()]
    is_table = all(isinstance(value, list) for value in content.values()) or all(
        isinstance(value, dict) and all(key.isdigit() for key in value) for value in content.values()
    )
    if content and not is_table:
        return _rows_of_names(content)
    if not content:
        return [content]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the columns of a JSON table must be equally long, but those of {path} are not; correct it")
    return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]


def _rows_of_names(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an object of runs by name, or of the one list of objects in it; else the object is the row."""
    values = list(content.values())
    if len(values) > 1 and all(isinstance(value, dict) for value in values) and set.intersection(*map(set, values)):
        return [{"run_id": name, **value} for name, value in content.items()]
    lists = [v for v in values if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    if len(lists) != 1:
        return [content]
    shared = {name: value for name, value in content.items() if not isinstance(value, list | dict)}
    return [shared | row for row in lists[0]]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the names of nested objects joined by '/'."""
    if not any(isinstance(value, dict) for value in row.values()):
        return row
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and set(value) == {"desc", "value"}:
            value = value["value"]  # as wandb stores a configuration
        nested = (
            {f"{name}/{inner}": v for inner, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
        )
        flat |= nested
    return flat


def _parquet(content: bytes, path: Path) -> pd.DataFrame:
    """Return the columns of a parquet file: structs flattened, an index with a name as a column, decimals as floats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
        while any(pa.types.is_struct(field.type) for field in table.schema):
            table = table.flatten()
        frame = table.to_pandas(integer_object_nulls=True)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"a table must be a readable parquet file, but {path} is not: {reason}; write it again"
        ) from error
    return frame if isinstance(frame.index, pd.RangeIndex) and frame.index.name is None else frame.reset_index()


def _tidy(frame: pd.DataFrame, guesses: list[str], path: Path) -> RawTable:
    """Return the table without columns that hold nothing or row numbers, and with each repeated column once.

    Raises ValueError for columns of one name with different values, and for a table without rows.
    """
    if not len(frame):
        raise ValueError(f"a table must have rows, but {path} has only column names; export it again")
    blank = np.ones(len(frame), dtype=bool)
    for place in range(frame.shape[1]):
        rows = np.flatnonzero(blank)
        blank[rows] = list(map(is_missing, frame.iloc[rows, place]))
    if blank.any() and not blank.all():
        frame = frame[~blank]
        guesses.append(f"{counted(int(blank.sum()), 'empty row')} left out")
    names = [str(name).strip() for name in frame.columns]
    unnamed = [not name or name.startswith("Unnamed: ") or name == "index" for name in names]
    kept = []
    for place, name in enumerate(names):
        values = frame.iloc[:, place]
        if unnamed[place] and _are_row_numbers(values):
            guesses.append("row numbers left out")
        elif name or not all(map(is_missing, values)):
            kept.append(place)
            names[place] = name or f"column {place + 1}"
    frame = frame.iloc[:, kept].set_axis(pd.Index([names[place] for place in kept], dtype=object), axis=1)
    for name in dict.fromkeys(frame.columns[frame.columns.duplicated()]):
        columns = frame.loc[:, frame.columns == name].astype(str)
        if not columns.eq(columns.iloc[:, 0], axis=0).all(axis=None):
            raise ValueError(
                f"a column name must stand once, but {name!r} stands {columns.shape[1]} times, with different values, "
                f"in {path}; rename or drop one"
            )
        guesses.append(f"column {name!r} stands {columns.shape[1]} times with equal values, of which one was kept")
    frame = frame.loc[:, ~frame.columns.duplicated()].reset_index(drop=True)
    notes = (f"File: {', '.join(dict.fromkeys(guesses))}.",) if guesses else ()
    return RawTable(frame=frame, notes=notes)


def _are_row_numbers(values: pd.Series) -> bool:
    """Return True for 0, 1, 2, ... or 1, 2, 3, ..."""
    try:
        numbers, _ = to_numbers(values)
    except ValueError:
        return False
    return not math.isnan(numbers[0]) and numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all())
