"""Phantom X-rays as files: layout, bytes, labels, and what a killed or foreign folder leads to."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import constants
import make_synthetic_chexpert
from chexseg.data import json_lines
from chexseg.errors import DataError
from chexseg.phantom import dataset, patients
from chexseg.phantom.images import annotate
from chexseg.phantom.patients import (
    OPACITY,
    TASKS,
)
from chexseg.phantom.presets import PRESETS, Spec

SCRIPT = Path(__file__).resolve().parents[2] / "make_synthetic_chexpert.py"
TINY = PRESETS["tiny"]
HEADER = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
HEADER += "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"


def run(*arguments, extra=None, **options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHEXPERT", "OBJ_", "TEST_SEG"))}
    environment |= extra or {}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is data: no locks, no manifests."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".jpg", ".csv", ".json"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "manifest" not in p.name}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    dataset.generate(TINY, folder, folder / "labels")
    return folder


def test_layout_is_that_of_chexpert_and_chexlocalize(tiny):
    release, labels = tiny / "CheXpert" / "CheXpert-v1.0", tiny / "labels"
    assert (release / "train.csv").read_text().splitlines()[0] == f"Path,Sex,Age,Frontal/Lateral,AP/PA,{HEADER}"
    assert (labels / "test_labels.csv").read_text().splitlines()[0] == f"Path,{HEADER}"
    for split, path, count in (
        ("train", release / "train.csv", 32),
        ("valid", release / "valid.csv", 16),
        ("test", labels / "test_labels.csv", 12),
    ):
        table = rows(path)
        assert len(table) == count
        for row in table:
            image = cv2.imread(str(tiny / "CheXpert" / row["Path"]), cv2.IMREAD_UNCHANGED)
            assert image.ndim == 2 and 40 <= min(image.shape) <= max(image.shape) <= 72
            assert image.std() > 20, "a blank film"
            allowed = {"", "0.0", "1.0", "-1.0"} if split == "train" else {"0.0", "1.0"}
            assert {row[name] for name in HEADER.split(",")[split == "train" :]} <= allowed
            assert row["Path"].startswith("test/patient" if split == "test" else f"CheXpert-v1.0/{split}/patient")
    views = Counter(Path(row["Path"]).stem.split("_")[1] for row in rows(release / "train.csv"))
    assert views["frontal"] > views["lateral"] > 0
    assert {row["AP/PA"] for row in rows(release / "train.csv") if row["Frontal/Lateral"] == "Lateral"} == {""}


def test_every_task_occurs_in_every_split_of_the_tiny_set(tiny):
    train = rows(tiny / "CheXpert" / "CheXpert-v1.0" / "train.csv")
    for task in TASKS:
        column = "Lung Opacity" if task == OPACITY else task
        assert sum(row[column] in ("1.0", "-1.0") for row in train) >= 2, task
    for name in ("gt_annotations_valid", "gt_annotations_test"):
        annotations = json.loads((tiny / "labels" / f"{name}.json").read_text())
        found = {constants.ALIASES.get(task, task) for image in annotations.values() for task in image}
        assert found - {"img_size"} == set(TASKS), name


def test_polygons_lie_in_the_image_and_agree_with_the_labels(tiny):
    table = {r["Path"][5:-4].replace("/", "_"): r for r in rows(tiny / "labels" / "test_labels.csv")}
    annotations = json.loads((tiny / "labels" / "gt_annotations_test.json").read_text())
    for image_id, row in table.items():
        image = annotations.get(image_id, {})
        for task in TASKS:
            column = "Lung Opacity" if task == OPACITY else task
            assert (task in image) == (row[column] == "1.0"), (image_id, task)
        height, width = image.get("img_size", (0, 0))
        for polygon in (p for task, polygons in image.items() if task != "img_size" for p in polygons):
            points = np.array(polygon)
            assert len(points) >= 3 and (points >= 0).all() and (points <= (width - 1, height - 1)).all()
    valid = json.loads((tiny / "labels" / "gt_annotations_valid.json").read_text())
    names = {task for image in valid.values() for task in image}
    assert {"Lung Opacity", "Support Device"} <= names, "real files use aliases, so this one does"


def test_readers_files_hold_a_line_for_each_image_with_a_finding(tiny):
    """Against all readers' polygons gathered in one dictionary."""
    for split, readers in (("valid", ["gt"]), ("test", ["gt", "human"])):
        names = dataset.VALID_NAMES if split == "valid" else {}
        expected = [{} for _ in readers]
        for view in (view for patient in patients.views(TINY, split) for view in patient):
            picture, *found = annotate(view, TINY.size)
            for reader, polygons in enumerate(found[: len(readers)]):
                if polygons or (reader and found[0]):
                    image_id = view.path[:-4].replace("/", "_")
                    entry = {"img_size": picture.shape} | {names.get(t, t): p for t, p in polygons.items()}
                    expected[reader][image_id] = json.loads(json.dumps(entry))
        for reader, entries in zip(readers, expected, strict=True):
            path = tiny / "labels" / f"{reader}_annotations_{split}.json"
            assert list(json.loads(path.read_text()).items()) == list(entries.items())
            lines = path.read_text().splitlines()
            assert len(entries) > 3 and [json.loads(f"{{{line.rstrip(',')}}}") for line in lines[1:-1]] == [
                {image_id: entry} for image_id, entry in entries.items()
            ]


