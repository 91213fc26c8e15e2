"""Saliency spread by a random walk that boundaries stop (Ahn & Kwak 2018; Ahn et al. 2019), and masks made of it.

The transition matrix has a few non-zeros a row and is the same for all classes: a step is a sum of shifted maps, and
walking 2^n sparse steps costs a thousandth of squaring the dense matrix n times.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.irnet.affinity import Direction, path_affinity
from chexseg.irnet.engines import jit, uses_numba


def propagate(
    cam: Tensor,
    boundary: Tensor,
    *,
    beta: float = 5.0,
    exp_times: int = 3,
    radius: int = 3,
    engine: str = "auto",
) -> Tensor:
    """Spread maps (B, C, h, w) along low-boundary paths, boundaries (B, 1, h, w) in 0..1: (cam (1 - boundary)) T^n with
    n = 2^exp_times steps.

    T is affinity^beta between pixels less than `radius` apart, and 1 to itself, with columns that sum to 1: each pixel
    becomes a weighted mean of its surroundings, never of anything outside the image. NaN and infinity count as no
    saliency, or as a full boundary. `engine` is one of `engines.ENGINES`.
    """
    if cam.shape[:1] + cam.shape[2:] != boundary.shape[:1] + boundary.shape[2:] or boundary.shape[1] != 1:
        raise ValueError(f"maps {tuple(cam.shape)} and boundaries {tuple(boundary.shape)} do not fit")
    if uses_numba(engine, cam.device) and len(cam) > 1:
        # One by one, so that no bit of a result depends on the batch it was in.
        walk = partial(propagate, beta=beta, exp_times=exp_times, radius=radius, engine=engine)
        return torch.cat([walk(*pair) for pair in zip(cam.split(1), boundary.split(1), strict=True)])
    ((_, _, spread),) = walk_states(cam, boundary, betas=[beta], exp_times=[exp_times], radius=radius, engine=engine)
    return spread


def walk_states(
    cam: Tensor,
    boundary: Tensor,
    *,
    betas: Sequence[float],
    exp_times: Sequence[int],
    radius: int,
    engine: str = "auto",
) -> Iterator[tuple[float, int, Tensor]]:
    """beta, exp_times and `propagate` with them, for each beta and each of the ascending `exp_times`.

    Paths are looked along once, and each walk goes on from the one before: all of it costs what the longest walks do.
    With Numba, of a single image (B = 1).
    """
    if radius < 1 or min(exp_times) < 0 or min(betas) <= 0:
        raise ValueError(f"radius {radius} must be at least 1, exp_times {exp_times} at least 0, beta {betas} above 0")
    if list(exp_times) != sorted(exp_times):
        raise ValueError(f"exp_times {exp_times} must ascend")
    boundary = boundary.float().nan_to_num(1, 1, 1).clamp(0, 1)
    affinities = list(path_affinity(boundary, radius))
    # Padded rows end to end: a shift is an offset, and the padding, where all weights are 0, stays 0.
    height, width = cam.shape[-2:]
    start = F.pad(cam.float().nan_to_num(0, 0, 0) * (1 - boundary), (radius,) * 4).flatten(2)
    row = width + 2 * radius
    for beta in betas:
        directions, weights = _transitions(boundary, affinities, beta)
        weights = F.pad(weights, (radius, radius)).flatten(2)
        starts, maps, done = [(radius + dy) * row + dx for dy, dx in directions], start.clone(), 0
        for exponent in exp_times:
            steps, done = 2**exponent - done, 2**exponent
            if uses_numba(engine, cam.device):
                _walk(maps[0].numpy(), weights[0].numpy(), np.array(starts), steps)
            else:
                _walk_in_torch(maps, weights, starts, steps)
            square = maps.unflatten(2, (-1, row))
            yield beta, exponent, square[..., radius : radius + height, radius : radius + width].contiguous()


@jit(fastmath=("contract",))
def _walk(maps, weights, starts, steps):
    """Steps in place on one image's maps (C, rows), with weights (D, n) for the values from `starts` (D,) on."""
    n = weights.shape[1]
    total = np.empty(n, np.float32)
    for _ in range(steps):
        for c in range(len(maps)):
            cells = maps[c]  # (iterating over `maps` hides that rows are contiguous)
            total[:] = 0
            for k in range(len(starts)):
                weight, values = weights[k], cells[starts[k] : starts[k] + n]
                for i in range(n):
                    total[i] += weight[i] * values[i]
            values = cells[starts[0] : starts[0] + n]
            for i in range(n):  # (a slice assignment takes Numba seconds to compile)
                values[i] = total[i]


