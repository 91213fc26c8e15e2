"""X-rays as arrays: decoding, resizing, normalising. Where they lie and what their labels say is in `chexpert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from chexseg.data import dicom_images
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError

if TYPE_CHECKING:
    import torch


ImageFile.LOAD_TRUNCATED_IMAGES = False


# The only decoders that a file may choose: Pillow has others, which start programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000")


@dataclass(frozen=True)
class Film:
    """`pixels` (h, w) uint8, and millimetres between rows and columns where the file has them (see `dicom_images`)."""

    pixels: np.ndarray
    spacing: tuple[float, float] | None = None
    spacing_at: str = ""


def read_image(path: Path) -> np.ndarray:
    """An X-ray as (H, W) uint8 grey: JPEG, PNG or TIFF (8 or 16 bits), or DICOM. DataError for a missing or damaged
    file."""
    return read_film(path).pixels


def read_film(path: Path) -> Film:
    """The same with the distance between pixels."""
    path = Path(path)
    try:
        if dicom_images.is_dicom(path):
            image = dicom_images.read(path)
            return Film(_to_uint8(image.pixels), image.spacing, image.spacing_at)
        with Image.open(path, formats=FORMATS) as opened:
            return Film(_grey(opened))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); fetch the file again or leave it out") from error


def _grey(image: Image.Image) -> np.ndarray:
    if isinstance(image, TiffImageFile) and (pages := getattr(image, "n_frames", 1)) > 1:
        raise OSError(f"{pages} pages; expected one film")
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # "White is zero": of 8 bits Pillow turns them round itself.
        white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0
        return _to_uint8(pixels.max() - pixels if white_is_zero else pixels)
    return np.asarray(image.convert("L"))


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    return np.round((pixels - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def resize_square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) uint8 -> (size, size), stretched, antialiased bilinear: what the classifier sees."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def fit_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """The shape with the longer side `size` and the same aspect ratio, at least one pixel."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) uint8 -> (size, size): longer side scaled to `size`, zeros below or to the right."""
    height, width = fit_shape(image.shape[0], image.shape[1], size)
    square = np.zeros((size, size), np.uint8)
    square[:height, :width] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return square


def normalise(images: torch.Tensor, kind: str) -> torch.Tensor:
    """(B, h, w) uint8 -> (B, 3, h, w) float32 with the mean and deviation of `kind` (imagenet, chexpert)."""
    import torch

    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in NORMALISATION[kind])
    return (images[:, None].float() / 255 - mean) / std


def upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w) float32 -> (T, *size), bilinear without corner alignment; what is not finite counts as 0."""
    import torch  # seconds of importing that scripts without maps need not wait for

    finite = np.nan_to_num(np.asarray(maps, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if finite.shape[-2:] == tuple(size):
        return finite
    large = torch.nn.functional.interpolate(
        torch.from_numpy(finite)[None], tuple(size), mode="bilinear", align_corners=False
    )
    return large[0].numpy()
