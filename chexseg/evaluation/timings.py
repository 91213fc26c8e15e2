"""How long each stage of a reproduction took: `timings.csv` of reproduce.sh, and its section in the report. Light."""

from collections.abc import Sequence
from pathlib import Path

from chexseg.data import csv_tables
from chexseg.errors import DataError
from chexseg.runtime.progress import duration

HEADING = "## Time of each stage"
Timings = Sequence[tuple[str, float]]


def read(path: Path) -> list[tuple[str, float]] | None:
    """(stage, seconds) as reproduce.sh writes them; None where there is no such file."""
    if not path.is_file():
        return None
    rows = csv_tables.rows(path, ("stage", "seconds"), made_by="reproduce.sh writes it", empty=True)
    try:
        return [(row["stage"], _seconds(row["seconds"])) for row in rows]
    except ValueError as error:
        raise DataError(f"{path}: seconds: {error}; reproduce.sh writes it") from error


def _seconds(text: str) -> float:
    if not 0 <= float(text) < 1e9:
        raise ValueError(f"{text[:20]!r} is no time")
    return float(text)


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
