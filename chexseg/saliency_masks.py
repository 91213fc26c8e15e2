"""Stage 2: masks thresholded from a run's saliency maps, one image at a time and in any process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from chexseg import masks, provenance
from chexseg.saliency import SaliencyMaps


@lru_cache(maxsize=1)
def _open_maps(path: Path, fingerprint: str) -> SaliencyMaps:
    """The maps at `path`, indexed once in each process for as long as they are the same."""
    return SaliencyMaps(path)


@dataclass(frozen=True)
class MaskMaker:
    """image id -> (image id, {task: run-length mask}) of the maps at `path`; cheap to send to a process.

    fingerprint    of the maps, from the function of that name
    original_size  masks of the original's size instead of the network's input
    thresholds, cutoffs  one per task, NaN = none; see `masks.threshold_maps`
    """

    path: Path
    fingerprint: str
    tasks: tuple[str, ...]
    original_size: bool
    protocol: str = "chexseg"
    thresholds: Sequence[float] | None = None
    cutoffs: Sequence[float] | None = None

    def __call__(self, image_id: str) -> tuple[str, dict]:
        store = _open_maps(self.path, self.fingerprint)
        found, rows = store[image_id], store.task_rows(self.tasks)
        maps = found["maps"][rows]
        # A pickle holds the map at the network's input size already.
        network = (store.image_size,) * 2 if store.image_size else maps.shape[1:]
        stack = masks.threshold_maps(
            maps,
            found["size"] if self.original_size else network,
            protocol=self.protocol,
            network_size=network,
            thresholds=None if self.thresholds is None else np.asarray(self.thresholds, float),
            probabilities=found["probabilities"][rows],
            cutoffs=None if self.cutoffs is None else np.asarray(self.cutoffs, float),
        )
        return image_id, dict(zip(self.tasks, masks.encode(stack), strict=True))


def fingerprint(store: SaliencyMaps) -> str:
    """Fingerprint of the maps: of the store's content, or of the names, sizes and times of a folder's pickles."""
    if store.path.is_file():
        return provenance.file_fingerprint(store.path)
    digest = hashlib.sha256()
    for path in sorted(store.path.glob("*_map.pkl")):
        digest.update(f"{path.name} {provenance.stat_fingerprint(path)}\0".encode())
    return digest.hexdigest()
