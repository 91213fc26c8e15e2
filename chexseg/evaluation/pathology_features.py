"""How findings look, by CheXlocalize's four features of expert outlines, and the plot of how they are distributed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from chexseg.data import csv_tables, rle
from chexseg.evaluation import charts

# The file of each feature; irrectangularity is 1 less the share of the rectangle.
FILES = ("num_instances", "area_ratio", "elongation", "rec_area_ratio")
PLOTS = {
    "n_instance": "Number of instances",
    "area_ratio": "Area ratio",
    "elongation": "Elongation",
    "irrectangularity": "Irrectangularity",
}


def shape_of(mask: np.ndarray) -> tuple[float, float, float]:
    """Of a mask (h, w) with a pixel: its share of the film, and, of the rectangle of least area around its longest
    contour, the long side over the short one and the share that the contour fills (NaN where it is a line)."""
    contours, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    longest = max(contours, key=len)
    _, sides, _ = cv2.minAreaRect(longest)
    short, long = sorted(sides)
    if short == 0:
        return float(mask.mean()), float("nan"), float("nan")
    return float(mask.mean()), long / short, cv2.contourArea(longest) / (short * long)


def compute(
    polygons: Mapping[str, tuple[tuple[int, int], Mapping[str, list]]],
    masks: Mapping[str, Mapping],
    tasks: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """The table of each of FILES: a row an annotated image, a column a task, both by name, and `img_id`.

    Instances are the polygons that a reader drew (two may overlap in one patch), all else is of the mask. Without a
    mask instances and area are 0, the others NaN.
    """
    images, tasks = sorted(polygons), sorted(tasks)
    values = np.full((len(FILES), len(images), len(tasks)), np.nan)
    values[:2] = 0
    for row, image in enumerate(images):
        entry, (_, drawn) = masks[image] if image in masks else {}, polygons[image]
        for column, task in enumerate(tasks):
            if task in entry and rle.area([entry[task]])[0]:
                values[0, row, column] = len(drawn.get(task, ()))
                values[1:, row, column] = shape_of(rle.decode([entry[task]])[0])
    pairs = zip(FILES, values, strict=True)
    tables = {name: pd.DataFrame(each, columns=tasks).assign(img_id=images) for name, each in pairs}
    tables[FILES[0]] = tables[FILES[0]].astype(dict.fromkeys(tasks, int))
    return tables


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The four tables of a folder."""
    tables = {}
    for name in FILES:
        path = Path(folder) / f"{name}.csv"
        made_by = "chexlocalize.py compute_pathology_features writes it"
        tables[name] = csv_tables.numeric(path, texts=("img_id",), made_by=made_by)
    return tables


def of_positives(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, np.ndarray]]:
    """Feature (of PLOTS) -> task -> its values in the images with an instance of the task."""
    tasks = [name for name in tables[FILES[0]] if name != "img_id"]
    has = {task: tables[FILES[0]][task].to_numpy() > 0 for task in tasks}
    shown = {feature: tables[file] for feature, file in zip(PLOTS, FILES, strict=True)}
    found = {f: {task: shown[f][task].to_numpy(float)[has[task]] for task in tasks} for f in PLOTS}
    found["irrectangularity"] = {task: 1 - values for task, values in found["irrectangularity"].items()}
    return found


def plot(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """A box plot of each feature over the tasks, `<feature>_dist.png` (and .pdf)."""
    made = []
    for feature, by_task in of_positives(tables).items():
        finite = {task: values[np.isfinite(values)] for task, values in by_task.items()}
        made += charts.save(charts.boxes(finite, PLOTS[feature]), Path(folder) / f"{feature}_dist")
    return made
