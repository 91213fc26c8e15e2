"""Samples for a student: experts' and pseudo-labelled films, and experts' findings pasted into the latter.

Imports no torch, like `dataset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from chexseg.data.augmentation import PADDED, augment
from chexseg.data.sample_cache import SampleCache
from chexseg.segmentation.dataset import SegmentationSet
from chexseg.training.draws import Draw

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 0.02  # of the image's side: how far around a finding its film goes along, and fades


def positives(caches: Sequence[SampleCache]) -> list[np.ndarray]:
    """For each class, the samples of `caches` (counted through) whose mask of it has a pixel."""
    bits = [cache.bits(i) for cache in caches for i in range(len(cache))]
    return [np.flatnonzero(column) for column in np.array([known & there for known, there in bits]).T]


def paste(
    image: np.ndarray, masks: np.ndarray, donor: np.ndarray, donor_masks: np.ndarray, task: int
) -> tuple[np.ndarray, np.ndarray]:
    """image (S, S) uint8 with the finding `task` of the film `donor` blended in where it lies there, and its masks.

    The finding comes with a margin, which fades out, and is made half as much brighter or darker as the surroundings
    differ. Where it covers the image by more than half, all masks (C, S, S) are the donor's (copy-paste, Ghiasi et al.
    2021). An empty mask changes nothing.
    """
    if not donor_masks[task].any():
        return image, masks
    reach = max(1, round(MARGIN * len(image)))
    disc = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    region = cv2.dilate(donor_masks[task], disc)
    around = (cv2.dilate(region, disc) > region) & (image > 0) & (donor > 0)
    difference = float(image[around].mean() - donor[around].mean()) if around.any() else 0.0
    share = cv2.GaussianBlur(region.astype(np.float32), (0, 0), 0.8 * reach)
    moved = np.clip(donor + 0.5 * difference, 0, 255)
    blended = np.clip(image * (1 - share) + moved * share, 0, 255).round().astype(np.uint8)
    return blended, np.where(share > 0.5, donor_masks, masks)


class StudentSet(SegmentationSet):
    """The experts' caches, then the pool's; samples also say whether they are of the pool (`weak`).

    paste: the share of the pool's draws that get a finding of an expert film: first a class is drawn among those
    that the experts saw, all equally likely, then a film that shows it. Only draws that have a key; the donor is
    augmented on its own. A class that either film does not know stays unknown.
    """

    def __init__(
        self, experts: Sequence[SampleCache], pool: Sequence[SampleCache], *, augment: bool = False, paste: float = 0.0
    ):
        super().__init__([*experts, *pool], augment=augment)
        self.paste, self.n_experts = paste, sum(map(len, experts))
        shown = positives(experts) if paste else []
        self._donors = {task: rows for task, rows in enumerate(shown) if len(rows)}

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str]:
        import torch

        sample = super().__getitem__(draw)
        is_weak = draw.index >= self.n_experts
        if is_weak and draw.key and self._donors:
            rng = np.random.default_rng((*draw.key, 1))
            if rng.random() < self.paste:
                self._add_finding(sample, rng)
        return sample | {"weak": torch.tensor(is_weak)}

    def _add_finding(self, sample: dict, rng: np.random.Generator) -> None:
        import torch

        task = list(self._donors)[rng.integers(len(self._donors))]
        which, index = self._place(int(rng.choice(self._donors[task])))
        donor, donor_masks, _, known = self.caches[which][index]
        if self.augment:
            donor, donor_masks = augment(donor, donor_masks, rng, PADDED)
        image, masks = paste(sample["image"].numpy(), sample["masks"].numpy(), donor, donor_masks, task)
        sample["image"], sample["masks"] = torch.from_numpy(image), torch.from_numpy(masks)
        if known is not None:
            sample["known"] = sample["known"] & torch.from_numpy(known)
