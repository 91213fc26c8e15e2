"""The thresholds that a training chose, one per task, in the file `thresholds.txt`: a JSON list."""

import json
from pathlib import Path

from chexseg.errors import DataError


def read_thresholds(path: Path, count: int | None = None) -> list[float]:
    """The list in `path`, of `count` numbers from 0 to 1. DataError for anything else."""
    try:
        thresholds = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; segmentation_train.py writes it, or give --thresholds_path") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    numbers = isinstance(thresholds, list) and all(isinstance(t, (int, float)) and 0 <= t <= 1 for t in thresholds)
    if not numbers or count not in (None, len(thresholds)):
        raise DataError(f"{path}: expected a list of {'' if count is None else f'{count} '}numbers from 0 to 1")
    return thresholds
