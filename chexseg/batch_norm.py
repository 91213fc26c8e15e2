"""Batch norm over the whole batch when several processes share it: a result must not depend on how many there are."""

import torch
from torch import Tensor, nn

from chexseg.losses import sum_over_ranks


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the mean and variance of all ranks' images; torch's own (SyncBatchNorm) needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.track_running_stats:
            return super().forward(input)
        x = input.float()
        count, total = _sums(torch.ones_like(x[:, :1]), x)
        mean = total / count
        (squares,) = _sums((x - mean.view(1, -1, 1, 1)).square())
        variance = squares / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(squares / (count - 1), rate)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)).to(input.dtype)


def _sums(*values: Tensor) -> list[Tensor]:
    """Sums over images, pixels and ranks of each (B, C, h, w), in one exchange."""
    sums = [value.sum((0, 2, 3)) for value in values]
    return list(sum_over_ranks(torch.cat(sums)).split([len(s) for s in sums]))


def share(model: nn.Module, device: torch.device) -> None:
    """Make each batch norm of `model` take in all ranks' images, in place; names and weights stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.affine:
            module.__class__ = SharedBatchNorm2d
