"""A moving average of a network's weights, which is evaluated and saved in their place (`--ema`): the noise of single
steps cancels out, as it would at a lower learning rate (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """The average of `model` so far, starting from its weights or from `state`, those of an average that was saved.

    `model` here is the averaged network, in eval mode; batch-norm statistics are averaged as weights are.
    """

    def __init__(self, model: nn.Module, decay: float, state: Mapping[str, Tensor] | None = None):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        if state is not None:
            self.model.load_state_dict(state)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step of the run (from 0): average <- d average + (1 - d) weights.

        d is `decay`, in the first steps (1 + step) / (10 + step), or the random start would weigh for long.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, now in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(now, 1 - decay)
            else:
                average.copy_(now)
