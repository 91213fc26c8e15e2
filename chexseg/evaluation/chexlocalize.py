"""CheXlocalize's own numbers (Saporta et al. 2022), in the files that its scripts write and read.

Where they differ from ours: replicates are of images, not of patients, drawn by NumPy's old generator, so that a seed
gives those of its eval.py; every image counts that the ground truth or, with false positives, the prediction names;
one without a prediction counts as an empty mask. How pathologies look is in `pathology_features`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.data import csv_tables, rle
from chexseg.data.images import upsample
from chexseg.errors import DataError
from chexseg.evaluation import film_list, metrics
from chexseg.evaluation.bootstrap import Resamples
from chexseg.evaluation.hits import Maps, rows_of
from chexseg.runtime.files import atomic

Masks = Mapping[str, Mapping]
Tables = dict[str, tuple[pd.DataFrame, bool]]  # name of a CSV file, its table, and whether the index is a column
REPLICATES, LEVEL, DIGITS = 1000, 0.05, 3  # of its bootstrap, its intervals, its rounding


def write(stem: Path, each: np.ndarray, tasks: tuple[str, ...], images: list[str], resamples: Resamples) -> list[Path]:
    """Scores per image and task (images, tasks) and their replicates, of patients, in two files of eval.py's format,
    `<stem>_results_per_cxr.csv` and `<stem>_bootstrap_results_per_cxr.csv`."""
    replicates_ = pd.DataFrame(resamples.means(each)[1:], columns=list(tasks))
    paths = [stem.with_name(f"{stem.name}_{name}_per_cxr.csv") for name in ("results", "bootstrap_results")]
    write_csv(paths[0], per_image(each, tasks, images).reset_index()[[*sorted(tasks), "img_id"]])
    write_csv(paths[1], replicates_)
    return paths


def write_csv(path: Path, frame: pd.DataFrame, *, index: bool = False) -> Path:
    """A table as a file, which appears when it is whole."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=index)
    return path


def per_image(values: np.ndarray, tasks: Sequence[str], images: Sequence[str]) -> pd.DataFrame:
    """(images, tasks) as a table: a row an image, by name, its index `img_id`; a column a task, by name."""
    frame = pd.DataFrame(values, pd.Index(list(images), name="img_id", dtype=object), list(tasks))
    return frame.sort_index()[sorted(tasks)]


def ious(truth: Masks, predictions: Masks, tasks: Sequence[str], *, true_positives: bool) -> pd.DataFrame:
    """IoU per image and task. `true_positives`: of pairs of which neither mask is empty, else of those of which one is
    not, and of images too that only `predictions` has."""
    films = () if true_positives else list(predictions)
    whole = film_list.complete(truth, {"": predictions}, films, tasks)
    images = list(whole.truth)
    found = metrics.overlap(whole.methods[""], whole.truth, tasks, images)
    return per_image(found.per_image(true_positives=true_positives), tasks, images)


def map_hits(truth: Masks, maps: Maps, tasks: Sequence[str]) -> pd.DataFrame:
    """1 where the first of a map's largest values, at the size of the film, lies in the mask, else 0; NaN without a
    mask or a map. (`hits.hits` is fifty times as fast, and off by a pixel where two are as large.)"""
    rows, images = rows_of(maps, tasks), list(truth)
    found = np.full((len(images), len(tasks)), np.nan)
    for line, image in zip(found, images, strict=True):
        for column, coded in _positive(truth[image], tasks) if image in maps else ():
            if not maps.known([image], [tasks[column]]).all():
                continue
            saliency = maps[image]
            if list(saliency["size"]) != list(coded["size"]):
                raise DataError(f"{image}: map of a film of {saliency['size']}, mask of one of {coded['size']}")
            own = upsample(saliency["maps"][[rows[column]]], maps.input_size(saliency))
            large = upsample(own, saliency["size"])[0]
            top, left = np.unravel_index(large.argmax(), large.shape)
            line[column] = rle.sample(coded, np.array([top]), np.array([left]))[0, 0]
    return per_image(found, tasks, images)


def point_hits(truth: Masks, points: Mapping[str, Mapping[str, list]], tasks: Sequence[str]) -> pd.DataFrame:
    """1 where one of a reader's most representative points (x, y) lies in the mask, 0 where none does or the reader
    gave none; NaN without a mask."""
    images = list(truth)
    found = np.full((len(images), len(tasks)), np.nan)
    for line, image in zip(found, images, strict=True):
        given = points[image] if image in points else {}
        for column, coded in _positive(truth[image], tasks):
            line[column] = any(_inside(coded, int(x), int(y)) for x, y in given.get(tasks[column], ()))
    return per_image(found, tasks, images)


