"""The tables beside a run's saliency maps: predictions.csv, and train_cams_paths.csv of the images that have maps."""

from pathlib import Path

import pandas as pd

from chexseg.classifier.saliency_store import StoredMaps
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
    if not path.is_file():
        raise DataError(f"{path}: no such file; make it with test.py --save_cams True --save_train_cams True")
    try:
        frame = pd.read_csv(path)
    except ValueError as error:
        raise DataError(f"{path}: not a CSV file ({error}); make it again with test.py") from error
    if ID_COLUMN not in frame.columns:
        raise DataError(f"{path}: no column {ID_COLUMN!r}; make it again with test.py")
    return frame[ID_COLUMN].astype(str).tolist()
