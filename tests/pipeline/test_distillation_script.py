"""segmentation_distillation.py: the paper's distillation, our recipe in rounds, resuming, and errors in one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import constants
from chexseg.data.mask_files import MaskFile
from chexseg.segmentation.model import SegmentationSpec, build_model, save_model
from tests.pipeline.segmentation_world import history, run_script, weights_of, write_set

ROOT = Path(__file__).resolve().parents[2]
TASKS = constants.LOCALIZATION_TASKS
STATED, UNSURE, DENIED = "Cardiomegaly", "Atelectasis", "Support Devices"
GIVEN = (
    "--teacher_path {w}/teacher.pth --expert_masks_path {w}/expert.json --eval_masks_path {w}/eval.json "
    "--encoder_weights_type CheXpert --encoder_weights {w}/classifier.ckpt --batch_size 4 --num_epochs 2 --lr 0.003 "
    "--epoch_len 12 --strong_labels_weight 0.5"
)
OURS = (
    "--targets masks --gate labels --expert_sizes 20 80 --floor 0.001 --balance 0.5 --paste 0.5 --loss bce_dice "
    "--augment True --one_cycle True"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Films of experts and of a pool, whose labels state one finding, are unsure of another and deny a third."""
    from chexseg.classifier import models

    root = tmp_path_factory.mktemp("world")
    (root / "base").mkdir()
    write_set(root, "train", 9, root / "unused.json", 100)
    write_set(root, "valid", 8, root / "expert.json", 200)
    write_set(root, "valid", 4, root / "eval.json", 300)
    columns = ["Path", "Frontal/Lateral", *TASKS]
    values = {STATED: "1.0", UNSURE: "-1.0", DENIED: "0.0"}
    with open(root / "CheXpert" / "CheXpert-v1.0" / "train.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for i in range(100, 109):
            path = f"CheXpert-v1.0/train/patient{i:05d}/study1/view1_frontal.jpg"
            rows.writerow({"Path": path, "Frontal/Lateral": "Frontal", **values})
    torch.manual_seed(0)
    spec = SegmentationSpec("DeepLabV3Plus", "resnet10w32", TASKS, 32, "chexpert", 16)
    metrics = {"thresholds": [0.5] * len(TASKS)}
    save_model(root / "teacher.pth", build_model(spec).state_dict(), spec, metrics)
    classifier = models.Classifier(models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS))
    models.save_classifier(root / "classifier.ckpt", classifier)
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch, world, tmp_path):
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(world))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(world / "base"))
    monkeypatch.chdir(tmp_path)


def distil(world, *parts, capsys=None):
    return run_script("segmentation_distillation.py", " ".join((GIVEN, *parts)).format(w=world).split(), capsys)


def test_the_papers_distillation(world, tmp_path):
    distil(world)
    masks = MaskFile(tmp_path / "seg_trials/distilled/pool_masks.json", {})
    assert len(masks) == 9 and all(list(masks[name]) == list(TASKS) for name in masks)  # nothing is gated
    assert len(history(tmp_path / "seg_trials/distilled")) == 2
    arguments = json.loads((tmp_path / "seg_trials/distilled/args.json").read_text())["arguments"]
    assert (arguments["targets"], arguments["temperature"], arguments["gate"]) == ("logits", 6.0, "none")


def test_the_common_tasks_choose_the_epoch(world, tmp_path):
    distil(world, "--valid_common_pathologies True --num_epochs 1")
    (line,) = history(tmp_path / "seg_trials/distilled")
    common = [line["iou"][task] for task in constants.COMMON_TASKS if line["iou"][task] is not None]
    assert "miou" not in line and line["score"] == line["common_iou"] == pytest.approx(sum(common) / len(common))


def test_our_recipe_in_two_rounds(world, tmp_path):
    distil(world, OURS, "--rounds 2")
    place = tmp_path / "seg_trials/distilled"
    for folder in (place.with_name("distilled_round_1"), place):
        masks = MaskFile(folder / "pool_masks.json", {})
        for name in masks:
            assert masks[name].keys() == set(TASKS) - {UNSURE}
            assert masks[name][DENIED]["counts"] == masks[name]["Edema"]["counts"]  # empty both
            assert masks[name][STATED]["counts"] != masks[name][DENIED]["counts"]
    first, last = weights_of(place.with_name("distilled_round_1")), weights_of(place)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    said = "finished before; nothing to do"
    stamp = (place / "best_model.pth").stat().st_mtime_ns
    command = [sys.executable, "-X", "importtime", str(ROOT / "segmentation_distillation.py")]
    command += " ".join((GIVEN, OURS, "--rounds 2")).format(w=world).split()
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=True)
    assert " torch\n" not in result.stderr and result.stderr.count(said) == 2
    assert (place / "best_model.pth").stat().st_mtime_ns == stamp


def test_a_stopped_student_ends_with_the_same_weights(world, tmp_path):
    """Stopped after a moment and run again, until it ends."""
    distil(world, OURS, "--experiment_name whole")
    for _ in range(20):
        status, _ = distil(world, OURS, "--experiment_name stopped --max_minutes 0.002") or (0, "")
        if status in (0, None):
            break
    one, other = (weights_of(tmp_path / "seg_trials" / name) for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_can_start_from_its_teacher(world, tmp_path):
    given = GIVEN.replace("--encoder_weights_type CheXpert --encoder_weights {w}/classifier.ckpt", "").format(w=world)
    given = given.replace("--lr 0.003", "--lr 1e-12")
    assert run_script("segmentation_distillation.py", [*given.split(), "--from_teacher"]) in (None, (0, ""))
    teacher = torch.load(world / "teacher.pth", weights_only=True)["state_dict"]
    student = weights_of(tmp_path / "seg_trials/distilled")
    name = "segmentation_head.0.weight"
    torch.testing.assert_close(student[name], teacher[name])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--floor 0.1", "--floor"),
        ("--expert_sizes 20 80", "--gate labels"),
        ("--gate labels --expert_sizes 80 20", "the lower one first"),
        ("--gate labels --expert_sizes 20 80", "it needs --targets masks"),
        ("--from_teacher", "leave --encoder_weights out"),
        ("--gate labels --paste 0.5", "needs --targets masks"),
        ("--teacher_path nowhere.pth", "nowhere.pth"),
        ("--labels_path nowhere.csv", "nowhere.csv"),
        ("--views lateral", "no film in it for the pool (see --views)"),
    ],
)
def test_errors(world, capsys, more, said):
    status, err = distil(world, more, capsys=capsys)
    assert status and said in err.strip().splitlines()[-1] and "Traceback" not in err
