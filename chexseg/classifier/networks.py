"""The networks that classifiers are made of, without weights: torchvision's and a narrow one of our own."""

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from chexseg.classifier.choices import ARCHITECTURES
from chexseg.errors import UsageError

# Each family's first tensor, which shows what precedes the names of a state dict, and where its linear head is.
STEMS = {"resnet": "conv1.weight", "densenet": "features.conv0.weight", "mobilenet": "features.0.0.weight"}
HEADS = {"resnet": "fc", "densenet": "classifier", "mobilenet": "classifier.1"}


def narrow(network: ResNet) -> None:
    """Give a ResNet one block a stage and 32, 64, 128, 256 channels: a ninth of ResNet-18's work."""
    network.inplanes = 32
    network.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(32)
    for stage, planes in enumerate((32, 64, 128, 256), start=1):
        setattr(network, f"layer{stage}", network._make_layer(BasicBlock, planes, 1, stride=1 if stage == 1 else 2))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet10w32(num_classes: int = 1000) -> ResNet:
    """The embedded default's classifier: half of ResNet-18's depth and half of its width."""
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    narrow(network)
    network.fc = nn.Linear(256, num_classes)
    return network


def family(architecture: str) -> str:
    """resnet, densenet or mobilenet. UsageError for a network that is not supported."""
    if architecture not in ARCHITECTURES:
        raise UsageError(f"{architecture!r} is not a supported classifier; choose from {', '.join(ARCHITECTURES)}")
    return next(name for name in STEMS if architecture.startswith(name))


def build_network(architecture: str, num_outputs: int) -> nn.Module:
    """The bare network with a linear head of `num_outputs`, randomly initialised."""
    family(architecture)
    if architecture == "resnet10w32":
        return resnet10w32(num_outputs)
    return getattr(torchvision.models, architecture)(num_classes=num_outputs)
