"""The paper's table, as CSV and Markdown: every method's IoU per pathology, means, ratios and paired differences.

The picture is in `figure`, what is compared in `comparison`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from chexseg.evaluation import bootstrap, scoring
from chexseg.evaluation.comparison import Comparison
from chexseg.evaluation.methods import DIFFERENCES, HUMAN, METHODS, REFERENCES, title


def long_table(comparison: Comparison) -> pd.DataFrame:
    """One row per method, protocol and task, and task `mIoU` for the mean: method, protocol, task, iou, lower, upper,
    n_images, n_positive. `iou` is empty for a task that never occurs."""
    tables = [
        bootstrap.table(scores, protocol).assign(method=method)
        for protocol, by_method in comparison.scores.items()
        for method, scores in by_method.items()
    ]
    return pd.concat(tables)[["method", "protocol", "task", "iou", "lower", "upper", "n_images", "n_positive"]]


def metric_table(comparison: Comparison) -> pd.DataFrame:
    """Every metric of every method: method, protocol, metric, task, value, lower, upper, n_images, n_positive."""
    tables = []
    for method, overlap in comparison.overlaps.items():
        rows = scoring.metric_table(overlap, comparison.resamples)
        rows.insert(0, "method", method)
        tables.append(rows)
    return pd.concat(tables)


def markdown(comparison: Comparison, leaks: Sequence[str] = ()) -> str:
    """The report: what leaks, a section per protocol, what was left out. The time of each stage is in `timings`."""
    lines = [
        "# Chest X-ray segmentation: IoU against the experts' masks",
        "",
        f"{len(comparison.images)} images of {comparison.num_patients} patients. Intervals: 95%, percentiles of "
        f"{comparison.num_replicates} bootstrap replicates over patients (seed {comparison.seed}), the same ones for "
        "all methods. mIoU: mean over the tasks that occur in the ground truth.",
        "",
    ]
    lines += [f"**LEAK, these scores are no test:** {leak}\n" for leak in leaks]
    for protocol, meaning in bootstrap.PROTOCOLS.items():
        lines += [f"## Protocol `{protocol}`", "", f"{meaning}.", ""]
        lines += _iou_table(comparison, protocol) + [""]
        lines += _ratio_table(comparison, protocol) + [""]
        lines += _difference_table(comparison, protocol)
    absent = comparison.never_occur()
    notes = list(comparison.notes)
    if absent:
        notes.insert(0, f"never in the ground truth, so shown but not scored: {', '.join(absent)}")
    lines += ["## What is not scored", ""] + [f"- {note}" for note in notes or ["nothing was left out"]] + [""]
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left and the others to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _with_interval(values: np.ndarray, form: str = ".3f") -> str:
    value, lower, upper = bootstrap.interval(values)
    if np.isnan(value):
        return "–"
    return f"{value:{form}} ({lower:{form}} to {upper:{form}})"


def _iou_table(comparison: Comparison, protocol: str) -> list[str]:
    by_method = comparison.scores[protocol]
    n_positive = next(iter(by_method.values())).n_positive
    rows = []
    for column, task in enumerate(comparison.tasks):
        found = [scores.values[0, column] for scores in by_method.values()]
        best = max((v for v, name in zip(found, by_method, strict=True) if name != HUMAN and v > 0), default=None)
        cells = [
            f"**{_number(v)}**" if v == best and name != HUMAN and len(by_method) > 1 else _number(v)
            for v, name in zip(found, by_method, strict=True)
        ]
        rows.append([task, str(n_positive[column]), *cells])
    means = [_with_interval(scores.steadied()[:, -1]) for scores in by_method.values()]
    rows.append(["**mIoU** (95% interval)", str(n_positive[-1]), *means])
    return markdown_table(["IoU", "images with it", *(title(name) for name in by_method)], rows)


def _ratio_table(comparison: Comparison, protocol: str) -> list[str]:
    """mIoU relative to each weakly supervised method, beside the paper's."""
    by_method = comparison.scores[protocol]
    references = [name for name in REFERENCES if name in by_method]
    if not references:
        return ["No weakly supervised method is given, so there is nothing to relate the others to."]
    rows = []
    for name, scores in by_method.items():
        ratios = [bootstrap.ratio(*comparison.paired(name, other, protocol)) for other in references]
        cells = ["1" if name == r else _with_interval(v, ".2f") for r, v in zip(references, ratios, strict=True)]
        in_paper = METHODS[name].paper_ratio if name in METHODS else None
        paper = f"{in_paper:.3g}" if in_paper else "–"
        rows.append([title(name), _number(scores.values[0, -1]), *cells, paper])
    return markdown_table(["mIoU", "", *(f"relative to {title(name)}" for name in references), "in the paper"], rows)


def _difference_table(comparison: Comparison, protocol: str) -> list[str]:
    by_method, rows = comparison.scores[protocol], []
    for first, second in DIFFERENCES:
        if first in by_method and second in by_method:
            values = bootstrap.difference(*comparison.paired(first, second, protocol))[:, -1]
            greater = np.mean(values[1:][~np.isnan(values[1:])] > 0) if not np.isnan(values[0]) else np.nan
            share = "–" if np.isnan(greater) else f"{greater:.1%}"
            rows.append([f"{title(first)} − {title(second)}", _with_interval(values, "+.3f"), share])
    if not rows:
        return []
    return [*markdown_table(["paired difference of mIoU", "95% interval", "replicates above 0"], rows), ""]
