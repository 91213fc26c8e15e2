"""How many images of a masks file have a mask of each task, an empty one, or none at all: what every stage that makes
masks tells, so that a task that never occurs is seen at once."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chexseg.data import json_lines, rle


class Tally:
    """The count of entries as they come."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self._images, self._pending = 0, list[tuple[int, Mapping]]()
        self._counts = np.zeros((0, 2), np.int64)

    def add(self, entry: Mapping[str, Mapping]) -> None:
        """One image more."""
        self._images += 1
        tasks = self.tasks
        self._pending += [(tasks.setdefault(task, len(tasks)), coded) for task, coded in entry.items()]
        if len(self._pending) > 1000:  # many at once: numpy costs as much for one
            self._sum()

    def _sum(self) -> None:
        counts = np.zeros((len(self.tasks), 2), np.int64)
        counts[: len(self._counts)] = self._counts
        if self._pending:
            rows, masks = zip(*self._pending, strict=True)
            np.add.at(counts, (np.array(rows), (rle.area(masks) == 0).astype(np.int64)), 1)
        self._counts = counts
        self._pending.clear()

    def counts(self, tasks: Sequence[str]) -> np.ndarray:
        """What `count` says."""
        self._sum()
        nothing = np.zeros(2, np.int64)
        known = [self._counts[self.tasks[task]] if task in self.tasks else nothing for task in tasks]
        found = np.array(known, np.int64).reshape(-1, 2)
        return np.column_stack([found, self._images - found.sum(1)])


def count(entries: Iterable[Mapping[str, Mapping]], tasks: Sequence[str]) -> np.ndarray:
    """(T, 3) int64: images with a mask, with an empty mask, and without an entry of each task."""
    tally = Tally()
    for entry in entries:
        tally.add(entry)
    return tally.counts(tasks)


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
