"""Stage 7 as a user runs it: the scores of any two masks files."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest

from chexseg.data import mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
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
