"""CheXlocalize's saliency pickles, `<image id>_<task>_map.pkl`: read like a store, and written on request.

Each holds the map of one task at the network's input size (1, 1, S, S), its probability `prob` (or those of CheXpert's
14 observations, in their order), `task`, the label `gt`, the image `cxr_img` (3, S, S) in 0..1, and `cxr_dims`, the
original's **width and height**.
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

# Whose the entries of a `prob` of 14 are.
OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)


class PickledMaps(SaliencyMaps):
    """A folder of pickles, and of folders of them. A task that an image has no pickle of is unknown (`known`): its map
    reads as zero throughout, its probability as 0."""

    def __init__(self, path: Path, *, folder: Path | None = None):
        self.path, self.folder = Path(path), folder or Path(path)
        self._pickles: dict[str, dict[str, Path]] = {}
        for file in self._files():
            image_id, task = _split_name(file)
            other = self._pickles.setdefault(image_id, {}).setdefault(task, file)
            if other is not file:
                raise DataError(f"{other} and {file} are both of {image_id} and {task}; remove one of them")
        self.ids = sorted(self._pickles)
        self.tasks = tuple(dict.fromkeys(task for image_id in self.ids for task in self._pickles[image_id]))

    @cached_property
    def network_size(self) -> tuple[int, int]:
        """The size of the first map: pickles hold maps at the network's input size."""
        height, width = self[self.ids[0]]["maps"].shape[1:]
        return height, width

    def input_size(self, saliency: Saliency) -> tuple[int, int]:
        """The map's own, which may differ from image to image."""
        height, width = saliency["maps"].shape[1:]
        return height, width

    def known(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """By the names of the files."""
        there = [[task in self._pickles.get(image_id, ()) for task in tasks] for image_id in ids]
        return np.array(there, bool).reshape(len(ids), len(tasks))

    def _files(self) -> list[Path]:
        return sorted(self.path.rglob("*_map.pkl"))

    def fingerprint(self) -> str:
        """Of the pickles' names, sizes and times of change."""
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(f"{path.relative_to(self.path)} {provenance.stat_fingerprint(path)}\0".encode())
        return digest.hexdigest()

    def _read(self, image_id: str) -> Saliency:
        contents = {task: _read_pickle(path) for task, path in self._pickles[image_id].items()}
        first, _, size = next(iter(contents.values()))
        maps = np.zeros((len(self.tasks), *first.shape), np.float32)
        probabilities = np.zeros(len(self.tasks))  # in double precision, as they are held against cut-offs
        for row, task in enumerate(self.tasks):
            if task in contents:
                saliency, probabilities[row], size = contents[task]
                maps[row] = upsample(saliency[None], first.shape)[0] if saliency.shape != first.shape else saliency
        return {"maps": maps, "probabilities": probabilities, "size": size}


def _split_name(path: Path) -> tuple[str, str]:
    """Image id and task of `<image id>_<task>_map.pkl`: no task has a `_` in its name."""
    image_id, _, task = path.name.removesuffix("_map.pkl").rpartition("_")
    if not image_id:
        raise DataError(f"{path}: expected <image id>_<task>_map.pkl")
    image_id, task = image_folder.text_of(image_id), image_folder.text_of(task)
    return names.check_id(image_id, path), names.check_task(task, path)


def _read_pickle(path: Path) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Map (h, w) float32, probability, and the original's (height, width)."""
    import torch  # seconds of importing that readers of a store need not wait for

    from chexseg.data.plain_pickles import load_pickle

    content = load_pickle(path)
    try:
        saliency = torch.as_tensor(content["map"])
        if saliency.is_complex() or saliency.dtype == torch.bool:
            raise ValueError(f"a map of {saliency.dtype}")
        saliency = saliency.float().squeeze((0, 1))
        probabilities = np.asarray(content.get("prob", np.nan), np.float64).ravel()
        of_all = len(probabilities) == len(OBSERVATIONS)
        probability = float(probabilities[OBSERVATIONS.index(content["task"]) if of_all else 0])
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
