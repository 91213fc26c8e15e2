"""The paper's table, as CSV and Markdown: every method's IoU per pathology, means, ratios and paired differences.

The picture is in `sheet`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.errors import DataError
from chexseg.evaluation import bootstrap, metrics
from chexseg.runtime.progress import duration

HUMAN = "radiologist"
NAMES = {
    "weak_cam": "weakly supervised (Grad-CAM)",
    "weak_irnet": "weakly supervised (IRNet)",
    "full": "fully supervised",
    "chexseg": "CheXseg",
    HUMAN: "radiologist",
}
# CheXseg beats fully supervised by 9.7% and weakly supervised by 73.1% (Gadgil et al. 2021): mIoU relative to weak.
PAPER_RATIOS = {"weak_cam": 1.0, "weak_irnet": 1.0, "full": 1.58, "chexseg": 1.73, HUMAN: 2.28}
# In this order, the first that is there is what ratios are relative to: IRNet's masks are what CheXseg adds experts to.
REFERENCES = ("weak_irnet", "weak_cam")
DIFFERENCES = (
    ("chexseg", "full"),
    ("chexseg", "weak_irnet"),
    ("chexseg", "weak_cam"),
    ("full", "weak_irnet"),
    ("full", "weak_cam"),
    (HUMAN, "chexseg"),
)
MAX_MISSING_NAMES = 20


@dataclass
class Comparison:
    """Scores of all methods on the same images and the same resamples: `scores[protocol][method]`.

    A second reader may lack some of the images: `paired` scores what it is compared with on those that it has.
    """

    tasks: tuple[str, ...]
    images: list[str]
    resamples: bootstrap.Resamples
    seed: int
    overlaps: dict[str, metrics.Overlap]
    scores: dict[str, dict[str, bootstrap.Scores]]
    notes: list[str] = field(default_factory=list)

    @property
    def num_patients(self) -> int:
        return self.resamples.weights.shape[1]

    @property
    def num_replicates(self) -> int:
        return self.resamples.weights.shape[0] - 1

    def paired(self, first: str, second: str, protocol: str) -> tuple[bootstrap.Scores, bootstrap.Scores]:
        """The scores of two methods on the images that both have."""
        has = [~np.isnan(self.overlaps[name].union).all(1) for name in (first, second)]
        if np.array_equal(*has):
            return self.scores[protocol][first], self.scores[protocol][second]
        both = np.logical_and(*has)
        score = (bootstrap.score(self.overlaps[name].where(both), self.resamples, protocol) for name in (first, second))
        return tuple(score)

    def never_occur(self) -> list[str]:
        """Tasks without a pixel of ground truth: shown, not scored."""
        first = next(iter(self.scores["pooled"].values()))
        return [task for task, count in zip(self.tasks, first.n_positive, strict=False) if not count]


def compare(
    truth: Mapping[str, Mapping],
    methods: Mapping[str, Mapping[str, Mapping]],
    tasks: Sequence[str],
    *,
    num_replicates: int = 1000,
    seed: int = 17,
) -> Comparison:
    """Score every method under every protocol on the images that have ground truth and a prediction of each method.

    Images without a mask of the second reader stay: only that row, and what is compared with it, is without them.
    What is left out is in `notes`.
    """
    if not methods:
        raise DataError("no method to compare")
    notes = []
    images = list(truth)
    for name, predictions in methods.items():
        if name == HUMAN:
            continue
        absent = [image for image in images if image not in predictions]
        if absent:
            notes.append(
                f"{len(absent)} images have no prediction of {name} and are left out of every row: "
                + metrics.some(absent, MAX_MISSING_NAMES)
            )
            images = [image for image in images if image in predictions]
        if not images:
            raise DataError(f"{name}: no image is left that has ground truth and a prediction of every method")
    for name, predictions in methods.items():
        extra = [image for image in predictions if image not in truth]
        if extra:
            notes.append(
                f"{len(extra)} images of {name} have no ground truth and are not scored: "
                + metrics.some(extra, MAX_MISSING_NAMES)
            )
    resamples = bootstrap.Resamples(images, num_replicates, seed)
    overlaps: dict[str, metrics.Overlap] = {}
    scores: dict[str, dict[str, bootstrap.Scores]] = {protocol: {} for protocol in bootstrap.PROTOCOLS}
    for name, predictions in methods.items():
        found = overlaps[name] = metrics.overlap(predictions, truth, tasks, images)
        if np.isnan(found.union).all():
            raise DataError(f"{name}: none of its images is among the {len(images)} scored ones")
        notes += [f"{name}: {note}" for note in found.notes]
        for protocol, by_method in scores.items():
            by_method[name] = bootstrap.score(found, resamples, protocol)
    return Comparison(tuple(tasks), images, resamples, seed, overlaps, scores, notes)


def long_table(comparison: Comparison) -> pd.DataFrame:
    """One row per method, protocol and task, and task `mIoU` for the mean: method, protocol, task, iou, lower, upper,
    n_images, n_positive. `iou` is empty for a task that never occurs."""
    tables = [
        bootstrap.table(scores, protocol).assign(method=method)
        for protocol, by_method in comparison.scores.items()
        for method, scores in by_method.items()
    ]
    return pd.concat(tables)[["method", "protocol", "task", "iou", "lower", "upper", "n_images", "n_positive"]]


def markdown(comparison: Comparison, timings: pd.DataFrame | None = None) -> str:
    """The whole report: a section per protocol, then what was left out, then how long each stage took."""
    lines = [
        "# Chest X-ray segmentation: IoU against the experts' masks",
        "",
        f"{len(comparison.images)} images of {comparison.num_patients} patients. Intervals: 95%, percentiles of "
        f"{comparison.num_replicates} bootstrap replicates over patients (seed {comparison.seed}), the same ones for "
        "all methods. mIoU: mean over the tasks that occur in the ground truth.",
        "",
    ]
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
    if timings is not None and len(timings):
        lines += ["## Time of each stage", ""] + _timing_table(timings) + [""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
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
    means = [_with_interval(scores.values[:, -1]) for scores in by_method.values()]
    rows.append(["**mIoU** (95% interval)", str(n_positive[-1]), *means])
    return _table(["IoU", "images with it", *(NAMES.get(name, name) for name in by_method)], rows)


def _ratio_table(comparison: Comparison, protocol: str) -> list[str]:
    """mIoU relative to each weakly supervised method, beside the paper's."""
    by_method = comparison.scores[protocol]
    references = [name for name in REFERENCES if name in by_method]
    if not references:
        return ["No weakly supervised method is given, so there is nothing to relate the others to."]
    rows = []
    for name, scores in by_method.items():
        ratios = [bootstrap.ratio(*comparison.paired(name, other, protocol))[:, -1] for other in references]
        cells = ["1" if name == r else _with_interval(v, ".2f") for r, v in zip(references, ratios, strict=True)]
        paper = f"{PAPER_RATIOS[name]:.3g}" if name in PAPER_RATIOS else "–"
        rows.append([NAMES.get(name, name), _number(scores.values[0, -1]), *cells, paper])
    return _table(["mIoU", "", *(f"relative to {NAMES[name]}" for name in references), "in the paper"], rows)


