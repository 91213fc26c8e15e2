"""The permutohedral lattice (Adams, Baek & Davis 2010): a Gaussian filter of unit deviation over scattered features.

Each point splats its values onto the corners of the simplex around it, the corners blur along the lattice's d + 1
directions, and each point slices its values back. The lattice is that of Kraehenbuehl & Koltun's code and gives its
results: `build_cpu` uses Numba and a hash table, `build` torch on any device for a batch of point sets. The two differ
only in how they number the corners.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.irnet.engines import FINITE, jit


class Lattice(NamedTuple):
    """Tables of a lattice in d dimensions over n points with m corners; corner 0 stands for none and stays zero."""

    corner: np.ndarray | Tensor  # (n, d + 1) int32 (int64 in torch): the simplex around a point
    weight: np.ndarray | Tensor  # (n, d + 1) float32: barycentric coordinates, sum 1
    neighbours: np.ndarray | Tensor  # (d + 1, m + 1, 2): the corners before and after each, by direction


def _scales(d: int) -> np.ndarray:
    """Factors (d,) that make the variances of splat, blur and slice add up to one in each dimension."""
    i = np.arange(d)
    return (math.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1) * (i + 2))).astype(np.float32)


def _strides(extent: np.ndarray, sets: int = 1) -> np.ndarray:
    """Place values (d + 1,) that make one number of a corner's coordinates, for |features| up to `extent` (d,).

    The last coordinate follows from the others and counts for nothing. Raises ValueError where 63 bits don't do.
    """
    d = len(extent)
    scaled = extent.astype(np.float64) * _scales(d)
    after = np.cumsum(scaled[::-1])[::-1]
    high = max(after[0], *(after[1:] + scaled[:-1] * np.arange(1, d)), d * scaled[-1]) if d > 1 else scaled[0]
    # A corner lies within d + 1 of its point, its neighbours within another d + 1.
    span = 2 * (math.ceil(high) + 3 * (d + 1)) + 1
    if span**d * sets >= 2**62:
        raise ValueError(f"features reach {extent.max():.0f} standard deviations: too far for the lattice")
    return np.array([*(span**i for i in range(d)), 0], np.int64)


def build_cpu(features: np.ndarray) -> Lattice:
    """Tables for features (n, d) float32, in units of the kernel's standard deviation."""
    n, d = features.shape
    strides = _strides(np.abs(features).max(0))
    numbers = np.empty(n * (d + 1) + 1, np.int64)
    corner = np.empty((n, d + 1), np.int32)
    weight = np.empty((n, d + 1), np.float32)
    count, slots = _embed(features, _scales(d), strides, numbers, corner, weight)
    return Lattice(corner, weight, _neighbours(numbers, count, slots, strides))


