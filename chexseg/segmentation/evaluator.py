"""An epoch's scores of a segmentation network, and the thresholds that go with them."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from chexseg.data.images import normalise
from chexseg.errors import DataError
from chexseg.evaluation.metrics import mean_iou
from chexseg.evaluation.pooled_iou import PooledIoU
from chexseg.runtime import distributed
from chexseg.segmentation.dataset import SegmentationSet
from chexseg.segmentation.model import SegmentationSpec
from chexseg.training.draws import in_order
from chexseg.training.loader import Loader
from chexseg.training.loop import to_device


class Evaluator:
    """Scores an epoch on a set and chooses its thresholds: `evaluate` and `tally` of a trainer.

    Pooled IoU of each task at 20 thresholds. The score is the mean, over the tasks that occur in the set, of the best
    threshold's IoU. With `common` it is the mean over these tasks only, at the thresholds that are best on the training
    set, as its batches were seen during the epoch. A task that the one set lacks takes the other's threshold; one that
    both lack takes 0.5.
    """

    def __init__(
        self,
        dataset: SegmentationSet,
        spec: SegmentationSpec,
        *,
        common: Sequence[str] = (),
        batch_size: int,
        num_workers: int = 0,
        device: torch.device,
    ):
        self.spec, self.device, self.common = spec, device, list(common)
        self.score_name = "common_iou" if common else "miou"
        self._loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
        self._plan = in_order(len(dataset), batch_size, rank=distributed.rank(), world_size=distributed.world_size())

    def tally(self, logits: Tensor, batch: dict) -> Tensor:
        """Counts of the batch's pixels (C, 2, 21), see `pooled_iou.PooledIoU`; they add up over batches and ranks."""
        pooled = PooledIoU(len(self.spec.tasks), logits.device)
        pooled.update(logits.detach().float().sigmoid(), batch["masks"])
        return pooled.counts

    def __call__(self, model: nn.Module, train_tally: Tensor) -> dict:
        train, valid = (PooledIoU(len(self.spec.tasks), self.device) for _ in range(2))
        train.counts = train_tally
        with closing(self._loader):
            for batch in self._loader(self._plan):
                batch = to_device(batch, self.device)
                valid.counts += self.tally(model(normalise(batch["image"], self.spec.normalisation)), batch)
        valid.all_reduce()
        return self.summarise(valid, train)

    def summarise(self, valid: PooledIoU, train: PooledIoU) -> dict:
        """Metrics and thresholds; None stands for the IoU of a task that does not occur."""
        (first, chosen), (_, others) = (p.best() for p in ((train, valid) if self.common else (valid, train)))
        thresholds = torch.where(first.isnan(), others, chosen).tolist()
        iou = dict(zip(self.spec.tasks, valid.at(thresholds).tolist(), strict=True))
        scored = self.common or list(self.spec.tasks)
        score = mean_iou(np.array([iou[task] for task in scored]))
        if np.isnan(score):
            raise DataError(f"the evaluation masks have no pixel of {', '.join(scored)}; check --eval_masks_path")
        return {
            self.score_name: score,
            "train_miou": _known(mean_iou(train.best()[0].numpy())),
            "iou": {task: _known(value) for task, value in iou.items()},
            "thresholds": thresholds,
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
