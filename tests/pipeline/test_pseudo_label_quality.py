"""The quality report as a user runs it: on masks files by hand, and on a tiny run's maps, CRF and walk."""

import json

import numpy as np
import pandas as pd
import pytest

from chexseg.classifier.saliency_store import open_maps
from chexseg.data import leak_guard, mask_files
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import quality
from tests.pipeline.scripts import SCORED, entry, name, run

SCRIPT = "pseudo_label_quality.py"


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Experts' masks, two sources and the images' labels."""
    monkeypatch.chdir(tmp_path)
    mask_files.write(tmp_path / "expert.json", [(name(1), entry(8, 0)), (name(2), entry(4, 6))])
    mask_files.write(tmp_path / "a.json", [(name(1), entry(4, 9)), (name(2), entry(4, 3))])
    mask_files.write(tmp_path / "b.json", [(name(1), entry(8, 0))])
    rows = [f"test/patient{i:05d}/study1/view1_frontal.jpg" for i in (1, 2)]
    observations = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema,Consolidation,"
    observations += "Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    values = ["0,0,0,0,0,1" + ",0" * 8, "0,0,0,0,1,-1" + ",0" * 8]
    lines = [f"Path,{observations}", *(f"{row},{v}" for row, v in zip(rows, values, strict=True))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def arguments(masks, *more):
    sources = [x for name in "ab" for x in ("--source", f"{name}={masks / name}.json")]
    places = ["--gt_path", masks / "expert.json", "--csv_path", masks / "labels.csv", "--output_dir", masks / "out"]
    return [*places, *sources, *SCORED, "--num_replicates", 20, *more]


def table_of(folder):
    return pd.read_csv(folder / "quality.csv").set_index(["source", "gate", "task"])


def test_masks_files_by_hand(masks, capsys):
    run(SCRIPT, *arguments(masks))
    table = table_of(masks / "out")
    assert table.loc[("a", "none", "Edema"), "iou"] == pytest.approx(8 / 12, abs=1e-6)
    assert table.loc[("a", "none", "Airspace Opacity"), ["iou", "precision"]].tolist() == pytest.approx(
        [3 / 15, 3 / 12]
    )
    # The label takes away the opacity of image 1.
    assert table.loc[("a", "label", "Airspace Opacity"), ["iou", "precision"]].tolist() == [0.5, 1]
    assert table.loc[("b", "none", "Edema"), ["iou", "n_images"]].tolist() == [1, 1]
    assert set(table.index.get_level_values("gate")) == {"none", "label"}
    assert (masks / "out" / "quality.png").stat().st_size > 5000
    assert "gate label" in capsys.readouterr().out
    run(SCRIPT, *arguments(masks, "--uncertain", "absent"))
    assert table_of(masks / "out").loc[("a", "label", "Edema"), "iou"] == pytest.approx(4 / 12, abs=1e-6)
    run(SCRIPT, *arguments(masks, "--uncertain", "unknown"))
    assert table_of(masks / "out").loc[("a", "label", "Edema"), ["iou", "n_images"]].tolist() == [0.5, 1]


def test_a_report_that_is_up_to_date_is_left_alone(masks):
    run(SCRIPT, *arguments(masks))
    before = (masks / "out" / "quality.csv").stat().st_mtime_ns
    run(SCRIPT, *arguments(masks))
    assert (masks / "out" / "quality.csv").stat().st_mtime_ns == before
    mask_files.write(masks / "b.json", [(name(1), entry(7, 0))])
    run(SCRIPT, *arguments(masks))
    assert (masks / "out" / "quality.csv").stat().st_mtime_ns != before


def test_sources_chosen_on_these_very_patients_are_stamped(masks):
    leak_guard.record(masks / "a.json", {"trained": ["patient00002"]})
    run(SCRIPT, *arguments(masks))
    assert pd.read_csv(masks / "out" / "quality.csv")["leak"].str.startswith("a.json: trained on 1 of the 2").all()


def test_wrong_usage_and_data_are_named(masks):
    with pytest.raises(UsageError, match="at least one --source"):
        run(SCRIPT, "--gt_path", masks / "expert.json")
    with pytest.raises(UsageError, match="each name once"):
        run(SCRIPT, *arguments(masks, "--source", f"a={masks / 'b.json'}"))
    with pytest.raises(UsageError, match="give --map_dir"):
        run(SCRIPT, *arguments(masks, "--boundary_net", "x.pth"))
    mask_files.write(masks / "expert.json", [(name(9), entry(8, 0))])
    with pytest.raises(DataError, match="no source of pseudo masks has any of its images"):
        run(SCRIPT, *arguments(masks))


def test_every_source_of_a_tiny_run(tiny_run, tmp_path, monkeypatch):
    for variable, value in tiny_run.environment().items():
        monkeypatch.setenv(variable, value)
    base, labels = tiny_run.root / "base", tiny_run.root / "data" / "labels"
    run(
        "test.py",
        "--ckpt_path",
        base / "models" / "tiny" / "c.ckpt",
        "--phase",
        "valid",
        "--save_dir_predictions",
        tmp_path / "cams",
    )
    maps_dir = tmp_path / "cams" / "tiny_c.ckpt"
    maps = open_maps(maps_dir)
    tuned = tmp_path / "thresholds.csv"
    tuned.write_text("threshold,task\n" + "".join(f"0.4,{task}\n" for task in maps.tasks))
    run(SCRIPT, "--gt_path", labels / "valid_encoded.json", "--map_dir", maps_dir, "--threshold_path", tuned,
        "--boundary_net", "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth", "--num_replicates", 20,
        "--output_dir", tmp_path / "out")  # fmt: skip
    table = table_of(tmp_path / "out")
    sources = ["map_otsu", "map_tuned", "crf_sure", "crf_possible", "relation", "walk"]
    assert list(dict.fromkeys(table.index.get_level_values("source"))) == sources
    assert set(table.index.get_level_values("gate")) == {"none", "label", "probability"}
    means = table.xs("mIoU", level="task")
    assert means["iou"].between(0, 1).all() and (means["n_images"] > 0).all()
    assert (means.xs("label", level="gate")["precision"] >= means.xs("none", level="gate")["precision"] - 1e-6).all()
    assert (means.xs("none", level="gate").loc["crf_possible", "recall"]
            >= means.xs("none", level="gate").loc["crf_sure", "recall"])  # fmt: skip
    # Otsu's masks as pred_segmentation.py writes them.
    run("localization_eval/pred_segmentation.py", "--phase", "train", "--map_dir", maps_dir)
    truth = MaskFile(labels / "valid_encoded.json")
    source = quality.MaskSource(MaskFile(maps_dir / "seg_labels_encoded.json"))
    tasks = list(dict.fromkeys(table.index.get_level_values("task")))[:-1]
    counts = quality.count({"otsu": source}, truth, tasks, [i for i in truth if i in maps])
    again = quality.measure(counts, {}, num_replicates=20)
    np.testing.assert_allclose(again["iou"], table.loc[("map_otsu", "none"), "iou"], atol=1e-6)
    manifest = json.loads((tmp_path / "out" / "quality.csv.manifest.json").read_text())
    assert manifest["arguments"]["num_replicates"] == 20
