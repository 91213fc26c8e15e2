"""The upper bound: positives only, at the best threshold on the test masks."""

import numpy as np

from chexseg.data import rle
from chexseg.evaluation import bootstrap, metrics, oracle


class Maps(dict):
    tasks, network_size = ("a", "b"), (4, 4)

    def known(self, ids, tasks):
        return np.ones((len(ids), len(tasks)), bool)


def test_tally_equals_binarising_at_every_threshold():
    rng = np.random.default_rng(0)
    for _ in range(20):
        saliency = rng.choice(np.arange(21) / 20, (9, 7)) * 3 - 1
        mask = rng.random((9, 7)) < 0.4
        stretched = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        expected = [((stretched > t) & mask).sum() / ((stretched > t) | mask).sum() for t in oracle.THRESHOLDS]
        np.testing.assert_allclose(oracle.tally(oracle.stretched(saliency), mask), expected, rtol=1e-12)
    assert not oracle.tally(oracle.stretched(np.ones((2, 2))), np.ones((2, 2))).any()


def test_each_task_gets_its_best_threshold_and_negatives_take_no_part():
    mask = np.zeros((4, 4))
    mask[1:3, 1:3] = 1
    (coded,), empty = rle.encode(mask[None]), rle.empty((4, 4))
    truth = {"p_1_a": {"a": coded, "b": empty}, "q_1_a": {"a": empty, "b": empty}}
    saliency = np.stack([mask * 0.8 + 0.1, 1 - mask]).astype(np.float32)
    maps = Maps({image: {"maps": saliency} for image in truth})
    images = list(truth)
    each = oracle.ious(maps, truth, ["a", "b"], images)
    assert np.isnan(each[1]).all() and np.isnan(each[0, 1]).all()
    found = metrics.overlap(truth, truth, ["a", "b"], images)
    scores, thresholds = oracle.score(each, found, bootstrap.Resamples(images, 5))
    assert scores.values[0, 0] > 0.9 and np.isnan(scores.values[0, 1]) and scores.n_images.tolist() == [1, 0, 1]
    assert thresholds[0] > 0 and np.isnan(thresholds[1])
    assert "UPPER BOUND" in oracle.MEANING and "upper_bound" in oracle.ORACLE
