"""DICOM X-rays as arrays: rescaled, windowed and inverted as their own fields say.

Only the fields listed here are ever read from a file, so that a patient's name, dates or place can reach no output, no
error and no log.
"""

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexseg.data.mask_sizes import MAX_PIXELS, check_size
from chexseg.errors import DataError

PIXELS = (
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PlanarConfiguration PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable "
    "ExtendedOffsetTableLengths"
).split()
VALUES = (
    "RescaleIntercept RescaleSlope RescaleType ModalityLUTSequence VOILUTSequence WindowCenter WindowWidth "
    "VOILUTFunction PixelPaddingValue PixelPaddingRangeLimit"
).split()
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor")
SUFFIXES = (".dcm", ".dicom")
MAX_BYTES = 8 * MAX_PIXELS  # of an unpacked file: pixels of 64 bits
# What pydicom and its decoders raise for files that are damaged.
_UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, EOFError,
    RuntimeError, NotImplementedError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class DicomImage:
    """`pixels` (h, w) float32, larger = denser tissue as shown on a screen. `spacing`: millimetres between rows and
    between columns, None where the file has none; at the detector where `spacing_at` says so, else at the patient."""

    pixels: np.ndarray
    spacing: tuple[float, float] | None
    spacing_at: str = ""


def is_dicom(path: Path) -> bool:
    """By suffix, or by the mark that stands behind 128 bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    """A DICOM file as pydicom's dataset, read with its `options`. OSError, which says why, for whatever is wrong with
    it, here or in the block."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it shows the traceback of what it raises
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _refuse_bomb(path)
            yield pydicom.dcmread(path, **options)
    except DataError:
        raise
    except FileNotFoundError:
        raise
    except (InvalidDicomError, *_UNREADABLE) as error:
        raise OSError(f"DICOM: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def _refuse_bomb(path: Path) -> None:
    """OSError for a deflated file that unpacks to more than a film can have."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return
        file.seek(0)
        try:
            meta = pydicom.filereader.read_file_meta_info(path)
            deflated = str(meta.get("TransferSyntaxUID", "")) == "1.2.840.10008.1.2.1.99"
            start = 144 + int(meta.get("FileMetaInformationGroupLength", 0))
        except (InvalidDicomError, *_UNREADABLE):
            return  # said when it is read
        if deflated:
            file.seek(start)
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS)
            unpacked.decompress(file.read(), MAX_BYTES)
            if unpacked.unconsumed_tail:
                raise OSError(f"it unpacks to more than {MAX_BYTES >> 20} MB")


def size(path: Path) -> tuple[int, int]:
    """(height, width) by the header. OSError for what is no DICOM image."""
    with opened(path, stop_before_pixels=True) as header:
        return check_size((header.Rows, header.Columns), str(path))


def read(path: Path) -> DicomImage:
    """The one grey frame of a file. OSError, which says why, for anything else: several frames, colour, no pixels, a
    compression that no installed plugin of pydicom decodes."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    with opened(path, specific_tags=[*PIXELS, *VALUES, *SPACINGS]) as dataset:
        _check(dataset)
        stored = dataset.pixel_array
        pixels = apply_voi_lut(apply_modality_lut(stored, dataset), dataset).astype(np.float32)
        spacing, where = _spacing(dataset)
        if pixels.ndim != 2 or not pixels.size:
            raise OSError(f"expected one grey frame, found shape {pixels.shape}")
        pixels = finite(pixels)
    padding = _padding(dataset, stored)
    if padding is not None and not padding.all():
        pixels[padding] = pixels[~padding].min()
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
        if padding is not None:
            pixels[padding] = pixels.min()
    return DicomImage(pixels, spacing, where)


def finite(pixels: np.ndarray) -> np.ndarray:
    """Pixels of which those that are no numbers are the darkest, infinite ones the lightest or darkest. OSError where
    there is no number."""
    good = np.isfinite(pixels)
    if good.all():
        return pixels
    if not good.any():
        raise OSError("no pixel of it is a number")
    low, high = float(pixels[good].min()), float(pixels[good].max())
    return np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)


def _check(dataset) -> None:
    """OSError for what is not one grey frame with pixels, before anything is decoded."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise OSError("no pixels in it (a report, a presentation state, or pixels that were taken out)")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise OSError(f"{frames} frames; expected one film")
    kind, samples = dataset.get("PhotometricInterpretation", "no kind of pixel"), int(dataset.get("SamplesPerPixel", 1))
    if samples != 1 or not str(kind).startswith("MONOCHROME"):
        raise OSError(f"{kind} of {samples} samples; expected grey: MONOCHROME1 or MONOCHROME2")
    check_size((int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)), "film")


def _padding(dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where the file says that there is no film; None where it does not, or has a window, which says what is black."""
    low = dataset.get("PixelPaddingValue")
    if not isinstance(low, int) or "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        return None
    high = dataset.get("PixelPaddingRangeLimit")
    high = high if isinstance(high, int) else low
    return (stored >= min(low, high)) & (stored <= max(low, high))


def _spacing(dataset) -> tuple[tuple[float, float] | None, str]:
    """Millimetres between rows and columns, and "detector" where they are the detector's: what lies before it is shown
    larger, by the estimated magnification where the file names it."""
    for name, where in (("PixelSpacing", ""), ("ImagerPixelSpacing", "detector")):
        values = dataset.get(name)
        if values is None or isinstance(values, (str, float)) or len(values) != 2:
            continue
        rows, columns = (float(value) for value in values)
        if not (0 < rows < math.inf and 0 < columns < math.inf):
            continue
        factor = float(dataset.get("EstimatedRadiographicMagnificationFactor") or 0) if where else 0.0
        if factor >= 1:
            return (rows / factor, columns / factor), ""
        return (rows, columns), where
    return None, ""
