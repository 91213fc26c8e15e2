"""Stage 2: masks thresholded from a run's saliency maps, one image at a time and in any process."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chexseg.classifier.saliency_store import SaliencyMaps
from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.errors import DataError
from chexseg.runtime import provenance


@lru_cache(maxsize=1)
def _open_maps(path: Path, fingerprint: str) -> SaliencyMaps:
    """The maps at `path`, indexed once in each process for as long as they are the same."""
    return SaliencyMaps(path)


@dataclass(frozen=True)
class MaskMaker:
    """image id -> (image id, {task: run-length mask}) of the maps at `path`; cheap to send to a process.

    fingerprint    of the maps, from the function of that name
    original_size  masks of the original's size instead of the network's input
    thresholds, cutoffs  one per task, NaN = none; see `saliency_masks.threshold_maps`
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
        stack = threshold_maps(
            maps,
            found["size"] if self.original_size else network,
            protocol=self.protocol,
            network_size=network,
            thresholds=None if self.thresholds is None else np.asarray(self.thresholds, float),
            probabilities=found["probabilities"][rows],
            cutoffs=None if self.cutoffs is None else np.asarray(self.cutoffs, float),
        )
        return image_id, dict(zip(self.tasks, rle.encode(stack), strict=True))


def fingerprint(store: SaliencyMaps) -> str:
    """Fingerprint of the maps: of the store's content, or of the names, sizes and times of a folder's pickles."""
    if store.path.is_file():
        return provenance.file_fingerprint(store.path)
    digest = hashlib.sha256()
    for path in sorted(store.path.glob("*_map.pkl")):
        digest.update(f"{path.name} {provenance.stat_fingerprint(path)}\0".encode())
    return digest.hexdigest()


PROTOCOLS = ("chexseg", "chexlocalize")
MAX_UPSAMPLED = 1 << 24  # pixels upsampled at once: 64 MB of float32


def otsu(image: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h, w) uint8: above Otsu's threshold, holes filled.

    Filling the outer contours gives what PIL's polygon fill (outline included) gives for them, and the same as for
    all contours (RETR_TREE, CheXlocalize): contours of holes and of islands in holes lie inside an outer one.
    The original drops contours of a single pixel; here the pixel stays.
    """
    _, binary = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros_like(binary)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled


def threshold_maps(
    maps: np.ndarray,
    size: tuple[int, int],
    *,
    protocol: str = "chexseg",
    network_size: tuple[int, int] | None = None,
    thresholds: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    cutoffs: np.ndarray | None = None,
) -> np.ndarray:
    """Saliency maps (T, h, w) -> masks (T, *size) uint8.

    network_size  upsample to this first: the original's maps on disk have the network's input size
    protocol      `chexseg`: uint8(255 map), Otsu, filled outer contours; a map above 1 is clipped, not wrapped.
                  `chexlocalize`: the map is stretched to 0..1 first, so that a faint one is treated like a strong one
    thresholds    (T,) chexlocalize only: inside where the stretched map is above it; NaN = Otsu
    cutoffs       (T,) chexlocalize only: a task whose probability is not above it gets an empty mask; NaN = none

    A map that is zero throughout, or nowhere finite, gives an empty mask; under chexlocalize any constant map does.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    stretch = protocol == "chexlocalize"
    finite = np.where(np.isfinite(maps), maps, 0)
    present = finite.max((1, 2)) > (finite.min((1, 2)) if stretch else 0)
    if stretch and cutoffs is not None:
        present &= np.isnan(cutoffs) | (probabilities > cutoffs)
    found = np.zeros((len(maps), *size), np.uint8)
    rows = np.flatnonzero(present)
    step = max(1, MAX_UPSAMPLED // (size[0] * size[1]))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        large = upsample(upsample(maps[chunk], network_size) if network_size else maps[chunk], size)
        if stretch:
            low, high = large.min((1, 2), keepdims=True), large.max((1, 2), keepdims=True)
            large = (large - low) / np.where(high > low, high - low, 1)
        grey = (np.clip(large, 0, 1) * 255).astype(np.uint8)
        for row, values, quantised in zip(chunk, large, grey, strict=True):
            if stretch and thresholds is not None and not np.isnan(thresholds[row]):
                found[row] = values > thresholds[row]
            elif quantised.any():
                found[row] = otsu(quantised)
    return found


def read_task_values(path: Path, column: str, tasks: Sequence[str], aliases: Mapping[str, str]) -> np.ndarray:
    """CheXlocalize's per-task CSV (`threshold,task` or `prob_threshold,mIoU,task`): `column` by task; NaN = none."""
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    for name in (column, "task"):
        if name not in frame.columns:
            raise DataError(f"{path}: no column {name!r}; expected {column} and task")
    values = pd.to_numeric(frame[column], errors="coerce")
    wrong = frame[column].notna() & values.isna()
    if wrong.any():
        raise DataError(
            f"{path}: line {int(np.flatnonzero(wrong)[0]) + 2}: {frame[column][wrong].iloc[0]!r} is no number"
        )
    names = frame["task"].map(lambda name: aliases.get(name, name))
    if names.duplicated().any():
        raise DataError(f"{path}: {names[names.duplicated()].iloc[0]!r} occurs twice")
    return pd.Series(values.to_numpy(), index=names).reindex(list(tasks)).to_numpy(np.float64)
