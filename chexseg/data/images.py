"""X-rays as arrays: decoding, resizing, normalising. Where they lie and what their labels say is in `chexpert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile

from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError

if TYPE_CHECKING:
    import torch


ImageFile.LOAD_TRUNCATED_IMAGES = False


def read_image(path: Path) -> np.ndarray:
    """An X-ray as (H, W) uint8 grey: JPEG, PNG (8 or 16 bits) or DICOM. DataError for a missing or truncated file."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".dcm":
            return _read_dicom(path)
        with Image.open(path) as image:
            if image.mode.startswith("I") or image.mode == "F":
                return _to_uint8(np.asarray(image, dtype=np.float32))
            return np.asarray(image.convert("L"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be decoded ({error}); fetch the file again or leave it out of the CSV"
        ) from error


def _read_dicom(path: Path) -> np.ndarray:
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        dataset = pydicom.dcmread(path)
        pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
    except (InvalidDicomError, AttributeError, ValueError, RuntimeError) as error:
        raise OSError(f"DICOM: {error}") from error
    if pixels.ndim != 2:
        raise OSError(f"DICOM: expected one grey frame, found shape {pixels.shape}")
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = pixels.max() - pixels
    return _to_uint8(pixels)


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
    height, width = fit_shape(*image.shape, size)
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

    maps = torch.from_numpy(np.nan_to_num(np.asarray(maps, np.float32), nan=0.0, posinf=0.0, neginf=0.0))
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.numpy()
    return torch.nn.functional.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0].numpy()
