"""Phantom X-rays: whether the picture shows what the mask says, and what the labels are like."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from chexseg.phantom import patients
from chexseg.phantom.images import annotate
from chexseg.phantom.patients import (
    ATELECTASIS,
    CONSOLIDATION,
    DEVICES,
    EDEMA,
    EFFUSION,
    HEART,
    LESION,
    MEDIASTINUM,
    OPACITY,
    PNEUMOTHORAX,
    TASKS,
    Study,
    View,
)
from chexseg.phantom.presets import Spec
from tests.phantom.outlines import to_mask

# What the picture shows, by drawing the same patient with and without the finding.


def view_with(finding: str | None, seed: int) -> View:
    spec = Spec(0, 0, seed + 1, 128, 1000 + seed)
    view = patients.views_of(spec, "test", seed)[0]
    present = frozenset() if finding is None else frozenset({finding, MEDIASTINUM} if finding == HEART else {finding})
    return replace(view, study=Study(view.study.patient, view.study.ap, present, finding == OPACITY, ("frontal",)))


BRIGHTER = {
    LESION: 25,
    OPACITY: 20,
    EDEMA: 12,
    CONSOLIDATION: 30,
    ATELECTASIS: 12,
    PNEUMOTHORAX: -6,
    EFFUSION: 30,
    DEVICES: 8,
}


@pytest.mark.parametrize("finding", BRIGHTER)
def test_picture_changes_where_the_mask_is_and_hardly_elsewhere(finding):
    inside, outside = [], []
    for seed in range(6):
        without, _, _ = annotate(view_with(None, seed), 128)
        picture, polygons, _ = annotate(view_with(finding, seed), 128)
        assert finding in polygons, seed
        mask = to_mask(polygons[finding], picture.shape)
        change = picture.astype(float) - without
        inside.append(change[mask].mean())
        outside.append(np.abs(change[~mask]).mean())
    expected = BRIGHTER[finding]
    assert np.mean(inside) * np.sign(expected) > abs(expected), inside
    assert np.mean(outside) < abs(np.mean(inside)) / 2, (inside, outside)


def test_enlarged_hearts_are_wide_and_normal_ones_are_not():
    ratios = {HEART: [], None: []}
    for finding, found in ratios.items():
        for seed in range(30):
            view = view_with(finding, seed)
            chest = patients.build_chest(
                view.study.patient, view.study.ap, view.study.present, patients.stream(view.key[:4], 5)
            )
            widest = max(lung[:, 0].max() for lung in chest.lungs.values()) - min(
                lung[:, 0].min() for lung in chest.lungs.values()
            )
            found.append(np.ptp(chest.heart[:, 0]) / widest)
    assert max(ratios[None]) < 0.53 < min(ratios[HEART])
    assert max(ratios[None]) - min(ratios[None]) > 0.06, "normal hearts differ too"


def test_heart_and_mediastinum_are_bright_where_outlined():
    for finding in (HEART, MEDIASTINUM):
        for seed in range(3):
            picture, polygons, _ = annotate(view_with(finding, seed), 128)
            mask = to_mask(polygons[finding], picture.shape).astype(np.uint8)
            ring = cv2.dilate(mask, np.ones((9, 9), np.uint8)) - cv2.dilate(mask, np.ones((3, 3), np.uint8))
            rows_of_heart = np.flatnonzero(mask.any(1))
            ring[: rows_of_heart[0]], ring[rows_of_heart[-1] - len(rows_of_heart) // 3 :] = 0, 0  # neck, abdomen
            assert picture[mask > 0].mean() > picture[ring > 0].mean() + 30, (finding, seed)


def test_second_reader_agrees_as_a_colleague_does():
    both, either, differs = Counter(), Counter(), 0
    spec = Spec(0, 0, 40, 128, 3, cover=True)
    for found in patients.views(spec, "test"):
        picture, first, second = annotate(found[0], 128)
        differs += first.keys() != second.keys()
        for task in TASKS:
            one, two = (to_mask(reader.get(task, []), picture.shape) for reader in (first, second))
            both[task] += (one & two).sum()
            either[task] += (one | two).sum()
    scores = {task: both[task] / either[task] for task in TASKS}
    assert 0.58 < np.mean(list(scores.values())) < 0.82, scores
    assert min(scores.values()) > 0.3, scores
    assert 4 <= differs <= 36, "some findings are missed or imagined"


def test_prevalence_and_labeller_are_like_chexperts():
    spec = Spec(2500, 0, 0, 128, 0)
    views = [v for found in patients.views(spec, "train") for v in found if v.is_frontal]
    share = {task: np.mean([task in v.study.present for v in views]) for task in TASKS}
    expected = {DEVICES: (0.45, 0.60), OPACITY: (0.45, 0.58), EFFUSION: (0.35, 0.45), EDEMA: (0.20, 0.28)}
    expected |= {ATELECTASIS: (0.15, 0.28), HEART: (0.10, 0.16), CONSOLIDATION: (0.05, 0.11)}
    expected |= {PNEUMOTHORAX: (0.06, 0.12), LESION: (0.03, 0.06)}
    for task, (low, high) in expected.items():
        assert low < share[task] < high, (task, share[task])
    assert share[MEDIASTINUM] >= share[HEART]
    with_edema = [HEART in v.study.present for v in views if EDEMA in v.study.present]
    assert np.mean(with_edema) > 1.5 * share[HEART]
    column = patients.COLUMNS.index(ATELECTASIS)
    present = Counter(patients.labels(v)[column] for v in views if ATELECTASIS in v.study.present)
    absent = Counter(patients.labels(v)[column] for v in views if ATELECTASIS not in v.study.present)
    rates = {value: count / present.total() for value, count in present.items()}
    assert rates["-1.0"] == pytest.approx(0.30, abs=0.05)
    assert rates[""] == pytest.approx(0.06, abs=0.03)
    assert 0 < rates["0.0"] < 0.04
    assert 0.005 < absent["1.0"] / absent.total() < 0.03
    assert absent[""] / absent.total() > 0.7
