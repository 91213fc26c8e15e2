"""Films that the ground truth lacks because they show nothing: masks on them count, as CheXlocalize counts them."""

import numpy as np
import pytest

from chexseg.data import rle
from chexseg.errors import DataError
from chexseg.evaluation import comparison, film_list, scoring
from tests.evaluation.masks import entry, name

TASKS = ("Edema", "Airspace Opacity")
TRUTH = {name(1): entry(100, 200), name(2): entry(300, 0)}
PREDICTED = {name(1): entry(100, 100), name(3): entry(60, 0), name(4): entry(0, 0)}
FILMS = film_list.FilmList({name(i): frozenset() for i in (1, 2, 3, 4, 5)})


def miou(table, protocol, task):
    return table[(table.protocol == protocol) & (table.task == task)].iou.item()


def test_masks_on_films_without_a_finding_count_by_hand():
    dropped = scoring.evaluate(PREDICTED, TRUTH, TASKS, num_replicates=5)
    assert dropped.images == [name(1)] and miou(dropped.table, "per_image_all", "Edema") == 1
    found = scoring.evaluate(PREDICTED, TRUTH, TASKS, num_replicates=5, films=FILMS)
    assert found.images == [name(1), name(2), name(3), name(4)]  # of 5 nobody knows the size
    # Edema: found, missed, false positive, rightly empty.
    assert miou(found.table, "per_image_all", "Edema") == pytest.approx(1 / 3)
    assert miou(found.table, "pooled", "Edema") == pytest.approx(100 / (100 + 300 + 60))
    assert miou(found.table, "per_image", "Edema") == 1  # true positives only
    assert miou(found.table, "per_image_all", "Airspace Opacity") == 0.5
    assert found.missing == {"prediction": set(), "ground truth": set()}
    said = " | ".join(found.notes)
    assert "2 films without a finding are scored" in said
    assert f"1 films without a finding have no prediction, nothing to score: {name(5)}" in said
    assert "prediction: 1 images have no prediction, counted as empty masks" in said


def test_films_whose_labels_have_a_finding_but_no_ground_truth_are_told_of():
    films = film_list.FilmList(FILMS | {name(1): {"Edema"}, name(3): {"Edema"}, name(4): {"Fracture"}})
    notes = scoring.evaluate(PREDICTED, TRUTH, TASKS, num_replicates=5, films=films).notes
    (told,) = (note for note in notes if "although" in note)
    assert told.startswith("1 films") and told.endswith(name(3))


def test_all_methods_are_scored_on_the_same_films_and_the_second_reader_on_his():
    methods = {
        "full": PREDICTED,
        "chexseg": {name(i): entry(0, 0) for i in (1, 2, 3, 4, 5)},
        "radiologist": {name(1): entry(100, 200)},
    }
    found = comparison.compare(TRUTH, methods, TASKS, num_replicates=5, films=FILMS)
    assert found.images == list(FILMS)
    n_images = {method: scores.n_images.tolist() for method, scores in found.scores["pooled"].items()}
    assert n_images == {"full": [5, 5, 5], "chexseg": [5, 5, 5], "radiologist": [4, 4, 4]}
    assert found.scores["pooled"]["radiologist"].values[0].tolist() == [1, 1, 1]


def naive_chexlocalize(predicted, truth, tasks, true_pos_only):
    """What CheXlocalize's documentation says of its files, on decoded masks: image -> task -> IoU."""
    rows = {}
    for image in sorted({*truth, *(() if true_pos_only else predicted)}):
        for task in tasks:
            masks = [side[image][task] if image in side else None for side in (predicted, truth)]
            size = next(m["size"] for m in masks if m)
            ours, true = (rle.decode([m])[0] if m else np.zeros(size, np.uint8) for m in masks)
            union = (ours | true).sum()
            skip = (not ours.any() or not true.any()) if true_pos_only else not union
            rows.setdefault(image, {})[task] = np.nan if skip else (ours & true).sum() / union
    return rows


@pytest.mark.parametrize("true_pos_only", [True, False])
def test_every_film_scores_as_in_chexlocalize(true_pos_only):
    rng = np.random.default_rng(2)

    def masks(ids):
        stacks = {i: rng.random((2, 12, 9)) < rng.choice([0, 0.3, 0.7], (2, 1, 1)) for i in ids}
        return {name(i): dict(zip(TASKS, rle.encode(stack), strict=True)) for i, stack in stacks.items()}

    truth, predicted = masks(range(12)), masks(range(4, 20))
    films = film_list.FilmList({name(i): frozenset() for i in range(20)})
    found = scoring.evaluate(predicted, truth, TASKS, num_replicates=3, films=films)
    each = found.overlap.per_image(true_positives=true_pos_only)
    expected = naive_chexlocalize(predicted, truth, TASKS, true_pos_only)
    ours = dict(zip(found.images, each, strict=True))
    assert len(expected) == (12 if true_pos_only else 20)
    for image, row in expected.items():
        np.testing.assert_allclose(ours[image], [row[task] for task in TASKS], rtol=0, atol=1e-12)
    protocol = "per_image" if true_pos_only else "per_image_all"
    for task in TASKS:
        mean = np.nanmean([row[task] for row in expected.values()])
        assert miou(found.table, protocol, task) == pytest.approx(mean, abs=1e-6)


def test_a_list_is_a_label_file_with_paths(tmp_path):
    path = tmp_path / "test_labels.csv"
    path.write_text(
        "Path,Frontal/Lateral\nCheXpert/test/patient1/study1/view1_frontal.jpg,Frontal\n"
        "CheXpert/test/patient1/study1/view2_lateral.jpg,Lateral\n"
    )
    assert film_list.read_list(path) == {"patient1_study1_view1_frontal": frozenset()}
    path.write_text(
        "\ufeffPath,Edema\ntest/patient2/study1/view1_frontal.jpg,1\ntest/patient2/study1/view2_lateral.jpg,\n"
    )
    assert film_list.read_list(path) == {"patient2_study1_view1_frontal": {"Edema"}}
    assert film_list.read_list(path, {"Edema": "Oedema"}) == {"patient2_study1_view1_frontal": {"Oedema"}}
    path.write_text("Image,Edema\nx,1\n")
    with pytest.raises(DataError, match="test_labels.csv: no column .Path."):
        film_list.read_list(path)
    with pytest.raises(DataError, match="no such file"):
        film_list.read_list(tmp_path / "none.csv")
