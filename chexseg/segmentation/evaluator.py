"""An epoch's scores of a segmentation network, and the thresholds that go with them."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from chexseg.data.images import normalise
from chexseg.errors import DataError
from chexseg.evaluation.metrics import mean_iou
from chexseg.evaluation.pooled_iou import NUM_THRESHOLDS, PooledIoU
from chexseg.runtime import distributed
from chexseg.segmentation.dataset import SegmentationSet, TaskCounts
from chexseg.segmentation.model import SegmentationSpec
from chexseg.training.draws import in_order
from chexseg.training.loader import Loader
from chexseg.training.loop import to_device

# Positive images that a set must have before a class's threshold is chosen on it alone.
ENOUGH = 5
NEVER = 1.0  # no probability exceeds it


class Evaluator:
    """Scores an epoch on a set and chooses its thresholds: `evaluate` and `tally` of a trainer.

    Pooled IoU of each task at 20 thresholds, over the images whose mask of the task is known. The score is the mean,
    over the tasks that occur in the set, of the IoU at the chosen thresholds.

    A task's threshold is the best one on this set; with `common`, which are then the only tasks that are scored, the
    best one on the training set as its batches were seen during the epoch. A set with fewer than ENOUGH positive images
    of a task says little: its threshold is then the best one on both together (with one positive image, 0 was chosen,
    which marks the whole film). A task without a positive training image predicts nothing, nor does one whose best
    threshold marks more than half of the pixels that are not the finding: the network has not learnt it.

    train_counts: of the training set; None: it has enough of every task.
    """

    def __init__(
        self,
        dataset: SegmentationSet,
        spec: SegmentationSpec,
        *,
        train_counts: TaskCounts | None = None,
        common: Sequence[str] = (),
        batch_size: int,
        num_workers: int = 0,
        device: torch.device,
    ):
        self.dataset, self.spec, self.device, self.common = dataset, spec, device, list(common)
        self.score_name = "common_iou" if common else "miou"
        enough = np.full(len(spec.tasks), ENOUGH)
        self.train_positives = enough if train_counts is None else train_counts.present
        self.positives = dataset.counts().present if len(dataset) else enough
        self._loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
        self._plan = in_order(len(dataset), batch_size, rank=distributed.rank(), world_size=distributed.world_size())

    def tally(self, logits: Tensor, batch: dict) -> Tensor:
        """Counts of the batch's pixels (C, 2, 21), see `pooled_iou.PooledIoU`; they add up over batches and ranks."""
        pooled = PooledIoU(len(self.spec.tasks), logits.device)
        pooled.update(logits.detach().float().sigmoid(), batch["masks"], batch.get("known"))
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

    def threshold_sources(self) -> list[str]:
        """For each task, which images its threshold is chosen on; `none` for a task that predicts nothing."""
        first = self.train_positives if self.common else self.positives
        alone, both = "training" if self.common else "validation", "training and validation"
        sources = [alone if count >= ENOUGH else both for count in first]
        return ["none" if count == 0 else source for count, source in zip(self.train_positives, sources, strict=True)]

    def choose(self, valid: PooledIoU, train: PooledIoU) -> list[float]:
        """A threshold for each task; 0.5 for one that an epoch's images left open."""
        both = PooledIoU(len(self.spec.tasks))
        both.counts = (valid.counts + train.counts).cpu()
        first = train if self.common else valid
        (iou, alone), (_, together) = first.best(), both.best()
        thresholds = []
        for task, source in enumerate(self.threshold_sources()):
            use_both = source == "training and validation" or bool(iou[task].isnan())
            best, seen = (together if use_both else alone)[task].item(), (both if use_both else first).counts[task]
            wrong, background = seen[0, round(best * NUM_THRESHOLDS) + 1 :].sum(), seen[0].sum()
            thresholds.append(NEVER if source == "none" or 2 * wrong > background else best)
        return thresholds

    def summarise(self, valid: PooledIoU, train: PooledIoU) -> dict:
        """Metrics and thresholds; None stands for the IoU of a task that does not occur."""
        thresholds = self.choose(valid, train)
        sources = [s if t < NEVER else "none" for s, t in zip(self.threshold_sources(), thresholds, strict=True)]
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
            "threshold_sources": dict(zip(self.spec.tasks, sources, strict=True)),
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
