"""Label files of every data set become one table: ids, observations, views, patients, and where the images lie."""

import re

import numpy as np
import pytest

import constants
from chexseg.data import chexpert, image_folder, label_files
from chexseg.errors import DataError, MissingError
from chexseg.segmentation import dataset
from tests.data.layouts import COUNT, LAYOUTS, table


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_becomes_one_table(tmp_path, name):
    laid = LAYOUTS[name](tmp_path)
    csv = laid.train or chexpert.split_csv(tmp_path, "train")
    frame = label_files.of_views(chexpert.read_labels(csv, constants.OBSERVATIONS, constants.ALIASES, "train"))
    assert sorted(frame.index) == sorted(laid.truth) and len(frame) == COUNT
    for image_id, row in laid.truth.items():
        np.testing.assert_array_equal(frame.loc[image_id, list(row)].to_numpy(float), list(row.values()))
    images = chexpert.ImageSet(tmp_path, frame, csv)
    for image_id in frame.index:
        path = images.path(image_id)
        assert path.is_file() and chexpert.locate(tmp_path, image_id, ("train", "valid", "test")) == path
        assert image_folder.image_id(path.relative_to(tmp_path)).endswith(image_id)
    patients = chexpert.read_patients(csv) if "patient_id" in frame else {}
    assert {chexpert.patient_of(n, patients) for n in laid.patients} == set(laid.patients.values())
    valid = laid.valid or chexpert.split_csv(tmp_path, "valid")
    assert len(label_files.of_views(chexpert.read_labels(valid, ("Edema", "Cardiomegaly"), {}, "valid"))) == COUNT


@pytest.mark.parametrize("name", ["chexpert", "chexlocalize", "mimic"])
def test_views(tmp_path, name):
    laid = LAYOUTS[name](tmp_path)
    csv = laid.train or chexpert.split_csv(tmp_path, "train")
    frame = chexpert.read_labels(csv, constants.OBSERVATIONS, constants.ALIASES, "train")
    parts = {views: list(label_files.of_views(frame, views).index) for views in label_files.VIEWS}
    assert parts["all"] == list(frame.index) and len(parts["frontal"]) == len(parts["lateral"]) == COUNT
    assert not set(parts["frontal"]) & set(parts["lateral"])
    assert set(parts["frontal"]) == set(laid.truth)
    with pytest.raises(ValueError, match="oblique"):
        label_files.of_views(frame, "oblique")


def test_a_blank_view_is_told_by_the_name(tmp_path):
    csv = table(tmp_path / "a.csv", ["Path", "Frontal/Lateral", "Edema"], [["a_lateral.png", "", 1], ["b.png", "", 0]])
    assert list(label_files.of_views(chexpert.read_labels(csv, ("Edema",), {})).index) == ["b"]


def test_strange_findings_are_named_and_left_out(tmp_path, caplog):
    rows = [["a.png", "Effusion|Gout"], ["b.png", "Gout"]]
    csv = table(tmp_path / "a.csv", ["Image Index", "Finding Labels"], rows)
    frame = chexpert.read_labels(csv, ("Pleural Effusion", "Edema"), {})
    assert frame["Pleural Effusion"].tolist() == [1, 0] and frame["Edema"].tolist() == [-2, -2]
    assert "left out: gout" in caplog.text and "Path" in frame


def test_readers_who_do_not_agree(tmp_path):
    """Most of those who said something; half of them: uncertain; nobody: not mentioned."""
    rows = [["a", 1, 1, ""], ["a", 2, 0, ""], ["b", 1, 1, 0], ["b", 2, 1, ""], ["b", 3, "", 1], ["b", 4, 0, 0]]
    csv = table(tmp_path / "a.csv", ["image_id", "rad_ID", "Edema", "No finding"], rows)
    frame = chexpert.read_labels(csv, ("Edema", "No Finding"), {})
    assert frame["Edema"].tolist() == [-1, 1]
    np.testing.assert_array_equal(frame["No Finding"], [np.nan, 0])
    table(csv, ["image_id", "rad_ID", "Edema", "No finding"], [["a", 1, 2, 0]])
    with pytest.raises(DataError, match="line 2, 'Edema': .*2.* is not 1, 0 or empty"):
        chexpert.read_labels(csv, ("Edema",), {})


