"""The grid of a sweep over random walks, its files, its table, and its curves. Nothing here needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.runtime.files import atomic
from chexseg.runtime.shard_format import read_arrays, write_arrays

MEAN = "mIoU"
PARAMETERS = ("radius", "beta", "exp_times", "threshold")
COLUMNS = (*PARAMETERS, "task", "iou")


@dataclass(frozen=True)
class Grid:
    """The values that are tried, each in ascending order."""

    radii: tuple[int, ...] = (2, 3, 5)
    betas: tuple[float, ...] = (2.0, 5.0, 10.0)
    exp_times: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    thresholds: tuple[float, ...] = tuple(i / 20 for i in range(1, 20))

    def shape(self, tasks: int) -> tuple[int, ...]:
        """Of the counts for so many tasks."""
        return len(self.radii), len(self.betas), len(self.exp_times), tasks, 2, 1 + len(self.thresholds)


class BoundaryShards:
    """Shards of (h, w) arrays; together one array under the name `boundaries` of an .npz file."""

    def write(self, records: Sequence[np.ndarray], path: Path) -> None:
        write_arrays(path, boundaries=np.stack(records))

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, boundaries=np.concatenate([shard["boundaries"] for _, shard in read_arrays(parts)]))


class CountShards:
    """Shards of a film's counts; together their sum, under the name `counts` of an .npz file."""

    def write(self, records: Sequence[np.ndarray], path: Path) -> None:
        write_arrays(path, compress=True, counts=np.sum(records, axis=0)[None])

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        total = sum(shard["counts"].sum(0) for _, shard in read_arrays(parts))
        with open(path, "wb") as file:
            np.savez_compressed(file, counts=total)


def pooled_iou(counts: np.ndarray) -> np.ndarray:
    """Counts (..., T, 2, 1 + K) -> pooled IoU (..., K, T); NaN for a task without a pixel of ground truth."""
    above = counts[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
    both, outside = above[..., 1, :], above[..., 0, :]
    union = counts[..., 1, :].sum(-1)[..., None] + outside
    iou = np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)
    occurs = counts[..., 1, :].sum(-1)[..., None] > 0
    return np.moveaxis(np.where(occurs, iou, np.nan), -1, -2)


def table(counts: np.ndarray, grid: Grid, tasks: Sequence[str]) -> pd.DataFrame:
    """A row for each setting and task, and one for the mean over the tasks that occur: COLUMNS."""
    iou = pooled_iou(counts)
    known = ~np.isnan(iou)
    mean = np.divide(np.nansum(iou, -1), known.sum(-1), out=np.full(iou.shape[:-1], np.nan), where=known.any(-1))
    values = np.concatenate([iou, mean[..., None]], axis=-1)
    settings = product(grid.radii, grid.betas, grid.exp_times, grid.thresholds, [*tasks, MEAN])
    return pd.DataFrame(
        [(*setting, value) for setting, value in zip(settings, values.ravel(), strict=True)], columns=list(COLUMNS)
    )


def best(rows: pd.DataFrame, task: str = MEAN) -> pd.Series | None:
    """The row of the highest IoU of a task, the first of equals; None where it never occurs."""
    mine = rows[(rows["task"] == task) & rows["iou"].notna()]
    return None if mine.empty else mine.loc[mine["iou"].idxmax()]


def text(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    """The best setting of each task and of the mean, for a terminal."""
    lines = [f"{'task':28s}" + "".join(f"{name:>11s}" for name in (*PARAMETERS, "IoU"))]
    for task in (*tasks, MEAN):
        row = best(rows, task)
        values = "".join(f"{row[name]:>11g}" for name in PARAMETERS) + f"{row['iou']:>11.4f}" if row is not None else ""
        lines.append(f"{task:28s}{values}" if values else f"{task:28s}  does not occur")
    return "\n".join(lines)


def draw(path: Path, rows: pd.DataFrame, tasks: Sequence[str]) -> None:
    """A PNG with a panel per parameter: the IoU at each of its values, the others at their best for the mean."""
    from chexseg.evaluation import charts
    from chexseg.evaluation.figure import COLOURS, THEMES

    _, ink, faint = THEMES["dark"]
    chosen = best(rows)
    figure, panels = charts.quality_panels(len(PARAMETERS), (15, 3.8))
    for panel, name in zip(panels, PARAMETERS, strict=True):
        line = rows
        if chosen is not None:
            for other in PARAMETERS:
                line = line if other == name else line[line[other] == chosen[other]]
            panel.axvline(chosen[name], color=faint, lw=0.8, ls=":")
        for number, task in enumerate((*tasks, MEAN)):
            mine, mean = line[line["task"] == task], task == MEAN
            colour = ink if mean else COLOURS[number % len(COLOURS)]
            panel.plot(mine[name], mine["iou"], color=colour, lw=2.6 if mean else 1.1, marker="o", ms=3, label=task)
        panel.set_title(name, color=ink, size=10)
    charts.save_quality(figure, panels, path)


def write(output: Path, picture: Path, counts: Path, grid: Grid, tasks: Sequence[str]) -> str:
    """Write the table and the curves of the counts in an .npz file; returns the best settings for a terminal."""
    with np.load(counts) as file:
        rows = table(file["counts"], grid, tasks)
    with atomic(output) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")
    with atomic(picture) as temporary:
        draw(temporary, rows, tasks)
    return text(rows, tasks)
