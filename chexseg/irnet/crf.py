"""Dense CRF (Kraehenbuehl & Koltun 2011) for many binary label problems over one image, and for batches of images.

Every pair of pixels is joined by a Gaussian kernel on position and a bilateral kernel on position and brightness; both
are filtered on a permutohedral lattice, as in the paper's code. With two labels the messages to one follow from
those to the other, so a problem is one channel of log-odds, and all problems of an image share its lattice. On a CPU a
Numba kernel works image by image, on a GPU the same steps run in torch over the batch. Not for more than two labels.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chexseg.data.hdf5_files import IGNORE
from chexseg.irnet import permutohedral
from chexseg.irnet.engines import FINITE, jit, uses_numba
from chexseg.irnet.permutohedral import Lattice

# Problems that one pass of the CPU kernel carries: a full vector register of float32.
LANES = 8
# Corners that the CPU kernel slices at once. A lattice in d dimensions has d + 1 of them around a point: 3 for the
# Gaussian kernel, 6 for the bilateral one, 9 for both together.
CORNERS_AT_ONCE = 3


def mean_field(
    image: Tensor,
    foreground: Tensor,
    *,
    confidence: float = 0.7,
    gaussian_sxy: float = 3.0,
    gaussian_weight: float = 3.0,
    bilateral_sxy: float = 50.0,
    bilateral_srgb: float = 5.0,
    bilateral_weight: float = 10.0,
    iterations: int = 10,
    engine: str = "auto",
) -> Tensor:
    """Log-odds (B, P, H, W) of foreground after mean-field inference, for labels `foreground` (B, P, H, W) bool over
    grey images (B, H, W) uint8. A single image goes without its B.

    Labels are right with probability `confidence`; distances `*_sxy` are in pixels, `bilateral_srgb` in grey levels of
    each of r, g and b; kernels are normalised symmetrically (`D^-1/2 K D^-1/2`), Potts model, as in the paper's code.
    `engine` is one of `engines.ENGINES`; `auto` is Numba on a CPU, where it is six times as fast.

    Raises ValueError for colour, other types, and shapes or constants that make no sense.
    """
    _check(image, foreground)
    on_cpu = uses_numba(engine, image.device)
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be at least 0.5 and below 1")
    if min(gaussian_sxy, bilateral_sxy, bilateral_srgb) <= 0 or min(gaussian_weight, bilateral_weight, iterations) < 0:
        raise ValueError("standard deviations must be above 0, weights and iterations at least 0")
    if image.ndim == 2:
        image, foreground, single = image[None], foreground[None], True
    else:
        single = False
    unary = math.log(confidence / (1 - confidence))
    if foreground.numel() == 0 or iterations == 0:
        out = (2.0 * foreground.float() - 1) * unary
    else:
        constants = {
            "gaussian_sxy": gaussian_sxy,
            "gaussian_weight": gaussian_weight,
            "bilateral_sxy": bilateral_sxy,
            "bilateral_srgb": bilateral_srgb,
            "bilateral_weight": bilateral_weight,
            "iterations": iterations,
        }
        out = (_cpu if on_cpu else _torch)(image, foreground, unary, constants)
    return out[0] if single else out


def relation_labels(
    image: Tensor, maps: Tensor, *, foreground: float = 0.25, possible: float = 0.1, **constants: Any
) -> Tensor:
    """Inter-pixel relation labels (B, C, H, W) uint8 of saliency maps (B, C, h, w) over grey images (B, H, W) uint8.

    1 where the CRF makes `maps / max > foreground` foreground, 0 where it makes `maps / max > possible` background,
    255 (ignore) between the two, and everywhere where a map holds nothing to normalise: all zero, NaN or infinite.
    Maps of another size are upsampled bilinearly. `constants` are those of `mean_field`.
    """
    single = image.ndim == 2
    if single:
        image, maps = image[None], maps[None]
    maps = maps.float()
    usable = maps.isfinite().flatten(2).all(2) & (maps > 0).flatten(2).any(2)
    if maps.shape[-2:] != image.shape[-2:]:
        maps = F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)
    maps = maps / maps.amax((-2, -1), keepdim=True)
    problems = torch.cat([maps > foreground, maps > possible], dim=1)
    sure, maybe = (mean_field(image, problems, **constants) > 0).chunk(2, dim=1)
    labels = torch.full(maps.shape, IGNORE, dtype=torch.uint8, device=image.device)
    labels[~maybe] = 0
    labels[sure] = 1
    labels[~usable] = IGNORE
    return labels[0] if single else labels


def _check(image: Tensor, foreground: Tensor) -> None:
    if image.ndim not in (2, 3) or foreground.ndim != image.ndim + 1:
        raise ValueError(
            f"image {tuple(image.shape)} and labels {tuple(foreground.shape)} must be (H, W) and (P, H, W), or "
            "(B, H, W) and (B, P, H, W); colour images have no place here, pass one of three equal channels"
        )
    if foreground.shape[-2:] != image.shape[-2:] or foreground.shape[:-3] != image.shape[:-2]:
        raise ValueError(f"labels {tuple(foreground.shape)} do not fit the image {tuple(image.shape)}")
    if image.dtype != torch.uint8 or foreground.dtype != torch.bool:
        raise ValueError(f"expected a uint8 image and bool labels, got {image.dtype} and {foreground.dtype}")
    if min(image.shape[-2:]) == 0:
        raise ValueError(f"image {tuple(image.shape)} has no pixels")


def _features(image: np.ndarray, sxy: float, srgb: float) -> np.ndarray:
    """Bilateral features (H * W, 5) of a grey image (H, W): x and y in `sxy` pixels, r = g = b in `srgb` levels."""
    height, width = image.shape
    out = np.empty((height, width, 5), np.float32)
    out[..., 0] = np.arange(width, dtype=np.float32) / np.float32(sxy)
    out[..., 1] = np.arange(height, dtype=np.float32)[:, None] / np.float32(sxy)
    out[..., 2:] = image[..., None].astype(np.float32) / np.float32(srgb)
    return out.reshape(-1, 5)


@lru_cache(maxsize=4)
def _near_kernel(size: tuple[int, int], sxy: float, strength: float) -> Lattice:
    """The Gaussian kernel of images of one size."""
    position = _features(np.zeros(size, np.uint8), sxy, 1)[:, :2]
    return _scaled(permutohedral.build_cpu(np.ascontiguousarray(position)), strength)


def _scaled(lattice: Lattice, strength: float) -> Lattice:
    """The lattice whose splat, blur and slice are `strength` times the symmetrically normalised kernel."""
    if lattice.corner.shape[1] % CORNERS_AT_ONCE:
        raise ValueError(f"{lattice.corner.shape[1]} corners around a point; they are read {CORNERS_AT_ONCE} at a time")
    factor = _norm_cpu(*lattice) * np.float32(math.sqrt(strength))
    return lattice._replace(weight=lattice.weight * factor[:, None])


def _cpu(image: Tensor, foreground: Tensor, unary: float, c: dict) -> Tensor:
    out = torch.empty(foreground.shape, dtype=torch.float32)
    near = _near_kernel(tuple(image.shape[-2:]), c["gaussian_sxy"], c["gaussian_weight"])
    for picture, labels, odds in zip(image.numpy(), foreground.numpy(), out.numpy(), strict=True):
        features = _features(picture, c["bilateral_sxy"], c["bilateral_srgb"])
        far = _scaled(permutohedral.build_cpu(features), c["bilateral_weight"])
        # Both kernels at once: the near corners are numbered after the far ones.
        corner = np.hstack([far.corner, near.corner + far.neighbours.shape[1]])
        weight = np.hstack([far.weight, near.weight])
        for first in range(0, len(labels), LANES):
            lanes = labels[first : first + LANES].reshape(-1, len(corner))
            z = np.zeros((len(corner), LANES), np.float32)
            z[:, : len(lanes)] = np.where(lanes, np.float32(unary), np.float32(-unary)).T
            z = _iterate(z, corner, weight, far.neighbours, near.neighbours, c["iterations"])
            odds[first : first + LANES] = z[:, : len(lanes)].T.reshape(-1, *picture.shape)
    return out


@jit(FINITE)
def _norm_cpu(corner, weight, neighbours):
    """1 / sqrt of a lattice kernel's row sums (n,)."""
    cells = np.zeros((neighbours.shape[1], LANES), np.float32)
    values = np.ones((len(corner), LANES), np.float32)
    _splat(cells, values, corner, weight)
    _blur(cells, np.empty_like(cells), neighbours)
    values[:] = 0
    _slice(cells, values, corner, weight)
    return 1 / np.sqrt(values[:, 0])


