"""X-rays as arrays: decoding, resizing, normalising. Where they lie and what their labels say is in `chexpert`."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from chexseg.data import dicom_images
from chexseg.data.mask_sizes import check_size
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError, MissingError

if TYPE_CHECKING:
    import torch


ImageFile.LOAD_TRUNCATED_IMAGES = False


# The only decoders that a file may choose: Pillow has others, which start programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000")
# What they raise for files that are damaged.
_UNDECODABLE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError,
    RuntimeError, NotImplementedError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


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
        with opened(path) as picture:
            return Film(_grey(picture))
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such image") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be decoded ({error}); fetch the file again or leave it out") from error
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from error


@contextmanager
def opened(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """An image file, its header read, of a size that may be decoded. DataError for a file that is missing or too large,
    or that cannot be decoded here or in the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats) as picture:
                check_size(picture.size[::-1], str(path))
                if picture.format == "PNG":
                    check_png(Path(path))
                yield picture
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such image") from error
    except DataError:
        raise
    except _UNDECODABLE as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be decoded ({said}); fetch the file again or leave it out") from error


def check_png(path: Path) -> None:
    """OSError where a checksum in a PNG is wrong: Pillow leaves out that of the pixels, so that changed ones would go
    unnoticed."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            content, checksum = file.read(length), file.read(4)
            if len(checksum) != 4 or zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
                raise OSError(f"truncated, or the checksum of its part {ascii(kind)[1:]} is wrong")
            if kind == b"IEND":
                return
    raise OSError("truncated: it has no end")


def _grey(image: Image.Image) -> np.ndarray:
    if isinstance(image, TiffImageFile) and (pages := getattr(image, "n_frames", 1)) > 1:
        raise OSError(f"{pages} pages; expected one film")
    if image.mode.startswith("I") or image.mode == "F":
        pixels = dicom_images.finite(np.asarray(image, dtype=np.float32))
        # "White is zero": of 8 bits Pillow turns them round itself.
        white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0
        return _to_uint8(pixels.max() - pixels if white_is_zero else pixels)
    return np.asarray(image.convert("L"))


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if (
        high - low > float(np.finfo(np.float32).max) / 256
    ):  # of a file that means harm: the products below would overflow
        pixels = np.ldexp(pixels, -16)
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
