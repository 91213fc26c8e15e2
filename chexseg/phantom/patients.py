"""Who the phantom's patients are: findings that occur together as in CheXpert, views taken, values in label files.

Every patient and image has its own random streams, seeded by (seed, split, patient, study, view, purpose): neither
counts, order nor the number of workers changes one. What they look like is in `anatomy` and `findings`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chexseg.phantom.anatomy import Chest, Patient
from chexseg.phantom.canvas import LEFT, RIGHT
from chexseg.phantom.presets import SPLITS, Spec

HEART, MEDIASTINUM, LESION, OPACITY = "Cardiomegaly", "Enlarged Cardiomediastinum", "Lung Lesion", "Airspace Opacity"
EDEMA, CONSOLIDATION, ATELECTASIS = "Edema", "Consolidation", "Atelectasis"
PNEUMOTHORAX, EFFUSION, DEVICES = "Pneumothorax", "Pleural Effusion", "Support Devices"
TASKS = (MEDIASTINUM, HEART, LESION, OPACITY, EDEMA, CONSOLIDATION, ATELECTASIS, PNEUMOTHORAX, EFFUSION, DEVICES)
OPACITIES = (LESION, EDEMA, CONSOLIDATION, ATELECTASIS)  # each of them is an Airspace Opacity too
PNEUMONIA, PLEURA, FRACTURE, NORMAL = "Pneumonia", "Pleural Other", "Fracture", "No Finding"
# CheXpert's CSV order; its name for Airspace Opacity is Lung Opacity.
COLUMNS = (
    *(NORMAL, MEDIASTINUM, HEART, "Lung Opacity", LESION, EDEMA, CONSOLIDATION, PNEUMONIA, ATELECTASIS),
    *(PNEUMOTHORAX, EFFUSION, PLEURA, FRACTURE, DEVICES),
)

# What a report labeller makes of a present finding: probability of -1, of no mention, of a wrong 0 ...
UNCERTAIN = {ATELECTASIS: 0.30, CONSOLIDATION: 0.25, PNEUMONIA: 0.5, MEDIASTINUM: 0.15, EDEMA: 0.12, HEART: 0.12}
UNCERTAIN_ELSE, UNMENTIONED, DENIED = 0.05, 0.06, 0.015
UNMENTIONED_MEDIASTINUM = 0.20  # reports say "cardiomegaly" and leave the silhouette at that
# ... and of an absent one: a wrong 1, a -1, an explicit 0 (else no mention).
INVENTED, HEDGED, EXCLUDED = 0.015, 0.02, 0.08
EXCLUDED_OFTEN = {PNEUMOTHORAX: 0.30, EFFUSION: 0.20, CONSOLIDATION: 0.17, EDEMA: 0.12, HEART: 0.06}

FIRST_PATIENT = {"train": 1, "valid": 64541, "test": 64741}  # CheXpert's own numbers


@dataclass(frozen=True)
class Study:
    """One visit of a patient: the truth behind its labels and the views taken."""

    patient: Patient
    ap: bool
    present: frozenset[str]
    patchy: bool
    views: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """One image: `key` seeds it, `path` is .../patientX/studyY/viewZ.jpg relative to the split's folder."""

    key: tuple[int, ...]
    path: str
    study: Study

    @property
    def is_frontal(self) -> bool:
        return "frontal" in self.path


def stream(key: Sequence[int], purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([*key, purpose])))


def patient_number(split: str, index: int) -> int:
    """CheXpert's numbers while they last; splits never share one."""
    number = FIRST_PATIENT[split] + index
    end = {"train": 64541, "valid": 64741, "test": 100000}[split]
    return number if number < end else {"train": 100000, "valid": 70000000, "test": 80000000}[split] + number


def views_of(spec: Spec, split: str, index: int) -> list[View]:
    """Every image of the patient `index` of a split."""
    key = (spec.seed, SPLITS.index(split), index)
    rng = stream(key, 0)
    sex = "Male" if rng.random() < 0.58 else "Female"
    age = int(np.clip(rng.normal(60, 18), 18, 90))
    patient = Patient(sex, age, float(rng.beta(2, 3)), tuple(rng.normal(0, 1, 8).clip(-2, 2)))
    number = 1 if split != "train" else int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    views = []
    for s in range(number):
        forced = TASKS[index % len(TASKS)] if spec.cover and s == 0 else None
        study = _study(patient, split, forced, stream((*key, s), 1))
        for v, name in enumerate(study.views):
            path = f"patient{patient_number(split, index):05d}/study{s + 1}/view{v + 1}_{name}.jpg"
            views.append(View((*key, s, v), path, study))
    return views