@jit(FINITE)
def _iterate(unary, corner, weight, far, near, steps):
    """Mean-field steps on log-odds (n, LANES)."""
    z, mean = unary.copy(), np.empty_like(unary)
    split = far.shape[1]
    cells = np.empty((split + near.shape[1], LANES), np.float32)
    spare = np.empty_like(cells)
    for _ in range(steps):
        _mean_label(z, mean)
        cells[:] = 0
        _splat(cells, mean, corner, weight)
        _blur(cells[:split], spare[:split], far)
        _blur(cells[split:], spare[split:], near)
        _copy(unary, z)
        _slice(cells, z, corner, weight)
    return z


@jit(FINITE)
def _splat(cells, values, corner, weight):
    """Add values (n, LANES) to the corners around each point."""
    for k in range(len(values)):
        for r in range(corner.shape[1]):
            c, w = corner[k, r], weight[k, r]
            for p in range(LANES):
                cells[c, p] += w * values[k, p]


@jit(FINITE)
def _slice(cells, values, corner, weight):
    """Add to values (n, LANES) what the corners around each point hold. Three corners between two stores are faster
    than one; their number must divide by CORNERS_AT_ONCE, which `_scaled` sees to."""
    for k in range(len(values)):
        for r in range(0, corner.shape[1], CORNERS_AT_ONCE):
            a, b, c = corner[k, r], corner[k, r + 1], corner[k, r + 2]
            v, w, x = weight[k, r], weight[k, r + 1], weight[k, r + 2]
            for p in range(LANES):
                values[k, p] += v * cells[a, p] + w * cells[b, p] + x * cells[c, p]


