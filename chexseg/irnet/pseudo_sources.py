"""Every kind of pseudo mask that a run of saliency maps leads to, made film by film for `evaluation.quality`.

In the order of the pipeline: thresholded maps, the CRF's foreground from sure and from possible pixels, the relation
labels (what the CRF leaves open is unknown), and the random walk. All of them ungated.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.classifier.saliency_masks import MaskMaker
from chexseg.data import rle
from chexseg.data.hdf5_files import IGNORE
from chexseg.irnet.films import OtherFilms

# The CRF's distances at 320 pixels, as in `crf.mean_field`.
CRF_DISTANCES = {"gaussian_sxy": 3.0, "bilateral_sxy": 50.0}


class ThresholdSource:
    """The masks of stage 2, at the network's size."""

    def __init__(self, maker: MaskMaker):
        self.maker = maker

    def __call__(self, image_id: str, shape: tuple[int, int]) -> Mapping[str, np.ndarray] | None:
        if image_id not in self.maker.maps:
            return None
        _, entry = self.maker(image_id)
        return dict(zip(entry, rle.resize(list(entry.values()), shape), strict=True))


class CrfLabels:
    """The relation labels of any film of a run, the last one kept, since several sources ask for it in turn."""

    def __init__(self, films: OtherFilms):
        from chexseg.irnet.relation_labels import for_size

        self.films, self.rows = films, {image_id: row for row, image_id in enumerate(films.ids)}
        self.constants = for_size(CRF_DISTANCES, films.size)
        self.of = lru_cache(maxsize=1)(self._of)

    def _of(self, row: int) -> np.ndarray:
        """(T, S, S) uint8 of 0, 1 and 255."""
        import torch

        from chexseg.irnet import crf

        film = self.films(row)
        image, maps = (torch.from_numpy(np.array(each)) for each in (film.pixels, film.maps))
        return crf.relation_labels(image, maps, **self.constants).numpy()


class CrfSource:
    """Masks from relation labels: 255, which the CRF leaves open, becomes `between` (0, 1 or 255 = unknown). A map that
    holds nothing to normalise is all 255, which is an empty mask here."""

    def __init__(self, labels: CrfLabels, between: int):
        self.labels, self.between = labels, between

    def __call__(self, image_id: str, shape: tuple[int, int]) -> Mapping[str, np.ndarray] | None:
        if image_id not in self.labels.rows:
            return None
        labels = self.labels.of(self.labels.rows[image_id])
        rows, columns = (rle.nearest(n, m) for n, m in zip(shape, labels.shape[1:], strict=True))
        small = labels[:, rows][:, :, columns]
        masks = np.where(small == IGNORE, np.uint8(self.between), small)
        masks[(labels == IGNORE).all((1, 2))] = 0
        return dict(zip(self.labels.films.tasks, masks, strict=True))


def of_maps(
    maps: SaliencyMaps, tasks: Sequence[str], *, thresholds: np.ndarray | None = None
) -> dict[str, ThresholdSource]:
    """`map_otsu`, and `map_tuned` where there are thresholds (T,) of stretched maps (NaN: Otsu's)."""
    found = {"map_otsu": ThresholdSource(MaskMaker(maps, tuple(tasks), original_size=False))}
    if thresholds is not None:
        maker = MaskMaker(
            maps, tuple(tasks), original_size=False, protocol="chexlocalize", thresholds=np.asarray(thresholds)
        )
        found["map_tuned"] = ThresholdSource(maker)
    return found


def of_crf(films: OtherFilms) -> dict[str, CrfSource]:
    """`crf_sure` and `crf_possible`, the foreground of maps above 0.25 and 0.1 of their maximum, and `relation`."""
    labels = CrfLabels(films)
    between = {"crf_sure": 0, "crf_possible": 1, "relation": IGNORE}
    return {name: CrfSource(labels, value) for name, value in between.items()}


def walked(
    films: OtherFilms, wanted: Sequence[str], weights: Path, walk: Mapping[str, Any], device: str
) -> dict[str, dict[str, dict]]:
    """The ungated masks of the random walk for the `wanted` films: image id -> {task: run-length mask}."""
    from chexseg.irnet import pseudo_masks
    from chexseg.irnet.gates import OpenGate
    from chexseg.runtime import distributed

    rows = [row for row, image_id in enumerate(films.ids) if image_id in set(wanted)]
    made = pseudo_masks.walk_masks(
        rows,
        films=films,
        gate=OpenGate(),
        weights=weights,
        walk=pseudo_masks.Walk(**walk),
        device=distributed.device(device),
    )
    return dict(made)
