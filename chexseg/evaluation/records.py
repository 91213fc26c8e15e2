"""What made a report's files: manifests and training logs, followed backwards from the files that the report names.

A record is data: only files below the folders that the caller names are opened, whatever a record says.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chexseg.runtime import plain_json, provenance

LOG, ARGS, THRESHOLDS, PHANTOM = "log.jsonl", "args.json", "thresholds.txt", "phantom.manifest.json"
MAPS = Path("cams") / "saliency.h5"  # of a run folder, which records name as a whole
MAX_BYTES = 32 << 20  # of a record or log; a larger file is none


@dataclass(frozen=True)
class Stage:
    """A command that made `output`: its record as it stands in the manifest."""

    output: Path
    record: Mapping[str, Any]

    @property
    def command(self) -> str:
        return str(self.record.get("command", "unknown command"))

    def values(self, name: str) -> dict[str, Any]:
        found = self.record.get(name)
        return dict(found) if isinstance(found, dict) else {}

    @property
    def seed(self) -> Any:
        return self.values("arguments").get("seed")


@dataclass(frozen=True)
class Training:
    """A network's training: its name, the lines of its log, and the stage's arguments where they are known."""

    name: str
    folder: Path
    log: Sequence[Mapping[str, Any]]
    stage: Stage | None = None

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch was kept, whatever its score."""
        return self.stage is not None and self.stage.values("arguments").get("keep_epoch") == "last"

    @property
    def best(self) -> int | None:
        """The epoch that was kept: the first of the highest score, or the last."""
        if self.keeps_last:
            return self.log[-1]["epoch"] if self.log else None
        scored = [line for line in self.log if isinstance(line.get("score"), (int, float))]
        return max(scored, key=lambda line: line["score"])["epoch"] if scored else None


@dataclass
class History:
    """All stages, those that others build on first; the trainings among them; files of which no record was found."""

    stages: list[Stage] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    gaps: list[Path] = field(default_factory=list)


def trace(outputs: Sequence[Path], roots: Sequence[Path]) -> History:
    """The history of `outputs`: their records, those of the inputs that these name, and so on, within `roots`."""
    history, seen = History(), set()
    folders = [root.resolve() for root in roots]

    def visit(path: Path, named: bool) -> None:
        path = path.resolve()
        if path in seen or not any(path.is_relative_to(folder) for folder in folders):
            return
        seen.add(path)
        if path.is_dir():
            return visit(path / MAPS, False)
        place, record = _record(path)
        if record is None:
            if named:
                history.gaps.append(path)
            return
        if place in seen:
            return
        seen.add(place)
        stage = Stage(path, record)
        for source in _named_files(stage):
            visit(source, False)
        # A sample cache is a copy of what another file says: its inputs matter, itself not.
        if path.parent.name != "cache":
            history.stages.append(stage)
        if log := _log(path):
            history.trainings.append(Training(_training_name(path), path.parent, log, stage))

    for path in outputs:
        visit(Path(path), True)
    return history


def _named_files(stage: Stage) -> list[Path]:
    """Absolute paths that a record names, inputs first: sample caches stand in for the masks files they copy."""
    named = [*stage.values("inputs"), *stage.values("paths").values(), *stage.values("arguments").values()]
    return [Path(text) for text in named if isinstance(text, str) and Path(text).is_absolute()]


def thresholds(masks: Path) -> list[float] | None:
    """The thresholds that a network's masks were cut at, where they stand beside them."""
    found = read_json(masks.parent / THRESHOLDS)
    if isinstance(found, list) and all(isinstance(value, (int, float)) for value in found):
        return [float(value) for value in found]
    return None


def read_json(path: Path) -> Any:
    """A JSON file's content; None where it is absent, too large or damaged."""
    try:
        return plain_json.read(path, finite=False) if path.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError):
        return None


def _log_folders(path: Path) -> list[Path]:
    """Where the trainings keep their log: beside the network, or in a folder that is named after it."""
    name = path.name.removesuffix(".pth").removeprefix("best_")
    beside = [path.parent] if path.name == "best_model.pth" else []
    return [*beside, path.with_name(path.name + ".training"), path.with_name(name)]


def _record(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Where the record of a file stands, and what it says: its manifest, the arguments of the training that saved it,
    or, of drawn X-rays and their outlines, that of the whole folder."""
    places = [provenance.manifest_path(path)]
    if path.suffix == ".pth":
        places += [folder / ARGS for folder in _log_folders(path)]
    places.append(path.with_name(PHANTOM))
    for place in places:
        found = read_json(place)
        if isinstance(found, dict) and isinstance(found.get("inputs"), dict):
            return place, found
    return path, None


def _log(path: Path) -> list[dict[str, Any]]:
    """The epochs of the training that saved `path`; lines that are none are left out."""
    if path.suffix not in (".pth", ".ckpt"):
        return []
    for folder in _log_folders(path):
        file = folder / LOG
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            continue
        lines = []
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                lines.append(line)
        return lines
    return []


def _training_name(path: Path) -> str:
    return path.parent.name if path.name == "best_model.pth" else path.name
