"""segmentation_test.py with an untrained network: films without a finding, the classifier's gate, leaks."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import constants
from chexseg.data import leak_guard, mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.segmentation.model import SegmentationSpec, build_model, save_model
from tests.irnet.six_films import assert_light, assert_one_line, run

TASKS = constants.LOCALIZATION_TASKS
IDS = [f"patient{i:05d}_study1_view1_frontal" for i in range(1, 6)]
SIZE = (36, 30)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Five test films, masks of the first three, a network that finds nearly everything, predictions and cut-offs."""
    rng = np.random.default_rng(0)
    for name in IDS:
        path = tmp_path / "CheXpert" / "CheXpert-v1.0" / "test" / name.split("_")[0] / "study1" / "view1_frontal.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, SIZE, dtype=np.uint8)).save(path)
    stack = (rng.random((3, len(TASKS), *SIZE)) < 0.3).astype(np.uint8)
    entries = {name: dict(zip(TASKS, rle.encode(masks), strict=True)) for name, masks in zip(IDS, stack, strict=False)}
    mask_files.write(tmp_path / "test_encoded.json", entries.items())
    rows = [{"Path": f"CheXpert-v1.0/test/{name.split('_')[0]}/study1/view1_frontal.png"} for name in IDS]
    pd.DataFrame(rows).to_csv(tmp_path / "all.csv", index=False)
    torch.manual_seed(0)
    spec = SegmentationSpec("Unet", "resnet10w32", TASKS, 32, decoder_channels=None)
    model = build_model(spec)
    save_model(tmp_path / "best_model.pth", model.state_dict(), spec, {})
    (tmp_path / "thresholds.txt").write_text(json.dumps([0.3] * 10))
    table = pd.DataFrame(rng.random((5, 10)).round(3), columns=list(TASKS)).assign(image_id=IDS)
    table.rename(columns={"Airspace Opacity": "Lung Opacity"}).to_csv(tmp_path / "predictions.csv", index=False)
    cutoffs = "".join(f"0.5,0.2,{task}\n0.9,0.1,{task}\n" for task in TASKS[1:])
    (tmp_path / "cutoffs.csv").write_text("prob_threshold,mIoU,task\n" + cutoffs.replace("Airspace", "Lung"))
    for name in ("CHEXPERT_DATA_DIR", "TEST_SEG_LABELS_GT_BASE_PATH", "OBJ_EFFICIENCY_BASE_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(world, *options):
    given = ("--model_path", world / "best_model.pth", "--output_path", world / "out.json", "--batch_size", 4)
    status = run("segmentation_test.py", *given, *options)
    return status, {name: entry for name, entry in MaskFile(world / "out.json").items()} if status == 0 else {}


def areas(entry):
    return rle.area(list(entry.values()))


def test_films_without_a_finding_are_predicted_and_scored(world, capsys):
    status, plain = predict(world)
    said = capsys.readouterr()
    assert status == 0 and list(plain) == IDS[:3]
    without = float(said.out.split("mIoU (pooled)")[1].split()[0])
    status, found = predict(world, "--all_images", world / "all.csv")
    said = capsys.readouterr()
    assert list(found) == IDS
    assert {name: found[name] for name in plain} == plain
    assert sum(areas(found[name]).sum() for name in IDS[3:]) > 0
    line = next(line for line in said.out.splitlines() if line.startswith("mIoU (pooled)"))
    assert line.endswith("5 images")
    assert float(line.split()[2]) < without  # masks on films without a finding are false positives
    assert_light("segmentation_test.py", "--model_path", world / "best_model.pth", "--output_path", world / "out.json",
                 "--batch_size", 4, "--all_images", world / "all.csv")  # fmt: skip


def test_the_classifier_empties_what_it_doubts(world):
    _, plain = predict(world)
    gate = ("--gate_predictions", world / "predictions.csv", "--gate_cutoffs", world / "cutoffs.csv")
    status, found = predict(world, *gate)
    assert status == 0
    table = pd.read_csv(world / "predictions.csv", index_col="image_id").rename(
        columns={"Lung Opacity": "Airspace Opacity"}
    )
    emptied = 0
    for name in plain:
        for task in TASKS:
            if task != TASKS[0] and table.loc[name, task] <= 0.5:  # the first task has no cut-off
                assert areas({task: found[name][task]}).sum() == 0
                assert found[name][task]["size"] == list(SIZE)
                emptied += areas({task: plain[name][task]}).sum() > 0
            else:
                assert found[name][task] == plain[name][task]
    assert emptied > 0


def test_a_mask_does_not_depend_on_shards_with_a_gate(world):
    gate = ("--gate_predictions", world / "predictions.csv", "--gate_cutoffs", world / "cutoffs.csv")
    every = ("--all_images", world / "all.csv")
    _, one = predict(world, *gate, *every)
    (world / "out.json").unlink()
    _, other = predict(world, *gate, *every, "--shard_size", 1)
    assert one == other


def test_leaks_are_refused_or_stamped_and_inherited(world, capsys):
    leak_guard.record(world / "thresholds.txt", {"thresholds": ["patient00002"]})
    status, _ = predict(world)
    assert_one_line(status, 1, "thresholds on 1 of the 3 scored patients: patient00002", capsys)
    assert not (world / "out.json").exists()
    status, _ = predict(world, "--allow_leak", "True")
    assert status == 0 and "LEAK, no test: thresholds.txt: thresholds on 1 of" in capsys.readouterr().out
    assert list(leak_guard.read(world / "out.json")) == ["thresholds.txt"]
    gate = ("--gate_predictions", world / "predictions.csv", "--gate_cutoffs", world / "cutoffs.csv")
    leak_guard.record(world / "cutoffs.csv", {"cut-offs": ["patient00003"]})
    status, _ = predict(world, *gate, "--allow_leak", "True")
    assert sorted(leak_guard.read(world / "out.json")) == ["cutoffs.csv", "thresholds.txt"]


def test_the_oracle_is_stamped_and_at_least_as_good_as_any_threshold(world, capsys):
    """By the masks that the network predicts at each of the thresholds, at the films' own size."""
    assert predict(world, "--oracle", "--allow_leak")[0] == 0
    assert "UPPER BOUND, no test result" in capsys.readouterr().out
    table = pd.read_csv(world / "out_oracle.csv").set_index("task")
    assert set(table["protocol"]) == {"oracle_upper_bound"} and "mIoU" in table.index
    truth, best = MaskFile(world / "test_encoded.json"), {}
    for threshold in np.arange(20) / 20:
        (world / "thresholds.txt").write_text(json.dumps([threshold] * len(TASKS)))
        _, found = predict(world, "--allow_leak")
        for task in table.index.drop("mIoU"):
            pairs = [(found[i][task], truth[i][task]) for i in truth if areas({task: truth[i][task]}).sum()]
            ious = [
                rle.area([coco.merge([p, t], intersect=True)])[0] / rle.area([coco.merge([p, t])])[0] for p, t in pairs
            ]
            best[task] = max(best.get(task, 0), np.mean(ious))
    for task, iou in best.items():
        assert table.loc[task, "iou"] == pytest.approx(iou, abs=0.03), task


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--gate_predictions", "predictions.csv"], 2, "--gate_predictions and --gate_cutoffs go together"),
        (["--gate_predictions", "none.csv", "--gate_cutoffs", "cutoffs.csv"], 1, "none.csv: no such file"),
        (["--gate_predictions", "all.csv", "--gate_cutoffs", "cutoffs.csv"], 1, "all.csv: no column 'image_id'"),
        (["--all_images", "none.csv"], 1, "none.csv: no such file"),
    ],
)
def test_wrong_gates_end_in_one_line(world, options, status, words, capsys):
    assert_one_line(predict(world, *options)[0], status, words, capsys)
