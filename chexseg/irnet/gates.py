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
from chexseg.data import chexpert
from chexseg.irnet.films import store_files


class Gate(Protocol):
    """Says which findings are present."""

    @property
    def inputs(self) -> list[Path]:
        """The files that decide it."""
        ...

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        """(N, T) bool: which findings of which images may have a mask."""
        ...


class OpenGate:
    """Every finding of every image, as in the original."""

    inputs: list[Path] = []

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        return np.ones((len(ids), len(tasks)), bool)


@dataclass(frozen=True)
class LabelGate:
    """The findings that a label file calls present; uncertain ones (-1) too where `uncertain` is True.

    observations  the columns that the file must have
    aliases       other names of a column
    """

    path: Path
    observations: Sequence[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    uncertain: bool = True

    @property
    def inputs(self) -> list[Path]:
        return [self.path]

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        frame = chexpert.read_labels(self.path, self.observations, self.aliases)
        return chexpert.present(frame, ids, tasks, uncertain=self.uncertain)


@dataclass(frozen=True)
class ProbabilityGate:
    """The findings to which the classifier that made the maps gives a probability of at least `least`."""

    maps: SaliencyMaps
    least: float = 0.5

    @property
    def inputs(self) -> list[Path]:
        return store_files(self.maps)

    def present(self, ids: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
        return self.maps.probabilities(ids)[:, self.maps.task_rows(tasks)] >= self.least
