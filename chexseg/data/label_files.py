"""Label files of public data sets, and of one's own, as one table in CheXpert's columns.

What a file is shows in its columns, not in its name (`LAYOUTS`); what other data sets call a finding stands in
`FINDINGS`. Where the images lie and what an image is called is in `chexpert` and `image_folder`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexseg.data import csv_tables
from chexseg.data.views import VIEWS
from chexseg.errors import DataError, MissingError

log = logging.getLogger(__name__)
# Columns of text, even where it reads 0001 or 1e5.
NAMES = (
    *("Path", "Image Index", "image_id", "dicom_id", "Study", "study_id"),
    *("patient_id", "Patient ID", "subject_id", "Frontal/Lateral"),
)
FRONTAL_POSITIONS, LATERAL_POSITIONS = ("PA", "AP"), ("LATERAL", "LL", "LLD", "RLD")

# What NIH ChestX-ray14 and VinDr-CXR call a finding, in lower case, and the columns of CheXpert that it means: with it
# those that CheXpert's hierarchy of findings (Irvin et al. 2019) puts above it. Empty: no column of CheXpert means it.
FINDINGS: Mapping[str, tuple[str, ...]] = {
    "no finding": ("No Finding",),
    "cardiomegaly": ("Cardiomegaly",),
    "infiltration": ("Lung Opacity",),
    "lung opacity": ("Lung Opacity",),
    "edema": ("Edema", "Lung Opacity"),
    "consolidation": ("Consolidation", "Lung Opacity"),
    "pneumonia": ("Pneumonia", "Lung Opacity"),
    "atelectasis": ("Atelectasis",),
    "mass": ("Lung Lesion",),
    "nodule": ("Lung Lesion",),
    "nodule/mass": ("Lung Lesion",),
    "lung tumor": ("Lung Lesion",),
    "pneumothorax": ("Pneumothorax",),
    "effusion": ("Pleural Effusion",),
    "pleural effusion": ("Pleural Effusion",),
    "pleural_thickening": ("Pleural Other",),
    "pleural thickening": ("Pleural Other",),
    "rib fracture": ("Fracture",),
    "clavicle fracture": ("Fracture",),
} | dict.fromkeys(
    "emphysema fibrosis hernia calcification ild copd tuberculosis".split()
    + ["pulmonary fibrosis", "aortic enlargement", "enlarged pa", "lung cavity", "lung cyst", "mediastinal shift"]
    + ["other lesion", "other disease", "other diseases"],
    (),
)


class Layout(NamedTuple):
    """A kind of label file: its name, the columns that tell it, and what turns it into CheXpert's columns, given the
    table, its path and the set that is wanted (train, valid, test; None: all)."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[pd.DataFrame, Path, str | None], pd.DataFrame]


def read(path: Path, split: str | None = None) -> pd.DataFrame:
    """A label file as a table with `Path` and, where the file says so, CheXpert's observations under CheXpert's names,
    `Frontal/Lateral` and `patient_id`. DataError for a file that is no CSV or of none of `LAYOUTS`."""
    frame = _csv(Path(path))
    for layout in LAYOUTS:
        if set(layout.columns) <= set(frame.columns):
            return layout.read(frame, Path(path), split).reset_index(drop=True)
    known = "; ".join(f"{layout.name}: {', '.join(layout.columns)}" for layout in LAYOUTS)
    raise MissingError(f"{path}: no column 'Path'; it has {_some(frame.columns)}; label files that are known: {known}")


def _csv(path: Path) -> pd.DataFrame:
    return csv_tables.frame(path, texts=NAMES)


def _some(columns: pd.Index) -> str:
    return ", ".join(map(str, columns[:20]))


