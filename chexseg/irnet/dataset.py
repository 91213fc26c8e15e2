"""What the boundary network trains on: scaled crops of images with their relation labels on the stride-4 grid."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chexseg.data import hdf5_files
from chexseg.data.hdf5_files import IGNORE, Hdf5File
from chexseg.irnet.boundary_net import STRIDE
from chexseg.training.draws import Draw


class RelationSet(Dataset):
    """Indexed by `draws.Draw`: image (C, C) uint8, labels (T, G, G) uint8 in {0, 1, 255} with G = ceil(C / 4), id.

    Image and labels share a random scale and a random crop. An image that was scaled below the size of the crop lies at
    a random place in it, surrounded by black whose labels are 255. A draw without a key is neither scaled nor moved.
    """

    def __init__(self, train_set: Hdf5File, ir_labels: Hdf5File, crop: int, scales: tuple[float, float] = (0.5, 1.5)):
        self.images, self.labels, self.crop, self.scales = train_set, ir_labels, crop, scales
        self.ids = hdf5_files.names(train_set)
        self.size = train_set["cxr_images"].shape[-1]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        side, top, left = self.size, 0, 0
        if draw.key:
            rng = np.random.default_rng(draw.key)
            side = max(1, round(self.size * rng.uniform(*self.scales)))
            slack = side - self.crop
            top, left = (int(n) for n in rng.integers(min(0, slack), max(0, slack) + 1, size=2))
        image = self.images.row("cxr_images", draw.index)
        if side != self.size:
            image = cv2.resize(
                image, (side, side), interpolation=cv2.INTER_AREA if side < self.size else cv2.INTER_LINEAR
            )
        labels = self.labels.row("ir_labels", draw.index)
        return {
            "image": torch.from_numpy(window(image, (top, left), self.crop)),
            "labels": torch.from_numpy(grid_labels(labels, side, (top, left), self.crop)),
            "id": self.ids[draw.index],
        }


def window(image: np.ndarray, place: tuple[int, int], crop: int) -> np.ndarray:
    """The square (crop, crop) whose top left corner is at `place` (y, x) of the image; black outside it."""
    out = np.zeros((crop, crop), image.dtype)
    (y, x), (height, width) = place, image.shape
    part = image[max(0, y) : min(height, y + crop), max(0, x) : min(width, x + crop)]
    out[max(0, -y) :, max(0, -x) :][: part.shape[0], : part.shape[1]] = part
    return out


def grid_labels(labels: np.ndarray, side: int, place: tuple[int, int], crop: int) -> np.ndarray:
    """Labels (T, S, S), scaled to `side` and cropped like the image, at the centres of the stride-4 cells: nearest
    neighbours in one step. 255 outside the image."""
    size = labels.shape[-1]
    centres = np.minimum(np.arange(STRIDE // 2, crop + STRIDE // 2, STRIDE), crop - 1)
    positions = [centres + start for start in place]
    inside = [(p >= 0) & (p < side) for p in positions]
    rows, columns = (
        np.minimum((p[i] + 0.5) * size / side, size - 1).astype(int) for p, i in zip(positions, inside, strict=True)
    )
    out = np.full((len(labels), len(centres), len(centres)), IGNORE, np.uint8)
    out[:, inside[0][:, None] & inside[1]] = labels[:, rows[:, None], columns].reshape(len(labels), -1)
    return out
