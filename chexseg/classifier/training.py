"""Training the classifier: what it brings to `training.loop.fit`, and what its backbone starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from chexseg.classifier import checkpoints, models, networks
from chexseg.classifier.dataset import aurocs, predict
from chexseg.classifier.labelled import LabelledImages
from chexseg.data import leak_guard
from chexseg.data.chexpert import patient_of
from chexseg.data.images import normalise
from chexseg.errors import DataError, UsageError
from chexseg.training import draws
from chexseg.training.losses import classification_loss
from chexseg.training.options import RunOptions
from chexseg.training.trainer import Batch, Trainer


class ClassifierTrainer(Trainer):
    """Cross-entropy over the labels that count, Adam. The best epoch is that of the best mean AUROC over the
    observations that occur in `valid_set`; its network goes to `best`.

    uncertain, not_mentioned: policies of `losses.classification_loss`.
    """

    def __init__(
        self,
        model: models.Classifier,
        train_set: LabelledImages,
        valid_set: LabelledImages,
        *,
        best: Path,
        options: RunOptions,
        uncertain: str,
        not_mentioned: str,
        weight_decay: float = 0.0,
    ):
        self.model, self.dataset, self.valid_set, self.best = model, train_set, valid_set, best
        self.chooses = options.keep_epoch == "best"
        self.batch_size, self.policies = options.batch_size, {"uncertain": uncertain, "not_mentioned": not_mentioned}
        self.order = draws.shuffled(len(train_set), options.seed)
        self.optimizer = torch.optim.Adam(model.parameters(), options.lr, weight_decay=weight_decay)

    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, None]:
        logits = network(normalise(batch["image"], self.model.spec.normalisation))
        return classification_loss(logits, batch["labels"], **self.policies), None

    def evaluate(self, model: nn.Module, tally: Tensor | None) -> dict[str, Any]:
        device = next(model.parameters()).device
        probabilities = predict(cast(models.Classifier, model), self.valid_set, self.batch_size, device)
        found = aurocs(probabilities, self.valid_set.labels, self.model.spec.tasks)
        if not found:
            raise DataError(f"{self.best}: all probabilities of the validation images became nan; lower --lr")
        return {"auroc": found, "mean_auroc": sum(found.values()) / len(found)}

    def score(self, metrics: Mapping[str, Any]) -> float:
        return metrics["mean_auroc"]

    def summary(self, metrics: Mapping[str, Any]) -> str:
        return f"mean AUROC {metrics['mean_auroc']:.3f}"

    def save_best(self, weights: dict[str, Tensor], metrics: Mapping[str, Any]) -> None:
        """The network; before it, which patients it was trained on, and its epoch chosen where it was."""
        roles = {"trained": self.dataset} | ({"epoch": self.valid_set} if self.chooses else {})
        leak_guard.record(self.best, {role: map(patient_of, images.pixels.ids) for role, images in roles.items()})
        network = models.Classifier(self.model.spec)
        network.load_state_dict(weights)
        models.save_classifier(self.best, network)


def initialise(model: models.Classifier, weights: str) -> Path | None:
    """Load the backbone from `weights` (none, imagenet or a file) and return the file; the head stays random."""
    if weights == "none":
        return None
    architecture = model.spec.architecture
    path = models.pretrained_backbone(architecture) if weights == "imagenet" else Path(weights)
    of_file, tensors = models.load_backbone(path)
    if of_file != architecture:
        raise UsageError(f"--weights {path} is a {of_file}, --architecture says {architecture}")
    head = networks.HEADS[model.family].split(".")[0]
    checkpoints.load_exactly(model.network, tensors, path, but_for=(head,))
    return path
