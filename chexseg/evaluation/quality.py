"""How good pseudo masks are: each kind of them against expert masks, as it is and gated, along the pipeline.

A *source* is a kind of pseudo mask (thresholded maps, CRF, random walk, a teacher's); a *gate* says which findings of
which images may have a mask at all, by the image's labels or by the classifier. A gate's absent finding is an empty
mask. What a source does not know of an image, a task or a pixel, takes no part in its scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from chexseg.data import rle
from chexseg.data.images import fit_shape
from chexseg.errors import DataError
from chexseg.evaluation import bootstrap
from chexseg.evaluation.metrics import Overlap

SIDE = 320  # longer side, in pixels, at which masks of all sizes are compared
UNKNOWN = 255  # a pixel that a source says nothing about
UNGATED = "none"
COLUMNS = ("source", "gate", "task", "iou", "lower", "upper", "precision", "recall", "n_images", "n_positive", "empty")


class Source(Protocol):
    """A kind of pseudo mask."""

    def __call__(self, image_id: str, shape: tuple[int, int]) -> Mapping[str, np.ndarray] | None:
        """task -> (*shape) uint8 of 0, 1 and UNKNOWN, of the tasks that it knows; None where it lacks the image."""


class MaskSource:
    """A masks file, or any other mapping of image id -> {task: run-length mask}."""

    def __init__(self, masks: Mapping[str, Mapping[str, Mapping]]):
        self.masks = masks

    def __call__(self, image_id: str, shape: tuple[int, int]) -> Mapping[str, np.ndarray] | None:
        if image_id not in self.masks:
            return None
        entry = self.masks[image_id]
        return dict(zip(entry, rle.resize(list(entry.values()), shape), strict=True))


def count(
    sources: Mapping[str, Source],
    truth: Mapping[str, Mapping[str, Mapping]],
    tasks: Sequence[str],
    images: Iterable[str],
    side: int = SIDE,
) -> dict[str, Overlap]:
    """Count the pixels of every source against the experts', both brought to a longer side of `side`, or the truth's
    own where that is smaller, so that sources of any size weigh an image alike. NaN where either is unknown."""
    images = list(images)
    counts = {name: np.full((5, len(images), len(tasks)), np.nan) for name in sources}
    for row, image in enumerate(images):
        entry = truth[image]
        if not entry:
            continue
        height, width = next(iter(entry.values()))["size"]
        shape = fit_shape(height, width, min(side, max(height, width)))
        experts = dict(zip(entry, rle.resize(list(entry.values()), shape) > 0, strict=True))
        for name, source in sources.items():
            masks = source(image, shape) or {}
            for column, task in enumerate(tasks):
                if task in masks and task in experts:
                    counts[name][:, row, column] = _pixels(masks[task], experts[task])
    return {name: _overlap(images, tasks, each) for name, each in counts.items()}


def _pixels(mask: np.ndarray, expert: np.ndarray) -> tuple[int, ...]:
    known = mask != UNKNOWN
    ours, true = (mask == 1), expert & known
    both = int((ours & true).sum())
    predicted, annotated = int(ours.sum()), int(true.sum())
    return both, predicted + annotated - both, predicted, annotated, int(known.sum())


def _overlap(images: list[str], tasks: Sequence[str], counts: np.ndarray) -> Overlap:
    both, union, predicted, truth, pixels = counts
    return Overlap(images, tuple(tasks), both, union, predicted, truth, pixels=pixels)


def gated(overlap: Overlap, decisions: np.ndarray) -> Overlap:
    """The counts after a gate's `decisions` (images, tasks): 1 leaves a mask as it is, 0 makes it empty, -1 unknown."""
    unknown = decisions < 0
    absent = ~np.isnan(overlap.union) & (decisions == 0)

    def where_known(counts: np.ndarray) -> np.ndarray:
        return np.where(unknown, np.nan, counts)

    return replace(
        overlap,
        intersection=where_known(np.where(absent, 0, overlap.intersection)),
        union=where_known(np.where(absent, overlap.truth, overlap.union)),
        predicted=where_known(np.where(absent, 0, overlap.predicted)),
        truth=where_known(overlap.truth),
        pixels=where_known(overlap.pixels),
    )


