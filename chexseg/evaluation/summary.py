"""The page's tables and figures, from a comparison and the records of the run: dictionaries that a template shows.

A table is {"caption", "header", "rows": [{"head", "cells": [{"value", "range", "best"}], "total"}]}, a picture
{"source", "alt", "caption"}. Nothing here is HTML: the template escapes every word.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexseg.evaluation import bootstrap, charts, records
from chexseg.evaluation.comparison import Comparison
from chexseg.evaluation.methods import DIFFERENCES, HUMAN, METHODS, REFERENCES, short
from chexseg.runtime.progress import duration

Content = dict[str, Any]


def number(value: float, form: str = ".3f") -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:{form}}".replace("-", "−")


def _cell(values: Sequence[float], form: str = ".3f", best: bool = False) -> Content:
    value, lower, upper = values
    known = np.isfinite(value) and np.isfinite(lower)
    return {
        "value": number(value, form),
        "range": f"{number(lower, form)} to {number(upper, form)}" if known else "",
        "best": best,
    }


def _plain(*values: object) -> list[Content]:
    return [{"value": str(value), "range": "", "best": False} for value in values]


def table(caption: str, header: Sequence[str], rows: Sequence[Content], kind: str = "numbers") -> Content:
    """kind: `numbers`, set to the right, or `text`, to the left."""
    return {"caption": caption, "header": list(header), "rows": list(rows), "kind": kind}


def row(head: str, cells: Sequence[Content], total: bool = False) -> Content:
    return {"head": head, "cells": list(cells), "total": total}


def picture(figure: Any, alt: str, caption: str) -> Content:
    return {"source": charts.data_uri(figure), "alt": alt, "caption": caption}


# ---- Scores ----------------------------------------------------------------------------------------------------------


def summarise(found: Comparison, truth: Path, paths: Mapping[str, Path], history: records.History) -> Content:
    """The summary section: `truth` is the file of the experts' masks, `paths` the methods' files."""
    never = found.never_occur()
    notes = [f"Never in the ground truth, so shown but not scored: {', '.join(never)}"] if never else []
    thresholds, choices = _thresholds(found.tasks, truth, paths, history)
    return {
        "lead": f"Agreement with the experts' masks on {len(found.images)} images of {found.num_patients} patients. "
        f"Intervals are 95% percentiles of {found.num_replicates} bootstrap replicates over patients (seed "
        f"{found.seed}), the same ones for all methods; mIoU is the mean over the findings that occur.",
        "protocols": [_protocol(found, name, meaning) for name, meaning in bootstrap.PROTOCOLS.items()],
        "images": {
            "ids": found.images,
            "text": f"{len(found.images)} images of {found.num_patients} patients in {truth.name}.",
        },
        "thresholds": thresholds,
        "choices": choices,
        "notes": [*notes, *found.notes] or ["Nothing was left out."],
    }


def _protocol(found: Comparison, name: str, meaning: str) -> Content:
    compared = differences(found, name)
    shown = [(label, *values) for label, values, _ in compared]
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
        rows = [row(label, [_cell(values, "+.3f"), *_plain(share)]) for label, values, share in compared]
        content["difference_table"] = table(
            "Paired differences of mIoU", ["first − second", "difference (95% interval)", "replicates above 0"], rows
        )
    return content


def _iou(found: Comparison, protocol: str) -> Content:
    by_method = found.scores[protocol]
    positive = next(iter(by_method.values())).n_positive
    rows = []
    for column, task in enumerate([*found.tasks, "mIoU"]):
        values = {name: bootstrap.interval(scores.values[:, column]) for name, scores in by_method.items()}
        rivals = [value[0] for name, value in values.items() if name != HUMAN and value[0] > 0]
        best = max(rivals) if len(rivals) > 1 else None
        cells = [_cell(value, best=value[0] == best and name != HUMAN) for name, value in values.items()]
        rows.append(row(task, [*_plain(positive[column]), *cells], total=task == "mIoU"))
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
        ratios = [bootstrap.ratio(*found.paired(name, other, protocol))[:, -1] for other in references]
        cells = [
            _plain(1)[0] if name == other else _cell(bootstrap.interval(values), ".2f")
            for other, values in zip(references, ratios, strict=True)
        ]
        paper = f"{METHODS[name].paper_ratio:.3g}" if name in METHODS else "–"
        rows.append(row(short(name), [*_plain(number(scores.values[0, -1])), *cells, *_plain(paper)]))
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
    return [(short(name), *bootstrap.interval(scores.values[:, -1])) for name, scores in by_method.items()]


def differences(found: Comparison, protocol: str) -> list[tuple[str, tuple[float, float, float], str]]:
    """Paired differences of mIoU: names, (value, lower, upper), share of the replicates above 0."""
    by_method, rows = found.scores[protocol], []
    for first, second in DIFFERENCES:
        if first in by_method and second in by_method:
            values = bootstrap.difference(*found.paired(first, second, protocol))[:, -1]
            drawn = values[1:][~np.isnan(values[1:])]
            share = "–" if np.isnan(values[0]) or not len(drawn) else f"{np.mean(drawn > 0):.1%}"
            rows.append((f"{short(first)} − {short(second)}", bootstrap.interval(values), share))
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
        choices.append(f"{short(name)}: {epoch} and its thresholds were chosen by {how} on {where}")
    rows = [
        row(task, _plain(*(f"{values[number]:.2f}" for values in columns.values())))
        for number, task in enumerate(tasks)
    ]
    found = table("Thresholds on the networks' probabilities", ["Finding", *columns], rows) if columns else None
    return found, choices


# ---- Pseudo masks ----------------------------------------------------------------------------------------------------


def read_quality(path: Path) -> pd.DataFrame | None:
    """The quality report of pseudo masks; None where there is none or its columns differ."""
    if not path.is_file():
        return None
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        return None
    if not {"source", "task", "iou", "lower", "upper"} <= set(frame):
        return None
    for name in ("iou", "lower", "upper", "precision", "recall"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce") if name in frame else np.nan
    return frame


def quality(path: Path) -> Content | None:
    """The quality report as figure and tables; None where there is none."""
    frame = read_quality(path)
    if frame is None:
        return None
    tables = []
    for gate, rows in frame.groupby(frame["gate"].fillna("") if "gate" in frame else [""] * len(frame), sort=False):
        tables.append(_quality_table(str(gate), rows))
    text = "IoU of pseudo masks with the expert's, by source and finding"
    return {"picture": picture(charts.quality(frame), text, f"{text}, with 95% intervals."), "quality": tables}


def _quality_table(gate: str, frame: pd.DataFrame) -> Content:
    sources, rows = list(dict.fromkeys(frame["source"])), []
    for task, one in frame.groupby("task", sort=False):
        by_source = one.drop_duplicates("source").set_index("source")
        best, cells = by_source["iou"].max(), []
        for source in sources:
            if source not in by_source.index:
                cells += _plain("–")
                continue
            line = by_source.loc[source]
            cell = _cell((line["iou"], line["lower"], line["upper"]), best=line["iou"] == best > 0)
            cell["range"] += f"; precision {number(line['precision'], '.2f')}, recall {number(line['recall'], '.2f')}"
            cells.append(cell)
        rows.append(row(str(task), cells))
    return table(
        f"IoU with the expert{f', gate {gate}' if gate else ''}; best source in bold",
        ["Finding", *map(str, sources)],
        rows,
    )


# ---- Training and provenance -----------------------------------------------------------------------------------------


def trainings(history: records.History) -> list[Content]:
    """A figure and a table of each network's training."""
    found = []
    for one in history.trainings:
        score = next((key for key in ("miou", "mean_auroc") if key in one.log[0]), "score")
        names = {"miou": "validation mIoU", "mean_auroc": "validation AUROC", "score": "score"}
        seconds = sum(line["seconds"] for line in one.log if isinstance(line.get("seconds"), (int, float)))
        text = f"{len(one.log)} epochs in {duration(seconds)}; epoch {one.best} kept"
        if one.stage is not None:
            keys = ("architecture", "encoder", "backbone", "image_size", "batch_size", "lr", "loss", "seed")
            arguments = one.stage.values("arguments")
            text += "; " + ", ".join(f"{key} {arguments[key]}" for key in keys if arguments.get(key) is not None)
        rows = [
            row(f"{line['epoch']}{' (kept)' if line['epoch'] == one.best else ''}",
                _plain(*(_value(line.get(key)) for key in ("train_loss", score, "lr", "seconds"))))
            for line in one.log
        ]  # fmt: skip
        figure = charts.training(one.log, one.best, (score, names[score]))
        caption = f"{one.name}: training loss, {names[score]} and learning rate. Star: the epoch that was kept."
        header = ["epoch", "training loss", names[score], "learning rate", "seconds"]
        found.append(
            {
                "name": one.name,
                "text": text + ".",
                "picture": picture(figure, caption, caption),
                "table": table(one.name, header, rows),
            }
        )
    return found


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


