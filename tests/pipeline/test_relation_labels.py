"""IRNet/convert_to_hdf5.py and cam_to_ir_label_hdf5.py on six small images: what they write and what they refuse."""

import h5py
import numpy as np
import pytest
import torch

import constants
from chexseg.classifier import saliency_store
from chexseg.data import chexpert
from chexseg.data.images import read_image, resize_square
from chexseg.irnet import crf
from tests.irnet.six_films import IDS, SIZE, TASKS, assert_light, assert_one_line, present, run

pytestmark = pytest.mark.usefixtures("six_films_environment")


def test_train_set_holds_images_and_maps(labelled_run, six_films):
    with h5py.File(labelled_run / "hdf5_files" / "train_set") as file:
        assert [name.decode() for name in file["cxr_base_names"][:]] == IDS
        assert file["cxr_images"].shape == (6, SIZE, SIZE) and file["cxr_images"].dtype == np.uint8
        assert file["cxr_cams"].shape == (6, 10, 3, 3) and file["cxr_cams"].dtype == np.float32
        image = read_image(chexpert.find_image(six_films / "data", IDS[4]))
        assert np.array_equal(file["cxr_images"][4], resize_square(image, SIZE))
        rows = [constants.OBSERVATIONS.index(t) for t in TASKS]
        assert np.array_equal(file["cxr_cams"][4], saliency_store.open_maps(labelled_run)[IDS[4]]["maps"][rows])


def test_relation_labels_of_present_findings(labelled_run):
    with (
        h5py.File(labelled_run / "hdf5_files" / "ir_labels") as file,
        h5py.File(labelled_run / "hdf5_files" / "train_set") as train,
    ):
        labels = file["ir_labels"]
        assert labels.shape == (6, 10, SIZE, SIZE) and labels.dtype == np.uint8 and labels.chunks == (1, 1, SIZE, SIZE)
        scale = {"bilateral_sxy": 50 * SIZE / 320, "gaussian_sxy": 3 * SIZE / 320}
        written = 0
        for i, here in enumerate(present()):
            expected = torch.full((10, SIZE, SIZE), 255, dtype=torch.uint8)
            if here.any():
                image, maps = torch.from_numpy(train["cxr_images"][i]), torch.from_numpy(train["cxr_cams"][i])
                expected[here] = crf.relation_labels(image, maps[here], **scale)
            assert np.array_equal(labels[i], expected)
            written += int((expected != 255).flatten(1).any(1).sum())
        assert set(np.unique(labels[:])) == {0, 1, 255}
        # What is absent, and the map that is all zero, takes no space.
        assert labels.id.get_num_chunks() == written < present().sum()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("IRNet/convert_to_hdf5.py", "nowhere/train_cams_paths.csv"),
        ("IRNet/cam_to_ir_label_hdf5.py", "convert_to_hdf5.py"),
    ],
)
def test_a_missing_run_is_named_in_one_line(labelled_run, script, words, capsys):
    assert_one_line(run(script, "--map_dir", "nowhere"), 1, words, capsys)


def test_up_to_date_it_needs_no_torch(labelled_run):
    assert_light("IRNet/cam_to_ir_label_hdf5.py")
