"""Training a student on experts' films and on a teacher's masks, or probabilities, of a pool of others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chexseg.data.images import normalise
from chexseg.segmentation.distillation import TOP
from chexseg.segmentation.training import SegmentationTrainer
from chexseg.training.trainer import Batch


class StudentTrainer(SegmentationTrainer):
    """`SegmentationTrainer` on a `pasting.StudentSet`, whose experts alone are tallied: thresholds come from what
    people drew."""

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        experts = ~batch["weak"]
        return super().tally(outputs[experts], {name: batch[name][experts] for name in ("masks", "known")})


class SoftStudentTrainer(StudentTrainer):
    """Distillation (Hinton et al. 2015): on the pool's films the targets are the teachers' probabilities of the very
    image that the student sees, student's and teachers' logits divided by `temperature`.

    labels: of the pool's films, by id, as in `distillation.gate`; a finding that the label denies has targets of 0, one
    that is uncertain, or that the teachers do not see (belief below `floor`), is unknown. None: nothing is gated.
    """

    def __init__(
        self,
        *args: Any,
        teachers: Sequence[nn.Module],
        temperature: float,
        labels: Mapping[str, np.ndarray] | None,
        floor: float = 0.0,
        **options: Any,
    ):
        super().__init__(*args, **options)
        device = next(self.model.parameters()).device
        self.teachers = [teacher.to(device).eval().requires_grad_(False) for teacher in teachers]
        self.temperature, self.labels, self.floor = temperature, labels, floor

    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch over what is known, and the logits (B, C, S, S)."""
        image = normalise(batch["image"], self.spec.normalisation)
        logits, weak = network(image), batch["weak"]
        masks, known = batch["masks"].float(), batch["known"]
        if weak.any():
            masks, known = masks.clone(), known.clone()
            names = [name for name, is_weak in zip(batch["id"], weak.tolist(), strict=True) if is_weak]
            masks[weak], known[weak] = self._targets(image[weak], names)
        softened = logits / torch.where(weak, self.temperature, 1.0)[:, None, None, None]
        return self.loss(softened, masks, known), logits

    @torch.no_grad()
    def _targets(self, image: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Probabilities (B, C, S, S) at the temperature, and which are known (B, C)."""
        logits = [teacher(image).float() for teacher in self.teachers]
        targets = torch.stack([(each / self.temperature).sigmoid() for each in logits]).mean(0)
        known = torch.ones(targets.shape[:2], dtype=torch.bool, device=image.device)
        if self.labels is None:
            return targets, known
        labels = torch.from_numpy(np.stack([self.labels[name] for name in names])).to(image.device)
        probabilities = torch.stack([each.sigmoid() for each in logits]).mean(0).flatten(2)
        seen = probabilities.topk(max(1, int(TOP * probabilities.shape[2])), -1).values.mean(-1) >= self.floor
        denied = (labels == 0) | labels.isnan()
        return targets * ~denied[:, :, None, None], denied | ((labels == 1) & seen)
