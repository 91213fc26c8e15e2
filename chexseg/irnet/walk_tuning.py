"""The random walk's constants against expert masks: every radius, beta, number of steps and threshold of a grid.

What does not change is made once: boundaries of all films (`BoundaryShards`), paths per radius, walks that go on from
shorter ones, and score maps that are counted by all thresholds at once. Tables and curves are in `walk_curves`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from chexseg.data import rle
from chexseg.irnet import pseudo_masks, random_walk
from chexseg.irnet.engines import jit
from chexseg.irnet.films import Films
from chexseg.irnet.walk_curves import Grid


def boundaries(rows: Sequence[int], **options: Any) -> Iterator[np.ndarray]:
    """`pseudo_masks.boundaries` one by one: (h, w) float32 of the films of ascending `rows`, in order."""
    for _, _, batch in pseudo_masks.boundaries(rows, **options):
        yield from batch[:, 0].float().cpu().numpy()


@dataclass(frozen=True)
class WalkCounter:
    """row -> (radii, betas, steps, T, 2, 1 + thresholds) int64: pixels of a film outside and inside the experts' masks,
    by how many thresholds of `grid` their score exceeds, at the size of the network's input.

    boundaries  row -> (h, w)
    truth       masks by image id; a task that an image's entry lacks is unknown and counts nothing
    verdicts    (films, T) bool: which findings the gate lets through; the masks of the others are empty
    """

    films: Films
    boundaries: Mapping[int, np.ndarray]
    truth: Mapping[str, Mapping[str, Mapping]]
    verdicts: np.ndarray
    grid: Grid

    def __call__(self, row: int) -> np.ndarray:
        film, experts = self.films(row), self.truth[self.films.ids[row]]
        counts = np.zeros(self.grid.shape(len(self.films.tasks)), np.int64)
        known = [column for column, task in enumerate(self.films.tasks) if task in experts]
        masks = rle.resize([experts[self.films.tasks[column]] for column in known], film.pixels.shape)
        walked = [self.verdicts[row, column] for column in known]
        for column, mask in zip(known, masks, strict=True):
            if not self.verdicts[row, column]:
                inside = int(mask.sum())
                counts[..., column, :, 0] = mask.size - inside, inside
        columns = [column for column, here in zip(known, walked, strict=True) if here]
        if columns:
            cam, boundary = torch.from_numpy(film.maps[columns])[None], torch.from_numpy(self.boundaries[row])
            self._walk(cam, boundary[None, None], masks[walked], counts, columns)
        return counts

    def _walk(
        self,
        cam: torch.Tensor,
        boundary: torch.Tensor,
        masks: np.ndarray,
        counts: np.ndarray,
        columns: Sequence[int],
    ) -> None:
        """Fill in `counts` for the findings in `columns`, of maps (1, C, h, w) and masks (C, S, S)."""
        thresholds, size = np.asarray(self.grid.thresholds, np.float32), masks.shape[1:]
        cam = F.interpolate(cam.float().nan_to_num(0, 0, 0), boundary.shape[-2:], mode="bilinear", align_corners=False)
        betas, exp_times = self.grid.betas, self.grid.exp_times
        for r, radius in enumerate(self.grid.radii):
            states = random_walk.walk_states(cam, boundary, betas=betas, exp_times=exp_times, radius=radius)
            for place, (_, _, scores) in enumerate(states):
                beta, step = divmod(place, len(exp_times))
                large = F.interpolate(scores, size, mode="bilinear", align_corners=False)[0].numpy()
                for column, values, mask in zip(columns, large, masks, strict=True):
                    _count(values, mask, thresholds * values.max(), counts[r, beta, step, column])


@jit()
def _count(values, truth, limits, counts):
    """Add each pixel of values (h, w) to counts (2, 1 + K) by `truth` and by how many of the ascending limits (K,) it
    exceeds. Evenly spaced limits are found at once, others by going along them. Limits of 0, which those of a map that
    is zero throughout are, are exceeded by nothing."""
    last = len(limits)
    spacing = (limits[-1] - limits[0]) / max(1, last - 1)
    scale = 1 / spacing if spacing > 0 else 0.0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            value = values[y, x]
            k = min(last, max(0, int((value - limits[0]) * scale)))
            while k < last and value > limits[k]:
                k += 1
            while k > 0 and value <= limits[k - 1]:
                k -= 1
            counts[truth[y, x], k] += 1
