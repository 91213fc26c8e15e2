"""pred_segmentation.py and gt_segmentation.py against CheXlocalize's published formulas, to the pixel.

The formulas are written down again here, slowly and one file at a time, from what its pages and papers describe.
"""

import json
import pickle

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

import constants
from chexseg.classifier import saliency_pickles
from chexseg.classifier.saliency_store import open_maps
from chexseg.data import mask_files, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError, UsageError
from tests.pipeline.scripts import run

TASKS = ("Airspace Opacity", "Edema", "Support Devices")
IMAGES = ("patient64541_study1_view1_frontal", "patient64542_study1_view2_lateral", "ward__Röntgen 3")


def naive(content, threshold=None, cutoff=0.0, side=0):
    """The mask of a pickle: probability against the cut-off, map to the film's size and to 0..1, threshold or Otsu."""
    width, height = content["cxr_dims"]
    probability = content["prob"]
    if torch.is_tensor(probability) and len(probability) == 14:
        probability = probability[list(constants.OBSERVATIONS).index(content["task"])].item()
    if probability < cutoff:
        return np.zeros((height, width), bool)
    large = torch.nn.functional.interpolate(content["map"], (height, width), mode="bilinear")[0, 0].numpy()
    large = large - large.min()
    large = large / large.max()
    if threshold is not None:
        return large > threshold
    grey = (255 * large).astype(np.uint8)
    if side:
        coloured = cv2.applyColorMap(grey, cv2.COLORMAP_JET)
        grey = 255 - cv2.boxFilter(cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY), -1, (side, side))
    binary = cv2.threshold(grey, 0, 1, cv2.THRESH_OTSU)[1]
    canvas = Image.new("1", (width, height))
    for contour in cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        if len(contour) > 1:
            ImageDraw.Draw(canvas).polygon([tuple(map(int, p[0])) for p in contour], outline=1, fill=1)
    return np.asarray(canvas)


@pytest.fixture(scope="module")
def pickles(tmp_path_factory):
    """Maps in nested folders, of other sizes in each image; `prob` as a number, as 14 entries and as one."""
    folder, rng, contents = tmp_path_factory.mktemp("maps"), np.random.default_rng(5), {}
    for number, image in enumerate(IMAGES):
        for task in TASKS:
            side = 10 + 3 * number
            coarse = torch.from_numpy(rng.random((1, 1, 4, 5), dtype=np.float32) ** 3 * 0.01)
            saliency = torch.nn.functional.interpolate(coarse, (side, side), mode="nearest")
            saliency += torch.from_numpy(rng.random((1, 1, side, side), dtype=np.float32)) * 0.002
            every = torch.from_numpy(rng.random(14, dtype=np.float32))
            content = {
                "map": saliency,
                "prob": (0.7, every, float(every[0]))[number],
                "task": task,
                "gt": 1,
                "cxr_img": torch.zeros(3, side, side),
                "cxr_dims": (61 + number, 47),
            }
            path = folder / f"part {number}" / f"{image}_{task}_map.pkl"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pickle.dumps(content))
            contents[image, task] = content
    return folder, contents


