"""The saliency store: all maps of a run in one HDF5 file, at the network's resolution.

Upsampling a map adds nothing to it, so the store keeps (T, h, w) an image, about 6 kB for 14 tasks at 10 x 10, where
the original wrote 16 pickles of 1.2 MB. Datasets: ids (N,), maps (N, T, h, w) float32, probabilities (N, T) float32,
sizes (N, 2) int32 = height and width of the original; attributes tasks (JSON list) and image_size, the side of the
network's input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chexseg.classifier.saliency_maps import Saliency, SaliencyMaps
from chexseg.classifier.saliency_pickles import PickledMaps
from chexseg.data.hdf5_files import Hdf5File, write_strings
from chexseg.data.hdf5_output import create
from chexseg.data.hdf5_schema import Field, Schema
from chexseg.data.mask_sizes import check_size
from chexseg.errors import MissingError
from chexseg.runtime import provenance
from chexseg.runtime.shard_format import read_arrays, write_arrays

if TYPE_CHECKING:
    import pandas as pd

STORE = Path("cams") / "saliency.h5"
MAX_INPUT = 10_000  # pixels of a side of the network's input
SCHEMA: Schema = {
    "ids": Field("text", ("N",)),
    "maps": Field("f4", ("N", "T", "h", "w")),
    "probabilities": Field("f4", ("N", "T"), least=0, most=1),
    "sizes": Field("i4", ("N", "2")),
}


def open_maps(path: Path) -> SaliencyMaps:
    """The maps at `path`: a store, a run folder that holds `cams/`, or a folder of CheXlocalize's pickles."""
    path = Path(path)
    store = path if path.is_file() else path / STORE
    if store.is_file():
        return StoredMaps(store, folder=path.parent if path.is_file() else path)
    pickles = path / "cams" if (path / "cams").is_dir() else path
    if not any(pickles.rglob("*_map.pkl")):
        raise MissingError(f"{store}: no saliency maps here; make them with test.py --save_cams True")
    return PickledMaps(pickles, folder=path)


class StoredMaps(SaliencyMaps):
    """The maps of a store."""

    def __init__(self, path: Path, *, folder: Path | None = None):
        self.path, self.folder = Path(path), folder or Path(path).parent
        self._file = Hdf5File(path, "test.py", SCHEMA)
        self.tasks = self._file.tasks
        self.ids = self._file.ids("ids")
        self._side = self._file.number("image_size", most=MAX_INPUT)

    @property
    def network_size(self) -> tuple[int, int]:
        return self._side, self._side

    def fingerprint(self) -> str:
        """Of the file's content."""
        return provenance.file_fingerprint(self.path)

    def _read(self, image_id: str) -> Saliency:
        row = self.rows[image_id]
        return {
            "maps": self._file.row("maps", row),
            "probabilities": self._file.row("probabilities", row),
            "size": check_size(self._file["sizes"][row].tolist(), f"{self.path}: {image_id}"),
        }

    def probabilities(self, ids: Sequence[str]) -> np.ndarray:
        """All of them in one go."""
        self._require(ids)
        return self._file.whole("probabilities")[[self.rows[image_id] for image_id in ids]]

    def predictions(self) -> pd.DataFrame:
        """The probabilities as a table: image ids by tasks."""
        import pandas as pd

        return pd.DataFrame(self._file.whole("probabilities"), pd.Index(self.ids, name="image_id"), list(self.tasks))


class SaliencyRecord(Saliency):
    """What `StoreShards` writes of an image."""

    id: str


@dataclass(frozen=True)
class StoreShards:
    """Shards of a store of `count` images."""

    tasks: Sequence[str]
    image_size: int
    count: int

    def write(self, records: Sequence[SaliencyRecord], path: Path) -> None:
        write_arrays(
            path,
            ids=np.array([r["id"].encode() for r in records]),
            maps=np.stack([r["maps"] for r in records]),
            probabilities=np.stack([r["probabilities"] for r in records]),
            sizes=np.array([r["size"] for r in records], np.int32),
        )

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        with create(path) as (file, check):
            file.attrs["tasks"], file.attrs["image_size"] = json.dumps(list(self.tasks)), self.image_size
            ids: list[bytes] = []
            for rows, shard in read_arrays(parts):
                for name in ("maps", "probabilities", "sizes"):
                    if name not in file:
                        file.create_dataset(name, (self.count, *shard[name].shape[1:]), shard[name].dtype)
                    file[name][rows] = shard[name]
                ids += shard["ids"].tolist()
                check()
            write_strings(file, "ids", ids)
