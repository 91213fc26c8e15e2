"""DICOM SEG: highdicom reads ours; patients stay out of them; what is no segmentation is named."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from chexseg.data import dicom_seg, mask_formats, rle
from chexseg.errors import DataError
from tests.data.entries import TASKS, convert, random_entries


def dicom_image(path: Path, size: tuple[int, int]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = ComputedRadiographyImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "4711", "19500101", "F"
    image.AccessionNumber, image.StudyDate, image.InstitutionName = "ACC-77", "20200101", "St. Elsewhere"
    image.ReferringPhysicianName = "Roe^Richard"
    image.Rows, image.Columns = size
    image.save_as(path, enforce_file_format=True)
    return image


def test_highdicom_reads_the_segmentation(tmp_path):
    hd = dicom_seg.highdicom()
    entries = random_entries(3, count=4)
    folder, _ = convert(tmp_path, entries, "dicom")
    for name, entry in entries.items():
        seg = hd.seg.segread(folder / f"{name}.dcm")
        assert [s.segment_label for s in map(seg.get_segment_description, seg.segment_numbers)] == list(entry)
        ((_, _, source),) = seg.get_source_image_uids()
        pixels = seg.get_pixels_by_source_instance([source], assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(np.moveaxis(pixels[0], -1, 0), rle.decode(list(entry.values())))


@pytest.mark.parametrize("keep_patient", [False, True])
def test_a_segmentation_refers_to_its_image_and_keeps_the_patient_only_on_request(tmp_path, keep_patient):
    size = (6, 9)
    image = dicom_image(tmp_path / "film.dcm", size)
    entries = {"film": {"Edema": rle.encode(np.eye(*size, dtype=np.uint8)[None])[0]}}
    images = {"film": tmp_path / "film.dcm"}
    folder, found = convert(tmp_path, entries, "dicom", images=images, keep_patient=keep_patient)
    assert found == entries
    seg = pydicom.dcmread(folder / "film.dcm")
    assert seg.StudyInstanceUID == image.StudyInstanceUID
    assert (
        seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    )
    data = (folder / "film.dcm").read_bytes()
    for word in (b"Doe", b"4711", b"19500101", b"ACC-77", b"20200101"):
        assert (word in data) == keep_patient
    assert b"Elsewhere" not in data and b"Roe" not in data


def test_a_dicom_image_of_another_size_is_named(tmp_path):
    dicom_image(tmp_path / "film.dcm", (6, 9))
    with pytest.raises(DataError, match="film.dcm: 6 x 9 pixels"):
        convert(tmp_path, {"film": {"Edema": rle.empty((9, 6))}}, "dicom", images={"film": tmp_path / "film.dcm"})


def test_dicom_files_that_are_no_segmentations_are_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    dicom_image(folder / "a.dcm", (3, 3))
    with pytest.raises(DataError, match="a.dcm: no segmentation"):
        dict(mask_formats.read("dicom", folder, {}, TASKS))
    (folder / "a.dcm").write_bytes(b"not DICOM")
    with pytest.raises(DataError, match="a.dcm"):
        dict(mask_formats.read("dicom", folder, {}, TASKS))
