"""The paper's tables, for real: the label budget's networks are planned, trained, tested and tabulated."""

import csv
import shlex
import time

import pandas as pd
import pytest
import torch
from PIL import Image

import constants
from chexseg.classifier import models
from chexseg.evaluation import charts
from tests.pipeline.segmentation_world import TASKS, run_script, write_set

SETTINGS = (
    "--trials {w}/trials --map_dir {w}/run --ckpt_path {w}/c.ckpt --expert 8 --subset 6 --budgets 4 --seeds 17 "
    "--output_dir {w}/tables --num_replicates 50 --style dark"
)
PRESET = {
    "network": "--lr 0.003 --batch_size 4",
    "shape": "--encoder resnet10w32 --decoder_channels 16 --image_size 32",
    "draws": "--num_epochs 1 --epoch_len 8",
    "teacher": "--num_epochs 1 --epoch_len 8",
    "student": "--num_epochs 1 --epoch_len 8",
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Films with pseudo masks and labels, experts' films in two parts, a test set, a classifier."""
    for name in ("run", "labels", "base"):
        (tmp_path / name).mkdir()
    write_set(tmp_path, "train", 9, tmp_path / "run" / "pseudo_seg_labels_encoded_irnet.json", 100)
    write_set(tmp_path, "valid", 8, tmp_path / "labels" / "valid_encoded_8.json", 200)
    write_set(tmp_path, "valid", 4, tmp_path / "labels" / "valid_encoded_rest.json", 300)
    write_set(tmp_path, "test", 5, tmp_path / "labels" / "test_encoded.json", 400)
    with open(tmp_path / "CheXpert" / "CheXpert-v1.0" / "train.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Path", "Frontal/Lateral", *TASKS])
        for i in range(100, 109):
            rows.writerow(
                [f"CheXpert-v1.0/train/patient{i:05d}/study1/view1_frontal.jpg", "Frontal", *[1.0] * len(TASKS)]
            )
    torch.manual_seed(0)
    classifier = models.Classifier(models.ClassifierSpec("resnet10w32", constants.OBSERVATIONS))
    models.save_classifier(tmp_path / "c.ckpt", classifier)
    monkeypatch.setenv("CHEXPERT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("OBJ_EFFICIENCY_BASE_PATH", str(tmp_path / "base"))
    monkeypatch.setenv("TEST_SEG_LABELS_GT_BASE_PATH", str(tmp_path / "labels"))
    return tmp_path


def tables(world, capsys, *more):
    given = [*SETTINGS.format(w=world).split(), *(f"--{name}={text}" for name, text in PRESET.items()), *more]
    status = run_script("paper_tables.py", given)[0]
    return status, capsys.readouterr()


def run_plan(folder):
    """Every command of the plan, phase by phase, as reproduce.sh runs them. Returns their names."""
    names = []
    for phase in ("prepare", "networks", "students", "tests"):
        for lane in (1, 2):
            *lines, last = (folder / f"{phase}.{lane}").read_text().splitlines()
            assert last == ":"
            for line in lines:
                step, name, script, *words = shlex.split(line)
                assert step == "step" and run_script(script, words)[0] == 0, name
                names.append(name)
    return names


def test_the_label_budget(world, capsys, monkeypatch):
    monkeypatch.setattr(charts, "DPI", 40)
    asked = ("--only", "budget")
    plan = (*asked, "--plan", str(world / "plan"), "--timings", str(world / "timings.csv"))
    (world / "timings.csv").write_text("stage,seconds\ntrain_full,30\ntrain_teacher,10\n")
    status, said = tables(world, capsys, *asked)
    assert status == 1 and "no network of these tables is tested yet" in said.err
    status, said = tables(world, capsys, *plan)
    assert status == 0 and "8 trainings with the seeds 17; 0 of them ended before." in said.out
    # Two full networks and two teachers; two CheXsegs and two students were not timed.
    assert "About 1 min 20 s of one lane, half of that where two run at once; 4 trainings were never timed." in said.out
    names = run_plan(world / "plan")
    assert {"experts_4_seed_17", "full_seed_17", "chexseg_plus_experts_4_seed_17"} <= set(names)
    assert (world / "trials" / "full" / "best_model.pth").is_file()
    capsys.readouterr()

    status, said = tables(world, capsys, *asked)
    assert status == 0, said.err
    scores = pd.read_csv(world / "tables" / "budget.csv")
    means = scores[scores["task"] == "mIoU"]
    assert means[["row", "column"]].to_numpy().tolist() == [
        [n, m] for n in (4, 8) for m in ("full", "chexseg", "chexseg_plus")
    ]
    assert (
        (means["n_seeds"] == 1).all()
        and (means["lower"] <= means["iou"]).all()
        and (means["iou"] <= means["upper"]).all()
    )
    tex, text = ((world / "tables" / f"budget.{suffix}").read_text() for suffix in ("tex", "md"))
    assert r"chexseg\_plus" in tex and tex.count(r"\\") == 3
    assert text in (world / "tables" / "tables.md").read_text() and f"{means['iou'].max():.3f}" in text
    curve = pd.read_csv(world / "tables" / "label_budget.csv")
    assert curve[curve["method"] == "full"]["n_expert"].tolist() == [4, 8]
    for name in ("budget", "label_budget"):
        assert (world / "tables" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(world / "tables" / f"{name}.png") as picture:
            assert picture.convert("L").getpixel((2, 2)) < 40  # dark ground

    # Once more: nothing is left to train, and nothing is.
    stamps = {path: path.stat().st_mtime_ns for path in world.glob("trials/**/best_model.pth")}
    time.sleep(0.01)
    status, said = tables(world, capsys, *plan)
    assert "8 of them ended before" in said.out and "About 0.0 s" in said.out and len(stamps) == 8
    run_plan(world / "plan")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_row_without_weights_is_left_out_by_name(world, capsys, caplog):
    plan = ("--plan", str(world / "plan"), "--only", "encoder")
    with caplog.at_level("INFO"):
        assert tables(world, capsys, *plan)[0] == 0
    assert "chexseg_imagenet, full_imagenet: left out; give ImageNet's weights with --encoder_weights" in caplog.text
    assert "imagenet" not in (world / "plan" / "networks.1").read_text()
    status, said = tables(world, capsys, *plan, "--encoder_weights", "nowhere.pth")
    assert status == 2 and "nowhere.pth: no such file" in said.err
    assert tables(world, capsys, *plan, "--encoder_weights", str(world / "c.ckpt"))[0] == 0
    lanes = "".join((world / "plan" / f"networks.{lane}").read_text() for lane in (1, 2))
    assert lanes.count(f"--encoder_weights_type imagenet --encoder_weights {world}/c.ckpt") == 2