def _positive(entry: Mapping, tasks: Sequence[str]) -> list[tuple[int, Mapping]]:
    """The places of the tasks of which an image has a mask with a pixel, and these masks."""
    there = [(column, entry[task]) for column, task in enumerate(tasks) if task in entry]
    return [(column, coded) for column, coded in there if rle.area([coded])[0]]


def _inside(coded: Mapping, x: int, y: int) -> bool:
    height, width = coded["size"]
    return 0 <= x < width and 0 <= y < height and bool(rle.sample(coded, np.array([y]), np.array([x]))[0, 0])


def replicates(each: pd.DataFrame, tasks: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Means of 1000 draws of as many images, with replacement; a row a replicate, the columns as in `tasks`."""
    generator, values = np.random.RandomState(seed), each[list(tasks)].to_numpy(float)
    known, rows = ~np.isnan(values), []
    filled = np.where(known, values, 0)
    for _ in range(REPLICATES):
        drawn = generator.choice(len(values), size=len(values), replace=True)
        count = known[drawn].sum(0)
        rows.append(np.where(count > 0, filled[drawn].sum(0) / np.maximum(count, 1), np.nan))
    return pd.DataFrame(rows, columns=list(tasks))


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Lower bound, mean and upper bound of replicates, to three digits: the order statistics that eval.py takes."""
    ordered = values.sort_values()
    last = len(ordered)
    lower, upper = int(LEVEL / 2 * last) - 1, int((1 - LEVEL / 2) * last) - 1
    return round(ordered.iloc[lower], DIGITS), round(ordered.mean(), DIGITS), round(ordered.iloc[upper], DIGITS)


def summary(drawn: pd.DataFrame) -> pd.DataFrame:
    """name, lower, mean, upper of each task, by name."""
    rows = [(task, *interval(drawn[task])) for task in sorted(drawn)]
    return pd.DataFrame(rows, columns=["name", "lower", "mean", "upper"])


def score_tables(stem: str, each: pd.DataFrame, tasks: Sequence[str], *, seed: int = 0) -> Tables:
    """The three tables of eval.py from scores per image and task."""
    drawn = replicates(each, tasks, seed=seed)
    return {
        f"{stem}_results_per_cxr": (each.assign(img_id=each.index), False),
        f"{stem}_bootstrap_results_per_cxr": (drawn, False),
        f"{stem}_summary_results": (summary(drawn), False),
    }


def rates(truth: Masks, predictions: Masks, tasks: Sequence[str]) -> pd.DataFrame:
    """Precision, recall and specificity of the pixels of all images of `truth` together; NaN for 0 / 0."""
    whole = film_list.complete(truth, {"": predictions}, (), tasks)
    found = metrics.overlap(whole.methods[""], whole.truth, sorted(tasks), list(truth))
    table = {"pathology": sorted(tasks)}
    names = {"precision": "precision", "recall": "recall/sensitivity", "specificity": "specificity"}
    for metric, name in names.items():
        above, below = (np.nansum(part, 0) for part in found.parts(metric))
        table[name] = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return pd.DataFrame(table)


def counts(masks: Masks, tasks: Sequence[str]) -> pd.Series:
    """In how many images each task has a pixel."""
    number = dict.fromkeys(sorted(tasks), 0)
    for image in masks:
        for column, _ in _positive(masks[image], tasks):
            number[tasks[column]] += 1
    return pd.Series(number)


def read_replicates(path: Path) -> pd.DataFrame:
    """The table of replicates that eval.py wrote."""
    return csv_tables.numeric(path, made_by="chexlocalize.py eval writes it")


def decrease(human: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """By how much a method is below a reader, in per cent of the reader, from the replicates of both: a row a task, the
    largest first, and one of their averages: hb, pred, pct_diff, pct_diff_lower, pct_diff_upper."""
    tasks = list(human.columns)
    if set(tasks) != set(predicted.columns) or len(human) != len(predicted):
        raise DataError(f"replicates of other tasks or another number: {len(human)}, {len(predicted)}; {tasks}")
    rows = {}
    for task in tasks:
        hb, pred = human[task].mean(), predicted[task].mean()
        lower, _, upper = interval((human[task] - predicted[task]) / human[task])
        difference = round((hb - pred) / hb * 100, DIGITS)
        rows[task] = (hb, pred, difference, round(lower * 100, DIGITS), round(upper * 100, DIGITS))
    columns = ["hb", "pred", "pct_diff", "pct_diff_lower", "pct_diff_upper"]
    table = pd.DataFrame.from_dict(rows, "index", columns=columns).sort_values("pct_diff", ascending=False)
    hb, pred = (round(table[name].mean(), DIGITS) for name in ("hb", "pred"))
    of_means = 100 * (human.mean(axis=1) - predicted.mean(axis=1)) / human.mean(axis=1)
    lower, _, upper = interval(of_means)
    table.loc["Average"] = [hb, pred, round((hb - pred) / hb * 100, DIGITS), lower, upper]
    return table
