"""Encoders of our own for segmentation_models_pytorch. Importing this module registers them."""

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from torchvision.models.resnet import BasicBlock

from chexseg.classifier.networks import narrow


class NarrowResNetEncoder(ResNetEncoder):
    """`networks.resnet10w32` as an encoder."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        narrow(self)


smp.encoders.encoders["resnet10w32"] = {
    "encoder": NarrowResNetEncoder,
    "pretrained_settings": {},
    "params": {"out_channels": [3, 32, 32, 64, 128, 256], "block": BasicBlock, "layers": [1, 1, 1, 1]},
}