@jit(FINITE)
def _copy(source, target):
    """`target[:] = source` (n, LANES); see `engines` for why it is a loop."""
    for k in range(len(source)):
        for p in range(LANES):
            target[k, p] = source[k, p]


@jit(FINITE)
def _blur(cells, spare, neighbours):
    """Blur corners (m + 1, LANES) in place along every direction."""
    for j in range(len(neighbours)):
        for k in range(1, len(cells)):
            before, after = neighbours[j, k]
            for p in range(LANES):
                spare[k, p] = cells[k, p] + np.float32(0.5) * (cells[before, p] + cells[after, p])
        _copy(spare[1:], cells[1:])


@jit(FINITE)
def _mean_label(z, out):
    """tanh(z / 2): foreground's less background's probability, by a rational approximation (Eigen's)."""
    z, out = z.ravel(), out.ravel()
    for i in range(z.size):
        x = min(max(np.float32(0.5) * z[i], np.float32(-7.9)), np.float32(7.9))
        s = x * x
        p = np.float32(-2.76076847742355e-16)
        p = p * s + np.float32(2.00018790482477e-13)
        p = p * s + np.float32(-8.60467152213735e-11)
        p = p * s + np.float32(5.12229709037114e-08)
        p = p * s + np.float32(1.48572235717979e-05)
        p = p * s + np.float32(6.37261928875436e-04)
        p = p * s + np.float32(4.89352455891786e-03)
        q = np.float32(1.19825839466702e-06)
        q = q * s + np.float32(1.18534705686654e-04)
        q = q * s + np.float32(2.26843463243900e-03)
        q = q * s + np.float32(4.89352518554385e-03)
        out[i] = x * p / q


def _torch(image: Tensor, foreground: Tensor, unary: float, c: dict) -> Tensor:
    batch, count, height, width = foreground.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], dim=-1).to(image.device, torch.float32).view(1, -1, 2)
    level = image.view(batch, -1, 1).float() / c["bilateral_srgb"]
    near = permutohedral.build(place.expand(batch, -1, -1) / c["gaussian_sxy"])
    far = permutohedral.build(
        torch.cat([place.expand(batch, -1, -1) / c["bilateral_sxy"], level.expand(-1, -1, 3)], -1)
    )
    ones = torch.ones(batch * height * width, 1, device=image.device)
    strengths = [(near, c["gaussian_weight"]), (far, c["bilateral_weight"])]
    kernels = [(k, w, permutohedral.filter(k, ones).rsqrt()) for k, w in strengths]
    start = torch.where(foreground, unary, -unary).permute(0, 2, 3, 1).reshape(-1, count)
    z = start
    for _ in range(c["iterations"]):
        mean = torch.tanh(z / 2)
        z = start + sum(w * norm * permutohedral.filter(k, norm * mean) for k, w, norm in kernels)
    return z.view(batch, height, width, count).permute(0, 3, 1, 2).contiguous()
