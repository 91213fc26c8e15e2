"""Batch norm over the whole batch when several processes share it: a result must not depend on how many there are. And
what a batch of one image is to it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from chexseg.errors import DataError, UsageError
from chexseg.runtime.distributed import all_reduce_sum
from chexseg.training.draws import Draw
from chexseg.training.trainer import Trainer


class _Normalise(torch.autograd.Function):
    """(x - mean) / std, scaled and shifted, with the mean and biased variance of all ranks' images; both are returned
    too, with the number of pixels (all ranks'). torch's own kernels do the work; the ranks exchange sums."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
        mean, variance = mean.double(), variance.double()  # E[x^2] - E[x]^2 cancels
        pixels = torch.full_like(mean, x.numel() // x.shape[1])
        pixels, total, squares = all_reduce_sum(torch.stack((pixels, pixels * mean, pixels * (variance + mean**2))))
        mean = total / pixels
        variance = (squares / pixels - mean**2).clamp(min=0)
        count, mean, variance = pixels[0].clone(), mean.float(), variance.float()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        as_constants = torch.ops.aten.native_batch_norm_backward(
            gradient.contiguous(), x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        of_input, of_weight, of_bias = as_constants
        # What the mean and the variance pass on: the same for all pixels of a channel, but for x itself.
        shared = all_reduce_sum(torch.stack((of_weight, of_bias)).double()) / count
        scale = (variance.double() + ctx.eps).rsqrt()
        slope = -weight * scale * scale * shared[0]
        level = -weight * scale * shared[1] - slope * mean
        of_input.addcmul_(x, slope.float().view(1, -1, 1, 1)).add_(level.float().view(1, -1, 1, 1))
        return of_input, of_weight, of_bias, None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the mean and variance of all ranks' images; torch's own (SyncBatchNorm) needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.track_running_stats:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input.float(), self.weight, self.bias, self.eps)
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_((variance * count / (count - 1)).float(), rate)
        return output.to(input.dtype)


def share(model: nn.Module, device: torch.device) -> None:
    """Make each batch norm of `model` take in all ranks' images, in place; names and weights stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.affine:
            module.__class__ = SharedBatchNorm2d


def check_lone_image(trainer: Trainer, batch_size: int) -> None:
    """Refuse a training in which a batch has a single image and the network cannot learn from one, before it begins.

    Networks that pool an image to one position (DeepLabV3's ASPP) and normalise it over the batch need two. UsageError
    where another --batch_size helps, DataError where there is only one image.
    """
    order = trainer.order(0)
    if len(order) // -(-len(order) // batch_size) > 1:
        return
    batch = default_collate([trainer.dataset[Draw(int(order[0]))]])
    device = next(trainer.model.parameters()).device
    try:
        with torch.no_grad():
            trainer.compute_loss(copy.deepcopy(trainer.model).train(), {k: _moved(v, device) for k, v in batch.items()})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        needs = "this network normalises over the batch and needs two in each"
        if len(order) == 1:
            raise DataError(f"one image to train on, but {needs}; give it more images") from error
        fitting = next(n for n in range(2, len(order) + 1) if len(order) // -(-len(order) // n) > 1)
        raise UsageError(
            f"--batch_size {batch_size}: a batch of the {len(order)} images has a single one, but {needs}; "
            f"give --batch_size {fitting}, or another --epoch_len"
        ) from error


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