def test_a_list_of_patients_may_hold_labels(tmp_path):
    """Whatever its columns are called: what reads VinDr-CXR's readers would lose the patients, and refuse a -1."""
    csv = table(tmp_path / "a.csv", ["image_id", "patient_id", "Edema", "No finding"], [["a", "p", -1, 0]])
    frame = chexpert.read_labels(csv, ("Edema",), {})
    assert frame["Edema"].tolist() == [-1] and frame["patient_id"].tolist() == ["p"]


def test_every_name_in_the_table_means_columns_of_chexpert():
    columns = {constants.ALIASES.get(name, name) for names in label_files.FINDINGS.values() for name in names}
    assert columns <= set(constants.OBSERVATIONS)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["Image", "Edema"], "no column 'Path'; it has Image, Edema; label files that are known: CheXpert, .*NIH"),
        (["subject_id", "study_id", "Edema"], "metadata.csv is missing, which names the images"),
        (["Study", "Edema"], "test_image_paths.csv: no such file"),
    ],
)
def test_what_is_missing_is_named(tmp_path, header, message):
    csv = table(tmp_path / "a.csv", header, [[1] * len(header)])
    with pytest.raises(DataError, match=message):
        chexpert.read_labels(csv, ("Edema",), {})


def test_a_row_without_a_path_is_refused_and_an_empty_one_skipped(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Path,Sex,Edema\na.png,Male,1\n,,\nb.png,,\n")
    assert label_files.read(path)["Path"].tolist() == ["a.png", "b.png"]
    path.write_text("Path,Sex,Edema\na.png,Male,1\n,,\n,,0\n")
    with pytest.raises(DataError, match=r"mine\.csv: line 4: no 'Path', though other cells .* or delete the row"):
        label_files.read(path)


def test_patients_by_id_or_path(tmp_path):
    csv = table(tmp_path / "a.csv", ["image_id", "patient_id"], [["x__1", "007"], ["x__2", "8"]])
    assert chexpert.read_patients(csv) == {"x__1": "007", "x__2": "8"}
    assert chexpert.patient_of("patient1_study1_view1", {"patient1_study1_view1": "other"}) == "patient1"
    csv = table(tmp_path / "b.csv", ["Path", "Edema"], [["x.png", 1]])
    with pytest.raises(DataError, match="b.csv: no column 'patient_id'"):
        chexpert.read_patients(csv)


def test_an_image_is_found_by_the_end_of_its_path(tmp_path):
    for name in ("a/b/x.png", "a/c/x.png", "a/c/y.png", "patient1/study1/view1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for image_id, name in {
        "a__b__x": "a/b/x.png",
        "c__x": "a/c/x.png",
        "y": "a/c/y.png",
        "patient1_study1_view1": "patient1/study1/view1.png",
    }.items():
        assert chexpert.locate(tmp_path, image_id, ("train", "test")) == tmp_path / name
    with pytest.raises(DataError, match=r"x: .*a/b/x.png and .*a/c/x.png both end in this id") as twice:
        chexpert.find_image(tmp_path, "x")
    assert not isinstance(twice.value, MissingError)  # of which there is nothing for doctor.py to say
    for name, kind in (("x", DataError), ("rabbit", MissingError)):
        with pytest.raises(DataError, match=f"masks.json: {name}: .*; see --image_dir") as ended:
            dataset.locate_all(tmp_path, [name], ("train",), tmp_path / "masks.json")
        assert type(ended.value) is kind
        with pytest.raises(DataError, match=f"a.csv: {name}: ") as ended:
            chexpert.csv_image_path(tmp_path, f"{name}.png", tmp_path / "a.csv")
        assert type(ended.value) is kind
    with pytest.raises(DataError, match=re.escape(f"rabbit: no image below {tmp_path} has this id")):
        chexpert.find_image(tmp_path, "rabbit")
