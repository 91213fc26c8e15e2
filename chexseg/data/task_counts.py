"""How many images of a masks file have a mask of each task, an empty one, or none at all: what every stage that makes
masks tells, so that a task that never occurs is seen at once."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chexseg.data import json_lines, rle


def count(entries: Iterable[Mapping[str, Mapping]], tasks: Sequence[str]) -> np.ndarray:
    """(T, 3) int64: images with a mask, with an empty mask, and without an entry of each task."""
    counts = np.zeros((len(tasks), 3), np.int64)
    rows, images = {task: row for row, task in enumerate(tasks)}, 0
    pending: list[tuple[int, Mapping]] = []

    def add() -> None:
        if pending:
            columns = (rle.area([coded for _, coded in pending]) == 0).astype(np.int64)
            np.add.at(counts, ([row for row, _ in pending], columns), 1)
            pending.clear()

    for entry in entries:
        images += 1
        pending += [(rows[task], coded) for task, coded in entry.items() if task in rows]
        if len(pending) > 1000:  # many at once: numpy costs as much for one
            add()
    add()
    counts[:, 2] = images - counts[:, 0] - counts[:, 1]
    return counts


def lines(counts: np.ndarray, tasks: Sequence[str]) -> list[str]:
    """A line per task, to print; a column that is zero throughout is left out."""
    names = ("with", "without", "unknown")
    shown = [column for column in range(3) if column == 0 or counts[:, column].any()]
    width = max(map(len, tasks), default=0)
    rows = zip(tasks, counts, strict=True)
    return [f"{task:{width}s}  " + ", ".join(f"{row[c]} {names[c]}" for c in shown) for task, row in rows]


def summary(masks: Mapping[str, Mapping[str, Mapping]], tasks: Sequence[str]) -> str:
    """The lines of a masks file, as one text."""
    return "\n".join(lines(count(json_lines.read(masks, masks), tasks), tasks))