def test_a_reader_who_found_nothing_has_a_size(tmp_path):
    path, nothing = tmp_path / "a.json", {}
    for reader, first, expected in ((1, {"Edema": []}, {"p_v": {"img_size": [3, 4]}}), (1, {}, {}), (0, {}, {})):
        found = [first, nothing] if reader else [nothing, {"Edema": []}]
        with json_lines.writer(path) as add:
            dataset._add_annotations(add, "p/v.jpg", (3, 4), found, reader, {})
        assert json.loads(path.read_text()) == expected


def test_files_appear_whole_and_in_their_order(tmp_path, monkeypatch):
    order, labels = [], tmp_path / "labels"
    replace_file, work = os.replace, dataset.work

    def note(source, target):
        if Path(target).parent == labels:
            order.append(Path(target).name)
        replace_file(source, target)

    def fail(job):
        if "test" in job.folder.name:
            raise RuntimeError("stop")
        return work(job)

    monkeypatch.setattr(dataset, "work", fail)
    spec = Spec(1, 1, 2, 64, 0, cover=True)
    with pytest.raises(RuntimeError, match="stop"):
        dataset.generate(spec, tmp_path, labels)
    assert sorted(p.name for p in labels.iterdir()) == ["gt_annotations_valid.json", "phantom.manifest.json"]
    monkeypatch.setattr(dataset, "work", work)
    monkeypatch.setattr(os, "replace", note)
    dataset.generate(spec, tmp_path, labels)
    names = ["test_labels.csv", "gt_annotations_test.json", "human_annotations_test.json"]
    assert [name for name in order if name in names] == names


def test_same_bytes_with_workers_other_counts_and_a_lesser_processor(tiny, tmp_path):
    counts = "--num_train", 20, "--num_valid", 2, "--num_test", 2
    lesser = {"OPENCV_IPP": "disabled", "OPENCV_CPU_DISABLE": "AVX2,AVX,FP16,SSE4.2", "PYTHONWARNINGS": "ignore"}
    lesser["NPY_DISABLE_CPU_FEATURES"] = "AVX512_ICL AVX512_SPR X86_V4 X86_V3 AVX512F AVX2 FMA3"
    done = run("--preset", "tiny", *counts, "--out_dir", tmp_path, "--num_workers", 2, extra=lesser)
    assert done.returncode == 0, done.stderr
    many, few = contents(tiny), contents(tmp_path)
    images = [name for name in few if name.endswith(".jpg")]
    assert len(images) == 24
    assert [name for name in images if few[name] != many[name]] == []
    train = "CheXpert/CheXpert-v1.0/train.csv"
    assert many[train].startswith(few[train])


def test_killed_and_damaged_sets_are_completed_to_the_same_bytes(tiny, tmp_path):
    command = [sys.executable, str(SCRIPT), "--preset", "tiny", "--out_dir", str(tmp_path)]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.jpg"))) < 9 and time.monotonic() < limit:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 9 <= len(list(tmp_path.rglob("*.jpg"))) < 60
    dataset.generate(TINY, tmp_path, tmp_path / "labels")
    expected = contents(tiny)
    assert contents(tmp_path) == expected
    images = sorted(tmp_path.rglob("*.jpg"))
    images[0].unlink()
    images[5].write_bytes(images[5].read_bytes()[:-40])
    (tmp_path / "labels" / "gt_annotations_valid.json").write_text("{}")
    dataset.generate(TINY, tmp_path, tmp_path / "labels")
    assert contents(tmp_path) == expected


def test_complete_set_is_left_alone(tiny, monkeypatch):
    def refuse(job):
        raise AssertionError(f"drew {job.views[0].path} again")

    monkeypatch.setattr(dataset, "work", refuse)
    dataset.generate(TINY, tiny, tiny / "labels")


def test_other_arguments_are_refused_and_replaced_only_on_request(tmp_path):
    small = Spec(2, 1, 1, 64, 0)
    dataset.generate(small, tmp_path, tmp_path / "labels")
    before = contents(tmp_path)
    refused = run("--num_train", 2, "--num_valid", 1, "--num_test", 1, "--size", 64, "--seed", 1, "--out_dir", tmp_path)
    assert refused.returncode == 1
    assert (
        refused.stderr.count("\n") == 1 and "seed 0 instead of 1" in refused.stderr and "--overwrite" in refused.stderr
    )
    assert contents(tmp_path) == before
    dataset.generate(replace(small, seed=1), tmp_path, tmp_path / "labels", overwrite=True)
    after = contents(tmp_path)
    assert len(after) == len(before) and not set(after.values()) & set(before.values())


def test_real_data_is_never_touched(tmp_path):
    mine = tmp_path / "CheXpert" / "CheXpert-v1.0" / "train" / "patient00001" / "study1" / "view1_frontal.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="was not made by this script"):
        dataset.generate(TINY, tmp_path, tmp_path / "labels", overwrite=True)
    assert mine.read_bytes() == b"mine"


def test_wrong_usage_exits_with_2(tmp_path):
    failed = run("--size", 8, "--out_dir", tmp_path / "new")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "--size 8" in failed.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments", [("--num_train", "-1"), ("--preset", "huge"), ("--overwrite", "perhaps"), ("--colour", "red")]
)
def test_wrong_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_synthetic_chexpert.build_parser().parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_help_needs_no_environment():
    shown = run("--help", cwd="/")
    assert shown.returncode == 0 and "--num_valid" in shown.stdout
