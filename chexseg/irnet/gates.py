"""Which findings of which images may have a pseudo mask: by the images' labels, by the classifier, or all of them.

A gate knows its input files at once and reads them when it is asked, so that a stage whose output is up to date reads
none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.classifier.saliency_store import open_maps
from chexseg.data import chexpert
from chexseg.errors import MissingError
from chexseg.irnet.films import store_files
from chexseg.irnet.options import UNCERTAIN

# What a gate says of a finding: no mask but an empty one; a mask; nothing at all, so that its entry is left out.
ABSENT, PRESENT, UNKNOWN = 0, 1, -1


class Gate(Protocol):
    """Says which findings are there. Classes that inherit it get `present`."""

    @property
    def inputs(self) -> list[Path]:
        """The files that decide it."""
        ...

    def decide(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """(N, T) int8 of ABSENT, PRESENT and UNKNOWN."""
        ...

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """(N, T) bool: which findings are there for sure."""
        return self.decide(ids, tasks) == PRESENT


class OpenGate(Gate):
    """Every finding of every image, as in the original."""

    @property
    def inputs(self) -> list[Path]:
        return []

    def decide(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        return np.full((len(ids), len(tasks)), PRESENT, np.int8)


@dataclass(frozen=True)
class LabelGate(Gate):
    """What a label file says; a blank label is absent, a finding that the file has no column of is unknown.

    observations  the columns that are read
    aliases       other names of a column
    uncertain     what a label of -1 means: `present`, `absent` or `unknown`
    """

    path: Path
    observations: Sequence[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    uncertain: str = "present"

    def __post_init__(self) -> None:
        if self.uncertain not in UNCERTAIN:
            raise ValueError(f"uncertain {self.uncertain!r}: expected one of {', '.join(UNCERTAIN)}")

    @property
    def inputs(self) -> list[Path]:
        return [self.path]

    def decide(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        frame = chexpert.read_labels(self.path, self.observations, self.aliases)
        if missing := next((name for name in ids if name not in frame.index), None):
            raise MissingError(
                f"{self.path}: {missing}: no labels in it; name the label file of these images with --csv_path"
            )
        sure = chexpert.present(frame, ids, tasks, uncertain=False)
        uncertain = chexpert.present(frame, ids, tasks, uncertain=True) & ~sure
        means = {"present": PRESENT, "absent": ABSENT, "unknown": UNKNOWN}[self.uncertain]
        decided = np.where(sure, PRESENT, np.where(uncertain, means, ABSENT))
        without = (frame[list(tasks)] == chexpert.NO_COLUMN).all()
        return np.where(without.to_numpy(), UNKNOWN, decided).astype(np.int8)


@dataclass(frozen=True)
class ProbabilityGate(Gate):
    """The findings to which the classifier that made the maps gives a probability of at least `least`."""

    maps: SaliencyMaps
    least: float = 0.5

    @property
    def inputs(self) -> list[Path]:
        return store_files(self.maps)

    def decide(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        likely = self.maps.probabilities(ids)[:, self.maps.task_rows(tasks)] >= self.least
        known = self.maps.known(ids, tasks)
        return np.where(known, np.where(likely, PRESENT, ABSENT), UNKNOWN).astype(np.int8)


def choose_gate(
    kind: str,
    run: Path,
    labels: Path | None,
    *,
    observations: Sequence[str],
    aliases: Mapping[str, str],
    uncertain: str = "present",
    least: float = 0.5,
) -> Gate:
    """The gate that `--gate` means (one of `options.GATES`): images without a label file are gated by the classifier
    that made the maps of `run`."""
    if kind == "none":
        return OpenGate()
    if kind == "probability" or labels is None:
        return ProbabilityGate(open_maps(run), least)
    return LabelGate(labels, observations, aliases, uncertain)
