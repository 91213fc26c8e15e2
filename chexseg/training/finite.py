"""Training stops at a loss or a weight that is not finite, by name, before anything is saved."""

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from chexseg.errors import DataError


def check_weights(model: nn.Module, epoch: int) -> None:
    """DataError for weights that are not finite: a loss may be, and its gradient not."""
    tensors = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    if not torch.stack([t.isfinite().all() for t in tensors.values()]).all():  # the host waits once
        name = next(name for name, t in tensors.items() if not t.isfinite().all())
        raise DataError(f"the weights became infinite or nan in epoch {epoch + 1} ({name}); lower --lr")


def read_later(value: Tensor) -> Callable[[], float]:
    """Start copying a number to the host. Calling the result waits for that copy alone, not for work given to the GPU
    since."""
    if value.device.type != "cuda":
        return value.item
    copy = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    arrival = torch.cuda.current_stream(value.device).record_event()

    def arrived() -> float:
        arrival.synchronize()
        return copy.item()

    return arrived


class LossCheck:
    """Raises DataError for a loss that is not finite. On a GPU, check one step late so that the host never stalls."""

    def __init__(self, device: torch.device):
        self._late = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[Callable[[], float], list[str], int]] = deque()

    def add(self, loss: Tensor, ids: list[str], epoch: int) -> None:
        """Take the loss of the images `ids` in `epoch` (from 0); check those that are due."""
        self._waiting.append((read_later(loss), ids, epoch))
        self._check(self._late)

    def all(self) -> None:
        """Check what is left: nothing may be saved before."""
        self._check(0)

    def _check(self, keep: int) -> None:
        while len(self._waiting) > keep:
            arrived, ids, epoch = self._waiting.popleft()
            loss = arrived()
            if not math.isfinite(loss):
                raise DataError(
                    f"the loss became {loss} in epoch {epoch + 1} on the images {', '.join(ids)}; "
                    "lower --lr, or look at these images and their masks"
                )
