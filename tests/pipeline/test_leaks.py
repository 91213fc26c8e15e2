"""From training to table: what a network was trained or chosen on is recorded, inherited by its masks, and refused."""

import json
import shutil

import pandas as pd
import pytest

from chexseg.data import leak_guard
from chexseg.data.chexpert import patient_of
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from tests.pipeline.scripts import run
from tests.pipeline.stages import WALK_MODEL


@pytest.fixture
def masks(tiny_run, tmp_path, monkeypatch):
    """The tiny run's predicted test masks with their record: its test images chose the network's epoch."""
    for variable, value in tiny_run.environment().items():
        monkeypatch.setenv(variable, value)
    made = tiny_run.root / "base" / "trials" / "semi" / "test_masks.json"
    for path in (made, leak_guard.path_of(made)):
        shutil.copy2(path, tmp_path / path.name)
    return tmp_path / made.name


def test_the_record_holds_every_patient_by_its_role(tiny_run, masks):
    labels = tiny_run.root / "data" / "labels"
    experts, chosen = ({patient_of(i) for i in MaskFile(labels / f"{n}_encoded.json")} for n in ("valid", "test"))
    pseudo = {patient_of(i) for i in MaskFile(tiny_run.run / "pseudo_seg_labels_encoded_irnet.json")}
    record = leak_guard.read(masks)
    assert set(record["best_model.pth"]["trained"]) == {leak_guard.hashed(p) for p in experts | pseudo}
    assert set(record["best_model.pth"]["epoch and thresholds"]) == {leak_guard.hashed(p) for p in chosen}
    assert "thresholds.txt" in record
    assert "patient" not in leak_guard.path_of(masks).read_text()


def test_a_classifier_is_known_wherever_it_leads(tiny_run, masks):
    """Trained on some patients, its epoch chosen on others: its maps, pseudo masks and the network say so."""
    sets = tiny_run.root / "data" / "CheXpert" / "CheXpert-v1.0"
    frames = {role: pd.read_csv(sets / f"{split}.csv") for role, split in (("trained", "train"), ("epoch", "valid"))}
    expected = {
        role: sorted({leak_guard.hashed(path.split("/")[-3]) for path in frame["Path"]})
        for role, frame in frames.items()
    }
    made = ["cams/saliency.h5", "predictions.csv", "seg_labels_encoded.json"]
    made += [f"pseudo_seg_labels_encoded_{kind}.json" for kind in ("cams", "irnet")]
    boundary = tiny_run.root / "base/weakly_supervised/saved_models" / WALK_MODEL
    for path in (*(tiny_run.run / name for name in made), boundary, masks):
        record = leak_guard.read(path)["c.ckpt"]
        assert record == expected, path
    with pytest.raises(DataError, match=r"c.ckpt \(in saliency.h5\): epoch on 1 of the 1 scored patients"):
        leak_guard.check([tiny_run.run / "cams/saliency.h5"], [frames["epoch"]["Path"][0].split("/")[-3]])


def test_scores_of_the_leaking_file_are_refused_or_stamped(tiny_run, masks, tmp_path):
    truth = tiny_run.root / "data" / "labels" / "test_encoded.json"
    command = ["localization_eval/eval.py", "--gt_path", truth, "--pred_path", masks, "--num_replicates", 5]
    with pytest.raises(DataError, match=r"best_model.pth \(in test_masks.json\): epoch and thresholds on 6 of the 6"):
        run(*command)
    run(*command, "--allow_leak")
    manifest = json.loads((tmp_path / "test_masks_iou.csv.manifest.json").read_text())
    assert len(manifest["leaks"]) == 2
    table = [
        "make_tables.py",
        "--ground_truth",
        truth,
        "--method",
        f"chexseg={masks}",
        "--output_dir",
        tmp_path / "out",
    ]
    table += ["--num_examples", 0, "--num_replicates", 5]
    with pytest.raises(DataError, match="Scores of these patients are no test"):
        run(*table)
    run(*table, "--allow_leak")
    assert "LEAK" in (tmp_path / "out" / "table.md").read_text()


def test_the_experts_training_images_are_refused_too(tiny_run, masks):
    """Masks of other images, by a network that was trained on them."""
    truth = tiny_run.root / "data" / "labels" / "valid_encoded.json"
    shutil.copy2(truth, masks)
    with pytest.raises(DataError, match=r"best_model.pth \(in test_masks.json\): trained on \d+ of the"):
        run("localization_eval/eval.py", "--gt_path", truth, "--pred_path", masks)
