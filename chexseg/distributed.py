"""One process or many: the few calls that the stages need of torch.distributed. `torchrun` is the engine."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from chexseg.errors import UsageError


def setup() -> None:
    """Join the group that torchrun describes in the environment; without torchrun, do nothing.

    Collectives wait for a day: rank 0 may merge a million images while the others stand at a barrier.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
        )


def cleanup() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks (over gloo, so that no GPU is needed)."""
    all_reduce_sum(torch.zeros(1))


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place; the tensor itself in a single process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value):
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def device(name: str = "auto") -> torch.device:
    """The device `name`; `auto` is this rank's GPU where there is one, else the CPU. UsageError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not available here; use cpu or auto") from error
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen
