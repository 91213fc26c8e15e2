"""DICOM X-rays as arrays: rescaled, windowed and inverted as their own fields say.

Only the fields listed here are ever read from a file, so that a patient's name, dates or place can reach no output, no
error and no log.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chexseg.data.mask_sizes import MAX_PIXELS

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


def read(path: Path) -> DicomImage:
    """The one grey frame of a file. OSError, which says why, for anything else: several frames, colour, no pixels, a
    compression that no installed plugin of pydicom decodes."""
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, specific_tags=[*PIXELS, *VALUES, *SPACINGS])
            _check(dataset)
            stored = dataset.pixel_array
            pixels = apply_voi_lut(apply_modality_lut(stored, dataset), dataset).astype(np.float32)
            spacing, where = _spacing(dataset)
    except (InvalidDicomError, OSError) as error:
        raise OSError(f"DICOM: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError) as error:
        raise OSError(f"DICOM: {error}") from error
    except (ValueError, EOFError) as error:
        raise OSError(f"DICOM: {error}") from error
    if pixels.ndim != 2 or not pixels.size:
        raise OSError(f"DICOM: expected one grey frame, found shape {pixels.shape}")
    padding = _padding(dataset, stored)
    if padding is not None and not padding.all():
        pixels[padding] = pixels[~padding].min()
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = pixels.max() - pixels
        if padding is not None:
            pixels[padding] = pixels.min()
    return DicomImage(pixels, spacing, where)


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
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if not 0 < rows * columns <= MAX_PIXELS:
        raise OSError(f"{rows} x {columns} pixels cannot be a film's size")


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