def measure(
    counts: Mapping[str, Overlap],
    gates: Mapping[str, np.ndarray],
    *,
    num_replicates: int = 1000,
    seed: int = 17,
) -> pd.DataFrame:
    """Pooled IoU with its interval, precision and recall of each source under each gate: COLUMNS.

    `empty` is the share of images with the finding whose mask is empty; the task `mIoU` is the mean over the tasks. A
    source that knows no image of a task has no row values there.
    """
    first = next(iter(counts.values()), None)
    if first is None:
        raise DataError("no source of pseudo masks to measure; name one with --source or --map_dir")
    resamples = bootstrap.Resamples(first.images, num_replicates, seed)
    tables = []
    for name, ungated in counts.items():
        for gate, decisions in {UNGATED: np.ones(first.union.shape, np.int8), **gates}.items():
            found = gated(ungated, decisions)
            scores = bootstrap.score(found, resamples, "pooled")
            value, lower, upper = bootstrap.intervals(scores).T
            precision, recall = (
                bootstrap.score(found, bootstrap.Resamples(first.images, 0), "pooled", metric).values[0]
                for metric in ("precision", "recall")
            )
            rows = {"source": name, "gate": gate, "task": [*scores.tasks, "mIoU"], "iou": value}
            rows |= {"lower": lower, "upper": upper, "precision": precision, "recall": recall}
            rows |= {"n_images": scores.n_images, "n_positive": scores.n_positive, "empty": _empty(found)}
            tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _empty(overlap: Overlap) -> np.ndarray:
    """(tasks + 1,) share of positive pairs whose mask is empty, last that of all pairs."""
    positive = overlap.truth > 0
    lost = positive & (overlap.predicted == 0)
    total = np.append(positive.sum(0), positive.sum()).astype(float)
    return np.divide(np.append(lost.sum(0), lost.sum()), total, out=np.full(len(total), np.nan), where=total > 0)


def text(table: pd.DataFrame) -> str:
    """For a terminal: under each gate the IoU of every source per task, the best one marked, and how the means do."""
    blocks = []
    for gate, rows in table.groupby("gate", sort=False):
        sources = list(dict.fromkeys(rows["source"]))
        iou = rows.pivot(index="task", columns="source", values="iou")
        iou = iou.loc[list(dict.fromkeys(rows["task"])), sources]
        width = max(len(task) for task in iou.index)
        lines = [f"\ngate {gate}: pooled IoU, * the best source", " " * width + "".join(f"{s:>16}" for s in sources)]
        for task, values in iou.iterrows():
            best = values.max()
            cells = ["-" if np.isnan(v) else f"{v:.3f}" + ("*" if v == best and v > 0 else " ") for v in values]
            lines.append(f"{task:{width}}" + "".join(f"{cell:>16}" for cell in cells))
        means = rows[rows["task"] == "mIoU"].set_index("source").loc[sources]
        for column, label in (("precision", "precision"), ("recall", "recall"), ("empty", "left empty")):
            lines.append(f"{label:{width}}" + "".join(f"{v:>15.3f} " for v in means[column]))
        spans = [f"{low:.3f}-{up:.3f}" for low, up in zip(means["lower"], means["upper"], strict=True)]
        lines.append(f"{'95% of mIoU':{width}}" + "".join(f"{span:>15} " for span in spans))
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def draw(path: Path, table: pd.DataFrame, tasks: Sequence[str]) -> None:
    """A PNG with a panel per gate: from source to source, in the table's order, each task's IoU and their mean."""
    from chexseg.evaluation import charts
    from chexseg.evaluation.figure import COLOURS, THEMES

    _, ink, _ = THEMES["dark"]

    gates, sources = list(dict.fromkeys(table["gate"])), list(dict.fromkeys(table["source"]))
    figure, panels = charts.quality_panels(len(gates), (1.6 + 3.6 * len(gates) + 1.9, 4.2))
    for panel, gate in zip(panels, gates, strict=True):
        rows = table[table["gate"] == gate].pivot(index="source", columns="task").loc[sources]
        for number, task in enumerate(tasks):
            values = rows["iou"][task]
            panel.plot(sources, values, color=COLOURS[number % len(COLOURS)], lw=1.1, marker="o", ms=3, label=task)
        mean, lower, upper = (rows[column]["mIoU"] for column in ("iou", "lower", "upper"))
        spread = [np.maximum(mean - lower, 0), np.maximum(upper - mean, 0)]
        panel.errorbar(sources, mean, spread, color=ink, lw=2.6, marker="s", ms=5, capsize=3, label="mean, 95%")
        panel.set_title("ungated" if gate == UNGATED else f"gated by {gate}", color=ink, size=10)
        panel.tick_params(axis="x", rotation=35)
    charts.save_quality(figure, panels, path)
