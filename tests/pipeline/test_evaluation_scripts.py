"""Stages 2, 5 and 7 as a user runs them: masks from maps and polygons, subsets, the IoU table."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from chexseg.classifier import saliency_masks, saliency_pickles, saliency_store
from chexseg.data import chexpert, json_lines, mask_files, rle
from chexseg.data.images import upsample
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from chexseg.evaluation import metrics

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("Edema", "Airspace Opacity", "Fracture")


def run(script, *arguments):
    """A script's `main` with parsed arguments, in this process."""
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(module.build_parser().parse_args([str(a) for a in arguments]))
    return module


def name(i, study=1):
    return f"patient{i:05d}_study{study}_view1_frontal"


@pytest.fixture
def run_folder(tmp_path):
    """A run with maps of 7 images and three tasks; network input 16 x 16, originals 40 x 30."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    (folder / "cams").mkdir(parents=True)
    maps = rng.random((7, 3, 4, 4), dtype=np.float32)
    maps[:, 1] *= 0.001  # too faint for uint8(255 * map)
    with h5py.File(folder / "cams" / "saliency.h5", "w") as file:
        file.attrs["tasks"], file.attrs["image_size"] = json.dumps(TASKS), 16
        file["ids"] = [name(i) for i in range(7)]
        file["maps"], file["probabilities"] = maps, np.full((7, 3), 0.4, np.float32)
        file["sizes"] = np.tile(np.int32([40, 30]), (7, 1))
    return folder


SCORED = ("--tasks", "Edema", "Lung Opacity")


# pred_segmentation.py


def test_train_masks_have_the_networks_size_and_test_masks_the_originals(run_folder):
    run("localization_eval/pred_segmentation.py", "--phase", "train", "--map_dir", run_folder, *SCORED,
        "--method", "gradcam", "--model_type", "single")  # fmt: skip
    store = saliency_store.open_maps(run_folder)
    found = MaskFile(run_folder / "seg_labels_encoded.json")
    assert list(found) == store.ids and list(found[name(0)]) == ["Edema", "Airspace Opacity"]
    for image in found:
        expected = saliency_masks.otsu((upsample(store[image]["maps"][:1], (16, 16))[0] * 255).astype(np.uint8))
        np.testing.assert_array_equal(rle.decode([found[image]["Edema"]])[0], expected)
        assert 0 < expected.sum() < 256
        assert found[image]["Airspace Opacity"] == rle.empty((16, 16))
    run("localization_eval/pred_segmentation.py", "--phase", "valid", "--map_dir", run_folder, *SCORED)
    for image, entry in MaskFile(run_folder / "seg_labels_encoded.json").items():
        large = upsample(upsample(store[image]["maps"][:1], (16, 16)), (40, 30))[0]
        np.testing.assert_array_equal(
            rle.decode([entry["Edema"]])[0], saliency_masks.otsu((large * 255).astype(np.uint8))
        )


def test_pred_segmentation_gives_the_same_bytes_for_any_shard_size_and_workers(run_folder, tmp_path):
    made = []
    for i, options in enumerate([(), ("--shard_size", 2), ("--shard_size", 3, "--num_workers", 1)]):
        output = tmp_path / f"{i}.json"
        run(
            "localization_eval/pred_segmentation.py",
            "--map_dir",
            run_folder,
            "--output_path",
            output,
            *SCORED,
            *options,
        )
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2] and len(json.loads(made[0])) == 7


def test_pred_segmentation_runs_again_only_when_something_changed(run_folder):
    output = run_folder / "seg_labels_encoded.json"
    arguments = ("localization_eval/pred_segmentation.py", "--map_dir", run_folder, *SCORED)
    run(*arguments)
    first = output.stat().st_mtime_ns
    run(*arguments)
    assert output.stat().st_mtime_ns == first
    store = run_folder / "cams" / "saliency.h5"
    shutil.copy(store, store.with_suffix(".new"))
    with h5py.File(store.with_suffix(".new"), "a") as file:
        file["maps"][0, 0] = 0
    store.with_suffix(".new").replace(store)
    run(*arguments)
    assert output.stat().st_mtime_ns != first
    assert MaskFile(output)[name(0)]["Edema"] == rle.empty((16, 16))


def test_chexlocalize_thresholds_and_cutoffs(run_folder, tmp_path):
    (tmp_path / "thresholds.csv").write_text("threshold,task\n0.7,Lung Opacity\n")
    (tmp_path / "cutoffs.csv").write_text("prob_threshold,mIoU,task\n0.5,0.1,Edema\n0.3,0.1,Lung Opacity\n")
    run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--protocol", "chexlocalize", *SCORED,
        "--threshold_path", tmp_path / "thresholds.csv", "--prob_cutoff_path", tmp_path / "cutoffs.csv")  # fmt: skip
    store = saliency_store.open_maps(run_folder)
    for image, entry in MaskFile(run_folder / "seg_labels_encoded.json").items():
        large = upsample(store[image]["maps"][1:2], (16, 16))[0]
        stretched = (large - large.min()) / (large.max() - large.min())
        np.testing.assert_array_equal(rle.decode([entry["Airspace Opacity"]])[0], stretched > 0.7)
        assert entry["Edema"] == rle.empty((16, 16))  # 0.4 is not above 0.5
    with pytest.raises(UsageError, match="--threshold_path"):
        run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--threshold_path", "x.csv")


def test_pickles_give_the_masks_of_the_store(run_folder, tmp_path):
    store, folder = saliency_store.open_maps(run_folder), tmp_path / "pickles"
    folder.mkdir()
    for image in store:
        saliency_pickles.write_pickles(folder, image, TASKS, store[image], np.zeros((16, 16), np.uint8), None)
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", run_folder, *SCORED)
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", folder, *SCORED)
    made = [(path / "seg_labels_encoded.json") for path in (run_folder, folder)]
    assert made[0].read_bytes() == made[1].read_bytes()
    before = made[1].stat().st_mtime_ns
    next(folder.glob("*Edema_map.pkl")).touch()
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", folder, *SCORED)
    assert made[1].stat().st_mtime_ns != before


def test_pred_segmentation_names_what_is_missing(run_folder, tmp_path):
    with pytest.raises(DataError, match="no maps of 'Pneumonia'"):
        run("localization_eval/pred_segmentation.py", "--map_dir", run_folder, "--tasks", "Pneumonia")
    with pytest.raises(DataError, match="no saliency maps here"):
        run("localization_eval/pred_segmentation.py", "--map_dir", tmp_path)


# gt_segmentation.py


def test_gt_segmentation_from_its_own_folder(tmp_path):
    square, dot = [[2, 1], [5, 1], [5, 3], [2, 3]], [[0, 0]]
    annotations = {
        name(1): {"img_size": [6, 8], "Lung Opacity": [square, dot], "Pneumonia": [square]},
        name(2): {"img_size": [4, 4]},
        name(3): {"img_size": [4, 4], "Edema": []},
    }
    path = tmp_path / "gt_annotations_test.json"
    path.write_text(json.dumps(annotations))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "gt_segmentation.py", "--ann_path", path],
        cwd=ROOT / "localization_eval", env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 images, 2 of them without a polygon" in done.stderr
    assert "1 images have polygons of 'Pneumonia'" in done.stderr
    found = MaskFile(tmp_path / "test_encoded.json")
    assert list(found) == [name(1), name(2), name(3)]
    assert all(len(entry) == 10 for entry in found.values())
    expected = np.zeros((6, 8))
    expected[1:4, 2:6] = expected[0, 0] = 1
    np.testing.assert_array_equal(rle.decode([found[name(1)]["Airspace Opacity"]])[0], expected)
    areas = {image: rle.area(list(entry.values())).sum() for image, entry in found.items()}
    assert areas == {name(1): 13, name(2): 0, name(3): 0}
    assert found[name(2)]["Edema"]["size"] == [4, 4]


@pytest.mark.parametrize("content", [{}, {name(1): {"img_size": [4, 4], "Edema": [[["a", 1]]]}}])
def test_gt_segmentation_leaves_nothing_of_bad_annotations(tmp_path, content):
    path = tmp_path / "gt_annotations_valid.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="gt_annotations_valid.json: " + (f"{name(1)}: Edema: " if content else "no ann")
    ):
        run("localization_eval/gt_segmentation.py", "--ann_path", path)
    assert not (tmp_path / "valid_encoded.json").exists()


def test_gt_segmentation_of_any_layout_gives_the_same_bytes(tmp_path):
    annotations = {
        name(i): {"img_size": [9, 8], "Edema": [[[i, 1], [5.5, 1], [5, 7]]], "Lung Opacity": [[[0, i]]]}
        for i in range(4)
    }
    ours, theirs, made = tmp_path / "ours.json", tmp_path / "theirs.json", []
    with json_lines.writer(ours) as add:
        for image_id, entry in annotations.items():
            add(image_id, entry)
    theirs.write_text(json.dumps(annotations))
    for path in (ours, theirs):
        output = tmp_path / f"{path.stem}_masks.json"
        run("localization_eval/gt_segmentation.py", "--ann_path", path, "--output_path", output)
        made.append(output.read_bytes())
    assert made[0] == made[1]
    found = MaskFile(output)
    assert list(found) == list(annotations)
    for image_id, entry in annotations.items():
        for task, key in (("Edema", "Edema"), ("Airspace Opacity", "Lung Opacity")):
            expected = rle.from_polygons(entry[key], (9, 8))
            np.testing.assert_array_equal(rle.decode([found[image_id][task]])[0], expected)


# create_train_set_subsets.py


def entry(*areas, size=(4, 5)):
    stack = np.zeros((len(areas), size[0] * size[1]))
    for row, count in zip(stack, areas, strict=True):
        row[:count] = 1
    return dict(zip(TASKS, rle.encode(stack.reshape(-1, *size)), strict=False))


def test_subset_of_the_pseudo_masks(tmp_path):
    entries = [(name(i), entry(i % 3, 1)) for i in (5, 3, 8, 1, 9, 2)]
    mask_files.write(tmp_path / "pseudo_seg_labels_encoded_irnet.json", entries)
    arguments = ("--map_dir", tmp_path, "--subset_len", 4, "--pseudo_labels_type", "irnet", "--seed", 5)
    run("create_train_set_subsets.py", *arguments)
    path = tmp_path / "pseudo_seg_labels_irnet_4_cxrs.json"
    expected = random.Random(5).sample(sorted(i for i, _ in entries), 4)
    assert dict(MaskFile(path)) == {i: e for i, e in entries if i in expected}
    first = path.read_bytes()
    # The order of the source does not matter, the seed does.
    mask_files.write(tmp_path / "pseudo_seg_labels_encoded_irnet.json", sorted(entries))
    run("create_train_set_subsets.py", *arguments)
    assert path.read_bytes() == first
    run("create_train_set_subsets.py", *arguments[:-1], 6)
    assert path.read_bytes() != first
    with pytest.raises(DataError, match="6 images; --subset_len 7"):
        run("create_train_set_subsets.py", "--map_dir", tmp_path, "--subset_len", 7, "--pseudo_labels_type", "irnet")
    with pytest.raises(DataError, match="pseudo_seg_labels_encoded_cams.json: no such masks file"):
        run("create_train_set_subsets.py", "--map_dir", tmp_path)


def test_expert_split_keeps_patients_together(tmp_path, caplog):
    # 12 patients with two images of a finding each, and a third image without.
    entries = [(name(p, s), entry(1 if s < 3 else 0, 0)) for p in range(12) for s in (1, 2, 3)]
    path = tmp_path / "valid_encoded.json"
    mask_files.write(path, entries)
    run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 18)
    first, rest = (MaskFile(tmp_path / f"valid_encoded_{n}.json") for n in (18, 6))
    assert len(first) == 18 and len(rest) == 6 and not caplog.records
    assert {chexpert.patient_of(i) for i in first}.isdisjoint({chexpert.patient_of(i) for i in rest})
    assert {*first, *rest} == {i for i, e in entries if rle.area(list(e.values())).any()}
    assert dict(first) == {i: e for i, e in entries if i in first}
    run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 18, "--only_with_finding", "False")
    assert len(MaskFile(tmp_path / "valid_encoded_18.json")) == 18
    assert len(MaskFile(tmp_path / "valid_encoded_18_rest.json")) == 18  # the two halves need two names
    with caplog.at_level("WARNING"):
        run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 17)
    first, rest = (MaskFile(tmp_path / f"valid_encoded_{n}.json") for n in (17, 7))
    shared = {chexpert.patient_of(i) for i in first} & {chexpert.patient_of(i) for i in rest}
    assert len(shared) == 1 and shared.pop() in caplog.text


def test_expert_split_draws_patients_at_random_but_seeded(tmp_path):
    path = tmp_path / "valid.json"
    mask_files.write(path, [(name(p), entry(1)) for p in range(30)])
    drawn = []
    for seed in (1, 1, 2):
        run("create_train_set_subsets.py", "--masks_path", path, "--subset_len", 10, "--seed", seed)
        drawn.append(list(MaskFile(tmp_path / "valid_10.json")))
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != [name(p) for p in range(10)]


# eval.py


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
