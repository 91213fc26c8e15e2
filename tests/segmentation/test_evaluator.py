"""An epoch's scores and thresholds, and the trainer's loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from chexseg.errors import DataError
from chexseg.evaluation.pooled_iou import PooledIoU
from chexseg.runtime import distributed
from chexseg.segmentation.dataset import SegmentationSet, TaskCounts
from chexseg.segmentation.evaluator import Evaluator
from chexseg.segmentation.training import SegmentationTrainer
from chexseg.training.draws import shuffled
from chexseg.training.options import RunOptions
from tests.segmentation.small import SPEC, Oracle, Samples


def pooled(rows):
    """A PooledIoU whose table of IoU has these values at two thresholds (others lower) for each task; None: absent."""
    counts = PooledIoU(len(rows))
    for task, row in enumerate(rows):
        for threshold, hits in (row or {}).items():
            # Of 100 true pixels, `hits` exceed `threshold` and no higher one; no false pixel.
            counts.counts[task, 1, round(threshold * 20) + 1] += hits
        if row:
            counts.counts[task, 1, 0] += 100 - sum(row.values())
    return counts


def evaluator(common=(), count=6, **options):
    dataset = SegmentationSet([Samples("a", count)])
    return Evaluator(dataset, SPEC, common=common, batch_size=2, device=torch.device("cpu"), **options)


def test_thresholds_and_score_of_the_validation_set():
    # IoU of task 0: 80% up to 0.3, then 50% up to 0.6. The lowest threshold with the most is 0.
    valid = pooled([{0.3: 30, 0.6: 50}, None, {0.5: 40}])
    train = pooled([{0.2: 90}, {0.4: 70}, None])
    for counts in (valid, train):  # false pixels below each class's own threshold make that threshold the best
        for task in range(3):
            counts.counts[task, 0, 5] += 50
    found = evaluator().summarise(valid, train)
    # Above 0.2 the 50 false pixels (which exceed 5 thresholds, 0 to 0.2) are gone: the best threshold is 0.25.
    assert found["thresholds"] == pytest.approx([0.25, 0.25, 0.25])
    assert found["iou"] == pytest.approx({"Cardiomegaly": 0.8, "Edema": None, "Support Devices": 0.4})
    assert found["miou"] == pytest.approx(0.6)
    assert found["train_miou"] == pytest.approx((90 / 150 + 0.7) / 2)


def test_common_tasks_are_scored_at_the_training_sets_thresholds():
    valid = pooled([{0.3: 30, 0.6: 50}, {0.9: 100}, {0.5: 40}])
    train = pooled([{0.6: 60}, {0.4: 70}, None])
    train.counts[0, 0, 12] += 1000  # false pixels up to 0.55: the best threshold is 0.6
    found = evaluator(common=("Cardiomegaly", "Support Devices")).summarise(valid, train)
    assert found["thresholds"] == pytest.approx([0.6, 0.0, 0.0])
    assert found["common_iou"] == pytest.approx((0.5 + 0.4) / 2)
    assert found["iou"]["Edema"] == pytest.approx(1.0)


def test_a_task_that_occurs_nowhere_takes_one_half():
    found = evaluator().summarise(pooled([{0.3: 30}, None, None]), pooled([None, None, None]))
    assert found["thresholds"] == [0.0, 0.5, 0.5]
    assert found["train_miou"] is None


FEW = TaskCounts(*(np.array(values) for values in ([9, 9, 0], [1, 1, 0], [0, 0, 10])))


def test_a_task_with_few_positive_images_takes_its_threshold_from_both_sets():
    # Of each set 100 true pixels. Alone, validation would take 0 (as good as 0.25, and lower).
    valid, train = pooled([{0.3: 80}, {0.3: 80}, {0.9: 100}]), pooled([{0.6: 100}, {0.6: 100}, None])
    train.counts[:, 0, 12] += 1000  # false pixels of training images, up to 0.55
    few = evaluator(count=4, train_counts=FEW)  # 4 positive images of each task
    found = few.summarise(valid, train)
    assert found["thresholds"] == pytest.approx([0.6, 0.6, 1.0])  # 100 / 200 at 0.6, 180 / 1200 at 0
    assert found["iou"] == {"Cardiomegaly": 0.0, "Edema": 0.0, "Support Devices": 0.0}
    assert list(found["threshold_sources"].values()) == ["training and validation"] * 2 + ["none"]
    enough = evaluator(count=5, train_counts=FEW).summarise(valid, train)
    assert enough["thresholds"] == pytest.approx([0.0, 0.0, 1.0])
    assert list(enough["threshold_sources"].values()) == ["validation"] * 2 + ["none"]


def test_common_tasks_with_few_training_images_take_their_thresholds_from_both_sets():
    counts = FEW._replace(present=np.array([4, 5, 0]))
    found = evaluator(common=("Cardiomegaly",), train_counts=counts)
    assert found.threshold_sources() == ["training and validation", "training", "none"]


def test_a_task_that_is_never_learnt_is_never_predicted_whatever_validation_shows():
    found = evaluator(train_counts=FEW).summarise(pooled([{0.3: 30}] * 3), pooled([{0.3: 30}] * 2 + [None]))
    assert found["thresholds"][2] == 1.0 and found["iou"]["Support Devices"] == 0.0
    assert found["miou"] == pytest.approx((0.3 + 0.3 + 0) / 3)  # it is missed, and that counts


def test_a_task_whose_best_threshold_marks_most_of_what_it_should_not_is_never_predicted():
    valid = pooled([{0.3: 30}, {0.9: 100}, {0.1: 50}])
    valid.counts[2] = 0
    valid.counts[2, 1, 2], valid.counts[2, 0, 2] = 100, 900  # every pixel between 0.05 and 0.1, 100 of them true
    found = evaluator().summarise(valid, pooled([{0.3: 30}] * 3))
    assert found["thresholds"] == pytest.approx([0.0, 0.0, 1.0]) and found["iou"]["Support Devices"] == 0.0
    assert list(found["threshold_sources"].values()) == ["validation", "validation", "none"]
    valid.counts[2, 0, 1] += 899  # one less than are marked: the padding, say, is left out
    assert evaluator().summarise(valid, pooled([{0.3: 30}] * 3))["thresholds"][2] == 1.0
    valid.counts[2, 0, 1] += 1  # half of them are left out: then the network knows something
    assert evaluator().summarise(valid, pooled([{0.3: 30}] * 3))["thresholds"][2] == pytest.approx(0.05)


def test_what_is_unknown_changes_no_tally():
    found, (logits, masks) = evaluator(), torch.randn(2, 2, 3, 32, 32).unbind(0)
    known, masks = torch.tensor([[True, False, True], [True, True, False]]), masks > 0
    whole = found.tally(logits, {"masks": masks, "known": known})
    assert whole.sum((1, 2)).tolist() == [2 * 1024, 1024, 1024]
    masks[0, 1], logits[1, 2] = ~masks[0, 1], 9.0  # unknown: whatever they are
    assert torch.equal(found.tally(logits, {"masks": masks, "known": known}), whole)
    one = found.tally(logits[1:, 1:2].expand(1, 3, -1, -1), {"masks": masks[1:, 1:2].expand(1, 3, -1, -1)})
    assert torch.equal(one[1], whole[1])


def test_evaluation_masks_without_a_pixel_of_what_counts_are_refused():
    with pytest.raises(DataError, match="no pixel of Edema"):
        evaluator(common=("Edema",)).summarise(pooled([{0.3: 30}, None, None]), pooled([None, {0.3: 30}, None]))


def test_evaluator_sees_every_image_once():
    samples = Samples("a", 6)
    for sample in samples.samples:
        sample.image[:] = 255 * sample.masks[0]
        sample.masks[1] = 0
    found = Evaluator(SegmentationSet([samples]), SPEC, batch_size=2, device=torch.device("cpu"))
    counts = torch.zeros(3, 2, 21, dtype=torch.int64)
    counts[:, 1, 20] = 1
    metrics = found(Oracle(), counts)
    # sigmoid(-4) = 0.018: only threshold 0 takes the background too. Edema, which only training images show, takes its
    # threshold from both: the validation images without it have background that it must not mark.
    assert metrics["iou"] == {"Cardiomegaly": 1.0, "Edema": None, "Support Devices": 1.0}
    assert metrics["thresholds"] == pytest.approx([0.05, 0.05, 0.05])
    tally = found.tally(Oracle()(torch.ones(2, 3, 32, 32)), {"masks": torch.ones(2, 3, 32, 32)})
    assert tally.sum().item() == 2 * 3 * 32 * 32 and tally[:, 1, 20].tolist() == [2048] * 3


def test_ranks_evaluate_a_share_each_and_agree(monkeypatch):
    def evaluate(rank=0, world_size=1, others=None):
        """This rank's metrics, and what it counted itself."""
        counted = []

        def all_reduce(pooled):
            counted.append(pooled.counts.clone())
            if others is not None:
                pooled.counts += others

        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world_size)
        monkeypatch.setattr(PooledIoU, "all_reduce", all_reduce)
        return evaluator(count=3)(Oracle(), pooled([{0.5: 9}] * 3).counts), counted[0]

    alone, whole = evaluate()
    first, second = (evaluate(rank, 2)[1] for rank in (0, 1))
    assert first.sum() == 2 * second.sum() and torch.equal(first + second, whole)
    assert evaluate(0, 2, second)[0] == evaluate(1, 2, first)[0] == alone


def test_loss_normalises_as_told():
    head = nn.Conv2d(3, 3, 1)
    options, spec = RunOptions(num_epochs=1, batch_size=1, lr=0.1), replace(SPEC, normalisation="chexpert")
    sets, folder = [SegmentationSet([Samples(name, 1)]) for name in "ab"], Path("nowhere")
    trainer = SegmentationTrainer(head, spec, *sets, folder=folder, order=shuffled(1, 0), options=options)
    seen = []
    batch = {"image": torch.full((1, 4, 4), 128, dtype=torch.uint8), "masks": torch.zeros(1, 1, 4, 4)}
    loss, logits = trainer.compute_loss(lambda x: seen.append(x) or x[:, :1] * 0, batch)
    assert_close(seen[0], torch.full((1, 3, 4, 4), (128 / 255 - 0.5020) / 0.085585))
    assert loss.item() == pytest.approx(1 - 1 / 9)  # 16 pixels at 1/2: (0 + 1) / (8 + 0 + 1)
    assert logits.shape == (1, 1, 4, 4)