def origin(history: records.History, times: Sequence[tuple[str, float]] | None, own: Mapping[str, Any]) -> Content:
    """The provenance section: stages in the order in which they built on each other, versions, times.

    own: the record of the report itself.
    """
    stages = [*history.stages, records.Stage(Path("report/index.html"), own)]
    versions: dict[str, list[str]] = {}
    for stage in stages:
        for name, version in stage.values("versions").items():
            versions.setdefault(str(name), [])
            if str(version) not in versions[str(name)]:
                versions[str(name)].append(str(version))
    overview = [
        row(
            stage.command,
            _plain(_name(stage.output), "–" if stage.seed is None else stage.seed, str(stage.record.get("code", "–"))),
        )
        for stage in stages
    ]
    total = [row("all", _plain(duration(sum(seconds for _, seconds in times))), total=True)] if times else []
    return {
        "lead": "Followed backwards from the masks above, by the records that every stage writes beside its output.",
        "overview": table(
            "Stages, in the order in which they build on each other",
            ["command", "output", "seed", "code"],
            overview,
            "text",
        ),
        "stages": [_stage(stage) for stage in stages],
        "gaps": [f"{_name(path)}: no record lies beside it" for path in history.gaps],
        "versions": table(
            "Packages",
            ["package", "version"],
            [row(name, _plain(", then ".join(found))) for name, found in versions.items()],
            "text",
        ),
        "times": times
        and table("Wall time", ["stage", "time"], [*(row(name, _plain(duration(s))) for name, s in times), *total]),
    }


def _name(path: Path) -> str:
    """A file with its folder: many are called test_masks.json."""
    return f"{path.parent.name}/{path.name}"


def _stage(stage: records.Stage) -> Content:
    options = {**stage.values("paths"), **stage.values("arguments")}
    words = [f"--{key} {_words(value)}" for key, value in options.items() if value not in (None, "", [], "None")]
    facts = [("output", str(stage.output)), ("code version", str(stage.record.get("code", "–")))]
    facts += [(Path(str(path)).name, f"{str(digest)[:16]} (sha256)") for path, digest in stage.values("inputs").items()]
    line = " \\\n    ".join([f"python {stage.command}", *words])
    return {"command": stage.command, "output": _name(stage.output), "line": line, "facts": facts}


def _words(value: object) -> str:
    """An option's value as a shell takes it."""
    if isinstance(value, list):
        return " ".join("=".join(map(str, one)) if isinstance(one, list) else shlex.quote(str(one)) for one in value)
    return shlex.quote(str(value))