def _study(patient: Patient, split: str, forced: str | None, rng: np.random.Generator) -> Study:
    """Findings that occur together as they do in CheXpert; experts' splits hold more of the rare ones."""
    rare = 1.0 if split == "train" else 1.5
    present = set() if forced is None else {forced}
    ap = bool(rng.random() < 0.78)

    def add(name: str, probability: float) -> None:
        if rng.random() < probability:
            present.add(name)

    add(EDEMA, 0.29 if ap else 0.06)
    add(HEART, (0.26 if EDEMA in present else 0.09) * rare)
    add(MEDIASTINUM, 1.0 if HEART in present else 0.08 * rare)
    add(EFFUSION, (0.62 if EDEMA in present else 0.37) * (1 if ap else 0.7))
    add(ATELECTASIS, 0.27 if EFFUSION in present else 0.15)
    add(CONSOLIDATION, 0.075 * rare)
    add(LESION, 0.045 * rare)
    add(PNEUMOTHORAX, 0.09 * (1.0 if split == "train" else 1.2))
    add(DEVICES, 0.85 if PNEUMOTHORAX in present and ap else 0.58 if ap else 0.14)
    patchy = bool(rng.random() < 0.12) or forced == OPACITY
    if patchy or present & set(OPACITIES):
        present.add(OPACITY)
    add(PNEUMONIA, 0.5 if CONSOLIDATION in present else 0.3 if patchy else 0)
    add(FRACTURE, 0.04)
    add(PLEURA, 0.02)
    views = ["frontal"]
    if split != "test" and rng.random() < (0.06 if ap else 0.4):
        views.append("lateral")
    if split == "train" and rng.random() < 0.04:
        views.append("frontal")
    return Study(patient, ap, frozenset(present), patchy, tuple(views))


def views(spec: Spec, split: str) -> Iterator[list[View]]:
    """The split's images, patient by patient, cut at its count."""
    left, index = spec.count(split), 0
    while left > 0:
        found = views_of(spec, split, index)[:left]
        yield found
        left, index = left - len(found), index + 1


def labels(view: View, present: frozenset[str] | None = None) -> list[str]:
    """The 14 CSV values: the truth `present`, or without it what a report labeller makes of the study's."""
    truth = view.study.present if present is None else present
    rng = stream(view.key[:4], 2)
    names = [OPACITY if column == "Lung Opacity" else column for column in COLUMNS[1:]]
    values = [_mined(name, name in truth, rng) if present is None else f"{name in truth:.1f}" for name in names]
    # CheXpert's rule: a study with no finding may have devices.
    clear = all(value in ("", "0.0") for value in values[:-1])
    normal = ("1.0" if clear else "") if present is None else f"{clear:.1f}"
    return [normal, *values]


def _mined(name: str, is_present: bool, rng: np.random.Generator) -> str:
    chance = rng.random()
    if is_present:
        unmentioned = UNMENTIONED_MEDIASTINUM if name == MEDIASTINUM else UNMENTIONED
        steps = (("-1.0", UNCERTAIN.get(name, UNCERTAIN_ELSE)), ("", unmentioned), ("0.0", DENIED), ("1.0", 1))
    else:
        steps = (("1.0", INVENTED), ("-1.0", HEDGED), ("0.0", EXCLUDED_OFTEN.get(name, EXCLUDED)), ("", 1))
    value = ""
    for value, probability in steps:  # noqa: B007
        if chance < probability:
            break
        chance -= probability
    return value


def build_chest(patient: Patient, ap: bool, present: frozenset[str], rng: np.random.Generator) -> Chest:
    """A chest whose heart, mediastinum and domes suit the findings. Cardiothoracic ratio: normal up to 0.51 (AP films
    magnify), enlarged from 0.55."""
    ratio = rng.uniform(0.55, 0.68) if HEART in present else min(rng.normal(0.46 + 0.02 * ap, 0.025), 0.51)
    right = 0.33 + 0.35 * (2 * ratio - 0.92) + rng.normal(0, 0.02)
    wide = rng.uniform(1.35, 1.8) if MEDIASTINUM in present and (HEART not in present or rng.random() < 0.4) else None
    widened = wide or rng.uniform(0.9, 1.1)
    raised = rng.uniform(-0.03, 0.05, 2) + 0.05 * ap
    if ATELECTASIS in present:
        raised[rng.integers(2)] += rng.uniform(0.03, 0.12)  # volume loss
    shift, side = float(rng.normal(0, 0.02)), (LEFT, RIGHT)[rng.integers(2)]
    broken = int(rng.integers(1, 4)) if FRACTURE in present else 0
    return Chest(patient, ap, right, 2 * ratio - right, widened, (raised[0], raised[1]), shift, broken, side)
