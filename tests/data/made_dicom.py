"""DICOM X-rays made for tests, with everything about a patient that must reach no output."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "SECRET-4711",
    "PatientBirthDate": "19500102",
    "PatientAddress": "Elm Street 9",
    "AccessionNumber": "ACC-0815",
    "StudyDate": "20200229",
    "InstitutionName": "St. Elsewhere",
    "ReferringPhysicianName": "Roe^Richard",
    "StationName": "ROOM-101",
    "StudyDescription": "Chest of Jane",
}


def dicom(path: Path, pixels: np.ndarray, *, compress: bool = False, **fields) -> Path:
    """Write `pixels` (h, w) uint8 or uint16. `fields` replace others; None removes one."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = ComputedRadiographyImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    for name, value in SECRETS.items():
        setattr(image, name, value)
    bits = pixels.itemsize * 8
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.Rows, image.Columns = pixels.shape[:2]
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in fields.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    if compress:
        image.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path
