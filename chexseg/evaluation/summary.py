"""The page's summary, from a comparison and the records of the run: scores, ratios, differences, thresholds, notes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from chexseg.evaluation import bootstrap, charts, records
from chexseg.evaluation.comparison import Comparison, paired_table
from chexseg.evaluation.methods import DIFFERENCES, HUMAN, METHODS, REFERENCES, short
from chexseg.evaluation.page_content import Content, cell, number, picture, plain, row, table


def summarise(
    found: Comparison,
    truth: Path,
    paths: Mapping[str, Path],
    history: records.History,
    leaks: Sequence[str] = (),
) -> Content:
    """The summary section: `truth` is the file of the experts' masks, `paths` the methods' files."""
    never = found.never_occur()
    notes = [f"Never in the ground truth, so shown but not scored: {', '.join(never)}"] if never else []
    p_values = _p_values(found)
    thresholds, choices = _thresholds(found.tasks, truth, paths, history)
    return {
        "lead": f"Agreement with the experts' masks on {len(found.images)} images of {found.num_patients} patients. "
        f"Intervals are 95% percentiles of {found.num_replicates} bootstrap replicates over patients (seed "
        f"{found.seed}), the same ones for all methods; mIoU is the mean over the findings that occur.",
        "protocols": [_protocol(found, name, meaning, p_values[name]) for name, meaning in bootstrap.PROTOCOLS.items()],
        "images": {
            "ids": found.images,
            "text": f"{len(found.images)} images of {found.num_patients} patients in {truth.name}.",
        },
        "thresholds": thresholds,
        "choices": choices,
        "leaks": list(leaks),
        "notes": [*notes, *found.notes] or ["Nothing was left out."],
    }


def _protocol(found: Comparison, name: str, meaning: str, p_values: Mapping[frozenset[str], float]) -> Content:
    compared = differences(found, name)
    shown = [(one.label, *one.values) for one in compared]
    miou = means(found, name)
    content: Content = {
        "name": name,
        "meaning": meaning,
        "iou": _iou(found, name),
        "ratios": _ratios(found, name),
        "means": picture(
            charts.forest(miou, "mIoU"),
            "mIoU: "
            + "; ".join(
                f"{label} {number(value)} ({number(low)} to {number(high)})" for label, value, low, high in miou
            ),
            f"mIoU of each method with its 95% interval, protocol {name}.",
        ),
        "differences": None,
        "difference_table": None,
    }
    if compared:
        content["differences"] = picture(
            charts.forest(shown, "paired difference of mIoU", zero=True),
            "Paired differences of mIoU: "
            + "; ".join(f"{label} {number(value, '+.3f')}" for label, value, _, _ in shown),
            "Paired differences of mIoU with 95% intervals. A filled square: the interval leaves out 0.",
        )
        rows = []
        for one in compared:
            p = p_values[frozenset((one.first, one.second))]
            rows.append(row(one.label, [cell(one.values, "+.3f"), *plain(one.share, number(p))]))
        header = ["first − second", "difference (95% interval)", "replicates above 0", "p (Holm)"]
        content["difference_table"] = table("Paired differences of mIoU; p corrected for all pairs", header, rows)
    return content


def _p_values(found: Comparison) -> dict[str, dict[frozenset[str], float]]:
    """Protocol -> two methods -> p of their difference in mIoU, corrected for all pairs (as in paired.csv)."""
    frame = paired_table(found)
    frame = frame[frame["task"] == "mIoU"]
    columns = (frame[name] for name in ("protocol", "a", "b", "p_holm"))
    values: dict[str, dict[frozenset[str], float]] = {protocol: {} for protocol in found.scores}
    for protocol, a, b, p in zip(*columns, strict=True):
        values[protocol][frozenset((a, b))] = p
    return values


def _iou(found: Comparison, protocol: str) -> Content:
    by_method = found.scores[protocol]
    positive = next(iter(by_method.values())).n_positive
    rows, intervals = [], {name: bootstrap.intervals(scores) for name, scores in by_method.items()}
    for column, task in enumerate([*found.tasks, "mIoU"]):
        values = {name: each[column] for name, each in intervals.items()}
        rivals = [value[0] for name, value in values.items() if name != HUMAN and value[0] > 0]
        best = max(rivals) if len(rivals) > 1 else None
        cells = [cell(value, best=value[0] == best and name != HUMAN) for name, value in values.items()]
        rows.append(row(task, [*plain(positive[column]), *cells], total=task == "mIoU"))
    header = ["Finding", "images with it", *(short(name) for name in by_method)]
    return table(f"IoU with 95% intervals, protocol {protocol}; best method in bold", header, rows)


def _ratios(found: Comparison, protocol: str) -> Content | None:
    """mIoU relative to the weakly supervised methods, beside the paper's; None without one."""
    by_method = found.scores[protocol]
    references = [name for name in REFERENCES if name in by_method]
    if not references:
        return None
    rows = []
    for name, scores in by_method.items():
        ratios = [bootstrap.ratio(*found.paired(name, other, protocol)) for other in references]
        cells = [
            plain(1)[0] if name == other else cell(bootstrap.interval(values), ".2f")
            for other, values in zip(references, ratios, strict=True)
        ]
        in_paper = METHODS[name].paper_ratio if name in METHODS else None
        paper = f"{in_paper:.3g}" if in_paper else "–"
        rows.append(row(short(name), [*plain(number(scores.values[0, -1])), *cells, *plain(paper)]))
    header = [
        "Method",
        "mIoU",
        *(f"relative to {short(name)}" for name in references),
        "in the paper (Gadgil et al. 2021)",
    ]
    return table("mIoU relative to weak supervision, ours and the paper's", header, rows)