@jit(FINITE)
def _lookup(number, numbers, slots):
    """The place in the hash table `slots` that holds the corner with this number, or that is free for it."""
    mask = np.uint64(slots.size - 1)
    place = ((np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while slots[place] != 0 and numbers[slots[place]] != number:
        place = (place + np.uint64(1)) & mask
    return place


@jit(FINITE)
def _embed(features, scales, strides, numbers, corner, weight):
    """Fill the corners' numbers and each point's corners and weights; return how many corners and their hash table."""
    n, d = features.shape
    high, left = np.empty(d + 1, np.float32), np.empty(d + 1, np.float32)
    origin, rank = np.empty(d + 1, np.int32), np.empty(d + 1, np.int32)
    coordinate = np.empty(d + 2, np.float32)
    jump = np.empty(d + 1, np.int64)
    slots = np.zeros(1 << 12, np.int32)
    count = 0
    for k in range(n):
        # Onto the hyperplane of d + 1 coordinates that sum to zero.
        total = np.float32(0)
        for j in range(d, 0, -1):
            scaled = features[k, j - 1] * scales[j - 1]
            high[j] = total - j * scaled
            total += scaled
        high[0] = total
        # The nearest lattice point whose coordinates are all multiples of d + 1.
        excess = 0
        for i in range(d + 1):
            nearest = math.ceil(high[i] / (d + 1) - np.float32(0.5))
            origin[i] = nearest * (d + 1)
            left[i] = high[i] - origin[i]
            excess += nearest
        # The order of what is left names the simplex; a point off the hyperplane is brought back first.
        rank[:] = excess
        for i in range(d):
            for j in range(i + 1, d + 1):
                smaller = np.int32(left[i] < left[j])
                rank[i] += smaller
                rank[j] += 1 - smaller
        for i in range(d + 1):
            turn = np.int32(rank[i] < 0) - np.int32(rank[i] > d)
            rank[i] += turn * (d + 1)
            origin[i] += turn * (d + 1)
        coordinate[:] = 0
        number = np.int64(0)
        for i in range(d + 1):
            part = (high[i] - origin[i]) / (d + 1)
            coordinate[d - rank[i]] += part
            coordinate[d + 1 - rank[i]] -= part
            number += origin[i] * strides[i]
            jump[rank[i]] = strides[i] * (d + 1)
        coordinate[0] += 1 + coordinate[d + 1]
        # Corner r is r above the origin, and d + 1 lower in the r coordinates of the highest ranks.
        for r in range(d + 1):
            if r > 0:
                for i in range(d):
                    number += strides[i]
                number -= jump[d + 1 - r]
            weight[k, r] = coordinate[r]
            place = _lookup(number, numbers, slots)
            if slots[place] == 0:
                count += 1
                numbers[count] = number
                slots[place] = count
                if 4 * count > slots.size:
                    slots = np.zeros(4 * slots.size, np.int32)
                    for c in range(1, count + 1):
                        slots[_lookup(numbers[c], numbers, slots)] = c
                corner[k, r] = count
            else:
                corner[k, r] = slots[place]
    return count, slots


@jit(FINITE)
def _neighbours(numbers, count, slots, strides):
    directions = len(strides)
    out = np.zeros((directions, count + 1, 2), np.int32)
    for j in range(directions):
        step = -directions * strides[j]
        for stride in strides:
            step += stride
        for c in range(1, count + 1):
            out[j, c, 0] = slots[_lookup(numbers[c] - step, numbers, slots)]
            out[j, c, 1] = slots[_lookup(numbers[c] + step, numbers, slots)]
    return out


def build(features: Tensor) -> Lattice:
    """Tables for point sets features (B, n, d) float32, on their device, as one lattice over the B * n points."""
    sets, n, d = features.shape
    strides = torch.from_numpy(_strides(features.abs().amax((0, 1)).cpu().numpy(), sets) * sets).to(features.device)
    scaled = features * torch.from_numpy(_scales(d)).to(features)
    total = F.pad(scaled.flip(-1).cumsum(-1).flip(-1), (0, 1))  # sums over the dimensions from j on, and 0
    rising = torch.arange(d + 1, device=features.device)
    high = total - F.pad(rising[1:] * scaled, (1, 0))
    nearest = torch.ceil(high / (d + 1) - 0.5).long()
    origin = nearest * (d + 1)
    rank = (high - origin).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + nearest.sum(-1, keepdim=True)
    turn = (rank < 0).long() - (rank > d).long()
    rank, origin = rank + turn * (d + 1), origin + turn * (d + 1)
    part = (high - origin) / (d + 1)
    coordinate = features.new_zeros(sets, n, d + 2)
    coordinate.scatter_add_(-1, d - rank, part).scatter_add_(-1, d + 1 - rank, -part)
    coordinate[..., 0] += 1 + coordinate[..., d + 1]
    jump = torch.zeros_like(origin).scatter_(-1, d - rank, strides.expand(sets, n, -1) * (d + 1))
    number = (origin * strides).sum(-1) + torch.arange(sets, device=features.device)[:, None]
    number = number[..., None] + rising * strides.sum() - F.pad(jump, (1, -1)).cumsum(-1)
    numbers, corner = torch.unique(number.view(sets * n, d + 1), return_inverse=True)
    neighbours = corner.new_zeros(d + 1, len(numbers) + 1, 2)
    for j in range(d + 1):
        step = strides.sum() - (d + 1) * strides[j]
        for side, wanted in enumerate((numbers - step, numbers + step)):
            place = torch.searchsorted(numbers, wanted).clamp_(max=len(numbers) - 1)
            neighbours[j, 1:, side] = torch.where(numbers[place] == wanted, place + 1, 0)
    return Lattice(corner + 1, coordinate[..., : d + 1].reshape(sets * n, d + 1), neighbours)


def filter(lattice: Lattice, values: Tensor) -> Tensor:
    """Filter values (n, P) in torch; up to a constant factor, which a normalised kernel doesn't see."""
    corners, weights = torch.as_tensor(lattice.corner).unbind(1), torch.as_tensor(lattice.weight).unbind(1)
    cells = values.new_zeros(lattice.neighbours.shape[1], values.shape[1])
    for corner, weight in zip(corners, weights, strict=True):
        cells.index_add_(0, corner, values * weight[:, None])
    for pairs in lattice.neighbours:
        cells = cells + 0.5 * (cells[pairs[:, 0]] + cells[pairs[:, 1]])
    out = torch.zeros_like(values)
    for corner, weight in zip(corners, weights, strict=True):
        out += cells[corner] * weight[:, None]
    return out
