"""The tables beside a run's saliency maps: predictions.csv, and train_cams_paths.csv of the images that have maps."""

from pathlib import Path

import pandas as pd

from chexseg.classifier.saliency_store import StoredMaps
from chexseg.data import csv_tables, names
from chexseg.data.chexpert import ImageSet
from chexseg.errors import DataError
from chexseg.runtime.files import atomic

ID_COLUMN = "Train_CAM_Id"


def write_tables(store: Path, images: ImageSet, predictions: Path, listing: Path | None = None) -> None:
    """Write the probabilities of a store as a CSV table, and into `listing` the ids of the images that have maps.
    Tables that are newer than the store are left as they are."""
    made = store.stat().st_mtime_ns
    outputs = [path for path in (predictions, listing) if path is not None]
    if all(path.exists() and path.stat().st_mtime_ns >= made for path in outputs):
        return
    table = StoredMaps(store).predictions()
    table.insert(0, "Path", images.frame["Path"].reindex(table.index))
    with atomic(predictions) as temporary:
        table.to_csv(temporary)
    if listing is not None:
        with atomic(listing) as temporary:
            pd.DataFrame({ID_COLUMN: table.index}).to_csv(temporary, index=False)


def read_listing(path: Path) -> list[str]:
    """The image ids in train_cams_paths.csv."""
    made_by = "make it with test.py --save_cams True --save_train_cams True"
    ids = [names.check_id(row[ID_COLUMN], path) for row in csv_tables.rows(path, (ID_COLUMN,), made_by=made_by)]
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: {names.twice(ids)} occurs twice; {made_by}")
    return ids
