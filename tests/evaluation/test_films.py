"""What the reading room is told of a film."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from chexseg.data import rle
from chexseg.errors import DataError
from chexseg.evaluation import films, outlines
from tests.evaluation.masks import TASKS, entry


def room(*sources, maps=None, size=(30, 40), images=("a",)):
    made = [films.Source(key, key, kind, masks) for key, kind, masks in sources]
    rng = np.random.default_rng(0)
    return films.Room(list(images), TASKS, made, lambda image: rng.integers(0, 255, size, np.uint8), maps)


def test_scores_by_hand():
    """IoU 100 / 150 and missed 50 / 150; nothing on both sides is no score; a false mask scores 0."""
    found = films.entry(
        room(("expert", "expert", {"a": entry(150, 0, 0)}), ("net", "method", {"a": entry(100, 0, 30)})), "a"
    )
    assert found["has"] == [[0], [0, 2]]
    assert found["iou"] == [None, [667, None, 0]] and found["missed"] == [None, [333, None, 0]]
    assert found["apart"] == [None, None, None]  # one method alone disagrees with nobody
    assert "known" not in found


def test_what_is_unknown_is_not_absent():
    partly = entry(150, 0, tasks=TASKS[:2])
    found = films.entry(room(("expert", "expert", {"a": partly}), ("net", "method", {"a": entry(0, 0, 9)})), "a")
    assert found["known"] == [0, 1] and found["iou"][1] == [0, None, None]
    without = films.entry(room(("expert", "expert", {"a": partly}), ("net", "method", {})), "a")
    assert without["has"] == [[0], None] and without["iou"] == [None, None]


def test_disagreement_by_hand():
    """Three methods, IoU 1/2, 0, 0: apart by 1 - 1/6; two empty masks agree."""
    methods = [(name, "method", {"a": entry(count, 0, 0)}) for name, count in (("x", 100), ("y", 50), ("z", 0))]
    assert films.entry(room(*methods), "a")["apart"] == [833, None, None]
    methods = [(name, "method", {"a": entry(count, 0, 0)}) for name, count in (("x", 0), ("y", 0), ("z", 10))]
    assert films.entry(room(*methods), "a")["apart"] == [667, None, None]


def test_masks_of_another_size_are_stretched():
    small = {TASKS[0]: rle.encode(np.ones((1, 3, 4)))[0]}
    found = films.entry(room(("expert", "expert", {"a": entry(1200, 0, 0)}), ("p", "pseudo", {"a": small})), "a")
    assert found["iou"][1] == [1000, None, None]


def test_a_large_film_is_made_smaller_with_its_outlines():
    mask = np.zeros((1, 2000, 1000), np.uint8)
    mask[0, 500:1500, 250:750] = 1
    masks = {"a": {TASKS[0]: rle.encode(mask)[0]}}
    content, jpeg = films.content(room(("net", "method", masks), size=(2000, 1000)), "a", {})
    assert content["size"] == [768, 384] and content["original"] == [2000, 1000] and "maps" not in content
    (corners,) = outlines.decode(content["outlines"][0][0])
    assert np.abs(corners.max(0) / 2 - (288, 576)).max() <= 1
    assert len(jpeg) <= films.MAX_BYTES  # noise, the worst that there is
    assert Image.open(io.BytesIO(jpeg)).size == (384, 768)


class Maps:
    tasks = ("other", TASKS[0], TASKS[2])
    network_size = (8, 8)

    def __contains__(self, image):
        return image != "without"

    def __getitem__(self, image):
        top = {"a": 2.0, "b": 4.0}[image]
        return {"maps": np.array([[[9, 9], [9, 9]], [[0, 1], [np.nan, top]], [[0, 0], [0, 0]]], np.float32)}


def test_maps_of_a_finding_share_a_scale():
    one = room(("net", "method", {}), maps=Maps(), images=("a", "b", "without"))
    peaks = films.peaks(one)
    assert peaks == {TASKS[0]: 4.0, TASKS[2]: 0.0}
    content, _ = films.content(one, "a", peaks)
    assert content["map_size"] == [2, 2] and list(content["maps"]) == [0]  # a scale that ends at 0 shows nothing
    assert list(base64.b64decode(content["maps"][0])) == [0, 64, 0, 128]
    assert "maps" not in films.content(one, "without", peaks)[0]


def test_wrong_films_are_named():
    colour = films.Room(["a"], TASKS, [], lambda image: np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(DataError, match="a: expected one grey film"):
        films.content(colour, "a", {})
    with pytest.raises(ValueError, match="kind 'friend'"):
        films.Source("x", "x", "friend", {})
