"""A classifier's probabilities of findings, as test.py writes them: predictions.csv. Light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chexseg.data import csv_tables, names
from chexseg.errors import DataError, MissingError

if TYPE_CHECKING:
    import numpy as np


def read_probabilities(
    path: Path, images: Sequence[str], tasks: Sequence[str], aliases: Mapping[str, str] | None = None
) -> np.ndarray:
    """(N, T) float64, from a column `image_id` and one for each task, by its name or an alias.

    DataError for a missing column or image, and for anything that is not a number from 0 to 1.
    """
    import numpy as np

    needed = ("image_id", *tasks)
    rows = csv_tables.rows(path, needed, aliases=aliases, made_by="test.py writes it", empty=not images)
    row_of = {row["image_id"]: row for row in rows}
    if len(row_of) < len(rows):
        raise DataError(f"{path}: {names.twice(row['image_id'] for row in rows)} occurs twice; test.py writes it")
    values = np.empty((len(images), len(tasks)))
    for target, image in zip(values, images, strict=True):
        if image not in row_of:
            raise MissingError(f"{path}: no probabilities of {image}; run test.py on a set that has it")
        for column, name in enumerate(tasks):
            try:
                target[column] = float(row_of[image][name])
            except ValueError:
                target[column] = -1
            if not 0 <= target[column] <= 1:
                cell = names.shown(row_of[image][name])
                raise DataError(f"{path}: {image}: {name}: {cell} is not a number from 0 to 1; test.py writes it")
    return values
