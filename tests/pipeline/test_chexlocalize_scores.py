"""chexlocalize.py against CheXlocalize's published formulas, written down again here in plain loops, to 1e-6.

The ground truth names only images with a finding, as CheXlocalize's does; predictions lack some and have others.
"""

import json
import pickle

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import constants
from chexseg.data import leak_guard, mask_files, rle
from chexseg.errors import DataError
from tests.pipeline.scripts import run

TASKS = list(constants.LOCALIZATION_TASKS)
SCRIPT = "localization_eval/chexlocalize.py"


def blob(rng, size):
    """A mask: empty, a polygon, or noise."""
    kind, mask = rng.integers(3), np.zeros(size, np.uint8)
    if kind == 1:
        cv2.fillPoly(mask, [rng.integers(0, 40, (5, 2)).astype(np.int32)], 1)
    elif kind == 2:
        mask = (rng.random(size) > 0.7).astype(np.uint8)
    return mask


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Masks of 14 images by a reader, by a method and by a second reader, as arrays and as files; maps and points."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(3)
    names = [f"patient{i // 2:05d}_study1_view{i % 2 + 1}_frontal" for i in range(14)]
    sizes = {name: (int(rng.integers(20, 40)), int(rng.integers(20, 40))) for name in names}
    masks = {}
    for file, there in (("gt", names[:9]), ("pred", names[2:]), ("hb", names[:7])):
        masks[file] = {name: {task: blob(rng, sizes[name]) for task in TASKS} for name in rng.permutation(there)}
        for entry in masks[file].values():
            entry["Lung Lesion"][:] = 0  # never there
        coded = {i: dict(zip(e, rle.encode(np.stack(list(e.values()))), strict=True)) for i, e in masks[file].items()}
        mask_files.write(folder / f"{file}.json", coded.items())
    maps, points = {}, {}
    for number, name in enumerate(names):
        for task in TASKS:
            saliency = torch.from_numpy(rng.random((1, 1, 6 + number % 3, 6), dtype=np.float32))
            height, width = sizes[name]
            path = folder / "maps" / f"half {number % 2}" / f"{name}_{task}_map.pkl"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"map": saliency, "prob": 0.5, "task": task, "gt": 0, "cxr_dims": (width, height)}
            path.write_bytes(pickle.dumps(content))
            maps[name, task] = torch.nn.functional.interpolate(saliency, (height, width), mode="bilinear")[0, 0].numpy()
            if rng.random() < 0.7 and number < 8:
                given = rng.uniform(0, min(height, width), (rng.integers(1, 3), 2)).round(5).tolist()
                points.setdefault(name, {})[task] = given
    (folder / "points.json").write_text(json.dumps(points))
    return folder, masks, maps, points


def naive_ious(truth, predictions, true_positives):
    rows = {}
    for image in {*truth} | (set() if true_positives else {*predictions}):
        for task in TASKS:
            theirs = truth[image][task] if image in truth else np.zeros_like(predictions[image][task])
            ours = predictions[image][task] if image in predictions else np.zeros_like(theirs)
            both, either = (ours & theirs).sum(), (ours | theirs).sum()
            counts = ours.any() and theirs.any() if true_positives else either > 0
            rows.setdefault(image, {})[task] = both / either if counts else np.nan
    return rows


def naive_replicates(rows):
    """1000 draws with NumPy's global generator, of the rows sorted by image."""
    frame = pd.DataFrame([rows[image] for image in sorted(rows)])
    np.random.seed(7)
    draws = [frame.iloc[np.random.choice(len(frame), size=len(frame), replace=True)] for _ in range(1000)]
    return pd.DataFrame([draw[TASKS].mean() for draw in draws])


