"""JSON that others wrote, parsed strictly: every fault is a DataError that names the file.

Python's parser takes more than JSON and gives what callers do not expect: NaN and Infinity, numbers of any length, the
last of two equal keys, a RecursionError for deep nesting.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from chexseg.errors import DataError, MissingError

MAX_INTEGER = 1 << 63
MAX_BYTES = 64 << 20  # of a small file: a record, a list of thresholds


class _Refused(ValueError):
    """What the parser meets that is no JSON of ours."""


def parse(
    data: bytes | str, where: object, way_out: str = "fetch or make the file again", *, finite: bool = True
) -> Any:
    """The value that `data` holds. `where` begins the error, `way_out` ends it; `finite=False` takes NaN and Infinity,
    which the metrics of our own records may be. A byte-order mark is skipped."""
    try:
        text = data if isinstance(data, str) else str(data, "utf-8-sig")
        given: dict[str, Any] = {} if not finite else {"parse_constant": _no_constant, "parse_float": _finite}
        return json.loads(text, object_pairs_hook=_distinct, parse_int=_integer, **given)
    except RecursionError as error:
        raise DataError(f"{where}: values lie too deep in each other; {way_out}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); {way_out}") from error
    except _Refused as error:
        raise DataError(f"{where}: {error}; {way_out}") from error
    except ValueError as error:
        raise DataError(f"{where}: not whole JSON ({error}); {way_out}") from error


def read(path: Path, way_out: str = "fetch or make the file again", *, finite: bool = True) -> Any:
    """The value in a small file. DataError where it is missing or too large, too."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; {way_out}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MB; {way_out}")
    return parse(data, path, way_out, finite=finite)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"{name[:60]} occurs twice")
    return content


def _integer(text: str) -> int:
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise _Refused(f"the number {text[:20]}{'...' * (len(text) > 20)} has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {text[:20]} is too large")
    return value


def _no_constant(text: str) -> float:
    raise _Refused(f"{text} is no number of JSON")
