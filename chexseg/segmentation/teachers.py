"""Trained networks as teachers of others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from chexseg.errors import DataError
from chexseg.segmentation.model import SegmentationSpec, load_model


class Committee(nn.Module):
    """Several networks as one: the logit of the mean of their probabilities."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([member(image).float().sigmoid() for member in self.members]).mean(0).logit(eps=1e-6)


def load_teachers(paths: Sequence[Path]) -> tuple[list[nn.Module], SegmentationSpec, list[float]]:
    """The networks in `paths`, the spec that they share, and the mean of their thresholds. DataError where they differ
    in what they see or say."""
    loaded = [load_model(path) for path in paths]
    models, specs, metrics = zip(*loaded, strict=True)
    for path, spec in zip(paths, specs, strict=True):
        same = (spec.tasks, spec.image_size, spec.normalisation)
        if same != (specs[0].tasks, specs[0].image_size, specs[0].normalisation):
            raise DataError(f"{path}: its tasks, image size or normalisation are not those of {paths[0]}")
    thresholds = [each.get("thresholds", [0.5] * len(specs[0].tasks)) for each in metrics]
    return list(models), specs[0], np.mean(thresholds, axis=0).tolist()
