"""Labels and images: what CheXpert's files hold, under which folders they lie, and what is wrong with bad ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chexseg.data import chexpert, label_files
from chexseg.data.images import fit_shape, fit_square, normalise, read_image
from chexseg.errors import DataError

TASKS = ("Airspace Opacity", "Edema")
ALIASES = {"Lung Opacity": "Airspace Opacity"}
IDS = ["patient00001_study1_view1_frontal", "patient00002_study1_view1_lateral"]


def write_csv(path, **columns):
    ids = ("patient00001/study1/view1_frontal", "patient00002/study1/view1_lateral")
    paths = [f"CheXpert-v1.0/train/{name}.jpg" for name in ids]
    pd.DataFrame({"Path": paths, "Lung Opacity": [1.0, None], "Edema": [-1.0, 0.0], **columns}).to_csv(
        path, index=False
    )
    return path


def test_labels(tmp_path):
    frame = chexpert.read_labels(write_csv(tmp_path / "train.csv"), TASKS, ALIASES)
    assert list(frame.index) == IDS
    np.testing.assert_array_equal(frame[list(TASKS)].to_numpy(), np.array([[1, -1], [np.nan, 0]], np.float32))


def test_frontal_by_column_or_by_name(tmp_path):
    without = chexpert.read_labels(write_csv(tmp_path / "a.csv"), TASKS, ALIASES)
    assert list(label_files.of_views(without).index) == IDS[:1]
    swapped = {"Frontal/Lateral": ["Lateral", "Frontal"]}
    with_column = chexpert.read_labels(write_csv(tmp_path / "b.csv", **swapped), TASKS, ALIASES)
    assert list(label_files.of_views(with_column).index) == IDS[1:]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Edema": [2.0, 0.0]}, r"train.csv: line 2, 'Edema': .*2.0.* is not 1, 0, -1 or empty"),
        ({"Edema": [0.0, "yes"]}, r"line 3, 'Edema': 'yes'"),
        ({"Path": ["a/patient1/study1/view1_frontal.jpg"] * 2}, "patient1_study1_view1_frontal occurs twice"),
    ],
)
def test_wrong_labels_are_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        chexpert.read_labels(write_csv(tmp_path / "train.csv", **columns), TASKS, ALIASES)


def test_an_observation_without_a_column_is_unknown_and_named(tmp_path, caplog):
    path = write_csv(tmp_path / "train.csv")
    frame = chexpert.read_labels(path, (*TASKS, "Fracture"), ALIASES)
    assert (frame["Fracture"] == chexpert.NO_COLUMN).all() and "no column of Fracture" in caplog.text
    assert frame["Edema"].tolist() == [-1, 0]


def test_a_file_without_any_observation_and_a_missing_one_are_named(tmp_path):
    path = write_csv(tmp_path / "train.csv")
    with pytest.raises(
        DataError, match=r"train.csv: no column 'Fracture', nor any other.* the file has Path, Airspace"
    ):
        chexpert.read_labels(path, ("Fracture",), ALIASES)
    with pytest.raises(DataError, match="nothing.csv: no such file"):
        chexpert.read_labels(tmp_path / "nothing.csv", TASKS, ALIASES)


@pytest.mark.parametrize("root", ["CheXpert/CheXpert-v1.0", "CheXpert/CheXpert-v1.0-small", "CheXpert"])
@pytest.mark.parametrize(
    ("folder", "split"), [("train", "train"), ("valid", "valid"), ("val", "valid"), ("test", "test")]
)
def test_images_are_found_under_every_usual_root(tmp_path, root, folder, split):
    path = tmp_path / root / folder / "patient00001" / "study1" / "view1_frontal.jpg"
    path.parent.mkdir(parents=True)
    path.touch()
    assert chexpert.find_image(tmp_path, IDS[0], split) == path
    assert chexpert.find_image(tmp_path, IDS[0]) == path
    relative = f"{folder}/patient00001/study1/view1_frontal.jpg"
    for listed in (f"CheXpert-v1.0/{relative}", relative):
        assert chexpert.csv_image_path(tmp_path, listed) == path


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match="patient00001_study1_view1_frontal: no image .* in valid, val"):
        chexpert.find_image(tmp_path, IDS[0], "valid")
    with pytest.raises(DataError, match="rabbit: no image below"):
        chexpert.find_image(tmp_path, "rabbit")


def test_truncated_jpeg_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cut.jpg: cannot be decoded .*truncated"):
        read_image(path)
    path.write_text("not an image")
    with pytest.raises(DataError, match="cut.jpg: cannot be decoded"):
        read_image(path)


def test_decoding_png_of_8_and_16_bits_and_colour(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for name, image in {
        "grey": Image.fromarray(grey),
        "colour": Image.fromarray(np.repeat(grey[..., None], 3, 2)),
    }.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), grey)
    Image.fromarray(grey.astype(np.uint16) * 100).save(tmp_path / "deep.png")
    # 16 bits are spread over 0..255: 0 stays 0, 220 * 100 becomes 255.
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.round(grey * (255 / 220)).astype(np.uint8))


@pytest.mark.parametrize(("interpretation", "expected"), [("MONOCHROME2", [[0, 255]]), ("MONOCHROME1", [[255, 0]])])
def test_dicom(tmp_path, interpretation, expected):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dataset.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 1, 2, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = interpretation
    dataset.PixelData = np.array([[100, 3000]], np.uint16).tobytes()
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert read_image(tmp_path / "x.dcm").tolist() == expected
    (tmp_path / "bad.dcm").write_bytes(b"nothing")
    with pytest.raises(DataError, match="bad.dcm: cannot be decoded"):
        read_image(tmp_path / "bad.dcm")


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 50), (32, 16)), ((50, 100), (16, 32)), ((7, 7), (32, 32)), ((1000, 1), (32, 1))]
)
def test_fit_keeps_the_aspect_ratio_and_pads_with_black(shape, expected):
    square = fit_square(np.full(shape, 200, np.uint8), 32)
    assert fit_shape(*shape, 32) == expected
    assert square.shape == (32, 32)
    assert (square[: expected[0], : expected[1]] == 200).all()
    assert square.sum() == 200 * expected[0] * expected[1]


def test_normalise():
    pixels = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    imagenet = normalise(pixels, "imagenet")
    assert imagenet.shape == (1, 3, 1, 2)
    assert imagenet[0, 2, 0].tolist() == pytest.approx([-0.406 / 0.225, (1 - 0.406) / 0.225])
    assert normalise(pixels, "chexpert")[0, :, 0, 1].tolist() == pytest.approx([(1 - 0.5020) / 0.085585] * 3)


def test_patient_of_an_image():
    assert chexpert.patient_of(IDS[0]) == "patient00001"
