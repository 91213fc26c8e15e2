"""Tables of networks that were trained several times, with a seed each: Markdown, CSV, LaTeX and a figure.

A cell is the mean over its seeds, with two spreads that mean different things: the 95% interval over patients (other
films), by the same draws for all cells, and the standard deviation over the seeds (another training).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.evaluation import bootstrap, charts, metrics
from chexseg.evaluation.tables import markdown_table
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
PROTOCOL, MEAN = "pooled", "mIoU"
BUDGET = "budget"  # the table whose rows are numbers of films, drawn as a curve
LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


@dataclass(frozen=True)
class Cell:
    """A place in a table, and the masks of the test set by a network of each seed."""

    table: str
    row: str
    column: str
    masks: tuple[Path, ...]


def score(
    cells: Sequence[Cell],
    truth: MaskFile,
    tasks: Sequence[str],
    aliases: Mapping[str, str],
    *,
    num_replicates: int = 1000,
    seed: int = 17,
) -> pd.DataFrame:
    """A row per cell and task, and task `mIoU` for the mean: table, row, column, task, iou, lower, upper, sd_seeds,
    n_seeds. DataError where a network's masks lack a film of the test set: cells are compared on the same films."""
    images = list(truth)
    resamples = bootstrap.Resamples(images, num_replicates, seed)
    scored: dict[Path, bootstrap.Scores] = {}
    rows = []
    for cell in cells:
        for path in cell.masks:
            if path not in scored:
                predictions = MaskFile(path, aliases)
                if absent := [image for image in images if image not in predictions]:
                    raise DataError(f"{path}: no prediction of {metrics.some(absent)}; run segmentation_test.py again")
                found = metrics.overlap(predictions, truth, tasks, images)
                scored[path] = bootstrap.score(found, resamples, PROTOCOL)
        each = [scored[path] for path in cell.masks]
        mean = bootstrap.mean(each)
        spread = np.std([scores.values[0] for scores in each], axis=0, ddof=1) if len(each) > 1 else [np.nan] * 99
        for task, figures, sd in zip([*tasks, MEAN], bootstrap.intervals(mean), spread, strict=False):
            rows.append((cell.table, cell.row, cell.column, task, *figures, sd, len(each)))
    columns = ["table", "row", "column", "task", "iou", "lower", "upper", "sd_seeds", "n_seeds"]
    return pd.DataFrame(rows, columns=columns)


def write(folder: Path, scores: pd.DataFrame, titles: Mapping[str, str], style: str) -> list[str]:
    """Write each table's .csv, .md, .tex, .png and .pdf, the label budget's curve and, all together, tables.md. Returns
    the Markdown of the tables."""
    texts = []
    for name, rows in scores.groupby("table", sort=False):
        title = titles[str(name)]
        means = rows[rows["task"] == MEAN]
        text = f"## {title}\n\n{markdown(means)}\n"
        tex = latex(means, f"{title}: pooled mIoU", f"tab:{name}")
        _write(folder / f"{name}.csv", rows.to_csv(index=False, float_format="%.6f"))
        _write(folder / f"{name}.md", text)
        _write(folder / f"{name}.tex", tex)
        drawn = means.rename(columns={"task": "_", "row": "task", "column": "source"})
        charts.save(charts.quality(drawn, label="pooled mIoU", style=style), folder / str(name))
        if name == BUDGET:
            curve = means.rename(columns={"column": "method"}).assign(n_expert=means["row"].astype(int))
            curve = curve[["method", "n_expert", "iou", "lower", "upper", "sd_seeds", "n_seeds"]]
            _write(folder / "label_budget.csv", curve.to_csv(index=False, float_format="%.6f"))
            charts.save(charts.label_budget(curve, style=style), folder / "label_budget")
        texts.append(text)
    _write(folder / "tables.md", "\n".join(["# The paper's tables", "", NOTE, "", *texts]))
    return texts


NOTE = (
    "Pooled mIoU of the test set: mean over seeds, 95% interval over patients, ± the standard deviation over the seeds."
)


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _grid(means: pd.DataFrame) -> tuple[list[str], list[list[pd.Series | None]]]:
    """Columns, and for each row of the table its figures by column, None for an empty place. In order of appearance."""
    columns = list(dict.fromkeys(means["column"]))
    places = {(row["row"], row["column"]): row for _, row in means.iterrows()}
    return columns, [[places.get((row, column)) for column in columns] for row in dict.fromkeys(means["row"])]


def _cell(figures: pd.Series | None, best: float, form: str, bold: str) -> str:
    if figures is None:
        return ""
    value = f"{figures['iou']:.3f}"
    value = bold.format(value) if figures["iou"] == best else value
    spread = "" if np.isnan(figures["sd_seeds"]) else f"{figures['sd_seeds']:.3f}"
    return form.format(value=value, lower=figures["lower"], upper=figures["upper"], spread=spread)


def markdown(means: pd.DataFrame) -> str:
    """A table of one task's scores (`score`), the best in bold."""
    columns, grid = _grid(means)
    body = []
    for row, cells in zip(dict.fromkeys(means["row"]), grid, strict=True):
        forms = ["{value} ({lower:.3f} to {upper:.3f}) ± {spread}", "{value} ({lower:.3f} to {upper:.3f})"]
        body.append([str(row), *(_cell(c, means["iou"].max(), forms[_alone(c)], "**{}**") for c in cells)])
    return "\n".join(markdown_table(["", *columns], body))


def latex(means: pd.DataFrame, caption: str, label: str) -> str:
    """The same as a table of LaTeX's booktabs."""
    columns, grid = _grid(means)
    forms = [r"{value} ({lower:.3f}--{upper:.3f}) $\pm$ {spread}", "{value} ({lower:.3f}--{upper:.3f})"]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}", rf"\label{{{label}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines += [" & ".join(["", *map(_escaped, columns)]) + r" \\", r"\midrule"]
    for row, cells in zip(dict.fromkeys(means["row"]), grid, strict=True):
        shown = [_cell(c, means["iou"].max(), forms[_alone(c)], r"\textbf{{{}}}") for c in cells]
        lines.append(" & ".join([_escaped(str(row)), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _alone(figures: pd.Series | None) -> bool:
    """Whether there is but one seed, so no spread."""
    return figures is None or bool(np.isnan(figures["sd_seeds"]))


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
