"""Losses of the classifier and the segmentation network. The boundary network's is in `irnet.affinity`.

Under torchrun both losses are those of the whole batch, not of a rank's part: their sums are added over ranks, and the
averaged gradients of DistributedDataParallel are then exactly the gradients of one process.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.runtime import distributed


def dice_loss(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice of sigmoid(logits) (B, C, h, w) and masks (B, C, h, w) in {0, 1}, averaged over the C classes.

    Dice of a class, over all pixels of the batch: (2 sum p m + smooth) / (sum p + sum m + smooth). In float32 whatever
    the network's precision.
    """
    probabilities = logits.float().sigmoid()
    masks = masks.to(probabilities.dtype)
    products = (probabilities * masks).sum((0, 2, 3))
    sizes = probabilities.sum((0, 2, 3)) + masks.sum((0, 2, 3))
    products, sizes = distributed.sum_over_ranks(torch.stack((products, sizes)))
    return 1 - ((2 * products + smooth) / (sizes + smooth)).mean()


def classification_loss(
    logits: Tensor, labels: Tensor, *, uncertain: str = "ignore", not_mentioned: str = "zeros"
) -> Tensor:
    """Mean cross-entropy over the labels that count; 0 where none does.

    labels (B, T) hold 1, 0, -1 (uncertain) and NaN (not mentioned). logits are (B, T), or (B, T, 3) = (uncertain,
    negative, positive) for the policy `multiclass`. Not mentioned counts as negative, as in CheXpert (Irvin et al.
    2019), or not at all (`ignore`).
    """
    if (uncertain == "multiclass") != (logits.ndim == 3):
        raise ValueError(f"the policy {uncertain!r} does not go with logits of shape {tuple(logits.shape)}")
    logits = logits.float()
    missing = labels.isnan()
    counts = ~missing if not_mentioned == "ignore" else torch.ones_like(missing)
    labels = torch.where(missing, 0.0, labels.float())
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
