"""Losses of the classifier and the segmentation network. The boundary network's is in `irnet.affinity`.

What is unknown takes no part: an image's mask of a class that nobody drew says neither present nor absent.

Under torchrun the losses are those of the whole batch, not of a rank's part: their sums are added over ranks, and the
averaged gradients of DistributedDataParallel are then exactly the gradients of one process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.runtime import distributed


def dice_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice of sigmoid(logits) (B, C, h, w) and masks (B, C, h, w) in 0..1, averaged over the classes that are known
    somewhere in the batch; 0 where none is.

    Dice of a class, over all its known pixels of the batch: (2 sum p m + smooth) / (sum p + sum m + smooth). known
    (B, C), or (B, C, h, w) for single pixels; None: all are. In float32 whatever the network's precision.
    """
    probabilities, masks, weights = _known_only(logits.float().sigmoid(), masks, known)
    products = (probabilities * masks).sum((0, 2, 3))
    sizes = probabilities.sum((0, 2, 3)) + masks.sum((0, 2, 3))
    products, sizes, counts = distributed.sum_over_ranks(torch.stack((products, sizes, weights.sum((0, 2, 3)))))
    return _mean_over(counts > 0, (2 * products + smooth) / (sizes + smooth), loss_of=1)


def bce_dice_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None, *, smooth: float = 1.0) -> Tensor:
    """Cross-entropy of logits and masks (B, C, h, w), plus 1 - Dice of the classes that occur.

    Cross-entropy is the mean over a class's known pixels of the batch, then over the classes that are known. Dice is
    `dice_loss`'s, averaged over the classes with a known pixel inside a mask: for a class that the batch lacks it would
    only push down, whatever the network says, and a rare class is lacking most of the time.
    """
    logits = logits.float()
    entropies = F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    probabilities, masks, weights = _known_only(logits.sigmoid(), masks, known)
    inside = masks.sum((0, 2, 3))
    terms = (
        (entropies * weights).sum((0, 2, 3)),
        weights.expand_as(logits).sum((0, 2, 3)),
        (probabilities * masks).sum((0, 2, 3)),
        probabilities.sum((0, 2, 3)) + inside,
        inside,
    )
    entropy, pixels, products, sizes, inside = distributed.sum_over_ranks(torch.stack(terms))
    dice = (2 * products + smooth) / (sizes + smooth)
    return _mean_over(pixels > 0, entropy / pixels.clamp(min=1)) + _mean_over(inside > 0, dice, loss_of=1)


def focal_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None, *, gamma: float = 2.0) -> Tensor:
    """Cross-entropy of logits and masks (B, C, h, w) in 0..1, each pixel's times |mask - probability|^gamma: what is
    nearly right weighs little (Lin et al. 2017; for masks between 0 and 1, Li et al. 2020).

    The mean over a class's known pixels of the batch, then over the classes that are known; 0 where none is.
    """
    logits = logits.float()
    targets = masks.to(logits.dtype)
    entropies = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    focal = entropies * (targets - logits.sigmoid()).abs() ** gamma
    _, _, weights = _known_only(logits, masks, known)
    sums = torch.stack(((focal * weights).sum((0, 2, 3)), weights.expand_as(logits).sum((0, 2, 3))))
    total, pixels = distributed.sum_over_ranks(sums)
    return _mean_over(pixels > 0, total / pixels.clamp(min=1))


def tversky_loss(
    logits: Tensor,
    masks: Tensor,
    known: Tensor | None = None,
    *,
    too_much: float = 0.3,
    too_little: float = 0.7,
    smooth: float = 1.0,
) -> Tensor:
    """`dice_loss` in which a pixel too many and one too few weigh differently (Salehi et al. 2017; at 0.5 and 0.5 it is
    Dice with twice the `smooth`): 1 - (I + smooth) / (I + too_much (P - I) + too_little (M - I) + smooth), where
    I = sum p m, P = sum p and M = sum m over a class's known pixels of the batch."""
    probabilities, masks, weights = _known_only(logits.float().sigmoid(), masks, known)
    terms = ((probabilities * masks), probabilities, masks, weights)
    sums = torch.stack([term.sum((0, 2, 3)) for term in terms])
    both, predicted, inside, counts = distributed.sum_over_ranks(sums)
    wrong = too_much * (predicted - both) + too_little * (inside - both)
    return _mean_over(counts > 0, (both + smooth) / (both + wrong + smooth), loss_of=1)


def _known_only(probabilities: Tensor, masks: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both with zeros where nothing is known, and what is known as factors of 0 and 1 that go with (B, C, h, w)."""
    masks = masks.to(probabilities.dtype)
    if known is None:
        return probabilities, masks, torch.ones_like(masks[:, :, :1, :1])
    factors = known.to(probabilities.dtype)
    factors = factors[:, :, None, None] if known.ndim == 2 else factors
    return probabilities * factors, masks * factors, factors


def _mean_over(classes: Tensor, values: Tensor, *, loss_of: float | None = None) -> Tensor:
    """Mean of values (C,) over `classes` (C,) Boolean, 0 where there is none; or `loss_of` less that mean."""
    count = classes.sum()
    mean = (values * classes).sum() / count.clamp(min=1)
    return mean if loss_of is None else loss_of * (count > 0) - mean


SEGMENTATION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice": dice_loss,
    "bce_dice": bce_dice_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
}


def classification_loss(
    logits: Tensor, labels: Tensor, *, uncertain: str = "ignore", not_mentioned: str = "zeros"
) -> Tensor:
    """Mean cross-entropy over the labels that count; 0 where none does.

    labels (B, T) hold 1, 0, -1 (uncertain), NaN (not mentioned) and -2 (no such column: unknown, which never counts).
    logits are (B, T), or (B, T, 3) = (uncertain, negative, positive) for the policy `multiclass`. Not mentioned counts
    as negative, as in CheXpert (Irvin et al. 2019), or not at all (`ignore`).
    """
    if (uncertain == "multiclass") != (logits.ndim == 3):
        raise ValueError(f"the policy {uncertain!r} does not go with logits of shape {tuple(logits.shape)}")
    logits = logits.float()
    missing = labels.isnan()
    counts = ~missing if not_mentioned == "ignore" else torch.ones_like(missing)
    counts = counts & (labels != -2)
    labels = torch.where(missing | (labels == -2), 0.0, labels.float())
    doubtful = labels == -1
    if uncertain == "multiclass":
        classes = labels.long() + 1
        losses = F.cross_entropy(logits.transpose(1, 2), classes, reduction="none")
    else:
        if uncertain == "ignore":
            counts = counts & ~doubtful
        targets = torch.where(doubtful, float(uncertain == "ones"), labels)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    total, count = distributed.sum_over_ranks(torch.stack(((losses * counts).sum(), counts.sum().float())))
    return total / count.clamp(min=1)
