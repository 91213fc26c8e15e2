"""The thresholds that a training chose, one per task, in the file `thresholds.txt`: a JSON list."""

from pathlib import Path

from chexseg.errors import DataError
from chexseg.runtime import plain_json


def read_thresholds(path: Path, count: int | None = None) -> list[float]:
    """The list in `path`, of `count` numbers from 0 to 1. DataError for anything else."""
    thresholds = plain_json.read(path, "segmentation_train.py writes it, or give --thresholds_path")
    numbers = isinstance(thresholds, list) and all(type(t) in (int, float) and 0 <= t <= 1 for t in thresholds)
    if not numbers or count not in (None, len(thresholds)):
        raise DataError(f"{path}: expected a list of {'' if count is None else f'{count} '}numbers from 0 to 1")
    return thresholds
