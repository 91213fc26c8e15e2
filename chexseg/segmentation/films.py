"""Films of any place as samples for a network: a file that cannot be read is a sample that says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from chexseg.data.images import fit_shape, fit_square, read_film
from chexseg.errors import DataError
from chexseg.evaluation import overlays
from chexseg.evaluation.films import jpeg, shown
from chexseg.segmentation.prediction import Originals
from chexseg.training.draws import Draw


class Films(Originals):
    """`Originals` with `spacing` (2,) in millimetres (0: unknown), `spacing_at` and `problem` ("": none).

    With `preview`, the film at the size of an overlay, padded to a square; with `picture`, as the reading room shows
    it, as JPEG. A film is read once for all of them.
    """

    def __init__(
        self, paths: Mapping[str, Path], ids: Sequence[str], image_size: int, *, preview: bool, picture: bool = False
    ):
        super().__init__(paths, ids, image_size)
        self.preview, self.picture = preview, picture
        self._last: tuple[int, dict[str, Any]] | None = None

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        if self._last is None or self._last[0] != draw.index:  # one film fills the empty slots of a batch
            self._last = draw.index, self._sample(self.ids[draw.index])
        return self._last[1]

    def _sample(self, image_id: str) -> dict[str, Any]:
        problem = ""
        try:
            film = read_film(self.paths[image_id])
            pixels, spacing, where = film.pixels, film.spacing or (0.0, 0.0), film.spacing_at
        except DataError as error:
            pixels, spacing, where, problem = np.zeros((1, 1), np.uint8), (0.0, 0.0), "", " ".join(str(error).split())
        sample = {
            "image": torch.from_numpy(fit_square(pixels, self.image_size)),
            "size": torch.tensor(pixels.shape),
            "spacing": torch.tensor(spacing, dtype=torch.float64),
            "spacing_at": where,
            "problem": problem,
            "id": image_id,
        }
        if self.preview or self.picture:
            small = shown(pixels)
            if self.preview:
                sample["preview"] = torch.from_numpy(_preview(small, pixels.shape))
            if self.picture:
                sample["picture"] = jpeg(small)
        return sample


def _preview(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A film of `size`, or a smaller copy of it, at the size of an overlay, padded to a square. For the eye alone."""
    shape = fit_shape(size[0], size[1], overlays.SIDE)
    square = np.zeros((overlays.SIDE, overlays.SIDE), np.uint8)
    square[: shape[0], : shape[1]] = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)
    return square


def draw_overlay(
    path: Path,
    preview: np.ndarray,
    size: tuple[int, int],
    planes: np.ndarray,
    tasks: Sequence[str],
    thresholds: Sequence[float],
) -> None:
    """Write the picture of a film: `preview` of `Films`, with outlines of the probabilities (C, S, S) above their
    thresholds. `size` is the film's (height, width)."""
    shape, (height, width) = fit_shape(*size, len(preview)), fit_shape(*size, planes.shape[-1])
    masks = {}
    for task, plane, threshold in zip(tasks, planes[:, :height, :width], thresholds, strict=True):
        if plane.max() > threshold:
            masks[task] = cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR) > threshold
    film = np.ascontiguousarray(preview[: shape[0], : shape[1]])
    overlays.save(path, overlays.overlay(film, masks, tasks))
