"""CheXpert's files: image ids, label CSVs, where the images lie. Decoding them is in `images`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.data import csv_tables, names
from chexseg.errors import DataError
from chexseg.runtime import provenance

ROOTS = ("CheXpert/CheXpert-v1.0", "CheXpert/CheXpert-v1.0-small", "CheXpert", ".")
SPLITS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
PATIENT = re.compile(r"(patient[^_]*|p\d+)_(?!_)")  # "__" stands in the ids of nested folders
IMAGE_ID = re.compile(r"(patient\w+?)_(study\w+?)_(view\w+)")


def image_id(path: str | Path) -> str:
    """`.../patient00001/study1/view1_frontal.jpg` -> `patient00001_study1_view1_frontal`."""
    parts = Path(path).parts
    if len(parts) < 3:
        raise DataError(f"{path}: an image's path must end in patientX/studyY/viewZ.jpg")
    return "_".join([*parts[-3:-1], Path(path).stem])


def listed_id(text: object, where: str) -> str:
    """The image id of a `Path` that stands in a label file. DataError, which begins with `where`, for one that is no
    path below the data folder."""
    path = names.check_path(text, where)
    try:
        return names.check_id(image_id(path), where)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def patient_of(image_id: str) -> str:
    """The patient of an image: the first word of its id where that names one (patient00001_..., p12_...); of an image
    of any other place nothing is known, and it is a patient of its own."""
    match = PATIENT.match(image_id)
    return match[1] if match else image_id


def split_csv(data_dir: Path, split: str) -> Path:
    """The label file `<split>.csv` of CheXpert, or CheXlocalize's `<val|test>_labels.csv`."""
    candidates = [
        Path(data_dir) / root / name
        for root in ROOTS
        for alias in SPLITS[split]
        for name in (f"{alias}.csv", f"{alias}_labels.csv")
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"{candidates[0]}: no label file of the {split} set; check CHEXPERT_DATA_DIR, or run doctor.py")


def read_labels(path: Path, observations: Sequence[str], aliases: Mapping[str, str]) -> pd.DataFrame:
    """The label file as a table indexed by image id: `Path` and one float column per observation (1, 0, -1 = uncertain,
    NaN = not mentioned), with `Sex`, `Age`, `Frontal/Lateral` and `AP/PA` where the file has them.

    An observation may stand under its other name. DataError for a missing file or column and for any other value.
    """
    frame = csv_tables.frame(path, ("Path", *observations), texts=("Path",), aliases=aliases)
    for name in observations:
        values = csv_tables.numbers(frame[name])
        wrong = frame[name].notna() & ~values.isin((-1, 0, 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(f"{path}: line {row + 2}, {name!r}: {frame[name].iloc[row]!r} is not 1, 0, -1 or empty")
        frame[name] = values.astype("float32")
    lines = (f"{path}: line {line}, 'Path'" for line in range(2, len(frame) + 2))
    ids = [listed_id(text, where) for text, where in zip(frame["Path"], lines, strict=True)]
    frame.index = pd.Index(ids, name="image_id")
    if frame.index.has_duplicates:
        raise DataError(f"{path}: {frame.index[frame.index.duplicated()][0]} occurs twice")
    return frame


def frontal(frame: pd.DataFrame) -> pd.DataFrame:
    """The frontal views, by the `Frontal/Lateral` column or, where there is none (CheXlocalize), by the file name."""
    if "Frontal/Lateral" in frame.columns:
        return frame[frame["Frontal/Lateral"] == "Frontal"]
    return frame[~frame.index.str.contains("lateral")]


def present(frame: pd.DataFrame, ids: Sequence[str], tasks: Sequence[str], *, uncertain: bool) -> np.ndarray:
    """(N, T) bool: which findings the labels of `ids` say are there; uncertain ones (-1) only on request."""
    missing = [name for name in ids if name not in frame.index]
    if missing:
        raise DataError(f"{missing[0]}: no labels for this image in the label file")
    labels = frame.loc[list(ids), list(tasks)].to_numpy(np.float32)
    return (labels == 1) | ((labels == -1) & uncertain)


def csv_image_path(data_dir: Path, path: str, csv: Path | None = None) -> Path:
    """The image that the `Path` of a label file `csv` names, below any of CheXpert's usual roots."""
    relative = names.check_path(path, csv or data_dir, Path(data_dir))
    tails = [relative, Path(*relative.parts[1:])] if len(relative.parts) > 4 else [relative]
    candidates = [Path(data_dir) / base / tail for tail in tails for base in ("CheXpert", *ROOTS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    return find_image(data_dir, image_id(path), relative.parts[-4] if len(relative.parts) > 3 else None)


def find_image(data_dir: Path, image_id: str, split: str | None = None) -> Path:
    """The file of an image id in `split` (train, valid, test; None looks in all). DataError where there is none."""
    match = IMAGE_ID.fullmatch(image_id)
    if match is None:
        raise DataError(f"{image_id!r} is not an image id; expected patientX_studyY_viewZ")
    folders = [a for s in ([split] if split else SPLITS) for a in SPLITS.get(s, (s,))]
    stem = Path(*match.groups())
    for root in ROOTS:
        for name in folders:
            for suffix in SUFFIXES:
                path = Path(data_dir) / root / name / stem.with_suffix(suffix)
                if path.is_file():
                    return path
    raise DataError(f"{image_id}: no image {stem}.jpg in {', '.join(folders)} of {data_dir}/CheXpert")


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
