"""One process or many: the few calls that the stages need of torch.distributed. `torchrun` is the engine.

torch is imported at first use: a script that needs no tensors starts in half a second, not in four.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from chexseg.errors import UsageError

if TYPE_CHECKING:
    import torch


def _group():
    """torch.distributed where this process has joined a group, else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def setup() -> None:
    """Join the group that torchrun describes in the environment; without torchrun, do nothing.

    Collectives wait for a day: rank 0 may merge a million images while the others stand at a barrier.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not _group():
        import torch
        import torch.distributed as dist

        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(days=1))


def cleanup() -> None:
    """Leave the group."""
    if dist := _group():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if (dist := _group()) else 0


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if (dist := _group()) else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that writes and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks (over gloo, so that no GPU is needed)."""
    if _group():
        import torch

        all_reduce_sum(torch.zeros(1))


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place; the tensor itself in a single process."""
    if dist := _group():
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value):
    """Rank 0's value on every rank."""
    if dist := _group():
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
    return value


def from_main(function):
    """What `function()` returns on rank 0, or raises there, on every rank: none waits for one that failed."""
    result = error = None
    if is_main():
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def device(name: str = "auto") -> torch.device:
    """The device `name`; `auto` is this rank's GPU where there is one, else the CPU. UsageError if it is not there.

    On a GPU, float32 products are then taken in TF32: twice the speed or more, with errors below those of bfloat16.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here; use cpu or auto") from error
    if chosen.type == "cuda":
        torch.set_float32_matmul_precision("high")
        if chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


@cache
def _sum_function():
    """The differentiable sum, defined where torch is known."""
    import torch
    import torch.distributed as dist

    class SumOverRanks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            total = values.clone()
            dist.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx, gradient):
            total = gradient.clone()
            dist.all_reduce(total)
            return total

    return SumOverRanks


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The differentiable sum over ranks; `values` itself in a single process."""
    return _sum_function().apply(values) if _group() else values
