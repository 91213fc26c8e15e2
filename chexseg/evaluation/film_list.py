"""All films of a test set, those without any finding too, which CheXlocalize's ground truth files leave out.

A mask that a method draws on such a film is a false positive. CheXlocalize's per-image score counts it with 0; here the
pooled score counts its pixels in the union, too: whoever has the list of all films passes it, and both are honest.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import pandas as pd

from chexseg.data import json_lines, label_files, rle
from chexseg.data.chexpert import listed_id
from chexseg.data.names import shown
from chexseg.errors import DataError
from chexseg.evaluation.metrics import some

Masks = Mapping[str, Mapping]
log = logging.getLogger(__name__)


class FilmList(dict[str, frozenset[str]]):
    """All films of a set: image id -> the tasks that its label file calls present (1); empty without label columns."""


def read_list(path: Path, aliases: Mapping[str, str] | None = None) -> FilmList:
    """The frontal films of a label file of any data set (see `label_files`), and their findings, some of which may
    stand under another name (`aliases`)."""
    aliases = aliases or {}
    frame = label_files.read(path)
    lines = (f"{path}: line {line}, 'Path'" for line in range(2, len(frame) + 2))
    ids = [listed_id(text, where) for text, where in zip(frame["Path"], lines, strict=True)]
    frame.index = pd.Index(ids, dtype=object)
    frame = label_files.of_views(frame)
    present = frame.apply(pd.to_numeric, errors="coerce") == 1
    names = [aliases.get(str(name), str(name)) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = shown(next(name for name in names if names.count(name) > 1))
        raise DataError(f"{path}: two columns are called {twice}, or by another name of it; correct the file")
    rows = zip(frame.index, present.to_numpy(), strict=True)
    return FilmList({film: frozenset(compress(names, row)) for film, row in rows})


def without_finding(
    path: Path, truth: Mapping[str, Masks], tasks: Sequence[str], aliases: Mapping[str, str] | None = None
) -> FilmList:
    """The list without the films that `truth` lacks although their labels have a finding, which a log line tells of.

    To choose by: such a film is one that was not outlined, or that the other part of a split has, so that its masks are
    unknown, not absent. (Scores take it as CheXlocalize does, see `complete`.)
    """
    listed = read_list(path, aliases)
    unknown = [film for film, found in listed.items() if film not in truth and found & set(tasks)]
    if unknown:
        log.warning(
            "%s: %d films have a finding by their labels but no expert mask; they are left out: %s",
            path,
            len(unknown),
            some(unknown),
        )
    return FilmList({film: found for film, found in listed.items() if film not in set(unknown)})


class Joined(Mapping[str, Masks]):
    """A masks file and some images more."""

    def __init__(self, file: Mapping[str, Masks], more: Mapping[str, Masks]):
        self.file, self.more = file, more

    def __getitem__(self, image: str) -> Masks:
        return self.more[image] if image in self.more else self.file[image]

    def read(self, images: Iterable[str]) -> Iterator[Masks]:
        """As `ImageFile.read`."""
        images = list(images)
        of_file = json_lines.read(self.file, [image for image in images if image not in self.more])
        return (self.more[image] if image in self.more else next(of_file) for image in images)

    def __contains__(self, image: object) -> bool:
        return image in self.more or image in self.file

    def __iter__(self) -> Iterator[str]:
        yield from self.file
        yield from self.more

    def __len__(self) -> int:
        return len(self.file) + len(self.more)


@dataclass
class FilmSet:
    """Ground truth and predictions of all films, and what is to be said of them."""

    truth: Mapping[str, Masks]
    methods: dict[str, Mapping[str, Masks]]
    notes: list[str]


def complete(
    truth: Mapping[str, Masks],
    methods: Mapping[str, Mapping[str, Masks]],
    films: Collection[str],
    tasks: Sequence[str],
    *,
    may_lack: Sequence[str] = (),
) -> FilmSet:
    """The set with its films without a finding: what the ground truth lacks is absent there, not unknown.

    With the list a set is complete, so that an image without a prediction counts as an empty one (CheXlocalize's rule);
    but for methods that `may_lack` images with ground truth (a second reader, who did not see them all). A film that no
    method has a mask of has no known size and nothing to count. One whose labels have a finding is told of.
    """
    absent = [film for film in films if film not in truth]
    empty = {}
    for film in absent:
        sizes = (coded["size"] for masks in methods.values() if film in masks for coded in masks[film].values())
        if size := next(sizes, None):
            nothing = rle.empty(size)
            empty[film] = dict.fromkeys(tasks, nothing)
    notes = [f"{len(empty)} films without a finding are scored: masks on them are false positives"]
    if nowhere := [film for film in absent if film not in empty]:
        notes.append(f"{len(nowhere)} films without a finding have no prediction, nothing to score: {some(nowhere)}")
    labels = films if isinstance(films, FilmList) else FilmList()
    labelled = [film for film in empty if labels.get(film, frozenset()) & set(tasks)]
    if labelled:
        notes.append(
            f"{len(labelled)} films have no ground truth although their labels have a finding; scored as without one, "
            f"as in CheXlocalize: {some(labelled)}"
        )
    completed = {}
    for name, masks in methods.items():
        wanted = list(empty) if name in may_lack else [*truth, *empty]
        missing = [image for image in wanted if image not in masks]
        with_truth = sum(image in truth for image in missing)
        if with_truth:
            notes.append(f"{name}: {with_truth} images have no prediction, counted as empty masks")
        completed[name] = Joined(masks, dict.fromkeys(missing, {})) if missing else masks
    return FilmSet(Joined(truth, empty), completed, notes)
