"""X-rays of every kind of file as (H, W) uint8, by hand; what is no film is refused by name."""

import numpy as np
import pytest
from PIL import Image

from chexseg.data import dicom_images
from chexseg.data.images import read_film, read_image
from chexseg.errors import DataError
from tests.data.made_dicom import SECRETS, dicom

RAMP = np.arange(0, 256, dtype=np.uint8).reshape(8, 32)  # 0 ... 255
DEEP = RAMP.astype(np.uint16) * 16  # 12 bits: 0 ... 4080


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.TIFF", "a.bmp"])
def test_eight_bits_are_taken_as_they_are(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), RAMP)


def test_jpeg_in_either_case(tmp_path):
    for name in ("a.jpg", "b.JPEG"):
        Image.fromarray(RAMP).save(tmp_path / name, quality=95)
        assert np.abs(read_image(tmp_path / name).astype(int) - RAMP).mean() < 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_fill_the_range(tmp_path, name):
    Image.fromarray(DEEP).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), RAMP)


@pytest.mark.parametrize("pixels", [RAMP, DEEP])
def test_tiff_whose_white_is_zero(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    found = read_image(tmp_path / "a.tif")
    if pixels is DEEP:
        np.testing.assert_array_equal(found, RAMP[::-1, ::-1])
    else:  # Pillow writes what it will read
        assert sorted(np.unique(found)) == list(range(256))


def test_colour_and_transparency_become_grey(tmp_path):
    for mode in ("RGB", "RGBA", "LA", "P"):
        Image.fromarray(RAMP).convert(mode).save(tmp_path / f"{mode}.png")
        assert np.abs(read_image(tmp_path / f"{mode}.png").astype(int) - RAMP).max() <= 1


def test_float_tiff_with_values_that_are_no_number(tmp_path):
    pixels = RAMP.astype(np.float32)
    pixels[0, 5] = np.nan
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").max() == 255


def test_tiff_of_several_pages_is_refused(tmp_path):
    page = Image.fromarray(RAMP)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="a.tif: cannot be decoded .2 pages"):
        read_image(tmp_path / "a.tif")


def test_only_formats_of_films_are_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(DataError, match="a.png: cannot be decoded"):
        read_image(tmp_path / "a.png")


# DICOM


def test_monochrome2_rises_and_monochrome1_falls(tmp_path):
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "2.dcm", DEEP)), RAMP)
    falling = dicom(tmp_path / "1.DCM", DEEP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(falling), RAMP[::-1, ::-1])


@pytest.mark.parametrize("name", ["a.dcm", "a.DICOM", "IM000001", "1.2.840.113"])
def test_dicom_by_suffix_or_by_its_mark(tmp_path, name):
    np.testing.assert_array_equal(read_image(dicom(tmp_path / name, RAMP)), RAMP)


def test_run_length_compression(tmp_path):
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "a.dcm", DEEP, compress=True)), RAMP)


def test_rescale_then_window(tmp_path):
    path = dicom(
        tmp_path / "a.dcm", DEEP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000.5, WindowWidth=2001
    )
    # After rescaling, the window shows 0 ... 2000: stored values 500 ... 1500.
    expected = np.clip((DEEP * 2.0 - 1000) / 2000, 0, 1) * 255
    assert np.abs(read_image(path) - expected).max() <= 1


def test_lookup_table(tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], np.arange(65535, -1, -257, dtype=np.uint16).tobytes()
    path = dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table])
    np.testing.assert_array_equal(read_image(path), RAMP[::-1, ::-1])


@pytest.mark.parametrize("kind, black", [("MONOCHROME2", 60000), ("MONOCHROME1", 60000)])
def test_padding_is_black_and_does_not_squeeze_the_film(tmp_path, kind, black):
    pixels = DEEP.copy()
    pixels[0] = black
    found = read_image(dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=black, PhotometricInterpretation=kind))
    assert not found[0].any() and found[1:].min() == 0 and found.max() == 255


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, (None, "")),
        ({"PixelSpacing": [0.15, 0.14]}, ((0.15, 0.14), "")),
        ({"ImagerPixelSpacing": [0.2, 0.2]}, ((0.2, 0.2), "detector")),
        ({"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 1.25}, ((0.16, 0.16), "")),
        ({"PixelSpacing": [0.15, 0.14], "ImagerPixelSpacing": [0.2, 0.2]}, ((0.15, 0.14), "")),
        ({"PixelSpacing": [0, 0.1]}, (None, "")),
        ({"PixelSpacing": [0.1, 0.1, 0.1]}, (None, "")),
    ],
)
def test_spacing(tmp_path, fields, expected):
    film = read_film(dicom(tmp_path / "a.dcm", RAMP, **fields))
    assert (film.spacing and tuple(round(v, 6) for v in film.spacing), film.spacing_at) == expected


@pytest.mark.parametrize(
    "said, fields",
    [
        ("3 frames", {"NumberOfFrames": 3}),
        ("RGB of 3 samples", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("PALETTE COLOR", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("no pixels in it", {"PixelData": None}),
        ("0 x 32 pixels", {"Rows": 0}),
        ("65535 x 65535 pixels", {"Rows": 65535, "Columns": 65535}),
        ("DICOM", {"Rows": 4000}),
        ("no kind of pixel", {"PhotometricInterpretation": None}),
        ("DICOM", {"BitsAllocated": 17}),
    ],
)
def test_dicom_files_that_are_no_film_are_refused_by_name(tmp_path, said, fields):
    path = dicom(tmp_path / "film.dcm", RAMP, **fields)
    with pytest.raises(DataError, match=f"film.dcm: cannot be decoded .DICOM.*{said}|film.dcm.*{said}") as error:
        read_image(path)
    assert not any(secret in str(error.value) for secret in SECRETS.values())


@pytest.mark.parametrize("data", [b"", b"junk", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0"])
def test_files_that_are_no_dicom_are_refused_by_name(tmp_path, data):
    (tmp_path / "film.dcm").write_bytes(data)
    with pytest.raises(DataError, match="film.dcm: cannot be decoded"):
        read_image(tmp_path / "film.dcm")


def test_a_cut_file_is_refused_by_name(tmp_path):
    path = dicom(tmp_path / "film.dcm", DEEP)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="film.dcm: cannot be decoded"):
        read_image(path)


def test_nothing_of_a_patient_is_read(tmp_path, monkeypatch):
    import pydicom

    seen = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: seen.append(read(*a, **k)) or seen[-1])
    dicom_images.read(dicom(tmp_path / "a.dcm", RAMP))
    assert seen and not set(SECRETS) & {element.keyword for element in seen[0]}
