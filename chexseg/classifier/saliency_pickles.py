"""CheXlocalize's saliency pickles, `<image id>_<task>_map.pkl`: read like a store, and written on request.

Each holds the map of one task at the network's input size (1, 1, S, S), its probability `prob`, `task`, the label `gt`,
the image `cxr_img` (3, S, S) in 0..1, and `cxr_dims`, the original's **width and height**.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from chexseg.classifier.saliency_maps import Saliency, SaliencyMaps
from chexseg.data import image_folder, names
from chexseg.data.images import upsample
from chexseg.data.mask_sizes import check_size
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.runtime.files import atomic


class PickledMaps(SaliencyMaps):
    """A folder of pickles. A task that an image has no pickle of has an all-zero map and probability 0."""

    def __init__(self, path: Path, *, folder: Path | None = None):
        self.path, self.folder = Path(path), folder or Path(path)
        self._pickles: dict[str, dict[str, Path]] = {}
        for file in sorted(self.path.glob("*_map.pkl")):
            image_id, task = _split_name(file)
            self._pickles.setdefault(image_id, {})[task] = file
        self.ids = sorted(self._pickles)
        self.tasks = tuple(dict.fromkeys(task for image_id in self.ids for task in self._pickles[image_id]))

    @cached_property
    def network_size(self) -> tuple[int, int]:
        """The size of the first map: pickles hold maps at the network's input size."""
        height, width = self[self.ids[0]]["maps"].shape[1:]
        return height, width

    def fingerprint(self) -> str:
        """Of the pickles' names, sizes and times of change."""
        digest = hashlib.sha256()
        for path in sorted(self.path.glob("*_map.pkl")):
            digest.update(f"{path.name} {provenance.stat_fingerprint(path)}\0".encode())
        return digest.hexdigest()

    def _read(self, image_id: str) -> Saliency:
        contents = {task: _read_pickle(path) for task, path in self._pickles[image_id].items()}
        first, _, size = next(iter(contents.values()))
        maps = np.zeros((len(self.tasks), *first.shape), np.float32)
        probabilities = np.zeros(len(self.tasks), np.float32)
        for row, task in enumerate(self.tasks):
            if task in contents:
                saliency, probabilities[row], size = contents[task]
                maps[row] = upsample(saliency[None], first.shape)[0] if saliency.shape != first.shape else saliency
        return {"maps": maps, "probabilities": probabilities, "size": size}


def _split_name(path: Path) -> tuple[str, str]:
    """Image id and task of `<image id>_<task>_map.pkl`: the task is what follows the view."""
    stem = path.name.removesuffix("_map.pkl")
    at = max(stem.find("_frontal_"), stem.find("_lateral_"))
    if at < 0:
        raise DataError(f"{path}: expected patientX_studyY_viewZ_frontal_<task>_map.pkl")
    cut = at + len("_frontal_")
    image_id, task = (image_folder.text_of(part) for part in (stem[: cut - 1], stem[cut:]))
    return names.check_id(image_id, path), names.check_task(task, path)


def _read_pickle(path: Path) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Map (h, w) float32, probability, and the original's (height, width)."""
    import torch  # seconds of importing that readers of a store need not wait for

    from chexseg.classifier.plain_pickles import load_pickle

    content = load_pickle(path)
    try:
        saliency = torch.as_tensor(content["map"])
        if saliency.is_complex() or saliency.dtype == torch.bool:
            raise ValueError(f"a map of {saliency.dtype}")
        saliency = saliency.float().squeeze((0, 1))
        probability = float(np.asarray(content.get("prob", np.nan), np.float64).reshape(-1)[0])
        width, height = np.asarray(content["cxr_dims"]).tolist()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{path}: not a saliency pickle ({type(error).__name__}: {error})") from error
    if saliency.ndim != 2 or not saliency.numel():
        raise DataError(f"{path}: its map has shape {tuple(saliency.shape)}, expected (1, 1, h, w)")
    if probability < 0 or probability > 1:
        raise DataError(f"{path}: its prob is {probability}, expected 0 to 1")
    check_size(saliency.shape, f"{path}: its map")
    return saliency.numpy(), probability, check_size((height, width), f"{path}: cxr_dims")


def write_pickles(
    folder: Path,
    image_id: str,
    tasks: Sequence[str],
    saliency: Saliency,
    image: np.ndarray,
    labels: Sequence[float] | None,
) -> None:
    """One pickle for each task of an image: `image` (S, S) uint8 as the network saw it, `labels` one a task."""
    import torch

    size = image.shape[-2:]
    maps = torch.nn.functional.interpolate(torch.from_numpy(saliency["maps"])[None], size, mode="bilinear")[0]
    picture = torch.from_numpy(image / np.float32(255)).expand(3, *size).clone()
    height, width = saliency["size"]
    for row, task in enumerate(tasks):
        content = {
            "map": maps[row][None, None].clone(),
            "prob": float(saliency["probabilities"][row]),
            "task": task,
            "gt": float(labels[row]) if labels is not None else None,
            "cxr_img": picture,
            "cxr_dims": (width, height),
        }
        stem = image_folder.file_stem(f"{image_id}_{task}_map")
        with atomic(folder / f"{stem}.pkl") as temporary, open(temporary, "wb") as file:
            pickle.dump(content, file)
