"""IRNet's boundary network (Ahn et al. 2019): five branches on a frozen classifier, one boundary logit at stride 4.

The original's displacement branch is left out: it shares no trainable weight with the boundaries, so it cannot change
a mask. The loss is `affinity.relation_loss`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chexseg.classifier import checkpoints, foreign, models, networks
from chexseg.classifier.choices import ARCHITECTURES
from chexseg.data.normalisation import NORMALISATION
from chexseg.errors import DataError

log = logging.getLogger(__name__)
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
        self.family = networks.family(architecture)
        network: Any = networks.build_network(architecture, 1)  # torch's types call its stages Tensor | Module
        setattr(network, networks.HEADS[self.family].split(".")[0], nn.Identity())
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
    checkpoints.load_exactly(model.backbone.get_submodule("network"), tensors, weights)


def save(path: Path, weights: Mapping[str, Tensor], spec: BoundarySpec, metrics: Mapping) -> None:
    """Write a network, its spec, and the metrics of its epoch."""
    checkpoints.save_network(path, dict(weights), spec, metrics)


def load(path: Path) -> tuple[BoundaryNet, BoundarySpec]:
    """A boundary network in eval mode from what `save` or the original wrote. DataError where the file is another's, or
    damaged."""
    content = checkpoints.load_checkpoint(path)
    if BoundarySpec.KEY not in content and _ORIGINAL in (found := checkpoints.state_dict(content, path)):
        weights, spec = _from_original(found, path)
    else:
        weights, spec, _ = checkpoints.unpack_network(content, path, BoundarySpec)
    model = build(spec)
    checkpoints.load_exactly(model, weights, path)
    return model.eval(), spec


_ORIGINAL = "fc_edge6.weight"


def _from_original(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], BoundarySpec]:
    """IRN's and CheXseg's own network under our names. It registers its parts several times over; `resnet50` and
    `fc_edge1` ... `fc_edge6` are what boundaries need."""
    backbone = {k.removeprefix("resnet50."): v for k, v in tensors.items() if k.startswith("resnet50.")}
    architecture = foreign.infer_architecture("resnet", backbone, path)
    weights = {f"backbone.network.{key}": value for key, value in backbone.items()}
    for number in range(1, STAGES + 1):
        old, new = f"fc_edge{number}.", f"branches.{number - 1}."
        weights |= {new + key.removeprefix(old): value for key, value in tensors.items() if key.startswith(old)}
    old = _ORIGINAL.removesuffix("weight")
    weights |= {f"boundary.{key.removeprefix(old)}": value for key, value in tensors.items() if key.startswith(old)}
    unused = sorted({key.split(".")[0] for key in tensors if key.startswith(("fc_dp", "mean_shift"))})
    if unused:
        log.info("%s: not used, for boundaries do not need displacements: %s", path, ", ".join(unused))
    return weights, BoundarySpec(architecture, normalisation="imagenet")
