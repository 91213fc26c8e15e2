"""All films of a test set, those without any finding too, which CheXlocalize's ground truth files leave out.

A mask that a method draws on such a film is a false positive. CheXlocalize's per-image score counts it with 0; here the
pooled score counts its pixels in the union, too: whoever has the list of all films passes it, and both are honest.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexseg.data import rle
from chexseg.data.chexpert import image_id
from chexseg.errors import DataError
from chexseg.evaluation.metrics import some

Masks = Mapping[str, Mapping]


def read_list(path: Path) -> list[str]:
    """The frontal films of a label file (column `Path`, and `Frontal/Lateral` where there is one) as image ids."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "Path" not in (rows.fieldnames or ()):
                raise DataError(f"{path}: no column 'Path'; it has {', '.join(rows.fieldnames or ())}")
            films = [(image_id(row["Path"]), row.get("Frontal/Lateral")) for row in rows if row["Path"]]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such list of images") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    return [film for film, view in films if (view == "Frontal" if view else "lateral" not in film)]


class Joined(Mapping[str, Masks]):
    """A masks file and some images more."""

    def __init__(self, file: Mapping[str, Masks], more: Mapping[str, Masks]):
        self.file, self.more = file, more

    def __getitem__(self, image: str) -> Masks:
        return self.more[image] if image in self.more else self.file[image]

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
    films: Sequence[str],
    tasks: Sequence[str],
    *,
    may_lack: Sequence[str] = (),
) -> FilmSet:
    """The set with its films without a finding: what the ground truth lacks is absent there, not unknown.

    With the list a set is complete, so that an image without a prediction counts as an empty one (CheXlocalize's rule);
    but for methods that `may_lack` images with ground truth (a second reader, who did not see them all). A film that no
    method has a mask of has no known size and nothing to count.
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
    completed = {}
    for name, masks in methods.items():
        wanted = list(empty) if name in may_lack else [*truth, *empty]
        missing = [image for image in wanted if image not in masks]
        with_truth = sum(image in truth for image in missing)
        if with_truth:
            notes.append(f"{name}: {with_truth} images have no prediction, counted as empty masks")
        completed[name] = Joined(masks, dict.fromkeys(missing, {})) if missing else masks
    return FilmSet(Joined(truth, empty), completed, notes)
