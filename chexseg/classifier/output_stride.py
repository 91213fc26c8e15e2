"""Denser feature maps of a classifier: its last strides become 1.

A network is trained so (`trained_stride`) without dilation, as IRN's (Ahn et al. 2019): its last stages see finer
detail.
A network that was trained at some stride gives denser maps from the same weights by dilation (the hole algorithm, as in
DeepLab, Chen et al. 2017): every second position of the denser map in each direction is then, but for rounding, a
position of the map that it was trained with (for image sides that are multiples of 32).
"""

import torch
from torch import Tensor, nn

from chexseg.classifier.choices import OUTPUT_STRIDES


class DilatedAveragePool(nn.Module):
    """DenseNet's 2 x 2 average pooling at stride 1, over positions `dilation` apart; the last are repeated."""

    def __init__(self, dilation: int):
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w) -> the same shape."""
        d = self.dilation
        x = torch.cat([x, x[..., -d:]], 3)
        x = torch.cat([x, x[..., -d:, :]], 2)
        return (x[..., :-d, :-d] + x[..., :-d, d:] + x[..., d:, :-d] + x[..., d:, d:]) / 4


def set_output_stride(network: nn.Module, family: str, trained_stride: int, output_stride: int) -> None:
    """Give the features of a torchvision classifier, which has stride 32, the stride that it was or will be trained
    with, and then another one that is no coarser, in place. Tensors keep their names and shapes."""
    for stride in (trained_stride, output_stride):
        if stride not in OUTPUT_STRIDES:
            raise ValueError(f"output stride {stride}: expected one of {', '.join(map(str, OUTPUT_STRIDES))}")
    if output_stride > trained_stride:
        raise ValueError(f"output stride {output_stride}: coarser than {trained_stride}, with which it was trained")
    # What runs at stride 16 and at stride 32, in order.
    last_two = {
        "resnet": {16: ["layer3"], 32: ["layer4"]},
        "densenet": {16 * i: [f"features.transition{i + 1}", f"features.denseblock{i + 2}"] for i in (1, 2)},
        "mobilenet": {16: [f"features.{i}" for i in range(7, 14)], 32: [f"features.{i}" for i in range(14, 19)]},
    }[family]
    dilation = 1
    for stride, names in last_two.items():
        if stride > output_stride:
            later = dilation if stride > trained_stride else 2 * dilation
            for name in names:
                _unstride(network.get_submodule(name), dilation, later)
            dilation = later


def _unstride(module: nn.Module, dilation: int, later: int) -> None:
    """Undo strides: what stands where a stride was sees positions `dilation` apart, all others `later` apart."""
    strided = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        reach = dilation if conv in strided else later
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (reach, reach)
    if isinstance(getattr(module, "pool", None), nn.AvgPool2d):
        module.pool = DilatedAveragePool(dilation)
