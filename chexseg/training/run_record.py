"""What a training run depends on, where it writes, and whether it ended: all without torch.

A run that ended is known by its record (`args.json`), so that the same command again has nothing to import.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from chexseg.runtime import distributed, provenance

log = logging.getLogger(__name__)
# Arguments that change neither weights nor the choice of the epoch.
NEVER_MATTERS = ("max_minutes", "save_dir", "experiment_name")


@dataclass(frozen=True)
class Run:
    """A training run on the disk.

    folder        gets checkpoint.pt, log.jsonl and the offline files of Weights & Biases
    record        `provenance.describe(...)`: a checkpoint is continued only where it agrees
    best          file of the best epoch's network, and those that belong to it; empty: the trainer keeps them elsewhere
    record_path   JSON file that gets the record, and at the end what came of the run; None: none is written
    places        arguments that only say where things are: what is in the files counts
    notes         more for the record's readers, which decides nothing
    """

    folder: Path
    record: Mapping[str, Any]
    best: tuple[Path, ...] = ()
    record_path: Path | None = None
    places: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    wandb_project: str = ""
    wandb_run_name: str = ""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that a checkpoint is compared by."""
        return {name: value for name, value in self.record["arguments"].items() if name not in self.places}

    @property
    def fingerprint(self) -> str:
        return provenance.fingerprint({**self.record, "arguments": self.arguments}, NEVER_MATTERS)

    @property
    def _outline(self) -> str:
        """The fingerprint of arguments and code alone."""
        return self.with_inputs([]).fingerprint

    def with_record(self, record: Mapping[str, Any], **notes: Any) -> "Run":
        """The same run with another record."""
        return replace(self, record=record, notes=notes)

    def with_inputs(self, inputs: Sequence[Path | None]) -> "Run":
        """The same run on other input files, each in its role (`provenance.describe`)."""
        described = provenance.describe({}, inputs)
        return replace(self, record={**self.record, "inputs": described["inputs"], "roles": described["roles"]})

    def begin(self) -> None:
        """Write the record of a run that trains. From now on it has not ended."""
        if self.record_path:
            provenance.write(self.record_path, {**self.record, **self.notes})

    def end(self, metrics: Mapping[str, Any], summary: str) -> None:
        """Add to the record that the run ended, with the best epoch's metrics and a line about it."""
        if self.record_path:
            finished = {
                "fingerprint": self.fingerprint,
                "outline": self._outline,
                "sha256": [provenance.sha256(path) for path in self.best],
                "summary": summary,
            }
            more = {"best": dict(metrics), "finished": finished}
            provenance.write(self.record_path, {**self.record, **self.notes, **more})

    def recorded(self) -> dict[str, Any]:
        """What the record's file holds; empty where there is none that can be read."""
        if self.record_path is None or not self.record_path.is_file():
            return {}
        return provenance.read_record(self.record_path)

    def recorded_argument(self, name: str) -> Any:
        """An argument of the run that wrote the record; None where there is none."""
        arguments = self.recorded().get("arguments")
        return arguments.get(name) if isinstance(arguments, dict) else None

    def _finished(self) -> dict[str, Any]:
        found = self.recorded().get("finished")
        return found if isinstance(found, dict) else {}

    def damaged(self) -> Path | None:
        """The first of the best epoch's files that is not as it was when the run ended; None too where nobody knows."""
        sums = self._finished().get("sha256")
        if isinstance(sums, list) and len(sums) == len(self.best):
            for path, expected in zip(self.best, sums, strict=True):
                if not path.is_file() or provenance.sha256(path) != expected:
                    return path
        return None

    def looks_finished(self, resume: str) -> bool:
        """Whether a run with these arguments and this code ended here, on whatever inputs: the question that costs
        least. Never where `resume` asks for something else than to go on."""
        return distributed.from_main(partial(self._looks_finished, resume))

    def _looks_finished(self, resume: str) -> bool:
        return resume == "auto" and self._finished().get("outline") == self._outline

    def finished_before(self) -> bool:
        """Whether this very run ended here and its files are whole; says so. All else is left to `loop.fit`, which
        looks at the checkpoint."""
        finished = distributed.from_main(self._finished_before)
        if finished:
            self.say_finished(finished["summary"])
        return bool(finished)

    def _finished_before(self) -> dict[str, Any]:
        found = self._finished()
        same = found.get("fingerprint") == self.fingerprint and isinstance(found.get("summary"), str)
        whole = bool(self.best) and all(path.is_file() for path in (*self.best, self.checkpoint))
        return found if same and whole and self.damaged() is None else {}

    def say_finished(self, summary: str) -> None:
        """Log that there is nothing to do, and what came of the run."""
        log.info("%s: finished before; nothing to do", self.folder)
        self.say(summary)

    def say(self, summary: str) -> None:
        """Log where the best epoch's network is, and how good it was."""
        log.info("%s: %s", self.best[0] if self.best else self.folder, summary)