def _walk_in_torch(maps: Tensor, weights: Tensor, starts: list[int], steps: int) -> None:
    """The same on any device for a batch: maps (B, C, rows), weights (B, D, n)."""
    views = [maps[..., start : start + weights.shape[-1]] for start in starts]
    for _ in range(steps):
        total = torch.zeros_like(views[0])
        for weight, view in zip(weights.unbind(1), views, strict=True):
            total.addcmul_(weight[:, None], view)
        views[0].copy_(total)


def _transitions(
    boundary: Tensor, affinities: Sequence[tuple[Direction, Tensor]], beta: float
) -> tuple[list[Direction], Tensor]:
    """Directions, (0, 0) first, and the weights (B, D, h, w), of sum 1, with which a pixel takes the value there."""
    directions, weights = [(0, 0)], [torch.ones_like(boundary)]
    for (dy, dx), affinity in affinities:
        strength = affinity**beta
        right, left = max(0, dx), max(0, -dx)
        directions += [(dy, dx), (-dy, -dx)]
        # Pixels without a partner there get 0: those at the far edge, and on the way back those at the near one.
        weights += [F.pad(strength, (left, right, 0, dy)), F.pad(strength, (right, left, dy, 0))]
    stacked = torch.cat(weights, dim=1)
    return directions, stacked / stacked.sum(1, keepdim=True)


def masks_from_scores(scores: Tensor, size: tuple[int, int], *, threshold: float = 0.6, engine: str = "auto") -> Tensor:
    """Masks (..., C, *size) bool where scores (..., C, h, w), enlarged bilinearly, exceed `threshold` of their maximum.

    A class without any score gets an empty mask. `engine` is one of `engines.ENGINES`: `torch` makes all masks at once,
    `numba` (which has nothing to compile here) only those that are not empty, one by one.
    """
    planes = scores.float().flatten(0, -3)[:, None]
    some = (planes > 0).flatten(1).any(1)
    if uses_numba(engine, scores.device):
        masks = torch.zeros(len(planes), *size, dtype=torch.bool)
        for row in some.nonzero()[:, 0].tolist():
            masks[row] = _above(planes[row : row + 1], size, threshold)[0]
    else:
        masks = _above(planes, size, threshold) & some[:, None, None]
    return masks.view(*scores.shape[:-2], *size)


def _above(planes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """(N, *size) bool: where planes (N, 1, h, w), upsampled, exceed `threshold` of their maximum."""
    large = F.interpolate(planes, size, mode="bilinear", align_corners=False)[:, 0]
    return large > threshold * large.amax((1, 2), keepdim=True)


def pseudo_scores(maps: Tensor, boundary: Tensor, present: Tensor, *, engine: str = "auto", **walk: Any) -> Tensor:
    """Scores (B, C, H, W) of saliency maps (B, C, h, w) spread on the stride-4 grid of the boundaries (B, 1, H, W).

    Where `present` (B, C) bool is False they are 0. `walk` are options of `propagate`, as is `engine`.
    """
    cam = F.interpolate(maps.float().nan_to_num(0, 0, 0), boundary.shape[-2:], mode="bilinear", align_corners=False)
    if not uses_numba(engine, cam.device):
        return propagate(cam * present[..., None, None], boundary, engine=engine, **walk)
    scores = torch.zeros_like(cam)
    for i, rows in enumerate(present):
        if rows.any():  # only the findings that are there cost anything
            scores[i, rows] = propagate(cam[i : i + 1, rows], boundary[i : i + 1], engine=engine, **walk)[0]
    return scores


def mirrored_boundary(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Boundary probabilities (B, 1, h, w) of images (B, 3, H, W), from a `network` that gives logits: the sigmoid of
    the mean of an image's logits and of its mirror image's, turned back (the original's `EdgeDisplacement.forward`)."""
    straight, mirrored = network(torch.cat([images, images.flip(-1)])).float().chunk(2)
    return ((straight + mirrored.flip(-1)) / 2).sigmoid()
