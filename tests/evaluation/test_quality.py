"""Quality of pseudo masks by hand: what is unknown takes no part, a gate empties masks, sizes do not matter."""

import numpy as np
import pytest
from PIL import Image

from chexseg.data import rle
from chexseg.errors import DataError
from chexseg.evaluation import quality
from tests.evaluation.masks import entry, name

TASKS = ("Edema", "Airspace Opacity", "Fracture")
TRUTH = {name(1): entry(400, 200, 0), name(2): entry(0, 100, 0), name(3): {"Edema": entry(300)["Edema"]}}
MASKS = {
    name(1): entry(200, 300, 0),
    name(2): {"Airspace Opacity": entry(50, 50)["Airspace Opacity"]},  # Edema is unknown here
    name(3): entry(0, 70, 0),
}


def measured(masks=MASKS, gates=None, **options):
    counts = quality.count({"s": quality.MaskSource(masks)}, TRUTH, TASKS, list(TRUTH), **options)
    table = quality.measure(counts, gates or {}, num_replicates=20)
    return table.set_index(["gate", "task"])


def test_scores_by_hand():
    table = measured()
    edema, opacity = table.loc[("none", "Edema")], table.loc[("none", "Airspace Opacity")]
    assert edema[["iou", "precision", "recall"]].tolist() == pytest.approx([200 / 700, 1, 200 / 700])
    assert edema[["n_images", "n_positive", "empty"]].tolist() == [2, 2, 0.5]
    # 200 of 300 and 50 of 100; image 3 was not annotated.
    assert opacity[["iou", "precision", "recall"]].tolist() == pytest.approx([250 / 400, 250 / 350, 250 / 300])
    assert opacity[["n_images", "n_positive", "empty"]].tolist() == [2, 2, 0]
    assert table.loc[("none", "Fracture")][["iou", "precision", "empty"]].isna().all()
    mean = table.loc[("none", "mIoU")]
    assert mean["iou"] == pytest.approx((200 / 700 + 250 / 400) / 2) and mean["empty"] == 0.25
    assert mean["lower"] <= mean["iou"] <= mean["upper"]


def test_a_gate_makes_masks_empty_and_nothing_known_that_is_unknown():
    present = np.ones((3, 3), bool)
    present[0, 1] = present[1, 0] = False
    table = measured(gates={"label": present})
    opacity = table.loc[("label", "Airspace Opacity")]
    assert opacity[["iou", "precision", "recall"]].tolist() == pytest.approx([50 / 300, 1, 50 / 300])
    assert opacity[["n_images", "empty"]].tolist() == [2, 0.5]
    assert table.loc[("label", "Edema"), "n_images"] == 2
    assert table.loc["none"].equals(measured().loc["none"])
    left_open = np.array([[1, 1, 1], [1, -1, 1], [0, 1, 1]], np.int8)
    table = measured(gates={"label": left_open}).loc["label"]
    assert table.loc["Airspace Opacity", ["iou", "n_images"]].tolist() == pytest.approx([200 / 300, 1])
    nothing = measured(gates={"label": np.zeros((3, 3), bool)}).loc["label"]
    assert nothing.loc["mIoU", ["iou", "recall", "empty"]].tolist() == [0, 0, 1]


def test_pixels_that_a_source_leaves_open_do_not_count():
    def source(image_id, shape):
        mask = np.zeros(shape, np.uint8)
        mask.reshape(-1)[:100], mask.reshape(-1)[100:500] = 1, quality.UNKNOWN
        return {"Edema": mask}

    counts = quality.count({"s": source}, TRUTH, TASKS, [name(1)])["s"]
    assert counts.intersection[0, 0] == counts.union[0, 0] == counts.truth[0, 0] == 100
    assert counts.pixels[0, 0] == 30 * 40 - 400 and np.isnan(counts.union[0, 1])


def test_masks_of_any_size_are_compared_at_one():
    large = {i: {t: rle.encode(rle.resize([m], (120, 160)))[0] for t, m in e.items()} for i, e in MASKS.items()}
    np.testing.assert_allclose(measured(large)["iou"], measured()["iou"])
    small = measured(side=20)["iou"]  # a row of pixels more or less
    np.testing.assert_allclose(small, measured()["iou"], atol=0.13)


def test_images_that_a_source_lacks_are_not_scored():
    table = measured({name(1): MASKS[name(1)]})
    assert table.loc[("none", "Edema"), ["iou", "n_images"]].tolist() == [0.5, 1]
    with pytest.raises(DataError, match="no source"):
        quality.measure({}, {})


def test_table_and_picture(tmp_path):
    sources = {"weak": quality.MaskSource(MASKS), "teacher": quality.MaskSource(TRUTH)}
    counts = quality.count(sources, TRUTH, TASKS, list(TRUTH))
    table = quality.measure(counts, {"label": np.ones((3, 3), bool)}, num_replicates=20)
    assert tuple(table) == quality.COLUMNS and len(table) == 2 * 2 * 4
    text = quality.text(table)
    assert "gate none: pooled IoU" in text and "gate label" in text
    (row,) = (line for line in text.split("gate label")[1].splitlines() if line.startswith("Edema"))
    assert row.split() == ["Edema", "0.286", "1.000*"]
    quality.draw(tmp_path / "quality.png", table, TASKS)
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.width > 800 and np.asarray(picture.convert("L")).std() > 10
