"""CSV files, checked at one door: encoding, columns, the width of every row, the length of every cell.

`rows` needs no pandas; `frame` is for whoever wants a table.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chexseg.data.names import shown, twice
from chexseg.errors import DataError, MissingError

if TYPE_CHECKING:
    import pandas as pd

MAX_CELL, MAX_COLUMNS = 10_000, 5_000  # characters; columns of a table


def rows(
    path: Path,
    columns: Sequence[str] = (),
    *,
    aliases: Mapping[str, str] | None = None,
    made_by: str = "",
    comments: bool = False,
    empty: bool = False,
) -> list[dict[str, str]]:
    """The rows as column -> cell, an alias of a column under its own name; blank lines are skipped.

    columns   that must be there
    made_by   what to do about a file that is missing, for the error
    comments  lines that begin with # are skipped
    empty     a header alone is a table

    DataError, with the line, for what is no such table.
    """
    names, found, _ = _read(path, columns, aliases or {}, made_by, comments, empty)
    return [dict(zip(names, row, strict=True)) for row in found]


def frame(
    path: Path,
    columns: Sequence[str] = (),
    *,
    texts: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    made_by: str = "",
    empty: bool = False,
) -> pd.DataFrame:
    """The same as a table of pandas, which tells numbers from text but in the columns `texts`."""
    import pandas as pd

    names, found, text = _read(path, columns, aliases or {}, made_by, False, empty)
    try:
        table = pd.read_csv(io.StringIO(text), dtype=_by_alias(texts, aliases or {}), low_memory=False, index_col=False)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a CSV file ({error}); {_way_out(made_by)}") from error
    if table.shape != (len(found), len(names)):
        raise DataError(f"{path}: not a CSV file: its rows cannot be told apart; {_way_out(made_by)}")
    return table.rename(columns=dict(zip(table.columns, names, strict=True)))


def numeric(path: Path, *, texts: Sequence[str] = (), made_by: str = "") -> pd.DataFrame:
    """A table of numbers but for the columns `texts`. DataError for a cell that is none."""
    table = frame(path, texts=texts, made_by=made_by)
    for name in table.columns.difference(list(texts)):
        if table[name].dtype.kind not in "iuf":
            raise DataError(f"{path}: {shown(name)}: not a number in each row; {_way_out(made_by)}")
    return table


def numbers(column: pd.Series) -> pd.Series:
    """A column's numbers; NaN for a cell that is none."""
    import pandas as pd

    # Of a number of hundreds of digits pandas makes an integer that it then cannot take for a number.
    return pd.to_numeric(column.astype(str) if column.dtype == object else column, errors="coerce")


def _by_alias(texts: Sequence[str], aliases: Mapping[str, str]) -> dict[str, type]:
    """The columns that are texts, by every name of theirs."""
    return dict.fromkeys([*texts, *(other for other, name in aliases.items() if name in texts)], str)


def _way_out(made_by: str) -> str:
    return made_by or "correct or fetch the file again"


def _read(
    path: Path, columns: Sequence[str], aliases: Mapping[str, str], made_by: str, comments: bool, empty: bool
) -> tuple[list[str], list[list[str]], str]:
    """Names of the columns, rows of as many cells, and the text that they stand in."""
    way_out = _way_out(made_by)
    try:
        text = _unpacked(Path(path)).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; {way_out}") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise DataError(
            f"{path}: line {line}: not a CSV file in UTF-8 (byte {error.object[error.start]:#x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: not a CSV file: it holds a NUL byte; {way_out}")
    lines = (line for line in io.StringIO(text, newline="") if not (comments and line.startswith("#")))
    reader = csv.reader(lines, strict=True)
    found: list[list[str]] = []
    try:
        header = next((row for row in reader if row), [])
        names = _names(header, path, columns, aliases, way_out)
        for row in reader:
            if row:
                _check_row(row, header, f"{path}: line {reader.line_num}", way_out)
                found.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not a CSV file ({error}); {way_out}") from error
    if not found and not empty:
        raise DataError(f"{path}: no row in it, only the names of its columns; {way_out}")
    return names, found, text


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, those inside one that ends in .gz, which may be a hundred times as many."""
    packed = path.read_bytes()
    if path.suffix != ".gz":
        return packed
    most = 1_000_000 + 100 * len(packed)
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            content = file.read(most + 1)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: not a gzip file ({error}); fetch it again") from error
    if len(content) > most:
        raise DataError(f"{path}: unpacks to more than {most} bytes; unpack it yourself if that is right")
    return content


def _names(
    header: list[str], path: Path, columns: Sequence[str], aliases: Mapping[str, str], way_out: str
) -> list[str]:
    if not header:
        raise DataError(f"{path}: not a CSV file: there is nothing in it; {way_out}")
    if len(header) > MAX_COLUMNS or any(len(name) > MAX_CELL for name in header):
        raise DataError(f"{path}: not a CSV file: its first line has {len(header)} columns; {way_out}")
    names = [aliases.get(name, name) for name in header]
    for name in columns:
        if name not in names:
            shown_names = ", ".join(each[:60] for each in names[:20])
            raise DataError(f"{path}: no column {name!r}; the file has {shown_names}; {way_out}")
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise DataError(f"{path}: two columns are called {shown(twice(named))}, or by another name of it; {way_out}")
    return names


def _check_row(row: list[str], header: list[str], where: str, way_out: str) -> None:
    if len(row) != len(header):
        raise DataError(f"{where}: {len(row)} cells in {len(header)} columns; {way_out}")
    longest = max(row, key=len)
    if len(longest) > MAX_CELL:
        raise DataError(f"{where}: {shown(header[row.index(longest)])}: a cell of {len(longest)} characters; {way_out}")
