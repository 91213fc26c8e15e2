"""doctor.py on nothing, a phantom, phantoms with something wrong, a finished run, and a run of another name."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import constants
import doctor
from chexseg.classifier import models, saliency_store
from chexseg.data import chexpert, label_files, stage_states
from chexseg.errors import DataError
from chexseg.phantom import dataset
from chexseg.phantom.presets import Spec
from chexseg.runtime import checks

SMALL = "--encoder resnet10w32 --image_size 64 --expert_len 6 --subset_len 12 --timing False".split()
RELEASE = Path("data/CheXpert/CheXpert-v1.0")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """X-rays, and a classifier that was never trained. Read it, never write to it."""
    root = tmp_path_factory.mktemp("doctor") / "phantom"
    dataset.generate(Spec(22, 10, 8, 64, 0, cover=True), root / "data", root / "data" / "labels")
    (root / "base").mkdir()
    spec = models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS, image_size=64)
    models.save_classifier(root / "c" / "c.ckpt", models.Classifier(spec))
    return root


@pytest.fixture
def copy(phantom, tmp_path):
    """A phantom of one's own, to spoil."""
    shutil.copytree(phantom, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def look(monkeypatch, capsys):
    """`look(root, *options)` -> what the doctor printed, and the error that ended it ("" for none)."""

    def run(root, *options):
        folders = ("data", "base", "data/labels")
        for name, folder in zip(constants.folders(), folders, strict=True):
            monkeypatch.setenv(name, str(root / folder))
        error = ""
        try:
            doctor.main(doctor.build_parser().parse_args([*SMALL, *map(str, options)]))
        except DataError as problem:
            error = str(problem)
        return " ".join(capsys.readouterr().out.split()), error

    return run


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_nothing_set(monkeypatch, capsys, tmp_path):
    for name in constants.folders():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "_DEFAULTS", {name: tmp_path / name for name in constants.folders()})
    with pytest.raises(DataError, match="CHEXPERT_DATA_DIR: not set, and .* is not there; and 2 more"):
        doctor.main(doctor.build_parser().parse_args([]))
    shown = capsys.readouterr().out
    assert "-> export OBJ_EFFICIENCY_BASE_PATH=<folder" in shown and "STAGES" not in shown
    assert list(tmp_path.iterdir()) == []


def test_the_phantom_is_ready(phantom, look):
    before = files(phantom)
    shown, error = look(phantom, "--ckpt_path", phantom / "c" / "c.ckpt")
    assert error == "" and "MISSING" not in shown and "BAD" not in shown and "BLOCKED" not in shown
    assert "train.csv: 22 images" in shown and "ok valid images all" in shown
    assert "classifier" in shown and "resnet10w32, 14 tasks, 64 px" in shown
    assert "NEXT python test.py --ckpt_path" in shown and "--save_train_cams True" in shown
    for stage in ("valid maps", "train full_plus", "train chexseg_plus", "quality", "test pseudo masks", "tables"):
        assert f" {stage} " in shown.split("STAGES")[1]
    assert files(phantom) == before  # nothing is written


def test_room_is_asked_for_what_is_still_to_be_written(copy, look, monkeypatch):
    """A disk that the run has filled is no obstacle to what is left of it."""
    free = type("Usage", (), {"free": 2e9})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: free)
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert "disk" in shown.lower() and "room: 2 GB free" in error
    monkeypatch.setattr(stage_states, "state", lambda stage: stage_states.FINISHED)
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert error == "" and "about 0 GB needed" in shown


def test_without_a_checkpoint_one_would_be_trained_from_weights_that_are_not_there(phantom, look):
    shown, error = look(phantom)
    assert "MISSING classifier weights" in shown and "no ImageNet weights of resnet10w32" in error
    assert "BLOCKED by classifier weights" in shown
    assert "NEXT python localization_eval/gt_segmentation.py" in shown  # what can be done meanwhile


@pytest.mark.parametrize(
    ("options", "expected", "blocked"),
    [
        (("--subset_len", 100), r"pseudo set: \d+ training images, 100 of them for CheXseg's subset", "train chexseg"),
        (("--expert_len", 147), r"expert set: \d+ validation images show a finding; 147 are for", "train full"),
        (("--encoder", "resnet18"), "segmentation networks' encoder is resnet18, which cannot", "train weak_cam"),
    ],
)
def test_what_would_stop_the_pipeline_after_days_is_said_now(phantom, look, options, expected, blocked):
    shown, error = look(phantom, "--ckpt_path", phantom / "c" / "c.ckpt", *options)
    assert re.search(expected, error) and "; and" not in error  # the only problem
    assert "BLOCKED" in shown.split(f" {blocked} ")[1].split(" predicted masks ")[0]
    assert "BLOCKED" not in shown.split(" saliency maps ")[1].split(" expert split ")[0]


def test_a_missing_column(copy, look):
    path = copy / RELEASE / "valid.csv"
    path.write_text(path.read_text().replace("Lung Opacity", "Opacity of the lung", 1))
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert "odd valid labels" in shown and "valid.csv: no column of Airspace Opacity" in shown and not error
    assert "ok train labels" in shown  # all else is looked at
    path.write_text("Path\n" + "".join(line.split(",")[0] + "\n" for line in path.read_text().splitlines()[1:]))
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert "BAD valid labels" in shown and "valid.csv: no column 'No Finding', nor any other" in error


