"""CheXpert's files: image ids, label CSVs, where the images lie. Decoding them is in `images`."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.data import csv_tables, image_folder, label_files, names
from chexseg.errors import DataError, MissingError
from chexseg.runtime import provenance

log = logging.getLogger(__name__)
ROOTS = ("CheXpert/CheXpert-v1.0", "CheXpert/CheXpert-v1.0-small", "CheXpert", ".", "CheXpert/CodaLab")
SPLITS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
PATIENT = re.compile(r"(patient[^_]*|p\d+)_(?!_)")  # "__" stands in the ids of nested folders
NO_COLUMN = -2.0  # a label of an observation that the file does not have: unknown, which a blank is not
IMAGE_ID = re.compile(r"(patient\w+?)_(study\w+?)_(view\w+)")


def image_id(path: str | Path) -> str:
    """The id of an image that a label file names: `.../patient00001/study1/view1_frontal.jpg` gives
    `patient00001_study1_view1_frontal`, anything else its whole path (see `image_folder.image_id`)."""
    path = Path(path)
    return image_folder.image_id(path.relative_to(path.anchor))


def listed_id(text: object, where: str) -> str:
    """The image id of a `Path` that stands in a label file. DataError, which begins with `where`, for one that is no
    path below the data folder."""
    path = names.check_path(text, where)
    try:
        return names.check_id(image_id(path), where)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def patient_of(image_id: str, patients: Mapping[str, str] | None = None) -> str:
    """The patient of an image: the first word of its id where that names one (patient00001_..., p12_...), else what
    `patients` says (`read_patients`); an image of which nothing is known is a patient of its own."""
    match = PATIENT.match(image_id)
    return match[1] if match else (patients or {}).get(image_id, image_id)


def read_patients(path: Path) -> dict[str, str]:
    """The patient of each image of a label file that has a column `patient_id`, or its data set's own for it."""
    frame = label_files.read(path)
    if "patient_id" not in frame.columns:
        raise DataError(f"{path}: no column 'patient_id', which would say whose an image is")
    frame = frame[frame["patient_id"].notna()]
    return dict(zip(frame["Path"].map(image_id), frame["patient_id"].astype(str), strict=True))


