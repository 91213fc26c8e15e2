"""What a network, its data and its loss bring to the training loop."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chexseg.training.draws import Draw, Order

Batch = dict[str, Any]


class Samples(Protocol):
    """A dataset of draws: dicts of tensors with the image's name under "id", for torch's default collation."""

    def __getitem__(self, draw: Draw, /) -> Batch: ...


class Trainer(Protocol):
    """The part of a training that knows the network. Derive from it: what has a body here need not be written.

    model       on its device
    optimizer   over the model's parameters
    order       epoch (from 0) -> indices of all its draws (`draws.shuffled`, `draws.mixed`)
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    dataset: Samples
    order: Order

    @abstractmethod
    def compute_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """The loss of a batch on the device, and whatever `tally` wants. `network` is the model, or what wraps it;
        runs under autocast."""

    @abstractmethod
    def save_best(self, weights: dict[str, Tensor], metrics: Mapping[str, Any]) -> None:
        """Write the best epoch's weights, which are on the CPU. On rank 0, before a checkpoint that knows of them."""

    def tally(self, outputs: Any, batch: Batch) -> Tensor | None:
        """Counts of a batch, a tensor of one shape, which are summed over the epoch and over ranks. `outputs` is the
        second value of `compute_loss`."""
        return None

    def evaluate(self, model: nn.Module, tally: Tensor | None) -> dict[str, Any]:
        """An epoch's metrics, in types of JSON, from the model in eval mode and the epoch's tally. On every rank,
        without gradients."""
        return {}

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Of an epoch: the highest wins, the earlier of equals. As it stands: the lowest mean training loss."""
        return -metrics["train_loss"]

    def schedule(self, step: int, steps: int) -> float:
        """Factor of the learning rate at a step of the whole run."""
        return 1.0

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """The best epoch's score in words."""
        return f"mean training loss {metrics['train_loss']:.4f}"
