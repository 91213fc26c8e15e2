"""Losses: tables by hand, a naive version, an independent one, and sums over ranks."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch.testing import assert_close

from chexseg.runtime import distributed
from chexseg.runtime.distributed import sum_over_ranks
from chexseg.segmentation import choices
from chexseg.training.losses import (
    SEGMENTATION_LOSSES,
    bce_dice_loss,
    classification_loss,
    dice_loss,
    focal_loss,
    tversky_loss,
)

NAN = float("nan")
# Logits whose sigmoid is 0 or 1 in float32, so that sums can be counted on fingers.
ON, OFF = 200.0, -200.0
LN2 = math.log(2)


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


def bce(p, m):
    return -math.log(p if m else 1 - p)


def naive_known(logits, masks, known):
    """(cross-entropy by class, Dice by class, known pixels by class, mask pixels by class), pixel by pixel."""
    columns = []
    for c in range(logits.shape[1]):
        entropy = product = size = pixels = inside = 0.0
        for b in range(logits.shape[0]):
            for i in range(logits[b, c].numel()):
                if known[b, c].expand(logits[b, c].shape).flatten()[i]:
                    p, m = 1 / (1 + math.exp(-logits[b, c].flatten()[i].item())), masks[b, c].flatten()[i].item()
                    entropy, pixels, inside = entropy + bce(p, m), pixels + 1, inside + m
                    product, size = product + p * m, size + p + m
        columns.append((entropy / max(pixels, 1), (2 * product + 1) / (size + 1), pixels, inside))
    return list(zip(*columns, strict=True))


def naive_dice_known(logits, masks, known):
    _, dice, pixels, _ = naive_known(logits, masks, known)
    terms = [1 - d for d, n in zip(dice, pixels, strict=True) if n]
    return sum(terms) / max(len(terms), 1)


def naive_bce_dice(logits, masks, known):
    entropy, dice, pixels, inside = naive_known(logits, masks, known)
    entropies = [e for e, n in zip(entropy, pixels, strict=True) if n]
    terms = [1 - d for d, n in zip(dice, inside, strict=True) if n]
    return sum(entropies) / max(len(entropies), 1) + sum(terms) / max(len(terms), 1)


def pixels_of(logits, masks, known, c):
    """(probability, mask) of a class's known pixels."""
    there = known[:, c].reshape(len(logits), -1).expand(len(logits), logits[0, c].numel())
    flat = [x[:, c].flatten(1)[there].tolist() for x in (logits, masks)]
    return [(1 / (1 + math.exp(-x)), m) for x, m in zip(*flat, strict=True)]


def naive_focal(logits, masks, known):
    classes = [pixels_of(logits, masks, known, c) for c in range(logits.shape[1])]
    means = [
        sum((1 - (p if m else 1 - p)) ** 2 * bce(p, m) for p, m in pairs) / len(pairs) for pairs in classes if pairs
    ]
    return sum(means) / max(len(means), 1)


def naive_tversky(logits, masks, known):
    terms = []
    for c in range(logits.shape[1]):
        if pairs := pixels_of(logits, masks, known, c):
            right, many = sum(p * m for p, m in pairs), sum(p * (1 - m) for p, m in pairs)
            few = sum((1 - p) * m for p, m in pairs)
            terms.append(1 - (right + 1) / (right + 0.3 * many + 0.7 * few + 1))
    return sum(terms) / max(len(terms), 1)


NAIVE = {"dice": naive_dice_known, "bce_dice": naive_bce_dice, "focal": naive_focal, "tversky": naive_tversky}
LOSSES = pytest.mark.parametrize(
    ("loss", "naive"), [(SEGMENTATION_LOSSES[name], naive) for name, naive in NAIVE.items()], ids=list(NAIVE)
)


def test_focal_and_tversky_by_hand():
    # Probability 1/2 throughout: each pixel costs log 2, times 1/4. Three pixels, of which one is inside.
    logits, masks = torch.zeros(1, 1, 1, 3), torch.tensor([[[[1, 0, 0]]]])
    assert focal_loss(logits, masks).item() == pytest.approx(LN2 / 4)
    # 1/2 right, 1 too much, 1/2 too little: 1 - 1.5 / (1.5 + 0.3 + 0.35).
    assert tversky_loss(logits, masks).item() == pytest.approx(1 - 1.5 / 2.15)
    assert focal_loss(logits, masks, gamma=0).item() == pytest.approx(LN2)


def test_tversky_at_one_half_is_dice_and_focal_is_the_librarys():
    torch.manual_seed(3)
    logits, masks = 2 * torch.randn(3, 4, 5, 7), torch.randint(0, 2, (3, 4, 5, 7))
    even = tversky_loss(logits, masks, too_much=0.5, too_little=0.5, smooth=0.5)
    assert_close(even, dice_loss(logits, masks))
    assert_close(focal_loss(logits, masks), smp.losses.FocalLoss("multilabel")(logits, masks))


@pytest.mark.parametrize(
    ("masks", "known", "dice", "bce_dice"),
    [
        # Every logit 0: probability 1/2, cross-entropy log 2 of a pixel; 2 images, 2 classes, 2 pixels each.
        # Class 0: (2*1 + 1) / (2 + 2 + 1) = 3/5. Class 1 has no pixel: 1 / (2 + 1) = 1/3.
        ([[1, 1], [0, 0], [0, 0], [0, 0]], [1, 1, 1, 1], 1 - (3 / 5 + 1 / 3) / 2, 1 - 3 / 5),
        # Class 1 of image 0 unknown: 1 / (1 + 1) = 1/2, and in bce_dice it does not occur.
        ([[1, 1], [0, 0], [0, 0], [0, 0]], [1, 0, 1, 1], 1 - (3 / 5 + 1 / 2) / 2, 1 - 3 / 5),
        # Class 1 unknown throughout: class 0 alone.
        ([[1, 1], [1, 1], [0, 0], [1, 1]], [1, 0, 1, 0], 1 - 3 / 5, 1 - 3 / 5),
        # Class 0 unknown where it is full: absent elsewhere, so that it does not occur.
        ([[1, 1], [1, 1], [0, 0], [1, 1]], [0, 1, 1, 1], 1 - (1 / 2 + 5 / 7) / 2, 1 - 5 / 7),
        # Empty masks: Dice pushes down, cross-entropy alone is left of the other.
        ([[0, 0], [0, 0], [0, 0], [0, 0]], [1, 1, 1, 1], 1 - 1 / 3, 0),
        # Full masks: (2*2 + 1) / (2 + 4 + 1).
        ([[1, 1], [1, 1], [1, 1], [1, 1]], [1, 1, 1, 1], 1 - 5 / 7, 1 - 5 / 7),
    ],
    ids=["all known", "one unknown", "a class unknown", "full but unknown", "empty", "full"],
)
def test_losses_over_what_is_known_by_hand(masks, known, dice, bce_dice):
    logits, masks, known = torch.zeros(2, 2, 1, 2), torch.tensor(masks).view(2, 2, 1, 2), torch.tensor(known).view(2, 2)
    assert dice_loss(logits, masks, known).item() == pytest.approx(dice, rel=1e-6)
    assert bce_dice_loss(logits, masks, known).item() == pytest.approx(LN2 + bce_dice, rel=1e-6)
    if known.all():
        assert dice_loss(logits, masks).item() == dice_loss(logits, masks, known).item()


@LOSSES
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 7)], ids=["masks", "pixels"])
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_naive_sums_over_what_is_known(loss, naive, shape, seed):
    torch.manual_seed(seed)
    logits, masks, known = 3 * torch.randn(3, 4, 5, 7), torch.randint(0, 2, (3, 4, 5, 7)), torch.rand(shape) < 0.5
    masks[:, 1], masks[:, 2], known[:, 3] = 0, 1, False
    assert loss(logits, masks, known).item() == pytest.approx(naive(logits, masks, known), rel=1e-5)


@LOSSES
def test_what_is_unknown_gives_no_gradient_and_what_it_is_does_not_matter(loss, naive):
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randint(0, 2, (2, 3, 4, 4))
    known = torch.tensor([[True, False, True], [True, False, False]])
    value = loss(logits, masks, known)
    value.backward()
    assert (logits.grad[known].abs() > 0).all() and (logits.grad[~known] == 0).all()
    assert loss(logits, torch.where(known[:, :, None, None], masks, 1 - masks), known) == value
    logits.grad = None
    nothing = loss(logits, masks, torch.zeros(2, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0 and (logits.grad == 0).all()


@LOSSES
def test_all_known_is_as_if_nothing_were_said_bit_for_bit(loss, naive):
    torch.manual_seed(0)
    for _ in range(20):
        found, masks = [], (torch.rand(3, 7, 9, 5) < 0.1).to(torch.uint8)
        values = 4 * torch.randn(3, 7, 9, 5)
        for known in (None, torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 7, 9, 5, dtype=torch.bool)):
            logits = values.clone().requires_grad_()
            value = loss(logits, masks, known)
            value.backward()
            found.append((value, logits.grad))
        assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_dice_of_known_masks_is_the_papers_bit_for_bit():
    torch.manual_seed(1)
    for classes in range(1, 13):
        logits, masks = 4 * torch.randn(3, classes, 9, 5), torch.rand(3, classes, 9, 5) < 0.2
        probabilities = logits.sigmoid()
        products, sizes = (probabilities * masks).sum((0, 2, 3)), probabilities.sum((0, 2, 3)) + masks.sum((0, 2, 3))
        assert torch.equal(dice_loss(logits, masks), 1 - ((2 * products + 1) / (sizes + 1)).mean())


@LOSSES
def test_ranks_add_up_to_the_whole_batch(loss, naive, monkeypatch):
    """Each rank has its part, in which some classes are unknown or absent; the sums are those of the batch."""
    torch.manual_seed(2)
    logits, masks = torch.randn(5, 3, 4, 4), torch.randint(0, 2, (5, 3, 4, 4))
    known = torch.rand(5, 3) < 0.6
    known[:2, 0], masks[2:, 1], known[:, 2] = False, 0, False
    parts, sums = [slice(0, 2), slice(2, 5)], []
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: sums.append(values) or values)
    for part in parts:
        loss(logits[part], masks[part], known[part])
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: sums[0] + sums[1])
    expected = naive(logits, masks, known)
    assert [loss(logits[part], masks[part], known[part]).item() for part in parts] == pytest.approx([expected] * 2)


LABELS = torch.tensor([[1.0, 0.0, -1.0, NAN]])


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


@pytest.mark.parametrize("not_mentioned", ["zeros", "ignore"])
@pytest.mark.parametrize("uncertain", ["ones", "multiclass"])
def test_an_observation_without_a_column_never_counts(uncertain, not_mentioned):
    shape = (2, 3, 3) if uncertain == "multiclass" else (2, 3)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[1.0, 0.0, -2.0], [-1.0, 1.0, -2.0]])
    policies = {"uncertain": uncertain, "not_mentioned": not_mentioned}
    loss = classification_loss(logits, labels, **policies)
    assert loss.item() == pytest.approx(classification_loss(logits[:, :2], labels[:, :2], **policies).item())
    loss.backward()
    assert not logits.grad[:, 2].any() and logits.grad[:, :2].any()


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


def test_the_command_line_offers_all_losses():
    assert choices.LOSSES == tuple(SEGMENTATION_LOSSES)