def assert_scores(folder, stem, rows):
    each = pd.read_csv(folder / f"{stem}_results_per_cxr.csv")
    assert list(each) == [*sorted(TASKS), "img_id"] and each["img_id"].tolist() == sorted(rows)
    expected = np.array([[rows[image][task] for task in sorted(TASKS)] for image in sorted(rows)], float)
    np.testing.assert_allclose(each[sorted(TASKS)], expected, rtol=0, atol=1e-9)
    drawn, naive = pd.read_csv(folder / f"{stem}_bootstrap_results_per_cxr.csv"), naive_replicates(rows)
    assert list(drawn) == TASKS
    np.testing.assert_allclose(drawn, naive, rtol=0, atol=1e-9)
    summary = pd.read_csv(folder / f"{stem}_summary_results.csv")
    assert list(summary) == ["name", "lower", "mean", "upper"] and summary["name"].tolist() == sorted(TASKS)
    for _, row in summary.iterrows():
        values = sorted(naive[row["name"]].dropna())
        if len(values) == 1000:
            bounds = values[24], np.mean(values), values[974]
            np.testing.assert_allclose(row[["lower", "mean", "upper"]].astype(float), bounds, rtol=0, atol=0.00051)
    assert each["Cardiomegaly"].notna().any()


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("true_positives", [True, False])
def test_ious(world, tmp_path, true_positives, reader):
    folder, masks, _, _ = world
    which = "hb" if reader else "pred"
    run(SCRIPT, "eval", "--metric", "iou", "--gt_path", folder / "gt.json", "--pred_path", folder / f"{which}.json",
        "--true_pos_only", true_positives, "--if_human_benchmark", reader, "--seed", 7,
        "--save_dir", tmp_path)  # fmt: skip
    stem = "iou_humanbenchmark" if reader else "iou"
    assert_scores(tmp_path, stem, naive_ious(masks["gt"], masks[which], true_positives))


def test_hits_of_maps(world, tmp_path):
    folder, masks, maps, _ = world
    run(SCRIPT, "eval", "--metric", "hitmiss", "--gt_path", folder / "gt.json", "--pred_path", folder / "maps",
        "--seed", 7, "--save_dir", tmp_path)  # fmt: skip
    rows = {}
    for image, entry in masks["gt"].items():
        for task in TASKS:
            at = np.unravel_index(maps[image, task].argmax(), maps[image, task].shape)
            rows.setdefault(image, {})[task] = float(entry[task][at]) if entry[task].any() else np.nan
    assert_scores(tmp_path, "hitmiss", rows)


def test_hits_of_a_readers_points(world, tmp_path):
    folder, masks, _, points = world
    run(SCRIPT, "eval", "--metric", "hitmiss", "--gt_path", folder / "gt.json", "--pred_path", folder / "points.json",
        "--if_human_benchmark", "True", "--seed", 7, "--save_dir", tmp_path)  # fmt: skip
    rows = {}
    for image, entry in masks["gt"].items():
        for task in TASKS:
            inside = [entry[task][int(y), int(x)] for x, y in points.get(image, {}).get(task, [])]
            rows.setdefault(image, {})[task] = float(any(inside)) if entry[task].any() else np.nan
    assert {value for row in rows.values() for value in row.values()} >= {0.0, 1.0}
    assert_scores(tmp_path, "hitmiss_humanbenchmark", rows)


def test_rates_and_counts(world, tmp_path):
    folder, masks, _, _ = world
    run(SCRIPT, "precision_recall_specificity", "--gt_path", folder / "gt.json", "--pred_seg_path",
        folder / "pred.json", "--hb_seg_path", folder / "hb.json", "--save_dir", tmp_path)  # fmt: skip
    for which in ("pred", "hb"):
        table = pd.read_csv(tmp_path / f"{which}_precision_recall_specificity.csv", index_col=0)
        assert list(table) == ["pathology", "precision", "recall/sensitivity", "specificity"]
        assert table["pathology"].tolist() == sorted(TASKS)
        for _, row in table.iterrows():
            task, tp, fp, fn, tn = row["pathology"], 0, 0, 0, 0
            for image, entry in masks["gt"].items():
                theirs = entry[task].astype(bool)
                ours = masks[which][image][task].astype(bool) if image in masks[which] else np.zeros_like(theirs)
                tp, fp = tp + (ours & theirs).sum(), fp + (ours & ~theirs).sum()
                fn, tn = fn + (~ours & theirs).sum(), tn + (~ours & ~theirs).sum()
            if task != "Lung Lesion":
                expected = [tp / (tp + fp), tp / (tp + fn), tn / (tn + fp)]
                np.testing.assert_allclose(row.iloc[1:].astype(float), expected, rtol=0, atol=1e-12)
            else:
                assert row.isna().tolist() == [False, True, True, False] and row["specificity"] == 1
    run(SCRIPT, "count_segs", "--seg_path", folder / "gt.json", "--save_dir", tmp_path)
    counted = pd.read_csv(tmp_path / "n_segs.csv", index_col=0)["0"]
    expected = {task: sum(int(entry[task].any()) for entry in masks["gt"].values()) for task in sorted(TASKS)}
    assert counted.to_dict() == expected and list(counted.index) == list(expected)


