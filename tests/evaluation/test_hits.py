"""The peak of a saliency map inside the ground truth."""

import numpy as np

from chexseg.data import rle
from chexseg.evaluation.hits import hit


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
