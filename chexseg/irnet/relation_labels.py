"""Stage 3b: relation labels of a train_set's images by the dense CRF, image by image on a CPU, in batches on a GPU."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from chexseg.data.hdf5_files import IGNORE, Hdf5File
from chexseg.irnet import crf
from chexseg.irnet.gates import Gate
from chexseg.runtime.workers import ordered_map

# At this side of an image distances of the CRF are in pixels; they grow and shrink with the image.
REFERENCE_SIZE = 320


def relation_labels(
    rows: Sequence[int],
    *,
    train_set: Hdf5File,
    ids: Sequence[str],
    gate: Gate,
    options: Mapping[str, float],
    device: torch.device,
    batch_size: int = 16,
    num_workers: int = 0,
) -> Iterator[np.ndarray]:
    """Labels (T, S, S) uint8 of each of `rows` of the train_set, in order; `options` are those of `for_size`.

    A finding that the gate calls absent, or unknown, is 255 (ignore) everywhere.
    """
    present = gate.present(ids, train_set.tasks)
    constants = for_size(options, train_set["cxr_images"].shape[-1])
    if device.type == "cuda":
        return label_batches(train_set, present, constants, rows, batch_size, device)
    return ordered_map(partial(label_image, train_set, present, constants), rows, num_workers)


def for_size(options: Mapping[str, float], size: int) -> dict[str, float]:
    """Options of `crf.relation_labels` whose `*_sxy` are pixels at REFERENCE_SIZE, for images of `size`."""
    return {k: v * (size / REFERENCE_SIZE) if k.endswith("_sxy") else v for k, v in options.items()}


def label_image(train_set: Hdf5File, present: np.ndarray, constants: Mapping[str, float], row: int) -> np.ndarray:
    """Labels (T, S, S) of one image on the CPU: only the findings that are present cost anything."""
    image = torch.from_numpy(train_set.row("cxr_images", row))
    labels = np.full((len(present[row]), *image.shape), IGNORE, np.uint8)
    tasks = np.flatnonzero(present[row])
    if tasks.size:
        maps = torch.from_numpy(train_set.row("cxr_cams", row)[tasks])
        labels[tasks] = crf.relation_labels(image, maps, **constants).numpy()
    return labels


def label_batches(
    train_set: Hdf5File,
    present: np.ndarray,
    constants: Mapping[str, float],
    rows: Sequence[int],
    size: int,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """The same on a GPU, a batch of images at once; absent findings ride along as empty maps."""
    for start in range(0, len(rows), size):
        some = list(rows[start : start + size])
        images = torch.from_numpy(np.stack([train_set.row("cxr_images", r) for r in some])).to(device)
        maps = torch.from_numpy(np.stack([train_set.row("cxr_cams", r) for r in some])).to(device)
        maps[~torch.from_numpy(present[some]).to(device)] = 0
        yield from crf.relation_labels(images, maps, **constants).cpu().numpy()
