"""Training a segmentation network: what it brings to `training.loop.fit`."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chexseg.data import leak_guard
from chexseg.data.chexpert import patient_of
from chexseg.data.images import normalise
from chexseg.errors import DataError
from chexseg.runtime.files import atomic
from chexseg.segmentation.dataset import SegmentationSet
from chexseg.segmentation.evaluator import Evaluator
from chexseg.segmentation.model import SegmentationSpec, save_model
from chexseg.training.draws import Order
from chexseg.training.losses import SEGMENTATION_LOSSES
from chexseg.training.options import RunOptions
from chexseg.training.trainer import Batch, Trainer

log = logging.getLogger(__name__)
BEST, THRESHOLDS = "best_model.pth", "thresholds.txt"


class SegmentationTrainer(Trainer):
    """A loss over the samples of `dataset`, Adam, the epoch and its thresholds by those of `evaluation`.

    loss: a name in `losses.SEGMENTATION_LOSSES`. common: choose the epoch by these tasks alone, with thresholds from
    the training set (`Evaluator`). sources: the masks files, and networks that made them: the patients that these were
    trained or chosen on count as this network's too.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: SegmentationSpec,
        dataset: SegmentationSet,
        evaluation: SegmentationSet,
        *,
        folder: Path,
        order: Order,
        options: RunOptions,
        loss: str = "dice",
        common: Sequence[str] = (),
        sources: Sequence[Path] = (),
    ):
        self.sources = list(sources)
        self.role = "thresholds" if options.keep_epoch == "last" else "epoch and thresholds"
        self.model, self.spec, self.folder, self.order = model, spec, folder, order
        self.loss = SEGMENTATION_LOSSES[loss]
        self.dataset = dataset
        self.optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
        self.evaluator = Evaluator(
            evaluation,
            spec,
            train_counts=dataset.counts(),
            common=common,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            device=next(model.parameters()).device,
        )

    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of a batch over what is known, and the logits (B, C, S, S)."""
        logits = network(normalise(batch["image"], self.spec.normalisation))
        return self.loss(logits, batch["masks"], batch.get("known")), logits

    def tally(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.evaluator.tally(outputs, batch)

    def evaluate(self, model: nn.Module, tally: Tensor | None) -> dict[str, Any]:
        assert tally is not None
        return self.evaluator(model, tally)

    def score(self, metrics: Mapping[str, Any]) -> float:
        return metrics[self.evaluator.score_name]

    def summary(self, metrics: Mapping[str, Any]) -> str:
        return f"{self.evaluator.score_name} {metrics[self.evaluator.score_name]:.4f}"

    def save_best(self, weights: dict[str, Tensor], metrics: Mapping[str, Any]) -> None:
        """The network with its metrics, and the thresholds once more as text: what stage 7 reads, and may be replaced.
        Before either, which patients it was chosen on."""
        self._record_patients()
        save_model(self.folder / BEST, weights, self.spec, metrics)
        with atomic(self.folder / THRESHOLDS) as temporary:
            temporary.write_text(json.dumps(metrics["thresholds"]) + "\n")

    def _record_patients(self) -> None:
        trained, chosen = ({patient_of(name) for name in data.ids()} for data in (self.dataset, self.evaluator.dataset))
        sources = set(self.evaluator.threshold_sources()) - {"none", "validation"}
        leak_guard.record(self.folder / BEST, {"trained": trained, self.role: chosen})
        leak_guard.record(self.folder / THRESHOLDS, {"thresholds": chosen | trained if sources else chosen})
        for name in (BEST, THRESHOLDS):
            leak_guard.inherit(self.folder / name, [self.folder / name, *self.sources])

    def say_counts(self) -> None:
        """Log how many images show each task, lack it or do not say, and where its threshold will come from."""
        counts = self.dataset.counts(), self.evaluator.dataset.counts()
        for i, (task, source) in enumerate(zip(self.spec.tasks, self.evaluator.threshold_sources(), strict=True)):
            train, valid = (f"{c.present[i]} with, {c.absent[i]} without, {c.unknown[i]} unknown" for c in counts)
            log.info("%s: training %s; validation %s; threshold from %s", task, train, valid, source)
            if source == "none":
                log.warning("%s: no training image shows it, so that it is not learnt and never predicted", task)


def check_scorable(evaluation: SegmentationSet, masks: str, tasks: Sequence[str], common: Sequence[str]) -> None:
    """DataError where the evaluation masks (in the files `masks`) cannot choose an epoch: before training, not after
    its first epoch."""
    scored = list(common or tasks)
    if not evaluation.counts().present[[list(tasks).index(task) for task in scored]].any():
        raise DataError(f"{masks}: no mask of {', '.join(scored)} has a pixel to score by")
