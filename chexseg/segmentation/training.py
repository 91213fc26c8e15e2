"""Training a segmentation network: what it brings to `training.loop.fit`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chexseg.data.images import normalise
from chexseg.data.sample_cache import SampleCache
from chexseg.errors import DataError
from chexseg.runtime.files import atomic
from chexseg.segmentation.dataset import SegmentationSet
from chexseg.segmentation.evaluator import Evaluator
from chexseg.segmentation.model import SegmentationSpec, save_model
from chexseg.training.draws import Order
from chexseg.training.losses import dice_loss
from chexseg.training.options import RunOptions
from chexseg.training.trainer import Batch, Trainer

BEST, THRESHOLDS = "best_model.pth", "thresholds.txt"


class SegmentationTrainer(Trainer):
    """Dice loss over the samples of `caches`, Adam, the epoch and its thresholds by the masks of `evaluation`.

    `common`: choose the epoch by these tasks alone, with thresholds from the training set (`Evaluator`).
    """

    def __init__(
        self,
        model: nn.Module,
        spec: SegmentationSpec,
        caches: Sequence[SampleCache],
        evaluation: SampleCache,
        *,
        folder: Path,
        order: Order,
        options: RunOptions,
        common: Sequence[str] = (),
        augment: bool = False,
    ):
        self.model, self.spec, self.folder, self.order = model, spec, folder, order
        self.dataset = SegmentationSet(caches, augment=augment)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
        self.evaluator = Evaluator(
            SegmentationSet([evaluation]),
            spec,
            common=common,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            device=next(model.parameters()).device,
        )

    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Dice loss of a batch, and the logits (B, C, S, S)."""
        logits = network(normalise(batch["image"], self.spec.normalisation))
        return dice_loss(logits, batch["masks"]), logits

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
        """The network with its metrics, thresholds among them; and these once more as text, for people and for other
        tools."""
        save_model(self.folder / BEST, weights, self.spec, metrics)
        with atomic(self.folder / THRESHOLDS) as temporary:
            temporary.write_text(json.dumps(metrics["thresholds"]) + "\n")


def check_scorable(evaluation: SampleCache, masks_path: Path, tasks: Sequence[str], common: Sequence[str]) -> None:
    """DataError where the evaluation masks cannot choose an epoch: before training, not after its first epoch."""
    scored = list(common or tasks)
    channels = [list(tasks).index(task) for task in scored]
    if not any(evaluation[i].masks[channels].any() for i in range(len(evaluation))):
        raise DataError(f"{masks_path}: no mask of {', '.join(scored)} has a pixel to score by")