def table(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize("kind", ["otsu", "thresholds", "cutoffs", "smoothing 3", "smoothing 8", "all"])
def test_masks_are_chexlocalizes_to_the_pixel(pickles, tmp_path, kind):
    folder, contents = pickles
    options, thresholds, cutoffs, side = [], {}, {}, 0
    if kind in ("thresholds", "all"):
        thresholds = dict(zip(TASKS, (0.2, 0.4, 0.7), strict=True))
        rows = [(value, task) for task, value in thresholds.items()]
        options += ["--threshold_path", table(tmp_path / "tuning_results.csv", "threshold,task", rows)]
    if kind in ("cutoffs", "all"):
        cutoffs = dict(zip(TASKS, (0.7, 0.3, 0.5), strict=True))
        # As it is shipped: a row for every cut-off, of which that of the highest mIoU counts.
        rows = [(i / 10, 0.5 if i == round(10 * best) else i / 100, t) for t, best in cutoffs.items() for i in range(9)]
        path = table(tmp_path / "probability_tuning_results.csv", "prob_threshold,mIoU,task", rows)
        options += ["--probability_threshold_path", path]
    if kind.startswith("smoothing"):
        side = int(kind.split()[1])
        options += ["--if_smoothing", "True", "--k", side]
    run("localization_eval/pred_segmentation.py", "--phase", "test", "--map_dir", folder, "--protocol", "chexlocalize",
        "--tasks", *TASKS, "--output_path", tmp_path / "masks.json", *options)  # fmt: skip
    found = MaskFile(tmp_path / "masks.json")
    assert set(found) == set(IMAGES)
    drawn = 0
    for (image, task), content in contents.items():
        expected = naive(content, thresholds.get(task), cutoffs.get(task, 0), side)
        np.testing.assert_array_equal(rle.decode([found[image][task]])[0], expected, f"{image} {task}")
        drawn += expected.any()
    assert drawn == 9 if not cutoffs else 0 < drawn < 9


def test_what_is_in_pickles(pickles, tmp_path):
    folder, contents = pickles
    assert saliency_pickles.OBSERVATIONS == constants.OBSERVATIONS
    maps = open_maps(folder)
    for image in IMAGES:
        for row, task in enumerate(maps.tasks):
            given = contents[image, task]["prob"]
            expected = given[constants.OBSERVATIONS.index(task)] if torch.is_tensor(given) else given
            assert maps[image]["probabilities"][row] == float(expected)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x_Edema_map.pkl").touch()
    with pytest.raises(DataError, match=r"a/x_Edema_map.pkl and .*b/x_Edema_map.pkl are both of x and Edema"):
        open_maps(tmp_path)
    with pytest.raises(UsageError, match="--if_smoothing belongs to .* --k of at least 1"):
        run("localization_eval/pred_segmentation.py", "--map_dir", folder, "--if_smoothing", "True")


def test_masks_of_polygons_are_chexlocalizes_to_the_pixel(tmp_path):
    """Of polygons that cross themselves and each other, leave the film, or are a line; the file names only images with
    a finding, and of each only the findings that it shows."""
    rng, annotations = np.random.default_rng(6), {}
    for number in range(20):
        height, width = rng.integers(20, 80, 2)
        entry = {"img_size": [int(height), int(width)]}
        for task in rng.permutation(TASKS)[: rng.integers(1, 4)]:
            shapes = [rng.uniform(-5, 85, (rng.integers(2, 9), 2)).round(5).tolist() for _ in range(rng.integers(1, 4))]
            entry[str(task)] = shapes
        annotations[f"patient{number:05d}_study1_view1_frontal"] = entry
    (tmp_path / "gt_annotations_val.json").write_text(json.dumps(annotations))
    run("localization_eval/gt_segmentation.py", "--ann_path", tmp_path / "gt_annotations_val.json", "--output_path",
        tmp_path / "out.json")  # fmt: skip
    found = MaskFile(tmp_path / "out.json")
    assert list(found) == list(annotations)
    for image, entry in annotations.items():
        assert list(found[image]) == list(constants.LOCALIZATION_TASKS)
        for task in constants.LOCALIZATION_TASKS:
            height, width = entry["img_size"]
            canvas = Image.new("1", (width, height))
            for polygon in entry.get(task, []):
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon], outline=1, fill=1)
            np.testing.assert_array_equal(rle.decode([found[image][task]])[0], np.asarray(canvas))


def naive_iou(ours, theirs, true_positives):
    if (true_positives and not (ours.any() and theirs.any())) or not (ours | theirs).any():
        return np.nan
    return (ours & theirs).sum() / (ours | theirs).sum()


def test_tuning_is_chexlocalizes(pickles, tmp_path):
    """Both tables, from expert masks that lack the last image: thresholds by true positives, cut-offs by all images."""
    folder, contents = pickles
    rng, masks = np.random.default_rng(8), {}
    for image in IMAGES[:2]:
        width, height = contents[image, "Edema"]["cxr_dims"]
        stack = rng.random((len(TASKS), height, width)) > np.array([0.5, 0.9, 2])[:, None, None]  # the last: empty
        masks[image] = dict(zip(TASKS, stack, strict=True))
    coded = {i: dict(zip(TASKS, rle.encode(np.stack(list(e.values()))), strict=True)) for i, e in masks.items()}
    mask_files.write(tmp_path / "gt.json", coded.items())
    run("localization_eval/tune_thresholds.py", "--map_dir", folder, "--gt_path", tmp_path / "gt.json", "--save_dir",
        tmp_path, "--tasks", *TASKS)  # fmt: skip
    thresholds = pd.read_csv(tmp_path / "tuning_results.csv").set_index("task")["threshold"]
    cutoffs = pd.read_csv(tmp_path / "probability_tuning_results.csv").set_index(["task", "prob_threshold"])["mIoU"]
    assert list(thresholds.index) == sorted(TASKS) and len(cutoffs) == 27
    for task in TASKS:
        means = []
        for threshold in np.arange(0.2, 0.8, 0.1):
            found = [naive_iou(naive(contents[i, task], threshold), masks[i][task], True) for i in masks]
            means.append(np.nanmean(found) if not np.isnan(found).all() else np.nan)
        best = 0.2 if np.isnan(means).all() else np.arange(0.2, 0.8, 0.1)[int(np.nanargmax(means))]
        assert thresholds[task] == pytest.approx(round(best, 1))
        for cutoff in np.arange(0, 0.9, 0.1):
            found = []
            for image in IMAGES:
                content = contents[image, task]
                given = content["prob"]
                number = float(given[constants.OBSERVATIONS.index(task)]) if torch.is_tensor(given) else given
                mask = naive(content) if number > cutoff else np.zeros_like(naive(content))
                theirs = masks[image][task] if image in masks else np.zeros_like(mask)
                found.append(naive_iou(mask, theirs, False))
            mean = np.nanmean(found) if not np.isnan(found).all() else np.nan
            assert cutoffs[task, round(cutoff, 1)] == pytest.approx(mean, abs=5.1e-4, nan_ok=True)
