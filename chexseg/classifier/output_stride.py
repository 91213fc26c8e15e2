"""Denser feature maps from the same weights: the last strides of a network become dilations (the hole algorithm, as in
DeepLab, Chen et al. 2017).

At stride 16 every second position of the map in each direction is, to the bit, a position of the map at stride 32 (for
image sides that are multiples of 32), so weights trained at one stride serve at another.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from chexseg.classifier.choices import OUTPUT_STRIDES


class DilatedAveragePool(nn.Module):
    """DenseNet's 2 x 2 average pooling at stride 1, over positions that are `dilation` apart; edges are repeated."""

    def __init__(self, dilation: int):
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w) -> the same shape."""
        d = self.dilation
        x = F.pad(x, (0, d, 0, d), mode="replicate")
        return (x[..., :-d, :-d] + x[..., :-d, d:] + x[..., d:, :-d] + x[..., d:, d:]) / 4


def set_output_stride(network: nn.Module, family: str, output_stride: int) -> None:
    """Make the features of a classifier of stride 32 denser, in place. Tensors keep their names and shapes."""
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output stride {output_stride}: expected one of {', '.join(map(str, OUTPUT_STRIDES))}")
    if output_stride == 32:
        return
    # What runs at stride 16 and at stride 32, in order.
    last_two = {
        "resnet": (["layer3"], ["layer4"]),
        "densenet": tuple([f"features.transition{i}", f"features.denseblock{i + 1}"] for i in (2, 3)),
        "mobilenet": ([f"features.{i}" for i in range(7, 14)], [f"features.{i}" for i in range(14, 19)]),
    }[family]
    dilation = 1
    for stage in last_two[1:] if output_stride == 16 else last_two:
        for name in stage:
            _dilate(network.get_submodule(name), dilation)
        dilation *= 2


def _dilate(module: nn.Module, dilation: int) -> None:
    """Undo strides; what stands where a stride was sees positions `dilation` apart, all others twice as far."""
    strided = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        reach = dilation if conv in strided else 2 * dilation
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (reach, reach)
    if isinstance(getattr(module, "pool", None), nn.AvgPool2d):
        module.pool = DilatedAveragePool(dilation)
