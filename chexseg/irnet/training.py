"""Training the boundary network: what it brings to `training.loop.fit`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chexseg.data.images import normalise
from chexseg.irnet import affinity, boundary_net
from chexseg.irnet.boundary_net import BoundarySpec
from chexseg.irnet.dataset import RelationSet
from chexseg.training import draws
from chexseg.training.options import RunOptions
from chexseg.training.trainer import Batch, Trainer


class BoundaryTrainer(Trainer):
    """The relation loss of pairs within `radius`, SGD with momentum 0.9, a rate that falls to zero by a power of 0.9
    (Ahn et al. 2019). The best epoch is that of the lowest mean training loss; its network goes to `best`."""

    def __init__(
        self,
        model: nn.Module,
        spec: BoundarySpec,
        dataset: RelationSet,
        *,
        best: Path,
        options: RunOptions,
        radius: int,
        weight_decay: float,
    ):
        self.model, self.spec, self.dataset, self.best, self.radius = model, spec, dataset, best, radius
        self.order = draws.shuffled(len(dataset), options.seed)
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=options.lr, momentum=0.9, weight_decay=weight_decay)

    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, None]:
        logits = network(normalise(batch["image"], self.spec.normalisation))
        return affinity.relation_loss(logits, batch["labels"], self.radius), None

    def schedule(self, step: int, steps: int) -> float:
        return (1 - step / steps) ** 0.9

    def save_best(self, weights: dict[str, Tensor], metrics: Mapping[str, Any]) -> None:
        boundary_net.save(self.best, weights, self.spec, metrics)
