"""How long each stage of a reproduction took: `timings.csv` of reproduce.sh, and its section in the report. Light."""

import csv
from collections.abc import Sequence
from pathlib import Path

from chexseg.errors import DataError
from chexseg.runtime.progress import duration

HEADING = "## Time of each stage"
Timings = Sequence[tuple[str, float]]


def read(path: Path) -> list[tuple[str, float]] | None:
    """(stage, seconds) as reproduce.sh writes them; None where there is no such file."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        try:
            if not {"stage", "seconds"} <= set(rows.fieldnames or ()):
                raise ValueError(f"the file has {', '.join(rows.fieldnames or ()) or 'nothing'}")
            return [(row["stage"], float(row["seconds"])) for row in rows]
        except (TypeError, ValueError, csv.Error) as error:
            raise DataError(f"{path}: expected the columns stage,seconds ({error})") from error


def section(timings: Timings | None) -> str:
    """The report's last section in Markdown, or nothing."""
    if not timings:
        return ""
    rows = [f"| {stage} | {duration(seconds)} |" for stage, seconds in timings]
    total = f"| **all** | **{duration(sum(seconds for _, seconds in timings))}** |"
    return "\n".join([HEADING, "", "| stage | time |", "| --- | ---: |", *rows, total, ""])


def with_section(report: str, timings: Timings | None) -> str:
    """The report with the times of now as its last section, whatever it said before."""
    body, times = report.partition("\n" + HEADING)[0], section(timings)
    return f"{body}\n{times}" if times else body