def _difference_table(comparison: Comparison, protocol: str) -> list[str]:
    by_method, rows = comparison.scores[protocol], []
    for first, second in DIFFERENCES:
        if first in by_method and second in by_method:
            values = bootstrap.difference(*comparison.paired(first, second, protocol))[:, -1]
            greater = np.mean(values[1:][~np.isnan(values[1:])] > 0) if not np.isnan(values[0]) else np.nan
            share = "–" if np.isnan(greater) else f"{greater:.1%}"
            rows.append([f"{NAMES[first]} − {NAMES[second]}", _with_interval(values, "+.3f"), share])
    if not rows:
        return []
    return [*_table(["paired difference of mIoU", "95% interval", "replicates above 0"], rows), ""]


def read_timings(path: Path) -> pd.DataFrame | None:
    """`stage,seconds` as reproduce.sh writes it; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        frame = pd.read_csv(path)
        return pd.DataFrame({"stage": frame["stage"], "seconds": frame["seconds"].astype(float)})
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: expected the columns stage,seconds ({error})") from error


def _timing_table(timings: pd.DataFrame) -> list[str]:
    rows = [[stage, duration(seconds)] for stage, seconds in zip(timings["stage"], timings["seconds"], strict=True)]
    return _table(["stage", "time"], [*rows, ["**all**", f"**{duration(timings['seconds'].sum())}**"]])
