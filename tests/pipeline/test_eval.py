"""Stage 7 as a user runs it: the scores of any two masks files."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from chexseg.data import leak_guard, mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import metrics
from tests.pipeline.scripts import SCORED, TASKS, entry, name, run


@pytest.fixture
def pair(tmp_path):
    """Three images in both files, one only in each; the fourth task is never annotated."""
    truth = {name(1): entry(4, 2), name(2): entry(8, 0), name(3): entry(0, 0), name(4): entry(1, 1)}
    ours = {name(1): entry(2, 2), name(2): entry(8, 3), name(3): entry(3, 0), name(5): entry(1, 1)}
    for file, content in (("gt", truth), ("pred", ours)):
        mask_files.write(tmp_path / f"{file}.json", content.items())
    return tmp_path


def evaluate(folder, *options):
    run("localization_eval/eval.py", "--gt_path", folder / "gt.json", "--pred_path", folder / "pred.json", *SCORED,
        "--num_replicates", 200, *options)  # fmt: skip
    return pd.read_csv(folder / "pred_iou.csv").set_index(["protocol", "task"])


def test_eval_by_hand(pair, caplog, capsys):
    table = evaluate(pair)
    expected = {
        ("pooled", "Edema"): (10 / 15, 3, 2),
        ("pooled", "Airspace Opacity"): (2 / 5, 3, 1),
        ("pooled", "mIoU"): ((10 / 15 + 2 / 5) / 2, 3, 2),
        ("per_image", "Edema"): (0.75, 2, 2),
        ("per_image", "Airspace Opacity"): (1, 1, 1),
        ("per_image", "mIoU"): (0.875, 2, 2),
        ("per_image_all", "Edema"): (0.5, 3, 2),
        ("per_image_all", "Airspace Opacity"): (0.5, 2, 1),
        ("per_image_all", "mIoU"): (0.5, 3, 2),
    }
    assert list(table.index) == list(expected)
    for key, (iou, n_images, n_positive) in expected.items():
        row = table.loc[key]
        assert row["iou"] == pytest.approx(iou, abs=1e-6), key
        assert (row["n_images"], row["n_positive"]) == (n_images, n_positive), key
        assert row["lower"] <= row["iou"] <= row["upper"]
    assert f"1 images have no prediction and are not scored: {name(4)}" in caplog.text
    assert f"1 images have no ground truth and are not scored: {name(5)}" in caplog.text
    missing = pd.read_csv(pair / "pred_iou_missing.csv")
    assert missing.to_numpy().tolist() == [[name(4), "prediction"], [name(5), "ground truth"]]
    printed = capsys.readouterr().out
    assert all(f"\n{protocol} (" in printed for protocol in ("pooled", "per_image", "per_image_all"))
    assert json.loads((pair / "pred_iou.csv.manifest.json").read_text())["arguments"]["num_replicates"] == 200


def test_eval_is_seeded_and_whole_sets_leave_no_list_of_missing(pair):
    few = ("--num_replicates", 7)
    first = evaluate(pair, *few)
    pd.testing.assert_frame_equal(evaluate(pair, *few), first)
    assert not evaluate(pair, *few, "--seed", 3).equals(first)
    mask_files.write(pair / "pred.json", MaskFile(pair / "gt.json").items())
    perfect = evaluate(pair)
    assert (perfect[["iou", "lower", "upper"]] == 1).all().all()
    assert not (pair / "pred_iou_missing.csv").exists()


def test_eval_of_tasks_that_never_occur(pair):
    run("localization_eval/eval.py", "--gt_path", pair / "gt.json", "--pred_path", pair / "pred.json",
        "--tasks", "Edema", "Fracture", "--num_replicates", 20, "--output_path", pair / "out.csv")  # fmt: skip
    table = pd.read_csv(pair / "out.csv").set_index(["protocol", "task"])
    assert np.isnan(table.loc[("pooled", "Fracture"), "iou"]) and table.loc[("pooled", "Fracture"), "n_images"] == 0
    assert table.loc[("pooled", "mIoU"), "iou"] == table.loc[("pooled", "Edema"), "iou"]


def test_eval_hit_rate(pair, tmp_path, caplog):
    folder = tmp_path / "run" / "cams"
    folder.mkdir(parents=True)
    maps = np.full((2, 2, 2, 2), 0.1, np.float32)
    maps[0, :, 0, 0] = 0.9  # inside every mask that has a first row
    maps[1, :, 1, 1] = 0.9
    with h5py.File(folder / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"] = json.dumps(TASKS[:2]), 8
        file["ids"], file["maps"], file["probabilities"] = [name(1), name(2)], maps, np.ones((2, 2), np.float32)
        file["sizes"] = np.tile(np.int32([4, 5]), (2, 1))
    table = evaluate(pair, "--map_dir", tmp_path / "run")
    assert table.loc[("hit_rate", "Edema"), ["iou", "n_images"]].tolist() == [0.5, 2]
    assert table.loc[("hit_rate", "Airspace Opacity"), ["iou", "n_images"]].tolist() == [1, 1]
    assert table.loc[("hit_rate", "mean"), "iou"] == 0.75
    assert "1 images have no saliency map" in caplog.text


def test_eval_refuses_files_of_other_images_and_sizes(pair):
    mask_files.write(pair / "pred.json", [(name(9), entry(1, 1))])
    with pytest.raises(DataError, match="none of its images"):
        evaluate(pair)
    mask_files.write(pair / "pred.json", [(name(2), entry(1, 1, size=(5, 4)))])
    with pytest.raises(DataError, match=f"{name(2)}: Edema: prediction is 5 x 4, ground truth is 4 x 5"):
        evaluate(pair)
    assert not (pair / "pred_iou.csv").exists()


def test_evaluation_never_decodes_a_mask(pair, monkeypatch):
    def refuse(*_):
        raise AssertionError("a full-size mask was decoded")

    monkeypatch.setattr(rle, "decode", refuse)
    monkeypatch.setattr(metrics.coco, "decode", refuse)
    assert not evaluate(pair).empty


def test_files_of_each_film_and_replicate_as_chexlocalize_writes_them(pair):
    evaluate(pair)
    films = pd.read_csv(pair / "pred_iou_results_per_cxr.csv")
    assert list(films) == ["Airspace Opacity", "Edema", "img_id"]
    expected = [[1, 0.5, name(1)], [np.nan, 1, name(2)], [np.nan, np.nan, name(3)]]
    pd.testing.assert_frame_equal(films, pd.DataFrame(expected, columns=list(films)))
    replicates = pd.read_csv(pair / "pred_iou_bootstrap_results_per_cxr.csv")
    assert list(replicates) == ["Edema", "Airspace Opacity"] and len(replicates) == 200
    assert replicates["Edema"].dropna().between(0.5, 1).all() and (replicates["Airspace Opacity"].dropna() == 1).all()
    assert replicates["Edema"].isna().any()  # image 3 three times
    evaluate(pair, "--true_pos_only", "False")
    films = pd.read_csv(pair / "pred_iou_results_per_cxr.csv").set_index("img_id")
    assert films.loc[name(2), "Airspace Opacity"] == 0 and films.loc[name(3), "Edema"] == 0


def test_eval_writes_every_metric(pair):
    evaluate(pair)
    table = pd.read_csv(pair / "pred_iou_metrics.csv").set_index(["protocol", "metric", "task"])
    values = {m: table.loc[("pooled", m, "Edema"), "value"] for m in metrics.METRICS}
    assert values == pytest.approx(
        {"iou": 10 / 15, "dice": 20 / 25, "precision": 10 / 13, "recall": 10 / 12, "specificity": 45 / 48}, abs=1e-6
    )
    assert len(table) == 3 * 5 * 3


def test_eval_with_the_list_of_all_images(pair, caplog):
    listed = pair / "test_labels.csv"
    listed.write_text("Path\n" + "".join(f"test/patient{i:05d}/study1/view1_frontal.jpg\n" for i in range(1, 7)))
    table = evaluate(pair, "--all_images", listed)
    assert table.loc[("per_image_all", "Edema"), ["iou", "n_images"]].tolist() == pytest.approx([1.5 / 5, 5])
    assert table.loc[("pooled", "Edema"), "iou"] == pytest.approx(10 / 17, abs=1e-6)
    assert not (pair / "pred_iou_missing.csv").exists()
    assert "1 films without a finding are scored" in caplog.text


def test_eval_of_patients_that_a_prediction_was_chosen_on_is_refused_or_stamped(pair, capsys):
    leak_guard.record(pair / "pred.json", {"thresholds": ["patient00002", "patient00077"]})
    with pytest.raises(DataError, match="pred.json: thresholds on 1 of the 3 scored patients: patient00002"):
        evaluate(pair)
    assert not (pair / "pred_iou.csv").exists()
    table = evaluate(pair, "--allow_leak", "True")
    stamp = "pred.json: thresholds on 1 of the 3 scored patients: patient00002"
    assert (table["leak"] == stamp).all()
    assert f"LEAK, no test: {stamp}" in capsys.readouterr().out
    assert json.loads((pair / "pred_iou.csv.manifest.json").read_text())["leaks"] == [stamp]


def test_oracle_is_stamped_as_an_upper_bound(pair, tmp_path, capsys):
    with pytest.raises(UsageError, match="--oracle"):
        evaluate(pair, "--oracle")
    folder = tmp_path / "run" / "cams"
    folder.mkdir(parents=True)
    with h5py.File(folder / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"] = json.dumps(TASKS[:2]), 8
        file["ids"], file["maps"] = [name(1)], np.random.default_rng(0).random((1, 2, 2, 2), np.float32)
        file["probabilities"], file["sizes"] = np.ones((1, 2), np.float32), np.int32([[4, 5]])
    table = evaluate(pair, "--map_dir", tmp_path / "run", "--oracle")
    assert table.loc[("oracle_upper_bound", "Edema"), "n_images"] == 1
    assert 0 < table.loc[("oracle_upper_bound", "mIoU"), "iou"] <= 1
    assert "UPPER BOUND, no test result" in capsys.readouterr().out
