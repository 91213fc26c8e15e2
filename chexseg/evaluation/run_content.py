"""What the page tells of a run beside its scores: quality of pseudo masks, trainings, where all of it comes from."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexseg.data import csv_tables
from chexseg.errors import DataError
from chexseg.evaluation import charts, records
from chexseg.evaluation.page_content import Content, cell, number, picture, plain, row, table
from chexseg.runtime.progress import duration


def read_quality(path: Path) -> pd.DataFrame | None:
    """The quality report of pseudo masks; None where there is none or its columns differ."""
    if not path.is_file():
        return None
    try:
        frame = csv_tables.frame(path, texts=("source", "gate", "task"))
    except DataError:
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
                cells += plain("–")
                continue
            line = by_source.loc[source]
            one_cell = cell((line["iou"], line["lower"], line["upper"]), best=line["iou"] == best > 0)
            one_cell["range"] += (
                f"; precision {number(line['precision'], '.2f')}, recall {number(line['recall'], '.2f')}"
            )
            cells.append(one_cell)
        rows.append(row(str(task), cells))
    return table(
        f"IoU with the expert{f', gate {gate}' if gate else ''}; best source in bold",
        ["Finding", *map(str, sources)],
        rows,
    )


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
                plain(*(_value(line.get(key)) for key in ("train_loss", score, "lr", "seconds"))))
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
            plain(_name(stage.output), "–" if stage.seed is None else stage.seed, str(stage.record.get("code", "–"))),
        )
        for stage in stages
    ]
    total = [row("all", plain(duration(sum(seconds for _, seconds in times))), total=True)] if times else []
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
            [row(name, plain(", then ".join(found))) for name, found in versions.items()],
            "text",
        ),
        "times": times
        and table("Wall time", ["stage", "time"], [*(row(name, plain(duration(s))) for name, s in times), *total]),
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
