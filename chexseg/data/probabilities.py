"""A classifier's probabilities of findings, as test.py writes them: predictions.csv. Light to import."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chexseg.errors import DataError

if TYPE_CHECKING:
    import numpy as np


def read_probabilities(
    path: Path, images: Sequence[str], tasks: Sequence[str], aliases: Mapping[str, str] | None = None
) -> np.ndarray:
    """(N, T) float64, from a column `image_id` and one for each task, by its name or an alias.

    DataError for a missing column or image, and for anything that is not a number from 0 to 1.
    """
    import numpy as np

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            column_of = {(aliases or {}).get(name, name): name for name in reader.fieldnames or ()}
            for name in ("image_id", *tasks):
                if name not in column_of:
                    raise DataError(f"{path}: no column {name!r}; it has {', '.join(column_of) or 'none'}")
            row_of, wanted = {row[column_of["image_id"]]: row for row in reader}, [column_of[task] for task in tasks]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; test.py writes it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    values = np.empty((len(images), len(tasks)))
    for target, image in zip(values, images, strict=True):
        if image not in row_of:
            raise DataError(f"{path}: no probabilities of {image}; run test.py on a set that has it")
        for column, name in enumerate(wanted):
            try:
                target[column] = float(row_of[image][name])
            except (TypeError, ValueError):
                target[column] = -1
            if not 0 <= target[column] <= 1:
                raise DataError(f"{path}: {image}: {name}: {row_of[image][name]!r} is not a number from 0 to 1")
    return values
