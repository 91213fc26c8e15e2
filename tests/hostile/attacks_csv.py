"""Tables that are none, or say what cannot be."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.cases import REFUSED, SAFE, SAME, Case
from tests.hostile.world import IDS

# Kind, command, file, a column that must be there, and whether a header alone says something.
TABLES = (
    ("CheXpert CSV", "classify", "labels.csv", "Path", False),
    ("list of films", "score", "labels.csv", "Path", False),
    ("threshold CSV", "fixed_thresholds", "thresholds.csv", "task", True),
    ("cut-off CSV", "fixed_thresholds", "cutoffs.csv", "task", True),
    ("predictions.csv", "cutoffs", "predictions.csv", "image_id", False),
    ("train_cams_paths.csv", "to_hdf5", "run/train_cams_paths.csv", "Train_CAM_Id", False),
    ("quality.csv", "chosen", "quality.csv", "source", False),
)


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def written(rows, **options) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=options.pop("end", "\n"), **options).writerows(rows)
    return text.getvalue()


def with_cell(rows: list[list[str]], column: str, value: str, row: int = 1) -> str:
    changed = [list(each) for each in rows]
    changed[row][changed[0].index(column)] = value
    return written(changed)


def _any_table(
    good: str, rows: list[list[str]], column: str, header_says: bool
) -> Iterator[tuple[str, bytes | str, str]]:
    at = rows[0].index(column)
    yield "empty", "", REFUSED
    yield "blank lines", "\n\n\n", REFUSED
    yield "header alone", good.split("\n")[0] + "\n", SAFE if header_says else REFUSED
    yield "a byte-order mark", b"\xef\xbb\xbf" + good.encode(), SAME
    yield "CRLF", written(rows, end="\r\n"), SAME
    yield "quoted", written(rows, quoting=csv.QUOTE_ALL), SAME
    yield "blank lines behind", good + "\n\n", SAME
    yield "Latin-1", with_cell(rows, column, "caf\xe9").encode("latin-1"), REFUSED
    yield "UTF-16", good.encode("utf-16"), REFUSED
    yield "a NUL", good.replace("\n", "\n\0", 1), REFUSED
    yield "a million characters in a cell", with_cell(rows, column, "a" * 1_000_000), REFUSED
    yield "20,000 characters in a cell", with_cell(rows, column, "a" * 20_000), REFUSED
    yield "a million characters in the header", "x" * 1_000_000 + "," + good, REFUSED
    yield "a short row", written([*rows[:-1], rows[-1][:-1] or ["", ""]]), REFUSED
    yield "a long row", written([*rows[:-1], [*rows[-1], "1"]]), REFUSED
    yield "all rows long", written([rows[0], *([*row, "1"] for row in rows[1:])]), REFUSED
    yield "a column twice", written([[*row, row[at]] for row in rows]), REFUSED
    yield "without a column", written([[*row[:at], *row[at + 1 :], "x"] for row in rows]), REFUSED
    yield "an open quote", good.rstrip("\n") + ',"', REFUSED
    yield "a quote inside", with_cell(rows, column, "QUOTE").replace("QUOTE", '"a"b'), REFUSED
    yield "semicolons", written(rows, delimiter=";") if len(rows[0]) > 1 else "a;b\n1;2\n", REFUSED
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), REFUSED
    yield "20,000 columns", written([[*rows[0], *map(str, range(20_000))]]), REFUSED
    yield "JSON", '{"a": 1}', REFUSED


def tables(world: Path) -> Iterator[Case]:
    for kind, command, file, column, header_says in TABLES:
        rows = rows_of(world / file)
        for name, change, verdict in _any_table((world / file).read_text(), rows, column, header_says):
            yield Case(kind, name, command, file, change, verdict)


def values(world: Path) -> Iterator[Case]:
    labels = rows_of(world / "labels.csv")
    for kind, command in (("CheXpert CSV", "classify"), ("list of films", "score")):
        for name, path in {
            "the parent": f"../../{labels[1][0]}", "the parent inside": "train/../../../../etc/study1/passwd", "tab": "a\tb",
            "escape": "a/\x1b[2J/study1/view1", "a backslash": "a\\..\\b/study1/view1.png", "blank": "  ", "empty": "",
            "a line's end": "a/patient1/study1/view1\n.png", "very long": "a/" * 3000 + "patient1/study1/view1.png",
        }.items():  # fmt: skip
            yield Case(kind, f"Path {name}", command, "labels.csv", with_cell(labels, "Path", path))
    for name, path in {"of another film": labels[2][0]}.items():
        yield Case("CheXpert CSV", f"Path {name}", "classify", "labels.csv", with_cell(labels, "Path", path))
    # The place of an image may have any name below the data folder.
    for name, path in {
        "absolute": "/etc/patient1/study1/passwd",
        "short": "view1.png",
        "a number": "17",
    }.items():
        yield Case("CheXpert CSV", f"Path {name}", "classify", "labels.csv", with_cell(labels, "Path", path), SAFE)
    for value in ("2", "inf", "-inf", "1e400", "yes", "0x1", "1" * 400, "[1]", "1_0"):
        yield Case("CheXpert CSV", f"label {value[:9]}", "classify", "labels.csv", with_cell(labels, "Edema", value))
    both = [[*labels[0], "Airspace Opacity"], *([*row, "1"] for row in labels[1:])]
    for kind, command in (("CheXpert CSV", "classify"), ("list of films", "score")):
        yield Case(kind, "both names of a task", command, "labels.csv", written(both))
    for file, column in (("thresholds.csv", "threshold"), ("cutoffs.csv", "prob_threshold")):
        rows, kind = rows_of(world / file), "threshold CSV" if file == "thresholds.csv" else "cut-off CSV"
        for value in ("x", "inf", "-inf", "1e400", "0x1F", "True", "1,5"):
            yield Case(kind, f"value {value}", "fixed_thresholds", file, with_cell(rows, column, value))
        for name, task in {
            "a separator": "Ede/ma",
            "empty": "",
            "escape": "\x1bEdema",
            "the parent": "..",
            "long": "E" * 999,
        }.items():
            yield Case(kind, f"task {name}", "fixed_thresholds", file, with_cell(rows, "task", task))
    rows = rows_of(world / "thresholds.csv")
    yield Case(
        "threshold CSV", "a task twice", "fixed_thresholds", "thresholds.csv", with_cell(rows, "task", "Edema", 2)
    )
    rows = rows_of(world / "predictions.csv")
    for value in ("1.5", "-0.1", "nan", "inf", "x", "", "1e400"):
        yield Case(
            "predictions.csv", f"probability {value}", "cutoffs", "predictions.csv", with_cell(rows, "Edema", value)
        )
    yield Case("predictions.csv", "an image twice", "cutoffs", "predictions.csv", with_cell(rows, "image_id", IDS[1]))
    yield Case("predictions.csv", "an image missing", "cutoffs", "predictions.csv", with_cell(rows, "image_id", "x"))
    rows = rows_of(world / "run/train_cams_paths.csv")
    for name, image in {
        "of nobody": "patient9_study1_view1_frontal", "the parent": "../../x", "absolute": "/etc/passwd", "twice": IDS[1],
        "escape": "\x1b[31m", "a number": "17", "long": "a" * 5000,
    }.items():  # fmt: skip
        change = with_cell(rows, "Train_CAM_Id", image)
        yield Case("train_cams_paths.csv", f"id {name}", "to_hdf5", "run/train_cams_paths.csv", change, REFUSED)
    rows = rows_of(world / "quality.csv")
    for value in ("x", "1e400x", "[]"):
        yield Case("quality.csv", f"iou {value}", "chosen", "quality.csv", with_cell(rows, "iou", value))
    for value in ("nan", "-1", "1e400", "0.0"):
        yield Case("quality.csv", f"iou {value}", "chosen", "quality.csv", with_cell(rows, "iou", value), SAFE)