def test_percentage_decrease(tmp_path):
    rng = np.random.default_rng(4)
    human = pd.DataFrame(rng.uniform(0.3, 0.9, (1000, 10)), columns=TASKS)
    method = human * rng.uniform(0.1, 0.9, (1000, 10))
    human.to_csv(tmp_path / "hb.csv", index=False)
    method[TASKS[::-1]].to_csv(tmp_path / "pred.csv", index=False)
    given = ("--hb_bootstrap_results", tmp_path / "hb.csv", "--pred_bootstrap_results", tmp_path / "pred.csv")
    run(SCRIPT, "calculate_percentage_decrease", "--metric", "hitrate", *given, "--save_dir", tmp_path)
    table = pd.read_csv(tmp_path / "hitrate_pct_decrease.csv", index_col=0)
    for task in TASKS:
        hb, pred = human[task], method[task]
        share = sorted((hb - pred) / hb)
        row = table.loc[task]
        np.testing.assert_allclose(row[["hb", "pred"]].astype(float), [hb.mean(), pred.mean()], atol=1e-12)
        assert row["pct_diff"] == pytest.approx(100 * (1 - pred.mean() / hb.mean()), abs=6e-4)
        assert row["pct_diff_lower"] == pytest.approx(100 * round(share[24], 3), abs=1e-6)
        assert row["pct_diff_upper"] == pytest.approx(100 * round(share[974], 3), abs=1e-6)
    assert table["pct_diff"].iloc[:-1].is_monotonic_decreasing and table.index[-1] == "Average"
    last, means = table.loc["Average"], (human.mean().mean(), method.mean().mean())
    assert (last["hb"], last["pred"]) == (round(means[0], 3), round(means[1], 3))
    shares = sorted(100 * (1 - method.mean(axis=1) / human.mean(axis=1)))
    assert last["pct_diff_lower"] == pytest.approx(shares[24], abs=6e-4)
    human.iloc[:9].to_csv(tmp_path / "hb.csv", index=False)
    with pytest.raises(DataError, match="of other tasks or another number"):
        run(SCRIPT, "calculate_percentage_decrease", "--metric", "miou", *given, "--save_dir", tmp_path)
    given = (given[0], tmp_path / "none.csv", *given[2:])
    with pytest.raises(DataError, match="none.csv: no such file"):
        run(SCRIPT, "calculate_percentage_decrease", "--metric", "miou", *given, "--save_dir", tmp_path)