def _chexpert(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """CheXpert's and CheXlocalize's files, and any with a `Path`: as they are, but for empty rows."""
    return _with_paths(frame, path)


def _with_paths(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows with a `Path`. DataError for one without that is not empty: its labels would be lost."""
    without = frame["Path"].isna()
    lost = np.flatnonzero(without & frame.drop(columns="Path").notna().any(axis=1))
    if len(lost):
        raise DataError(
            f"{path}: line {lost[0] + 2}: no 'Path', though other cells of the row are filled; write the image's path "
            "there, or delete the row"
        )
    return frame[~without]


def _nih(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """Data_Entry_2017.csv of NIH ChestX-ray14: a row an image, its findings in one text, `|` between them."""
    named = frame["Finding Labels"].fillna("").str.split("|")
    table = _presence(named, path).assign(Path=frame["Image Index"])
    if "Patient ID" in frame:
        table["patient_id"] = frame["Patient ID"]
    if "View Position" in frame:
        table["Frontal/Lateral"] = _view(frame["View Position"])
    return table


def _vindr(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """VinDr-CXR's rows of boxes: a finding is present where one of an image's readers names it."""
    named = frame.groupby(frame["image_id"], sort=False)["class_name"].agg(list)
    return _presence(named.reset_index(drop=True), path).assign(Path=named.index)


def _vindr_readers(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """VinDr-CXR's image_labels_{train,test}.csv: a row for each image and reader (of the test set their consensus), a
    column a finding, 1 or 0. What more than half of an image's readers say holds; half of them: uncertain."""
    known = [name for name in frame if name.strip().lower() in FINDINGS]
    strange = [name for name in frame if name not in known and name.lower() not in ("image_id", "rad_id")]
    _left_out(path, strange)
    said = {name: _votes(frame[name], path) for name in known}
    sources: dict[str, list[str]] = {}
    for name in known:
        for column in FINDINGS[name.strip().lower()]:
            sources.setdefault(column, []).append(name)
    # A reader who names one finding of several that mean a column names the column.
    columns = {column: np.fmax.reduce([said[name] for name in names]) for column, names in sources.items()}
    share = pd.DataFrame(columns).groupby(frame["image_id"].to_numpy(), sort=False).mean()  # of those who say something
    table = share.where(share.isna(), np.sign(share - 0.5)).replace({-1.0: 0.0, 0.0: -1.0})
    return table.reset_index(drop=True).assign(Path=table.index)


def _votes(column: pd.Series, path: Path) -> np.ndarray:
    """1, 0 or NaN of each row; DataError for anything else."""
    values = csv_tables.numbers(column)
    wrong = column.notna() & ~values.isin((0, 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path}: line {row + 2}, {column.name!r}: {column.iloc[row]!r} is not 1, 0 or empty")
    return values.to_numpy(np.float64)


def _left_out(path: Path, strange: Sequence[str]) -> None:
    if strange:
        log.warning("%s: findings that no column of CheXpert stands for are left out: %s", path, ", ".join(strange))


def _mimic(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """mimic-cxr-2.0.0-chexpert.csv, a row a study, with the images of the metadata file beside it, and, where one set
    is wanted, those that the split file beside it gives to the set."""
    images = _beside(path, "metadata")
    if images is None:
        raise MissingError(
            f"{path}: {path.with_name('mimic-cxr-2.0.0-metadata.csv')} is missing, which names the images"
        )
    table = images[["dicom_id", "subject_id", "study_id", "ViewPosition"]]
    table = table.merge(frame, on=["subject_id", "study_id"], validate="many_to_one")
    sets = _beside(path, "split") if split else None
    if sets is not None:
        name = {"valid": "validate"}.get(str(split), split)
        table = table[table["dicom_id"].isin(sets["dicom_id"][sets["split"] == name])]
    patient, study = table["subject_id"], table["study_id"]
    table["Path"] = "files/p" + patient.str[:2] + "/p" + patient + "/s" + study + "/" + table["dicom_id"] + ".jpg"
    table["patient_id"], table["Frontal/Lateral"] = patient, _view(table["ViewPosition"])
    return table


def _beside(path: Path, what: str) -> pd.DataFrame | None:
    """MIMIC-CXR-JPG's other table beside its label file, packed or not."""
    found = sorted(path.parent.glob(f"mimic-cxr-*-{what}.csv*"))
    return _csv(found[0]) if found else None


def _patients(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """Images by their ids."""
    return frame.rename(columns={"image_id": "Path"})


def _codalab(frame: pd.DataFrame, path: Path, split: str | None) -> pd.DataFrame:
    """CodaLab's test_groundtruth.csv, a row a study, with the images of test_image_paths.csv beside it."""
    beside = path.with_name("test_image_paths.csv")
    images = _with_paths(_csv(beside), beside)[["Path"]]
    images["Study"] = images["Path"].map(lambda text: str(Path(text).parent))
    return images.merge(frame, on="Study", validate="many_to_one")


def _presence(named: pd.Series, path: Path) -> pd.DataFrame:
    """A column for each finding that occurs in lists of names: 1 where a list has it, else 0. A finding that nobody in
    the file has gets no column: the readers may not have looked for it."""
    named = named.map(lambda names: [str(name).strip().lower() for name in names if str(name).strip()])
    _left_out(path, sorted({name for names in named for name in names} - set(FINDINGS)))
    present = [{column for name in names for column in FINDINGS.get(name, ())} for names in named]
    columns = sorted(set().union(*present)) if present else []
    return pd.DataFrame({column: [float(column in has) for has in present] for column in columns}, index=named.index)


def _view(positions: pd.Series) -> np.ndarray:
    """`Frontal` or `Lateral` of view positions (PA, AP, LL, ...), `unknown` of any other."""
    text = positions.fillna("").astype(str).str.upper()
    frontal = text.str.split().str[0].isin(FRONTAL_POSITIONS)
    return np.where(frontal, "Frontal", np.where(text.isin(LATERAL_POSITIONS), "Lateral", "unknown"))


LAYOUTS = (
    Layout("CheXpert, or any file with paths", ("Path",), _chexpert),
    Layout("NIH ChestX-ray14", ("Image Index", "Finding Labels"), _nih),
    Layout("VinDr-CXR", ("image_id", "class_name"), _vindr),
    Layout("MIMIC-CXR-JPG", ("subject_id", "study_id"), _mimic),
    Layout("a list of whose images are whose", ("image_id", "patient_id"), _patients),
    Layout("VinDr-CXR, a row a reader", ("image_id", "No finding"), _vindr_readers),
    Layout("CodaLab", ("Study",), _codalab),
)


def of_views(frame: pd.DataFrame, views: str = "frontal") -> pd.DataFrame:
    """The rows of one of VIEWS, by the `Frontal/Lateral` column or, where it says nothing (CheXlocalize has none), by
    the word `lateral` in an image's name, which is the index."""
    if views not in VIEWS:
        raise ValueError(f"views {views!r}: expected one of {', '.join(VIEWS)}")
    if views == "all":
        return frame
    is_lateral = frame.index.astype(str).str.contains(r"(?<![a-z])lateral", case=False)
    by_name = pd.Series(np.where(is_lateral, "Lateral", "Frontal"), frame.index, dtype=object)
    said = frame["Frontal/Lateral"].fillna(by_name) if "Frontal/Lateral" in frame.columns else by_name
    return frame[said == views.capitalize()]
