"""Masks as DICOM Segmentation objects (binary, one segment a task), by highdicom, and back.

One file an image, <image id>.dcm, as `image_folder.file_stem` says. A segment without a frame says that the task is
absent; a task without a segment is unknown. An object refers to the DICOM image that it belongs to, by unique
identifiers, where that image is given; else to one that does not exist. Of the patient's data none is taken over unless
`keep_patient` says so: an archive files the object with its image only then.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from chexseg.data import dicom_images, image_folder, rle
from chexseg.data.mask_files import Masks
from chexseg.data.mask_sizes import check_room, check_size, common_size
from chexseg.data.names import check_id, check_task
from chexseg.errors import DataError
from chexseg.runtime import provenance
from chexseg.runtime.files import writing

ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
# SNOMED CT's codes as pydicom lists them; other tasks take a code of our own.
CODES = {
    "Cardiomegaly": Code("8186001", "SCT", "Cardiomegaly"),
    "Edema": Code("19242006", "SCT", "Pulmonary Edema"),
    "Pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "Pleural Effusion": Code("60046008", "SCT", "Pleural Effusion"),
}
# What highdicom copies into an object: emptied.
PATIENT = "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime".split()
REFERENCE = "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Rows Columns".split()


@cache
def highdicom() -> ModuleType:
    try:
        import highdicom  # half a second, and only here
    except ImportError as error:
        raise DataError("DICOM SEG needs the package highdicom: pip install highdicom") from error
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies
    return highdicom


@cache
def version() -> str:
    """Of CheXseg, as an object names what made it."""
    return provenance.versions()["chexseg"]


def write(
    path: Path,
    image_id: str,
    entry: Masks,
    *,
    source: Path | None = None,
    keep_patient: bool = False,
    manual: bool = False,
) -> None:
    """The object of one image. `source`: its DICOM file; `manual`: people drew the masks, not a network."""
    hd = highdicom()
    size = common_size(entry, f"{path}: {image_id}")
    image = _reference(source, image_id, size, keep_patient)
    kind = hd.seg.SegmentAlgorithmTypeValues.MANUAL if manual else hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    algorithm = hd.AlgorithmIdentificationSequence(
        name="CheXseg", version=version(), family=Code("123109", "DCM", "Artificial Intelligence")
    )
    segments = []
    for number, task in enumerate(entry, 1):
        if len(task) > 64 or "\\" in task:
            raise DataError(f"{image_id}: {task!r}: a segment's label has at most 64 characters and no backslash")
        code = CODES.get(task) or Code(hashlib.sha256(task.encode()).hexdigest()[:12].upper(), "99CHEXSEG", task)
        segments.append(
            hd.seg.SegmentDescription(
                number, task, ABNORMAL, code, kind, algorithm_identification=None if manual else algorithm
            )
        )
    pixels = np.moveaxis(rle.decode(list(entry.values())), 0, -1)[None]
    content = hashlib.sha256(pixels.tobytes()).hexdigest()
    uids = [generate_uid(entropy_srcs=[what, image.SOPInstanceUID, *entry, content]) for what in ("series", "instance")]
    made = hd.seg.Segmentation(
        [image],
        np.ascontiguousarray(pixels),
        hd.seg.SegmentationTypeValues.BINARY,
        segments,
        series_instance_uid=uids[0],
        series_number=1,
        sop_instance_uid=uids[1],
        instance_number=1,
        manufacturer="CheXseg",
        manufacturer_model_name="CheXseg",
        software_versions=version(),
        device_serial_number="0",
        content_label="CHEXSEG",
        omit_empty_frames=bool(pixels.any()),
        specific_character_set="ISO_IR 192",
    )
    with writing(path):
        made.save_as(path)


def _reference(source: Path | None, image_id: str, size: tuple[int, int], keep_patient: bool) -> Dataset:
    """What an object takes from its image: identifiers, size, and the patient's data where it is to keep them."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in PATIENT:
        setattr(image, name, "")
    if source is None:
        image.SOPClassUID, (image.Rows, image.Columns) = SecondaryCaptureImageStorage, size
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(image, name, generate_uid(entropy_srcs=[name, ascii(image_id)]))
        return image
    try:
        with dicom_images.opened(source, stop_before_pixels=True) as given:
            for name in REFERENCE:
                setattr(image, name, given[name].value)
    except OSError as error:
        raise DataError(f"{source}: not a DICOM image that a segmentation can refer to ({error})") from error
    if (image.Rows, image.Columns) != size:
        raise DataError(f"{source}: {image.Rows} x {image.Columns} pixels, but the masks of {image_id} are {size}")
    for name in PATIENT if keep_patient else []:
        if name in given:
            setattr(image, name, given[name].value)
    return image


class SegFiles(Mapping[str, dict[str, dict]]):
    """A folder of DICOM SEG files, or one file, as a mapping of image id (the file's name) -> {task: mask}."""

    def __init__(self, place: Path, aliases: Mapping[str, str]):
        self.paths = {}
        for path in image_folder.find([place], (".dcm", ".dicom")).values():
            self.paths[check_id(image_folder.text_of(path.name[: -len(path.suffix)]), path)] = path
        self._aliases = dict(aliases)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __getitem__(self, image_id: str) -> dict[str, dict]:
        return read(self.paths[image_id], self._aliases)


def read(path: Path, aliases: Mapping[str, str]) -> dict[str, dict]:
    """The masks of one file, by its segments' labels. DataError for anything but a binary segmentation of one image."""
    try:
        with dicom_images.opened(path) as found:
            size, labels, numbers, pixels = _read(found, path)
    except OSError as error:
        raise DataError(f"{path}: not a DICOM segmentation of one image ({error})") from error
    masks = {}
    for number, label in labels.items():
        task = check_task(aliases.get(label, label), path)
        if task in masks:
            raise DataError(f"{path}: two segments are called {task!r}; rename one of them")
        masks[task] = rle.encode(pixels[numbers.index(number)][None])[0] if number in numbers else rle.empty(size)
    return masks


def _read(found: Dataset, path: Path) -> tuple[tuple[int, int], dict[int, str], list[int], np.ndarray]:
    """Size, labels by segment, and the segment of each frame of the pixels (frames, h, w)."""
    if found.get("SegmentationType") != "BINARY":
        raise DataError(f"{path}: {found.get('SegmentationType', 'no')} segmentation; only BINARY ones are read")
    size = check_size((found.Rows, found.Columns), str(path))
    segments = list(found.SegmentSequence)
    labels = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in segments}
    if not all(isinstance(segment.SegmentLabel, str) for segment in segments):
        raise DataError(f"{path}: a segment has several labels; make it again with one")
    numbers = [_segment_number(frame, found) for frame in found.PerFrameFunctionalGroupsSequence]
    if int(found.get("NumberOfFrames") or len(numbers)) != len(numbers):
        raise DataError(f"{path}: {found.NumberOfFrames} frames, but it tells of {len(numbers)}; make it again")
    if len(labels) < len(segments):
        raise DataError(f"{path}: two of its segments have one number; make it again")
    if len(numbers) > len(set(numbers)) or not set(numbers) <= set(labels):
        raise DataError(f"{path}: {len(numbers)} frames of {len(labels)} segments; expected one frame a segment")
    check_room([size] * len(labels), str(path))
    pixels = np.reshape(found.pixel_array, (len(numbers), *size)) if numbers else np.zeros((0, *size), np.uint8)
    return size, labels, numbers, pixels


def _segment_number(frame: Dataset, whole: Dataset) -> int:
    groups = frame if "SegmentIdentificationSequence" in frame else whole.SharedFunctionalGroupsSequence[0]
    return int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