def test_features_by_hand_and_their_plot(tmp_path):
    """A rectangle lying straight, one turned by 45 degrees, two patches of three polygons, a line."""
    size, drawn = (60, 80), {}
    drawn["a"] = {"Edema": [[[10, 10], [40, 10], [40, 20], [10, 20]]]}
    drawn["b"] = {"Edema": [[[20, 20], [40, 40], [30, 50], [10, 30]]], "Cardiomegaly": [[[5, 5], [5, 30]]]}
    drawn["c"] = {"Edema": [[[0, 0], [9, 0], [9, 9], [0, 9]]] * 2 + [[[40, 40], [44, 40], [44, 44], [40, 44]]]}
    (tmp_path / "ann.json").write_text(json.dumps({i: {"img_size": size, **e} for i, e in drawn.items()}))
    run("localization_eval/gt_segmentation.py", "--ann_path", tmp_path / "ann.json", "--output_path",
        tmp_path / "seg.json")  # fmt: skip
    run(SCRIPT, "compute_pathology_features", "--gt_ann", tmp_path / "ann.json", "--gt_seg", tmp_path / "seg.json",
        "--save_dir", tmp_path)  # fmt: skip
    files = ("num_instances", "area_ratio", "elongation", "rec_area_ratio")
    tables = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in files}
    for table in tables.values():
        assert list(table) == [*sorted(TASKS), "img_id"] and table["img_id"].tolist() == ["a", "b", "c"]
    assert tables["num_instances"]["Edema"].tolist() == [1, 1, 3]
    pixels = 60 * 80
    areas = [31 * 11 / pixels, None, (100 + 25) / pixels]
    assert tables["area_ratio"]["Edema"].tolist()[0] == pytest.approx(areas[0])
    assert tables["area_ratio"]["Edema"].tolist()[2] == pytest.approx(areas[2])
    # The contour runs through the centres of pixels: 30 x 10 and, turned, 20 root 2 x 10 root 2.
    np.testing.assert_allclose(tables["elongation"]["Edema"], [3, 2, 1], atol=1e-5)
    np.testing.assert_allclose(tables["rec_area_ratio"]["Edema"], [1, 1, 1], atol=0.03)
    assert tables["num_instances"]["Cardiomegaly"].tolist() == [0, 1, 0]
    assert tables["area_ratio"]["Cardiomegaly"].tolist() == pytest.approx([0, 26 / pixels, 0])
    assert tables["elongation"]["Cardiomegaly"].isna().all()  # a line has no short side
    assert not tables["area_ratio"]["Pneumothorax"].any()
    run(SCRIPT, "plot_pathology_features", "--features_dir", tmp_path, "--save_dir", tmp_path / "plots")
    names = {f"{name}_dist.png" for name in ("n_instance", "area_ratio", "elongation", "irrectangularity")}
    assert names <= {path.name for path in (tmp_path / "plots").iterdir()}
    with pytest.raises(DataError, match="num_instances.csv: no such file"):
        run(SCRIPT, "plot_pathology_features", "--features_dir", tmp_path / "plots", "--save_dir", tmp_path)


def test_features_of_random_masks_are_those_of_the_published_formulas(world, tmp_path):
    folder, masks, _, _ = world
    shapes = {
        image: {"img_size": list(entry["Edema"].shape), **{t: [[[0, 0]]] * 2 for t in entry if entry[t].any()}}
        for image, entry in masks["gt"].items()
    }
    (tmp_path / "ann.json").write_text(json.dumps(shapes))
    run(SCRIPT, "compute_pathology_features", "--gt_ann", tmp_path / "ann.json", "--gt_seg", folder / "gt.json",
        "--save_dir", tmp_path)  # fmt: skip
    tables = {p.stem: pd.read_csv(p).set_index("img_id") for p in tmp_path.glob("*.csv")}
    for image, entry in masks["gt"].items():
        for task, mask in entry.items():
            got = [tables[n].at[image, task] for n in ("num_instances", "area_ratio", "elongation", "rec_area_ratio")]
            if not mask.any():
                assert got[:2] == [0, 0] and np.isnan(got[2:]).all()
                continue
            contours = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
            longest = contours[int(np.argmax([len(contour) for contour in contours]))]
            (_, (w, h), _) = cv2.minAreaRect(longest)
            expected = [2, mask.mean(), max(w, h) / min(w, h), cv2.contourArea(longest) / (w * h)]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_what_cannot_be_scored_is_said(world, tmp_path):
    folder, _, _, _ = world
    (tmp_path / "points.json").write_text('{"patient00000_study1_view1_frontal": {"Edema": [["x", 1]]}}')
    more = ("--metric", "hitmiss", "--gt_path", folder / "gt.json", "--save_dir", tmp_path)
    with pytest.raises(DataError, match="points.json: patient00000_study1_view1_frontal: not points by task"):
        run(SCRIPT, "eval", *more, "--pred_path", tmp_path / "points.json", "--if_human_benchmark", "True")
    (tmp_path / "pred.json").write_bytes((folder / "pred.json").read_bytes())
    leak_guard.record(tmp_path / "pred.json", {"trained": ["patient00001"]})
    given = ("--metric", "iou", "--gt_path", folder / "gt.json", "--pred_path", tmp_path / "pred.json")
    with pytest.raises(DataError, match="trained on 1 of the"):
        run(SCRIPT, "eval", *given, "--save_dir", tmp_path / "out")
    run(SCRIPT, "eval", *given, "--save_dir", tmp_path / "out", "--allow_leak", "True")
    record = json.loads((tmp_path / "out" / "iou_summary_results.csv.manifest.json").read_text())
    assert "trained on 1 of the" in record["leaks"][0]
