"""IRNet's boundary network (Ahn et al. 2019): five branches on a frozen classifier, one boundary logit at stride 4.

The original's displacement branch is left out: it shares no trainable weight with the boundaries, so it cannot change
a mask. The loss is `affinity.relation_loss`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chexseg.classifier import checkpoints, models
from chexseg.classifier.choices import ARCHITECTURES
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError

STRIDE, WIDTH, GROUPS, STAGES = 4, 32, 4, 5
# What follows the stem and each stage, as names of a network's submodules, and the convolutions and poolings whose
# stride becomes 1 so that the last stage stays at stride 16.
_DENSENET = ["features.pool0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"]
_MOBILENET = ["features.1", "features.3", "features.6", "features.13", "features.18"]


@dataclass(frozen=True)
class BoundarySpec:
    """The configuration needed to rebuild the network."""

    KEY: ClassVar[str] = "boundary_spec"
    WHAT: ClassVar[str] = "a boundary network"
    MADE_BY: ClassVar[str] = "IRNet/train_irnet.py"

    architecture: str = field(metadata={"choices": ARCHITECTURES})
    normalisation: str = field(default="imagenet", metadata={"choices": tuple(NORMALISATION)})


class Stages(nn.Module):
    """The five stages of a classifier, its last one at stride 16, without its head. Keys are torchvision's.

    ResNets: after the stem's pooling, layer1 ... layer4 (strides 4, 4, 8, 16, 16). DenseNets: after the stem's
    pooling and each dense block, before it halves channels and size (4, 4, 8, 16, 16). MobileNetV2: the last block at
    each size (2, 4, 8, 16, 16).
    """

    def __init__(self, architecture: str):
        super().__init__()
        self.family = models.family(architecture)
        network: Any = models.build_network(architecture, 1)  # torch's types call its stages Tensor | Module
        setattr(network, models.HEADS[self.family].split(".")[0], nn.Identity())
        if self.family == "resnet":
            for module in (m for m in network.layer4[0].modules() if isinstance(m, nn.Conv2d)):
                module.stride = (1, 1)
        elif self.family == "densenet":
            network.features.transition3.pool = nn.Identity()
        else:
            network.features[14].conv[1][0].stride = (1, 1)
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> five maps (B, K, h, w)."""
        net: Any = self.network
        if self.family == "resnet":
            maps = [net.maxpool(net.relu(net.bn1(net.conv1(images))))]
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
                maps.append(stage(maps[-1]))
            return maps
        taps = _DENSENET if self.family == "densenet" else _MOBILENET
        maps, x = [], images
        for name, module in net.features.named_children():
            x = module(x)
            if f"features.{name}" in taps:
                maps.append(x)
        return maps


class BoundaryNet(nn.Module):
    """Boundary logits at stride 4 from the five stages of a frozen backbone, batch-norm statistics included."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int]):
        """`backbone(images)` gives one map for each of `channels`."""
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(k, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH)) for k in channels
        )
        self.boundary = nn.Conv2d(WIDTH * len(channels), 1, 1)
        self.train()

    def train(self, mode: bool = True) -> "BoundaryNet":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, ceil(H / 4), ceil(W / 4))."""
        with torch.no_grad():
            stages = self.backbone(images)
        size = (-(-images.shape[-2] // STRIDE), -(-images.shape[-1] // STRIDE))
        return self.boundary(
            torch.cat([resized(b(x), size).relu() for b, x in zip(self.branches, stages, strict=True)], dim=1)
        )


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) -> (B, K, *size), bilinear."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def build(spec: BoundarySpec) -> BoundaryNet:
    """A boundary network with random weights throughout."""
    stages = Stages(spec.architecture)
    with torch.no_grad():
        channels = [x.shape[1] for x in stages.eval()(torch.zeros(1, 3, 32, 32))]
    return BoundaryNet(stages, channels)


def read_backbone(weights: Path, architecture: str | None = None) -> tuple[str, str, dict[str, Tensor]]:
    """Architecture, input normalisation and tensors of a classifier checkpoint or an ImageNet file.

    DataError where it is not of the `architecture` asked for.
    """
    actual, tensors = models.load_backbone(weights)
    if architecture not in (None, actual):
        raise DataError(f"{weights}: weights of a {actual}, not of a {architecture}")
    return actual, models.trained_normalisation(weights, "imagenet"), tensors


def load_backbone(model: BoundaryNet, tensors: Mapping[str, Tensor], weights: Path) -> None:
    """Put classifier weights (torchvision's names, no head) into the backbone; all must be there and fit."""
    models.load_exactly(model.backbone.get_submodule("network"), tensors, weights)


def save(path: Path, weights: Mapping[str, Tensor], spec: BoundarySpec, metrics: Mapping) -> None:
    """Write a network, its spec, and the metrics of its epoch."""
    checkpoints.save_network(path, dict(weights), spec, metrics)


def load(path: Path) -> tuple[BoundaryNet, BoundarySpec]:
    """A boundary network in eval mode from what `save` wrote. DataError where the file is another's, or damaged."""
    weights, spec, _ = checkpoints.load_network(path, BoundarySpec)
    model = build(spec)
    models.load_exactly(model, weights, path)
    return model.eval(), spec
