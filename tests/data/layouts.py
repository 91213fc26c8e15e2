"""Every data set's layout in small, as its download has it: folders, names of files, columns; the pixels are noise.

Each function of `LAYOUTS` lays a set out below a folder and gives the label files to train and to choose by, and
`truth`: for each image id of the training file what some observations must be.
"""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import constants

COLUMNS = [{"Airspace Opacity": "Lung Opacity"}.get(name, name) for name in constants.OBSERVATIONS]
SIDE, COUNT = 40, 6


class Laid(NamedTuple):
    train: Path | None  # None: found below the folder
    valid: Path | None
    truth: dict[str, dict[str, float]]
    patients: dict[str, str] = {}


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path.name))).integers(0, 255, (SIDE, SIDE + 8), np.uint8)
    if path.suffix == ".dicom":
        from tests.data.made_dicom import dicom

        dicom(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return path


def labels(number: int) -> list[str]:
    """Of the fourteen columns: present in every second image, uncertain in every third; the last is never mentioned."""
    value = "1.0" if number % 2 == 0 else "0.0"
    return [value] * 12 + ["-1.0" if number % 3 == 0 else "0.0", ""]


def expected(number: int) -> dict[str, float]:
    return {"Edema": float(number % 2 == 0), "Fracture": -1.0 if number % 3 == 0 else 0.0, "Support Devices": np.nan}


def _release(folder: Path, root: str, names: Sequence[str], listed: str, *, view_column: bool = True) -> dict:
    truth = {}
    for name, file in zip(names, ("train", "valid", "test"), strict=False):
        rows = []
        for number in range(COUNT):
            for view in ("view1_frontal", "view2_lateral"):
                below = f"{name}/patient{number:05d}{file[0]}/study1/{view}.jpg"
                draw(folder / root / below)
                extra = ["Female", 60, view[6:].capitalize(), "AP"] if view_column else []
                rows.append([f"{listed}{below}", *extra, *labels(number)])
            if name == names[0]:
                truth[f"patient{number:05d}{file[0]}_study1_view1_frontal"] = expected(number)
        extra = ["Sex", "Age", "Frontal/Lateral", "AP/PA"] if view_column else []
        csv = f"{file}.csv" if view_column else f"{name}_labels.csv"
        table(folder / root / csv, ["Path", *extra, *COLUMNS], rows)
    return truth


def chexpert(folder: Path) -> Laid:
    return Laid(None, None, _release(folder, "CheXpert/CheXpert-v1.0", ("train", "valid"), "CheXpert-v1.0/"))


def chexpert_small(folder: Path) -> Laid:
    root = "CheXpert/CheXpert-v1.0-small"
    return Laid(None, None, _release(folder, root, ("train", "valid"), "CheXpert-v1.0-small/"))


def chexlocalize(folder: Path) -> Laid:
    """Its download has no training set: the first of its two sets trains here."""
    truth = _release(folder, "CheXpert", ("val", "test"), "CheXpert/", view_column=False)
    return Laid(folder / "CheXpert" / "val_labels.csv", folder / "CheXpert" / "test_labels.csv", truth)


def codalab(folder: Path) -> Laid:
    """CodaLab's test folder: paths in one file, a row a study in the other."""
    root, paths, rows, truth = folder / "CheXpert" / "CodaLab", [], [], {}
    for number in range(COUNT):
        study = f"test/patient{number:05d}/study1"
        draw(root / study / "view1_frontal.jpg")
        paths.append([f"CheXpert-v1.0/{study}/view1_frontal.jpg"])
        rows.append([f"CheXpert-v1.0/{study}", *labels(number)])
        truth[f"patient{number:05d}_study1_view1_frontal"] = expected(number)
    table(root / "test_image_paths.csv", ["Path"], paths)
    csv = table(root / "test_groundtruth.csv", ["Study", *COLUMNS], rows)
    return Laid(csv, csv, truth)


def uncertainty_zeros(folder: Path) -> Laid:
    """The original's label file, with the absolute paths of the machine that it was made on."""
    laid = chexpert(folder)
    source = folder / "CheXpert" / "CheXpert-v1.0" / "train.csv"
    header, *rows = (line.split(",") for line in source.read_text().splitlines())
    zeros = [
        ["/deep/group/CheXpert/" + row[0], *(("0.0" if v in ("-1.0", "") else v) for v in row[1:])] for row in rows
    ]
    csv = table(folder / "CheXpert" / "Uncertainty" / "uncertainty_zeros.csv", header, zeros)
    truth = {
        name: {task: 0.0 if value != 1 else 1.0 for task, value in row.items()} for name, row in laid.truth.items()
    }
    return Laid(csv, source.with_name("valid.csv"), truth)


def nih(folder: Path) -> Laid:
    texts = ("Effusion|Infiltration", "No Finding", "Mass|Hernia", "Pleural_Thickening|Edema")
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "View Position"]
    rows, truth, patients = [], {}, {}
    for number in range(COUNT):
        name, text = f"{number // 2 + 1:08d}_{number % 2:03d}", texts[number % 4]
        draw(folder / f"images_{number % 3 + 1:03d}" / "images" / f"{name}.png")
        rows.append([f"{name}.png", text, 0, number // 2 + 1, 58, "PA" if number % 2 else "AP"])
        has = {"Pleural Effusion": number % 4 == 0, "Airspace Opacity": number % 4 in (0, 3)}
        has |= {"Lung Lesion": number % 4 == 2, "Pleural Other": number % 4 == 3, "No Finding": number % 4 == 1}
        truth[name] = {task: float(there) for task, there in has.items()} | {"Support Devices": -2.0, "Fracture": -2.0}
        patients[name] = str(number // 2 + 1)
    csv = table(folder / "Data_Entry_2017.csv", header, rows)
    return Laid(csv, csv, truth, patients)


def mimic(folder: Path) -> Laid:
    studies, images, sets, truth, patients = [], [], [], {}, {}
    for number in range(2 * COUNT):
        patient, study = 10000032 + number // 2, 50414267 + number
        studies.append([patient, study, *labels(number)])
        for view in ("PA", "LATERAL"):
            dicom = f"{number:08d}-{'bde0afdd' if view == 'PA' else '112c0b34'}-7bc16630"
            draw(folder / "files" / f"p{patient}"[:3] / f"p{patient}" / f"s{study}" / f"{dicom}.jpg")
            images.append([dicom, patient, study, view])
            sets.append([dicom, study, patient, "train" if number < COUNT else "validate"])
            if view == "PA" and number < COUNT:
                truth[f"p{patient}_s{study}_{dicom}"] = expected(number)
                patients[f"p{patient}_s{study}_{dicom}"] = f"p{patient}"
    name = "mimic-cxr-2.0.0"
    table(folder / f"{name}-chexpert.csv.gz", ["subject_id", "study_id", *COLUMNS], studies)
    table(folder / f"{name}-metadata.csv.gz", ["dicom_id", "subject_id", "study_id", "ViewPosition"], images)
    table(folder / f"{name}-split.csv", ["dicom_id", "study_id", "subject_id", "split"], sets)
    return Laid(None, None, truth, patients)


def vindr(folder: Path) -> Laid:
    rows, truth = [], {}
    for number in range(COUNT):
        name = f"{number:032x}"
        draw(folder / "train" / f"{name}.dicom")
        found = ("Nodule/Mass", "Cardiomegaly") if number % 2 else ("No finding", "No finding")
        rows += [[name, finding, number, f"R{reader}", "", ""] for reader, finding in enumerate(found)]
        truth[name] = {"Lung Lesion": float(number % 2), "Cardiomegaly": float(number % 2), "Edema": -2.0}
    csv = table(folder / "train.csv", ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min"], rows)
    return Laid(csv, csv, truth)


def vindr_readers(folder: Path) -> Laid:
    """PhysioNet's image_labels_train.csv: three readers an image, two of whom agree here; of the test set one row each,
    and a column of another name."""
    findings = ["Edema", "Nodule/Mass", "Lung tumor", "Lung Opacity", "Rib fracture", "Other diseases", "No finding"]
    rows, test, truth = [], [], {}
    for number in range(COUNT):
        name, odd = f"{number:032x}", number % 2
        draw(folder / "train" / f"{name}.dicom")
        rows += [[name, "R8", odd, odd, 0, 0, 1, 0, 1 - odd], [name, "R9", odd, 0, odd, 0, 0, 0, 1 - odd]]
        rows += [[name, "R10", 0, 0, 0, 1, 0, 1, 0]]
        test.append([name, odd, 0, 0, 0, 0, 0, 1 - odd])
        truth[name] = {"Edema": odd, "Lung Lesion": odd, "No Finding": 1 - odd, "Fracture": 0.0, "Pneumonia": -2.0}
        truth[name]["Airspace Opacity"] = odd  # two readers' oedema and the third's opacity; of even images only his
    csv = table(folder / "annotations" / "image_labels_train.csv", ["image_id", "rad_id", *findings], rows)
    findings[5] = "Other disease"
    return Laid(csv, table(csv.with_name("image_labels_test.csv"), ["image_id", *findings], test), truth)


def custom(folder: Path) -> Laid:
    """One's own: any paths, two of the fourteen columns, a column of patients."""
    rows, truth, patients = [], {}, {}
    for number in range(COUNT):
        draw(folder / f"ward {number % 2}" / f"bilateral {number}.PNG")
        rows.append(
            [f"ward {number % 2}/bilateral {number}.PNG", number % 2, "" if number % 3 else 1, f"A{number % 3}"]
        )
        name = f"ward {number % 2}__bilateral {number}"
        truth[name] = {"Edema": float(number % 2), "Support Devices": np.nan if number % 3 else 1.0, "Fracture": -2.0}
        patients[name] = f"A{number % 3}"
    csv = table(folder / "mine.csv", ["Path", "Edema", "Support Devices", "patient_id"], rows)
    return Laid(csv, csv, truth, patients)


LAYOUTS: dict[str, Callable[[Path], Laid]] = {
    make.__name__: make
    for make in (
        chexpert,
        chexpert_small,
        chexlocalize,
        codalab,
        uncertainty_zeros,
        nih,
        mimic,
        vindr,
        vindr_readers,
        custom,
    )
}
