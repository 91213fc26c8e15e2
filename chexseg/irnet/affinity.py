"""Affinities of pixel pairs along straight paths, and the loss that learns boundaries from them (Ahn et al. 2019).

The affinity of two pixels is 1 - the largest boundary on the path between them. Everything goes direction by
direction: all pairs of one direction are shifted views of the same maps, so neither pairs nor pair labels are gathered.
"""

import math
from collections.abc import Iterator
from functools import cache, reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.irnet.engines import jit, uses_numba
from chexseg.runtime.distributed import sum_over_ranks

Direction = tuple[int, int]
# Labels of so many classes are told apart by the bits of one number.
MAX_CLASSES = 14


@cache
def directions(radius: int) -> tuple[Direction, ...]:
    """(dy, dx) with dy^2 + dx^2 < radius^2, one of each opposite pair: (0, x > 0) and (y > 0, x)."""
    straight = [(0, x) for x in range(1, radius)]
    others = [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if y * y + x * x < radius * radius]
    return (*straight, *others)


@cache  # radius 10 has 152 directions; the default `lru_cache` holds 128 and would drop each before its next use
def path(dy: int, dx: int) -> tuple[Direction, ...]:
    """Grid points of the direction's bounding box that lie less than 1 from its line; both ends among them."""
    length = dy * dy + dx * dx
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    return tuple((y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < length)


def shifted_view(field: Tensor, direction: Direction, point: Direction = (0, 0)) -> Tensor:
    """Of a field (..., h, w): the values `point` away from each pixel that has a partner in `direction` (dy >= 0)."""
    (dy, dx), (y, x) = direction, point
    height, width = field.shape[-2] - dy, field.shape[-1] - abs(dx)
    return field[..., y : y + height, max(0, -dx) + x : max(0, -dx) + x + width]


def path_maxima(field: Tensor, radius: int) -> Iterator[tuple[Direction, Tensor]]:
    """Each direction that fits into the field (..., h, w), and the largest value along it from each pixel that has a
    partner: (..., h - dy, w - |dx|)."""
    for direction in _fitting(field, radius):
        first, *others = (shifted_view(field, direction, point) for point in path(*direction))
        yield direction, reduce(torch.maximum, others, first)


def path_affinity(boundary: Tensor, radius: int) -> Iterator[tuple[Direction, Tensor]]:
    """Each direction and the affinities (..., h - dy, w - |dx|) along it, for boundaries (..., h, w) in 0..1."""
    for direction, largest in path_maxima(boundary, radius):
        yield direction, 1 - largest


def relation_loss(logits: Tensor, labels: Tensor, radius: int = 10, *, engine: str = "auto") -> Tensor:
    """How badly boundary logits (B, 1, h, w) explain relation labels (B, C, h, w) uint8 in {0, 1, 255 = ignore}.

    A class's loss is the mean of -log affinity over its background pairs, / 4, and over its foreground pairs, / 4, and
    of -log(1 - affinity) over pairs of unlike labels, / 2; the loss is the mean over classes with any pair at all, 0
    where there is none. Only pairs within `radius` count, and none that touches 255. Affinities stay logits
    (-log(1 - sigmoid(z)) = softplus(z)), so no logarithm overflows. Under torchrun the loss is that of the whole batch.
    `engine` is one of `engines.ENGINES`; on a GPU the host never stalls.
    """
    if logits.shape != (labels.shape[0], 1, *labels.shape[-2:]):
        raise ValueError(f"logits {tuple(logits.shape)} do not fit the labels {tuple(labels.shape)}")
    if labels.shape[1] > MAX_CLASSES:
        raise ValueError(f"{labels.shape[1]} classes; at most {MAX_CLASSES}")
    logits = logits.float()[:, 0].contiguous()
    zeros, ones = _bits(labels == 0), _bits(labels == 1)
    if uses_numba(engine, logits.device):
        pairs, blame = _count_pairs(zeros, ones, radius, labels.shape[1]), _blame
    else:
        pairs, blame = _count_in_torch(labels, radius), _blame_in_torch
    like, unlike = blame(logits.detach(), zeros, ones, _weights(sum_over_ranks(pairs)), radius)
    return sum_over_ranks((like * F.softplus(logits) + unlike * F.softplus(-logits)).sum())


def _bits(selected: Tensor) -> Tensor:
    """(B, C, h, w) bool -> (B, h, w) int32, class c in bit c."""
    place = 2 ** torch.arange(selected.shape[1], device=selected.device, dtype=torch.int32)
    return (selected * place[:, None, None]).sum(1, dtype=torch.int32)


def _pairs(zeros: Tensor, ones: Tensor, direction: Direction) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of the classes in which a pair is background, foreground, or unlike."""
    a0, a1 = shifted_view(zeros, direction), shifted_view(ones, direction)
    b0, b1 = shifted_view(zeros, direction, direction), shifted_view(ones, direction, direction)
    return a0 & b0, a1 & b1, (a0 & b1) | (a1 & b0)


def _fitting(field: Tensor, radius: int) -> list[Direction]:
    return [d for d in directions(radius) if d[0] < field.shape[-2] and abs(d[1]) < field.shape[-1]]


def _members(count: int, device: torch.device) -> Tensor:
    """(2^count, count) float64: 1 where a number has a class's bit."""
    combinations, classes = torch.arange(2**count, device=device), torch.arange(count, device=device)
    return ((combinations[:, None] >> classes) & 1).double()


def _count_pairs(zeros: Tensor, ones: Tensor, radius: int, count: int) -> Tensor:
    """(3, count) float64: how many background, foreground and unlike pairs each class has."""
    pairs = torch.zeros(3, 2**count, dtype=torch.float64)
    for direction in _fitting(zeros, radius):
        _count_direction(zeros.numpy(), ones.numpy(), *direction, pairs.numpy())
    return pairs @ _members(count, pairs.device)


def _count_in_torch(labels: Tensor, radius: int) -> Tensor:
    """The same of labels (B, C, h, w) on any device. A pixel's partners are half a disc, whose rows are differences of
    running sums; a histogram of pairs, direction by direction, would make the host wait for each."""
    height, width = labels.shape[-2:]
    planes = torch.stack([labels == 0, labels == 1]).float()
    sums = F.pad(planes, (radius, radius - 1, 0, radius - 1)).cumsum(-1)
    partners = torch.zeros_like(planes)  # of each pixel, labelled 0 and 1: whole numbers, exact in float32
    for dy in range(radius):
        rows, reach = sums[..., dy : dy + height, :], math.isqrt(radius * radius - dy * dy - 1)
        before = radius - reach - 1 if dy else radius
        partners += rows[..., radius + reach :][..., :width] - rows[..., before:][..., :width]
    pairs = torch.einsum("ibchw,jbchw->ijc", planes.double(), partners.double())
    return torch.stack([pairs[0, 0], pairs[1, 1], pairs[0, 1] + pairs[1, 0]])


def _weights(pairs: Tensor) -> Tensor:
    """(3, 2^C): what one pair weighs in the loss, by the bits of its background, foreground, unlike classes; of the
    classes' numbers of pairs (3, C)."""
    present = (pairs.sum(0) > 0).sum().clamp(min=1)
    share = torch.full_like(pairs[:, :1], 0.25)
    share[2] = 0.5
    return (share / pairs.clamp(min=1) / present @ _members(pairs.shape[1], pairs.device).T).float()


def _blame(logits: Tensor, zeros: Tensor, ones: Tensor, weights: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Weights (B, h, w) of the pairs of like and of unlike labels whose path has its largest logit here, the first of
    equals. What a pair's loss depends on is this one pixel."""
    like, unlike = torch.zeros_like(logits), torch.zeros_like(logits)
    z, zero, one, weight = (t.contiguous().numpy() for t in (logits, zeros, ones, weights))
    for dy, dx in _fitting(logits, radius):
        _blame_direction(z, zero, one, weight, like.numpy(), unlike.numpy(), dy, dx, np.array(path(dy, dx)))
    return like, unlike


@cache
def _offsets(direction: Direction, width: int, device: torch.device) -> Tensor:
    """Where the points of the direction's path lie in a flat map. Cached, because sending a list to a GPU stalls the
    host."""
    return torch.tensor([y * width + x for y, x in path(*direction)], device=device)


def _blame_in_torch(logits: Tensor, zeros: Tensor, ones: Tensor, weights: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The same on any device."""
    like, unlike = torch.zeros_like(logits), torch.zeros_like(logits)
    place = torch.arange(logits.numel(), device=logits.device).view(logits.shape)
    for direction in _fitting(logits, radius):
        background, foreground, other = _pairs(zeros, ones, direction)
        at = torch.stack([shifted_view(logits, direction, point) for point in path(*direction)]).argmax(0)
        offsets = _offsets(direction, logits.shape[-1], logits.device)
        culprit = (shifted_view(place, direction) + offsets[at]).reshape(-1)
        like.view(-1).index_add_(0, culprit, (weights[0][background] + weights[1][foreground]).reshape(-1))
        unlike.view(-1).index_add_(0, culprit, weights[2][other].reshape(-1))
    return like, unlike


@jit()
def _count_direction(zeros, ones, dy, dx, pairs):
    images, height, width = zeros.shape
    for b in range(images):
        for y in range(height - dy):
            for x in range(max(0, -dx), width - max(0, dx)):
                a0, a1, b0, b1 = zeros[b, y, x], ones[b, y, x], zeros[b, y + dy, x + dx], ones[b, y + dy, x + dx]
                pairs[0, a0 & b0] += 1
                pairs[1, a1 & b1] += 1
                pairs[2, (a0 & b1) | (a1 & b0)] += 1


@jit()
def _blame_direction(logits, zeros, ones, weights, like, unlike, dy, dx, points):
    images, height, width = logits.shape
    first, n = max(0, -dx), width - abs(dx)
    largest, at = np.empty(n, np.float32), np.empty(n, np.int32)
    for b in range(images):
        flat_like, flat_unlike = like[b].ravel(), unlike[b].ravel()
        for y in range(height - dy):
            largest[:] = -np.inf
            at[:] = 0
            for k in range(len(points)):
                left = first + points[k, 1]
                _take_larger(
                    logits[b, y + points[k, 0], left : left + n], points[k, 0] * width + points[k, 1], largest, at
                )
            for i in range(n):
                x = first + i
                a0, a1, b0, b1 = zeros[b, y, x], ones[b, y, x], zeros[b, y + dy, x + dx], ones[b, y + dy, x + dx]
                culprit = y * width + x + at[i]
                flat_like[culprit] += weights[0, a0 & b0] + weights[1, a1 & b1]
                flat_unlike[culprit] += weights[2, (a0 & b1) | (a1 & b0)]


@jit()
def _take_larger(row, offset, largest, at):
    """Where `row` exceeds `largest`, put it there, and `offset` into `at`."""
    offset = np.int32(offset)
    for i in range(row.size):
        larger = row[i] > largest[i]
        largest[i] = row[i] if larger else largest[i]
        at[i] = offset if larger else at[i]