def split_csv(data_dir: Path, split: str) -> Path:
    """The label file `<split>.csv` of CheXpert, CheXlocalize's `<val|test>_labels.csv`, CodaLab's test_groundtruth.csv,
    or MIMIC-CXR-JPG's one of all sets."""
    files = [name for alias in SPLITS[split] for name in (f"{alias}.csv", f"{alias}_labels.csv")]
    files += ["test_groundtruth.csv"] if split == "test" else []
    candidates = [Path(data_dir) / root / name for root in ROOTS for name in files]
    candidates += [Path(data_dir) / f"mimic-cxr-2.0.0-chexpert.csv{packed}" for packed in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise MissingError(f"{candidates[0]}: no label file of the {split} set; check CHEXPERT_DATA_DIR")


def read_labels(
    path: Path, observations: Sequence[str], aliases: Mapping[str, str], split: str | None = None
) -> pd.DataFrame:
    """A label file (of `label_files.LAYOUTS`) as a table indexed by image id: `Path` and one float column per
    observation, with `Sex`, `Age`, `Frontal/Lateral`, `AP/PA` and `patient_id` where the file has them. `split`: the
    set (train, valid, test) that is wanted of a file that lists all of them.

    A label is 1, 0, -1 = uncertain, NaN = not mentioned, or NO_COLUMN: the file does not have the observation, so that
    nothing is known. An observation may stand under its other name. DataError for a file without any of them and for
    any other value.
    """
    frame = label_files.read(path, split)
    frame = frame.rename(columns={name: aliases.get(name, name) for name in frame.columns})
    if frame.columns.has_duplicates:
        twice = names.shown(str(frame.columns[frame.columns.duplicated()][0]))
        raise DataError(f"{path}: two columns are called {twice}, or by another name of it; correct the file")
    missing = [name for name in observations if name not in frame.columns]
    if len(missing) == len(observations):
        raise MissingError(f"{path}: no column {missing[0]!r}, nor any other observation; {_columns(frame)}")
    if missing:
        log.warning("%s: no column of %s: unknown of every image", path, ", ".join(missing))
    for name in observations:
        if name in missing:
            frame[name] = np.float32(NO_COLUMN)
            continue
        values = csv_tables.numbers(frame[name])
        wrong = frame[name].notna() & ~values.isin((-1, 0, 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(f"{path}: line {row + 2}, {name!r}: {frame[name].iloc[row]!r} is not 1, 0, -1 or empty")
        frame[name] = values.astype("float32")
    lines = (f"{path}: line {line}, 'Path'" for line in range(2, len(frame) + 2))
    ids = [listed_id(text, where) for text, where in zip(frame["Path"], lines, strict=True)]
    frame.index = pd.Index(ids, name="image_id", dtype=object)
    if frame.index.has_duplicates:
        raise DataError(f"{path}: {frame.index[frame.index.duplicated()][0]} occurs twice")
    return frame


def _columns(frame: pd.DataFrame) -> str:
    return f"the file has {', '.join(map(str, frame.columns[:20]))}"


def present(frame: pd.DataFrame, ids: Sequence[str], tasks: Sequence[str], *, uncertain: bool) -> np.ndarray:
    """(N, T) bool: which findings the labels of `ids` say are there; uncertain ones (-1) only on request."""
    missing = [name for name in ids if name not in frame.index]
    if missing:
        raise MissingError(f"{missing[0]}: no labels for this image in the label file")
    labels = frame.loc[list(ids), list(tasks)].to_numpy(np.float32)
    return (labels == 1) | ((labels == -1) & uncertain)


def csv_image_path(data_dir: Path, path: str, csv: Path | None = None) -> Path:
    """The image that the `Path` of a label file `csv` names, below any of CheXpert's usual roots, or anywhere below
    `data_dir`."""
    relative = names.check_path(path, csv or data_dir)
    if relative.is_absolute() and not relative.is_relative_to(Path(data_dir).absolute()):
        relative = relative.relative_to(
            relative.anchor
        )  # another machine's, as in the original's uncertainty_zeros.csv
    tails = [relative, Path(*relative.parts[1:])] if len(relative.parts) > 4 else [relative]
    candidates = [Path(data_dir) / base / tail for tail in tails for base in ("CheXpert", *ROOTS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    try:
        return find_image(data_dir, image_id(path), relative.parts[-4] if len(relative.parts) > 3 else None)
    except DataError as error:
        raise type(error)(f"{csv}: {error}" if csv else str(error)) from error


def find_image(data_dir: Path, image_id: str, split: str | None = None) -> Path:
    """The file of an image id: CheXpert's in `split` (train, valid, test; None looks in all), any other wherever it
    lies below `data_dir`, where the end of its path may be enough (`0001` finds images/0001.png). DataError where there
    is none, or more than one."""
    folders = [a for s in ([split] if split else SPLITS) for a in SPLITS.get(s, (s,))]
    match = IMAGE_ID.fullmatch(image_id)
    if match is not None:
        stem = Path(*match.groups())
        for root in ROOTS:
            for name in folders:
                for suffix in SUFFIXES:
                    path = Path(data_dir) / root / name / stem.with_suffix(suffix)
                    if path.is_file():
                        return path
        if split:
            raise MissingError(f"{image_id}: no image {stem}.jpg in {', '.join(folders)} of {data_dir}/CheXpert")
    return _elsewhere(data_dir, image_id)


@lru_cache(maxsize=4)
def _index(data_dir: Path) -> dict[str, list[tuple[str, Path]]]:
    return image_folder.by_last_word(data_dir)


def _elsewhere(data_dir: Path, image_id: str) -> Path:
    """An image that is in none of CheXpert's places. A large folder is walked through once."""
    ends = _index(Path(data_dir)).get(image_id.rsplit("__", 1)[-1], [])
    found = [path for name, path in ends if name == image_id]
    found = found or [path for name, path in ends if name.endswith(f"__{image_id}")]
    if len(found) > 1:
        raise DataError(f"{image_id}: {found[0]} and {found[1]} both end in this id; name the folder of one of them")
    if not found:
        raise MissingError(f"{image_id}: no image below {data_dir} has this id, its path with '/' turned to '__'")
    return found[0]


def locate(data_dir: Path, image_id: str, splits: Sequence[str]) -> Path:
    """The image's file, looked for in `splits` in turn. DataError where there is none."""
    for split in splits:
        try:
            return find_image(data_dir, image_id, split)
        except DataError:
            continue
    return find_image(data_dir, image_id)


class ImageSet:
    """The images of a label table (`read_labels` of `csv`): their ids, labels and files."""

    def __init__(self, data_dir: Path, frame: pd.DataFrame, csv: Path):
        self.data_dir, self.frame = Path(data_dir), frame
        self.csv: Path | None = Path(csv)  # a set of other kind has none
        self.ids = list(frame.index)
        self.rows = {name: row for row, name in enumerate(self.ids)}
        self._prefix: str | None = None

    def path(self, image_id: str) -> Path:
        """The image's file. Where the first one lies shows where the label file's paths start: others are looked for
        there before anywhere else."""
        listed = str(self.frame.at[image_id, "Path"])
        if self._prefix is not None:
            guess = Path(self._prefix + listed)
            if guess.is_file():
                return guess
        path = csv_image_path(self.data_dir, listed, self.csv)
        if str(path).endswith(listed):
            self._prefix = str(path).removesuffix(listed)
        return path

    def fingerprint(self, image_id: str) -> str:
        """Of the image's file, by size and time of change."""
        return provenance.stat_fingerprint(self.path(image_id))
