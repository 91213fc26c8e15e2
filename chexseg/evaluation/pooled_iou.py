"""IoU pooled over a set at many thresholds at once, by histogram; what training chooses epochs and thresholds by."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from chexseg.errors import DataError
from chexseg.runtime import distributed

NUM_THRESHOLDS = 20
THRESHOLDS = tuple(i / NUM_THRESHOLDS for i in range(NUM_THRESHOLDS))  # 0, 0.05 ... 0.95
_BINS = NUM_THRESHOLDS + 1
_SLICE = 1 << 22  # pixels counted at once: float32 counts are exact up to 2^24


class PooledIoU:
    """IoU of each class at every threshold of THRESHOLDS, pooled over all that `update` saw.

    A pixel is predicted where its probability is *strictly above* the threshold, as in the original; compared in double
    precision, so threshold 0 means any positive probability. Each pixel is looked at once, whatever the number of
    thresholds: `counts` (classes, 2, 21) is a histogram by ground truth (0, 1) and by how many thresholds the
    probability exceeds. It can be summed over ranks. A NaN probability is never above a threshold.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(num_classes, 2, _BINS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, probabilities: torch.Tensor, targets: torch.Tensor, known: torch.Tensor | None = None) -> None:
        """Add a batch: probabilities (B, C, h, w) floating, targets (B, C, h, w) in {0, 1}, both on one device.

        known (B, C): where it is False, nobody knows the target, and the image does not count for the class.
        """
        if probabilities.shape != targets.shape or probabilities.shape[1] != len(self.counts):
            raise ValueError(f"{tuple(probabilities.shape)} and {tuple(targets.shape)} for {len(self.counts)} classes")
        known = targets.new_ones(targets.shape[:2], dtype=torch.bool) if known is None else known.bool()
        if known.shape != targets.shape[:2]:
            raise ValueError(f"known {tuple(known.shape)} does not go with targets {tuple(targets.shape)}")
        probabilities, targets = probabilities.detach().flatten(2), targets.flatten(2) > 0
        count = _count_on_cpu if probabilities.device.type == "cpu" else _count
        self.counts += count(probabilities, targets, known).to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over ranks, once all batches are in."""
        distributed.all_reduce_sum(self.counts)

    def iou(self) -> torch.Tensor:
        """(classes, 20) float64 on the CPU; NaN for a class without a pixel of ground truth."""
        counts = self.counts.cpu()
        # From the top: pixels that exceed threshold j are those that exceed more than j thresholds.
        above = counts.flip(-1).cumsum(-1).flip(-1)[:, :, 1:]
        truth = counts[:, 1].sum(-1, keepdim=True)
        iou = above[:, 1].double() / (truth + above[:, 0]).double()
        return torch.where(truth > 0, iou, torch.nan)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(IoU, threshold) of each class at its best threshold, the lowest of equals; NaN and 0.5 where it never
        occurs."""
        iou = self.iou()
        best, index = iou.nan_to_num(-1).max(-1)
        # torch.max promises no order among equals.
        index = (iou == best[:, None]).to(torch.uint8).argmax(-1)
        occurs = ~iou.isnan().all(-1)
        thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64)[index]
        return torch.where(occurs, best, torch.nan), torch.where(occurs, thresholds, 0.5)

    def at(self, thresholds: Sequence[float]) -> torch.Tensor:
        """(classes,) IoU at each class's own threshold, one of THRESHOLDS (thresholds chosen on other data), or 1 for a
        class that is never predicted: no probability exceeds it."""
        columns = [round(value * NUM_THRESHOLDS) for value in thresholds]
        for value, column in zip(thresholds, columns, strict=True):
            if not 0 <= column <= NUM_THRESHOLDS or abs(column / NUM_THRESHOLDS - value) > 1e-6:
                raise DataError(f"threshold {value}: expected one of 0, 0.05 ... 0.95, or 1")
        iou = self.iou()
        never = torch.where(iou[:, :1].isnan(), torch.nan, torch.zeros_like(iou[:, :1]))
        return torch.cat((iou, never), 1)[torch.arange(len(self.counts)), torch.tensor(columns)]


def _count(probabilities: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(B, C, n) -> (C, 2, 21) on any device, by a histogram of each image and class. Whole numbers: their sum does not
    depend on the order. (`torch.bincount` makes the host wait.)"""
    bins = (probabilities.double() * NUM_THRESHOLDS).ceil_().nan_to_num_(0, NUM_THRESHOLDS, 0)
    index = bins.clamp_(0, NUM_THRESHOLDS).long().add_(targets, alpha=_BINS)
    found = index.new_zeros(*index.shape[:2], 2 * _BINS)
    return found.scatter_add_(2, index, known.long()[:, :, None].expand_as(index)).sum(0).view(-1, 2, _BINS)


def _count_on_cpu(probabilities: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The same, slice by slice within the cache: OpenCV's histogram of bytes takes a third of torch's time."""
    found = np.zeros((probabilities.shape[1], 2 * _BINS), np.int64)
    images, truths = probabilities.float().numpy(), targets.numpy().view(np.uint8)
    for image, channel in np.argwhere(known.numpy()):
        values, inside = images[image, channel], truths[image, channel]
        for start in range(0, len(values), _SLICE):
            bins = np.multiply(values[start : start + _SLICE], NUM_THRESHOLDS, dtype=np.float64)
            np.fmax(np.ceil(bins, out=bins), 0, out=bins)  # NaN -> 0
            index = np.minimum(bins, NUM_THRESHOLDS, out=bins).astype(np.uint8)
            index += inside[start : start + _SLICE] * np.uint8(_BINS)
            histogram = cv2.calcHist([index.reshape(1, -1)], [0], None, [2 * _BINS], [0, 2 * _BINS])
            found[channel] += histogram.ravel().astype(np.int64)
    return torch.from_numpy(found.reshape(-1, 2, _BINS))
