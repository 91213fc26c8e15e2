"""Pseudo masks whose source is chosen task by task, by a table of qualities: the best one, or none that is good enough.

The table is quality.csv of pseudo_label_quality.py, measured on the experts' training images. A task of which no source
reaches the floor is unknown: it is left out of every image's entry. Nothing here needs torch.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chexseg.data import csv_tables, hdf5_files, leak_guard, rle
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.irnet import stages
from chexseg.irnet.films import Films
from chexseg.irnet.gates import ABSENT, UNKNOWN, Gate
from chexseg.runtime import provenance

log = logging.getLogger(__name__)
Entry = tuple[str, dict[str, dict]]
Masks = Mapping[str, Mapping[str, Mapping]]
# The table's name of a gate.
GATE_NAMES = {"labels": ("label", "labels"), "probability": ("probability",), "none": ("none",)}


@dataclass(frozen=True)
class Choice:
    """The source of a task's masks and its IoU; `source` is None where none reaches the floor, and `iou` then that of
    the best (NaN where nothing is known)."""

    task: str
    source: str | None
    iou: float


def choose(
    table: Path,
    sources: Sequence[str],
    tasks: Sequence[str],
    *,
    gate: str = "labels",
    floor: float = 0.1,
    aliases: Mapping[str, str] | None = None,
) -> list[Choice]:
    """For each task the source of the highest IoU under `gate` (a key of GATE_NAMES), the first of equals in the table.

    Sources that are not among `sources`, whose masks are not at hand, cannot be chosen. DataError for a table without
    the columns source, gate, task and iou, or without any row of these sources under the gate.
    """
    best = {task: Choice(task, None, float("nan")) for task in tasks}
    seen = False
    for row in _rows(table):
        task, name = (aliases or {}).get(row["task"], row["task"]), row["source"]
        if row["gate"] not in GATE_NAMES[gate] or name not in sources:
            continue
        seen = True
        if task in best and row["iou"]:
            try:
                iou = float(row["iou"])
            except ValueError as error:
                raise DataError(f"{table}: {name}, {task}: iou {row['iou']!r} is no number") from error
            if not best[task].iou >= iou and iou == iou:
                best[task] = Choice(task, name if iou >= floor else None, iou)
    if not seen:
        raise DataError(f"{table}: no row of gate {gate} and any source of {', '.join(sources) or 'none'}")
    return list(best.values())


def _rows(table: Path) -> list[dict[str, str]]:
    made_by = "make it with pseudo_label_quality.py"
    return csv_tables.rows(table, ("source", "gate", "task", "iou"), made_by=made_by, comments=True, empty=True)


class RelationMasks(Mapping[str, Mapping[str, Mapping]]):
    """The sure foreground (1) of a run's hdf5_files/ir_labels as masks by image id."""

    def __init__(self, run: Path):
        train_set, self._labels = hdf5_files.open_pair(run)
        self.path, self._rows = self._labels.path, {name: i for i, name in enumerate(hdf5_files.names(train_set))}

    def __getitem__(self, image_id: str) -> Mapping[str, Mapping]:
        stack = self._labels.row("ir_labels", self._rows[image_id]) == 1
        return dict(zip(self._labels.tasks, rle.encode(stack), strict=True))

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def own_sources(run: Path) -> dict[str, Path]:
    """The sources that the stages before leave in a run folder, by their names in the table."""
    files = {
        "map_otsu": run / "pseudo_seg_labels_encoded_cams.json",
        "walk": run / "pseudo_seg_labels_encoded_irnet.json",
        "crf_sure": run / hdf5_files.IR_LABELS,
    }
    return {name: path for name, path in files.items() if path.is_file()}


def open_source(path: Path, aliases: Mapping[str, str]) -> Masks:
    """The masks at `path`: a masks JSON, or a run's ir_labels."""
    return RelationMasks(path.parents[1]) if path.name == hdf5_files.IR_LABELS.name else MaskFile(path, aliases)


@dataclass(frozen=True)
class ChosenMasks:
    """row of `films` -> (image id, {task: mask}), by the choice, the gate and what the sources know.

    What the gate calls absent has an empty mask whatever its source; unknown, and left out, is a task without a
    source, one that the gate calls unknown, one that its source lacks of the image, and, with `contradiction`
    `unknown`, one that the gate calls present where the source's mask is empty.
    """

    films: Films
    gate: Gate
    choices: Sequence[Choice]
    files: Mapping[str, Path]
    aliases: Mapping[str, str]
    contradiction: str = "empty"

    @cached_property
    def _sources(self) -> dict[str, Masks]:
        used = {choice.source for choice in self.choices}
        return {name: open_source(path, self.aliases) for name, path in self.files.items() if name in used}

    @cached_property
    def _verdicts(self) -> np.ndarray:
        return self.gate.decide(self.films.ids, [choice.task for choice in self.choices])

    def __call__(self, row: int) -> Entry:
        image_id = self.films.ids[row]
        entries = {name: masks[image_id] for name, masks in self._sources.items() if image_id in masks}
        entry: dict[str, dict] = {}
        for choice, verdict in zip(self.choices, self._verdicts[row], strict=True):
            mask = entries.get(choice.source or "", {}).get(choice.task)
            if choice.source is None or verdict == UNKNOWN:
                continue
            if verdict == ABSENT:
                entry[choice.task] = rle.empty(mask["size"] if mask else self.films.mask_size(row))
            elif mask and (self.contradiction == "empty" or rle.area([mask])[0]):
                entry[choice.task] = dict(mask)
        return image_id, entry

    def process(self, rows: Sequence[int]) -> Iterator[Entry]:
        """The entries of many rows, in order: `process` of `shards.build`."""
        return map(self, rows)


def build_chosen(
    run: Path,
    films: Films,
    gate: Gate,
    *,
    table: Path,
    files: Mapping[str, Path],
    gate_options: Mapping[str, Any],
    floor: float,
    contradiction: str,
    aliases: Mapping[str, str],
    shard_size: int,
) -> None:
    """Write the run's pseudo_seg_labels_encoded_chosen.json and say which source each task has.

    files         masks of the sources that can be chosen
    gate_options  the command line's, of which `gate` says which rows of the table count
    """
    kind = str(gate_options["gate"])
    choices = choose(table, list(files), films.tasks, gate=kind, floor=floor, aliases=aliases)
    for choice in choices:
        log.info("%-28s %-16s IoU %.4f", choice.task, choice.source or "unknown", choice.iou)
    used = [files[name] for name in sorted({choice.source for choice in choices if choice.source})]
    decided = {**gate_options, "contradiction": contradiction, "choice": {c.task: c.source for c in choices}}
    output = run / "pseudo_seg_labels_encoded_chosen.json"
    leak_guard.inherit(output, [table, *used])
    stages.build_masks(
        output,
        films,
        ChosenMasks(films, gate, choices, files, aliases, contradiction).process,
        record=provenance.describe(decided, [*films.inputs, *gate.inputs, *used], code=__file__),
        shard_size=shard_size,
        label="pseudo masks (chosen)",
    )