def means(found: Comparison, protocol: str) -> list[tuple[str, float, float, float]]:
    """mIoU of each method with its interval: name, value, lower, upper."""
    by_method = found.scores[protocol]
    return [(short(name), *bootstrap.intervals(scores)[-1]) for name, scores in by_method.items()]


class Difference(NamedTuple):
    """A paired difference of mIoU: two methods, (value, lower, upper), and the share of the replicates above 0."""

    first: str
    second: str
    values: tuple[float, float, float]
    share: str

    @property
    def label(self) -> str:
        return f"{short(self.first)} − {short(self.second)}"


def differences(found: Comparison, protocol: str) -> list[Difference]:
    """The paired differences that the paper is about, of the methods that are there."""
    by_method, rows = found.scores[protocol], []
    for first, second in DIFFERENCES:
        if first in by_method and second in by_method:
            values = bootstrap.difference(*found.paired(first, second, protocol))[:, -1]
            drawn = values[1:][~np.isnan(values[1:])]
            share = "–" if np.isnan(values[0]) or not len(drawn) else f"{np.mean(drawn > 0):.1%}"
            rows.append(Difference(first, second, bootstrap.interval(values), share))
    return rows


def _thresholds(
    tasks: Sequence[str], truth: Path, paths: Mapping[str, Path], history: records.History
) -> tuple[Content | None, list[str]]:
    """The table of thresholds, and a sentence a method on what its epoch and thresholds were chosen."""
    columns, choices = {}, []
    for name, path in paths.items():
        values = records.thresholds(path)
        training = next((one for one in history.trainings if one.folder == path.resolve().parent), None)
        if values is not None and len(values) == len(tasks):
            columns[short(name)] = values
        if training is None or training.stage is None:
            choices.append(f"{short(name)}: no record of a training lies beside {path.name}")
            continue
        chosen_on = training.stage.values("paths").get("eval_masks_path")
        where = f"the masks of {Path(chosen_on).name}" if isinstance(chosen_on, str) else "its validation masks"
        if isinstance(chosen_on, str) and Path(chosen_on).resolve() == truth.resolve():
            where += ", the very masks that it is scored against here: no test"
        common = training.stage.values("arguments").get("valid_common_pathologies")
        how = "the common findings' mean IoU" if common else "pooled mIoU"
        epoch = f"epoch {training.best} of {len(training.log)}"
        kept = ", the last, was kept," if training.keeps_last else ""
        choices.append(f"{short(name)}: {epoch}{kept} and its thresholds were chosen by {how} on {where}")
    rows = [
        row(task, plain(*(f"{values[number]:.2f}" for values in columns.values()))) for number, task in enumerate(tasks)
    ]
    found = table("Thresholds on the networks' probabilities", ["Finding", *columns], rows) if columns else None
    return found, choices