@pytest.mark.parametrize("damage", ["truncated", "no image", "gone", "tiny"])
def test_a_folder_with_one_broken_file(copy, look, damage):
    image = sorted((copy / RELEASE / "train").rglob("*_frontal.jpg"))[3]
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:-40])
    elif damage == "no image":
        image.write_bytes(b"<html>not found</html>")
    elif damage == "gone":
        image.unlink()
    else:
        from PIL import Image

        Image.new("L", (8, 8)).save(image)
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt", "--sample", 2)
    assert "train images" in error and "1 " in error
    assert (chexpert.image_id(image) if damage == "gone" else str(image)) in error
    assert "BLOCKED by train images" in shown and "NEXT python test.py" in shown  # the test set's maps


def test_annotations_that_do_not_fit(copy, look):
    path = copy / "data" / "labels" / "gt_annotations_test.json"
    content = json.loads(path.read_text())
    first, second, third, *_ = content
    content[first]["img_size"] = [1000, 2000]
    content[second]["Nodule"] = [[[1, 1], [5, 1], [5, 5]]]
    content["patient99999_study1_view1_frontal"] = content.pop(third)
    path.write_text(json.dumps(content))
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert f"1 of another size than their image: {first} (1000 x 2000, its image" in shown
    assert "tasks that no stage uses: Nodule" in shown
    assert f"1 of {len(content)} images are not there: patient99999" in shown
    assert "1 images have a finding by their label and no outline" in shown and third in shown
    assert "test outlines" in error


def test_no_annotations(copy, look):
    (copy / "data" / "labels" / "gt_annotations_valid.json").unlink()
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert "valid outlines" in error and "no such annotation file" in error
    assert "BLOCKED by valid outlines" in shown


def test_patients_in_two_sets_are_odd(copy, look):
    train, valid = (copy / RELEASE / f"{name}.csv" for name in ("train", "valid"))
    line = next(line for line in train.read_text().splitlines() if "frontal" in line)
    valid.write_text(valid.read_text() + line + "\n")
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert error == "" and "odd patients 1 patients are in train and in valid" in shown


@pytest.mark.parametrize("content", [b"no checkpoint", None])
def test_a_checkpoint_that_cannot_be_read(copy, look, content):
    path = copy / "c" / "c.ckpt"
    path.unlink() if content is None else path.write_bytes(content)
    shown, error = look(copy, "--ckpt_path", path)
    assert "classifier: " in error and str(path) in error and "BLOCKED by classifier" in shown


def write_maps(run, data, ids=None):
    """A run's store, with a map for each training image."""
    csv = chexpert.split_csv(data, "train")
    ids = ids or list(label_files.of_views(chexpert.read_labels(csv, constants.OBSERVATIONS, constants.ALIASES)).index)
    rng = np.random.default_rng(0)
    records = [
        {
            "id": image_id,
            "maps": rng.random((14, 2, 2), np.float32),
            "probabilities": rng.random(14, np.float32),
            "size": (64, 64),
        }
        for image_id in ids
    ]
    shards = saliency_store.StoreShards(constants.OBSERVATIONS, 64, len(ids))
    (run / "cams").mkdir(parents=True)
    shards.write(records, run / "part")
    shards.merge([run / "part"], run / saliency_store.STORE)
    (run / "part").unlink()


def test_a_run_of_another_name_is_taken_and_said(copy, look):
    run = copy / "base" / "train_cams" / "theirs_epoch=2.ckpt"
    write_maps(run, copy / "data")
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert error == ""
    assert f"odd saliency maps none of c_c.ckpt, which the checkpoint would have; there is {run}" in shown
    assert "there, unknown from what" in shown and "BLOCKED" not in shown
    write_maps(copy / "base" / "train_cams" / "others_x.ckpt", copy / "data")
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert "name one with --map_dir" in shown
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt", "--map_dir", run)
    assert error == "" and "odd saliency maps" not in shown


def test_maps_of_other_images_are_odd(copy, look):
    run = copy / "base" / "train_cams" / "c_c.ckpt"
    write_maps(run, copy / "data", ["patient99999_study1_view1_frontal"])
    shown, error = look(copy, "--ckpt_path", copy / "c" / "c.ckpt")
    assert error == "" and "1 maps are of other images" in shown


def test_a_finished_run(tiny_run, look):
    before = files(tiny_run.root)
    checkpoint = tiny_run.root / "base" / "models" / "tiny" / "c.ckpt"
    shown, error = look(tiny_run.root, "--ckpt_path", checkpoint)
    assert error == ""
    stages = shown.split("STAGES", 1)[1].split("NEXT")[0]
    for stage in ("saliency maps", "relation labels", "boundary network", "pseudo masks", "expert masks"):
        line = stages.split(f" {stage} ", 1)[1]
        assert line.split(" images ")[1].startswith("finished"), stage
    assert "ok saliency maps" in shown and "ok boundary network" in shown
    assert "NEXT python test.py" in shown and "test_cams" in shown  # this run has no maps of the test set
    assert files(tiny_run.root) == before
