"""Sources of pseudo masks by hand: what the CRF leaves open is background, foreground or unknown."""

import types

import numpy as np

from chexseg.data.hdf5_files import IGNORE
from chexseg.irnet.pseudo_sources import CrfSource, ThresholdSource


class Labels:
    """Relation labels of one film: a third each of background, open and foreground; a task whose map held nothing."""

    def __init__(self):
        film = np.repeat(np.array([0, IGNORE, 1], np.uint8), 4)[None].repeat(12, 0)
        self.labels = np.stack([film, np.full((12, 12), IGNORE, np.uint8)])
        self.rows = {"x": 0}
        self.films = types.SimpleNamespace(tasks=("a", "b"))

    def of(self, row):
        return self.labels


def test_open_pixels_of_the_crf():
    expected = {0: [0, 0, 1], 1: [0, 1, 1], IGNORE: [0, IGNORE, 1]}
    for between, thirds in expected.items():
        source = CrfSource(Labels(), between)
        masks = source("x", (6, 6))
        np.testing.assert_array_equal(masks["a"], np.repeat(thirds, 2)[None].repeat(6, 0))
        assert masks["b"].shape == (6, 6) and not masks["b"].any()
        assert source("y", (6, 6)) is None


def test_thresholded_maps_are_those_of_the_maker():
    from chexseg.data import rle

    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 1

    class Maker:
        maps = {"x": None}

        def __call__(self, image_id):
            return image_id, {"a": rle.encode(mask[None])[0]}

    source = ThresholdSource(Maker())
    np.testing.assert_array_equal(source("x", (4, 4))["a"], mask[::2, ::2])
    assert source("y", (4, 4)) is None
