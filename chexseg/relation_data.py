"""Crops of training images and their relation labels, for the boundary network."""

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from chexseg.draws import Draw
from chexseg.hdf5_files import IGNORE, Hdf5File, names
from chexseg.irnet import STRIDE

SCALES = (0.5, 1.5)


class RelationCrops(Dataset):
    """Indexed by `draws.Draw`: image (S, S) uint8, labels (T, S / 4, S / 4) uint8 in {0, 1, 255}, id.

    A draw with a key is scaled by 0.5 to 1.5 and cropped, image and labels alike; what lies outside is black, and 255.
    Labels are taken from the nearest pixel, never mixed.
    """

    def __init__(self, train_set: Hdf5File, ir_labels: Hdf5File, crop_size: int):
        self.train_set, self.ir_labels, self.crop_size = train_set, ir_labels, crop_size
        self.ids = names(train_set)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: Draw) -> dict:
        image, labels = self.train_set["cxr_images"][draw.index], self.ir_labels["ir_labels"][draw.index]
        scale, shift = 1.0, np.zeros(2)
        if draw.key:
            rng = np.random.default_rng(draw.key)
            scale = rng.uniform(*SCALES)
            # Where the crop begins in the scaled image; before it, where the image is the smaller one.
            slack = np.array(image.shape) * scale - self.crop_size
            shift = rng.uniform(np.minimum(slack, 0), np.maximum(slack, 0))
        return {
            "image": torch.from_numpy(_crop_image(image, scale, shift, self.crop_size)),
            "labels": torch.from_numpy(_crop_labels(labels, scale, shift, self.crop_size)),
            "id": self.ids[draw.index],
        }


def _crop_image(image: np.ndarray, scale: float, shift: np.ndarray, size: int) -> np.ndarray:
    """(H, W) -> (size, size): output pixel centre p shows the source at (p + shift) / scale, bilinear."""
    offset = (0.5 + shift) / scale - 0.5
    matrix = np.array([[1 / scale, 0, offset[1]], [0, 1 / scale, offset[0]]])
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _crop_labels(labels: np.ndarray, scale: float, shift: np.ndarray, size: int) -> np.ndarray:
    """(T, H, W) -> (T, ceil(size / 4), ceil(size / 4)): the label under each centre of a stride-4 cell."""
    count = -(-size // STRIDE)
    centres = (np.arange(count) + 0.5) * STRIDE
    rows, columns = (np.floor((centres + s) / scale).astype(int) for s in shift)
    inside = [(r >= 0) & (r < n) for r, n in zip((rows, columns), labels.shape[1:], strict=True)]
    found = np.full((len(labels), count, count), IGNORE, np.uint8)
    found[:, inside[0][:, None] & inside[1]] = labels[:, rows[inside[0]]][:, :, columns[inside[1]]].reshape(
        len(labels), -1
    )
    return found
