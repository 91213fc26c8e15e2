"""Losses: tables by hand, a naive version, an independent one, and sums over ranks."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch.testing import assert_close

from chexseg.runtime.distributed import sum_over_ranks
from chexseg.training.losses import classification_loss, dice_loss

NAN = float("nan")
# Logits whose sigmoid is 0 or 1 in float32, so that sums can be counted on fingers.
ON, OFF = 200.0, -200.0


@pytest.mark.parametrize(
    ("prediction", "mask", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 0),  # (2*2 + 1) / (4 + 1) = 1
        ([1, 1, 0, 0], [1, 0, 1, 0], 1 - 3 / 5),  # (2*1 + 1) / (2 + 2 + 1)
        ([1, 1, 1, 1], [0, 0, 0, 0], 1 - 1 / 5),  # (0 + 1) / (4 + 0 + 1)
        ([0, 0, 0, 0], [1, 1, 1, 0], 1 - 1 / 4),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),  # absent and not predicted: no loss
    ],
)
def test_dice_of_one_class_by_hand(prediction, mask, expected):
    logits = torch.where(torch.tensor(prediction).view(1, 1, 2, 2) > 0, ON, OFF)
    assert_close(dice_loss(logits, torch.tensor(mask).view(1, 1, 2, 2)), torch.tensor(float(expected)))


def test_dice_pools_a_class_over_the_batch_and_averages_classes():
    # Class 0: image 0 predicts both of its 2 pixels, image 1 none of its 2: (2*2 + 1) / (2 + 4 + 1) = 5/7.
    # Class 1: nothing there, one pixel predicted: 1 / (1 + 1) = 1/2.
    logits = torch.full((2, 2, 1, 2), OFF)
    masks = torch.zeros(2, 2, 1, 2)
    logits[0, 0], masks[:, 0] = ON, 1
    logits[1, 1, 0, 0] = ON
    assert_close(dice_loss(logits, masks), torch.tensor(1 - (5 / 7 + 1 / 2) / 2))


def naive_dice(logits, masks):
    total = 0.0
    for c in range(logits.shape[1]):
        product = size = 0.0
        for b in range(logits.shape[0]):
            for p, m in zip(logits[b, c].flatten().tolist(), masks[b, c].flatten().tolist(), strict=True):
                p = 1 / (1 + math.exp(-p))
                product, size = product + p * m, size + p + m
        total += (2 * product + 1) / (size + 1)
    return 1 - total / logits.shape[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_dice_equals_the_naive_sum(dtype):
    torch.manual_seed(0)
    logits, masks = 3 * torch.randn(3, 4, 5, 7), torch.randint(0, 2, (3, 4, 5, 7)).to(dtype)
    assert dice_loss(logits, masks).item() == pytest.approx(naive_dice(logits, masks), rel=1e-5)


def test_dice_equals_the_librarys_where_every_class_occurs():
    torch.manual_seed(1)
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 3, 8, 8))
    library = smp.losses.DiceLoss("multilabel", smooth=0.0)  # what `smooth` means there has changed over time
    assert_close(dice_loss(logits, masks, smooth=0.0), library(logits, masks))


def test_dice_is_computed_in_float32():
    logits = torch.full((1, 1, 100, 100), -6.0, dtype=torch.bfloat16)  # sums of 10^4 terms: bf16 would stop at 256
    loss = dice_loss(logits, torch.zeros(1, 1, 100, 100))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - 1 / (10_000 / (1 + math.exp(6)) + 1), rel=1e-4)


LABELS = torch.tensor([[1.0, 0.0, -1.0, NAN]])
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("uncertain", "not_mentioned", "logits", "expected"),
    [
        # With logit x a positive costs log(1 + e^-x), a negative log(1 + e^x); x = log 3 gives log 4/3 and log 4.
        ("ignore", "zeros", [3, 3, 3, 3], (math.log(4 / 3) + 2 * math.log(4)) / 3),
        ("zeros", "zeros", [3, 3, 3, 3], (math.log(4 / 3) + 3 * math.log(4)) / 4),
        ("ones", "zeros", [3, 3, 3, 3], (2 * math.log(4 / 3) + 2 * math.log(4)) / 4),
        ("ignore", "ignore", [3, 3, 3, 3], (math.log(4 / 3) + math.log(4)) / 2),
        ("ones", "ignore", [3, 3, 3, 3], (2 * math.log(4 / 3) + math.log(4)) / 3),
        ("zeros", "ignore", [1, 1, 1, 9], LN2),
    ],
)
def test_classification_loss_by_hand(uncertain, not_mentioned, logits, expected):
    logits = torch.tensor([logits], dtype=torch.float32).log()
    loss = classification_loss(logits, LABELS, uncertain=uncertain, not_mentioned=not_mentioned)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_three_way_heads_take_uncertain_as_a_class_of_its_own():
    # Softmax over (uncertain, negative, positive); weights 5 : 1 : 2.
    logits = torch.tensor([5.0, 1.0, 2.0]).log().expand(1, 4, 3)
    expected = -(math.log(2 / 8) + math.log(1 / 8) + math.log(5 / 8) + math.log(1 / 8)) / 4
    assert classification_loss(logits, LABELS, uncertain="multiclass").item() == pytest.approx(expected, rel=1e-6)
    expected = -(math.log(2 / 8) + math.log(1 / 8) + math.log(5 / 8)) / 3
    loss = classification_loss(logits, LABELS, uncertain="multiclass", not_mentioned="ignore")
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_labels_that_do_not_count_give_no_gradient():
    logits = torch.zeros(1, 4, requires_grad=True)
    classification_loss(logits, LABELS, uncertain="ignore", not_mentioned="ignore").backward()
    assert_close(logits.grad, torch.tensor([[-0.25, 0.25, 0.0, 0.0]]))


def test_loss_of_no_label_is_zero():
    loss = classification_loss(torch.ones(2, 3), torch.full((2, 3), -1.0), uncertain="ignore")
    assert loss.item() == 0


@pytest.mark.parametrize(("shape", "uncertain"), [((1, 4), "multiclass"), ((1, 4, 3), "ones")])
def test_policy_and_head_must_go_together(shape, uncertain):
    with pytest.raises(ValueError, match=uncertain):
        classification_loss(torch.zeros(shape), LABELS, uncertain=uncertain)


def test_one_process_sums_to_itself():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert sum_over_ranks(values) is values
    assert np.isclose(values.sum().item(), 3)
