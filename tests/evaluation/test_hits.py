"""The peak of a saliency map inside the ground truth."""

import numpy as np
import pytest

from chexseg.data import rle
from chexseg.data.images import upsample
from chexseg.errors import DataError
from chexseg.evaluation.hits import hit, hits, peak


class Maps(dict):
    """Saliency maps in memory."""

    tasks, network_size, lacking = ("a", "b"), (8, 8), ()

    def known(self, ids, tasks):
        return np.array([[(image, task) not in self.lacking for task in tasks] for image in ids])

    def input_size(self, saliency):
        return saliency.get("input", self.network_size)


def test_hit_by_hand():
    mask = np.zeros((20, 40))
    mask[11:14, 33:38] = 1  # of a 4 x 4 map, the centre (row 12, column 35) of cell (2, 3), not its corner
    (coded,) = rle.encode(mask[None])
    for row in range(4):
        for column in range(4):
            saliency = np.full((4, 4), 0.1)
            saliency[row, column] = 0.2
            assert hit(coded, saliency) == ((row, column) == (2, 3))
    saliency[:] = 0
    assert not hit(rle.encode(np.ones((1, 20, 40)))[0], saliency)
    saliency[2, 3], saliency[0, 0] = 1, np.nan
    assert hit(coded, saliency)
    saliency[:] = np.nan
    assert not hit(coded, saliency)


@pytest.mark.parametrize("size", [(40, 30), (61, 47), (5, 7), (16, 16), (9, 80)])
def test_the_peak_is_that_of_the_upsampled_map(size):
    rng = np.random.default_rng(sum(size))
    for _ in range(20):
        coarse = rng.random((4, 4), dtype=np.float32)
        saliency = upsample(coarse[None], (16, 16))[0]
        large = upsample(saliency[None], size)[0]
        row, column = peak(saliency, size)
        assert large[row, column] >= large.max() - 1e-6
    flat = np.ones((3, 3))
    assert peak(flat, (12, 12)) == (0, 0)
    assert peak(np.zeros((3, 3)), (12, 12)) is None


def test_between_two_equal_cells_lies_the_peak_of_neither():
    """Upsampled, two high neighbours and a lone one that is as high: 2 x 2 pixels of the pair, one of the other."""
    saliency = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0.999]])
    assert peak(saliency, (8, 8)) == (3, 3)


def test_hits_of_images_and_tasks():
    left, right = np.zeros((2, 4, 8))
    left[:, :4], right[:, 4:] = 1, 1
    masks = rle.encode(np.stack([left, right, np.zeros((4, 8))]))
    truth = {
        "x": {"a": masks[0], "b": masks[0]},
        "y": {"a": masks[2]},  # empty; b is not annotated
        "z": {"a": masks[1], "b": masks[1]},
    }
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, :, 0] = maps[1, :, 1] = 1  # a peaks on the left, b on the right
    found = hits(Maps(x={"maps": maps}, y={"maps": maps}), truth, ["b", "a"], ["x", "y", "z"])
    np.testing.assert_array_equal(found, [[0, 1], [np.nan] * 2, [np.nan] * 2])
    without = Maps(x={"maps": maps})
    without.lacking = [("x", "b")]  # its map reads as zero, which is no miss
    np.testing.assert_array_equal(hits(without, truth, ["b", "a"], ["x"]), [[np.nan, 1]])
    with pytest.raises(DataError, match="no saliency maps of 'c'"):
        hits(Maps(), truth, ["c"], ["x"])


def test_each_map_is_brought_to_its_own_images_input_first():
    """A map of a tall film and one of a wide film: stretched to the other's input size, its peak lies elsewhere."""
    rng, sizes = np.random.default_rng(0), {"tall": (64, 16), "wide": (16, 64)}
    for _ in range(20):
        saliency = {
            name: {"maps": rng.random((2, *shape), np.float32), "input": shape, "size": (2 * shape[0], 2 * shape[1])}
            for name, shape in sizes.items()
        }
        maps, truth, expected = Maps(saliency), {}, []
        for name, one in saliency.items():
            masks = (rng.random((2, *one["size"])) < 0.5).astype(np.uint8)
            truth[name] = dict(zip("ab", rle.encode(masks), strict=True))
            large = upsample(one["maps"], one["size"])
            expected.append([mask.flat[each.argmax()] for mask, each in zip(masks, large, strict=True)])
        np.testing.assert_array_equal(hits(maps, truth, ["a", "b"], list(sizes)), expected)
