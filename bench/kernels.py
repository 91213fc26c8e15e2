"""Dense CRF, random walk, relation loss: against pydensecrf2, a dense transition matrix and gathered pairs."""

import multiprocessing
import resource
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Case, MissingError, require, row
from chexseg.irnet import affinity, crf, random_walk

SIZE, GRID, CLASSES = 320, 80, 10


def film(contrast: float, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Lungs, a heart, ribs and grain, (size, size) uint8: as smooth, and with as many edges, as a chest X-ray."""
    y, x = np.mgrid[:size, :size] / size
    lungs = sum(1 / (1 + np.exp(40 * (np.hypot((x - c) / 0.16, (y - 0.45) / 0.33) - 1) * 0.2)) for c in (0.28, 0.72))
    heart = np.exp(-((((x - 0.58) / 0.13) ** 2 + ((y - 0.65) / 0.13) ** 2) ** 2))
    ribs = np.sin(60 * (y + 0.6 * (x - 0.5) ** 2)) ** 8
    picture = 0.75 - 0.55 * lungs + 0.4 * heart * lungs + 0.1 * ribs * lungs - 0.15 * y
    grain = np.random.default_rng(seed).normal(0, 2, picture.shape)
    return np.clip(128 + contrast * (picture - 0.5) + grain, 0, 255).round().astype(np.uint8)


def saliency(count: int, cells: int = 10, seed: int = 0) -> Tensor:
    """Maps (count, cells, cells) of some smooth peaks, as Grad-CAM gives them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:cells, :cells]
    maps = np.zeros((count, cells, cells))
    for m in maps:
        for _ in range(rng.integers(1, 4)):
            (v, u), width = rng.uniform(0, cells, 2), rng.uniform(0.1, 0.25) * cells
            m += rng.uniform(0.4, 1) * np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * width**2))
    return torch.from_numpy(maps / maps.max((1, 2), keepdims=True)).float()


def problems(count: int, size: int = SIZE) -> Tensor:
    """Labels (2 count, size, size) bool: each map above its two thresholds."""
    maps = F.interpolate(saliency(count)[None], (size, size), mode="bilinear", align_corners=False)[0]
    maps = maps / maps.amax((1, 2), keepdim=True)
    return torch.stack([maps > 0.25, maps > 0.1], dim=1).flatten(0, 1)


def pydensecrf(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The paper's code: one problem after the other."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_labels

    rgb = np.ascontiguousarray(np.repeat(image[..., None], 3, axis=2))
    found = []
    for label in labels:
        field = DenseCRF2D(image.shape[1], image.shape[0], 2)
        field.setUnaryEnergy(unary_from_labels(label.astype(int), 2, gt_prob=0.7, zero_unsure=False))
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=rgb, compat=10)
        found.append(np.argmax(field.inference(10), axis=0).reshape(image.shape) == 1)
    return np.array(found)


def crf_case(device: torch.device, *, ours: int, contrast: float, max_ratio: float) -> Case:
    image, labels = film(contrast), problems(CLASSES)
    image_there, labels_there = torch.from_numpy(image).to(device), labels[:ours].to(device)

    def agreement(found: Tensor, expected: np.ndarray) -> float:
        return float((found.cpu().numpy() == expected[:ours]).mean((1, 2)).min())

    case = Case(
        ours=lambda: crf.mean_field(image_there, labels_there) > 0,
        agreement=agreement,
        least_agreement=0.995,
        max_ratio=max_ratio,
        note="least agreement of a problem's pixels",
    )
    try:
        require("pydensecrf2")
        case.reference, case.reference_repeats = partial(pydensecrf, image, labels.numpy()), 3
    except MissingError as error:
        case.missing = str(error)
    return case


@row("crf", "CRF labels, 20 problems on one 320-px image, against pydensecrf2")
def crf_all(device: torch.device) -> Case:
    return crf_case(device, ours=20, contrast=200, max_ratio=1 / 6)


@row("crf-low-contrast", "the same on a low-contrast image")
def crf_low(device: torch.device) -> Case:
    return crf_case(device, ours=20, contrast=40, max_ratio=1 / 6)


@row("crf-density", "CRF labels of 3 present findings of 10, against pydensecrf2 on all 20 problems")
def crf_density(device: torch.device) -> Case:
    return crf_case(device, ours=6, contrast=200, max_ratio=1 / 20)


def boundaries(count: int, grid: int) -> Tensor:
    """(count, 1, grid, grid): noisy, with closed lines."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, grid)] * 2, indexing="ij")
    rings = torch.exp(-(((torch.hypot(x - 0.2, y) * 6) % 2 - 1) ** 2) / 0.05)
    noise = torch.rand(count, 1, grid, grid, generator=torch.Generator().manual_seed(0))
    return (0.8 * rings + 0.2 * noise).clamp(0, 1)


def dense_walk(cam: Tensor, boundary: Tensor, *, beta: float, exp_times: int, radius: int) -> Tensor:
    """The paper's way, once for all classes: a dense matrix, squared."""
    height, width = boundary.shape[-2:]
    place = torch.arange(height * width).view(height, width)
    matrix = torch.eye(height * width)
    for direction, values in affinity.path_affinity(boundary[0, 0], radius):
        start = affinity.shifted_view(place, direction).reshape(-1)
        end = affinity.shifted_view(place, direction, direction).reshape(-1)
        matrix[start, end] = matrix[end, start] = values.reshape(-1) ** beta
    matrix = (matrix / matrix.sum(0, keepdim=True)).to(cam.device)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    return ((cam * (1 - boundary))[0].flatten(1) @ matrix).view(cam.shape)


def walk_case(device: torch.device, grid: int, **limits: float) -> Case:
    cam = F.interpolate(saliency(CLASSES)[None], (grid, grid), mode="bilinear", align_corners=False).to(device)
    boundary = boundaries(1, grid).to(device)
    options = {"beta": 5.0, "exp_times": 3, "radius": 3}
    return Case(
        ours=lambda: random_walk.propagate(cam, boundary, **options),
        reference=lambda: dense_walk(cam, boundary.cpu() if device.type == "cpu" else boundary, **options),
        agreement=lambda found, expected: 1 - float((found - expected).abs().max()),
        least_agreement=1 - 1e-5,
        note="agreement: 1 - largest difference",
        reference_repeats=1 if grid == GRID else None,
        **limits,
    )


@row("walk", "random walk of 10 maps on the 80 x 80 grid of one image, against the dense matrix")
def walk(device: torch.device) -> Case:
    return walk_case(device, GRID, limit_s=0.010)


@row("walk-small", "the same on a 40 x 40 grid")
def walk_small(device: torch.device) -> Case:
    return walk_case(device, GRID // 2, limit_s=0.010)


@row("walk-floor", "random walk of one image in a batch of 16, against adding and multiplying as many numbers")
def walk_floor(device: torch.device) -> Case:
    """The floor: 24 neighbours and itself, 8 steps, 10 maps, each a multiplication and an addition in cache."""
    cam = F.interpolate(saliency(CLASSES)[None], (GRID, GRID), mode="bilinear", align_corners=False).to(device)
    cam, boundary = cam.repeat(16, 1, 1, 1), boundaries(16, GRID).to(device)
    one, other = torch.rand(GRID * GRID, device=device), torch.rand(GRID * GRID, device=device)
    total = torch.zeros_like(one)

    def floor() -> None:
        for _ in range(16 * 8 * 25 * CLASSES):
            torch.addcmul(total, one, other, out=total)

    return Case(
        ours=lambda: random_walk.propagate(cam, boundary), reference=floor, items=16,
        reference_repeats=3, note="no target: as many torch.addcmul on one map",
    )  # fmt: skip


def relation_batch(count: int, grid: int = GRID) -> tuple[Tensor, Tensor]:
    """Logits (count, 1, g, g) and labels (count, 10, g, g) with three present findings an image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 1, grid, grid, generator=generator)
    labels = torch.full((count, CLASSES, grid, grid), 255, dtype=torch.uint8)
    for i in range(count):
        present = torch.randperm(CLASSES, generator=generator)[:3]
        maps = F.interpolate(saliency(3, seed=i)[None], (grid, grid), mode="bilinear", align_corners=False)[0]
        labels[i, present] = torch.where(maps > 0.3, 1, torch.where(maps < 0.1, 0, 255)).to(torch.uint8)
    return logits, labels


def shifted_step(logits: Tensor, labels: Tensor, radius: int) -> tuple[float, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = affinity.relation_loss(logits, labels, radius)
    loss.backward()
    return loss.item(), logits.grad


def gathered_step(logits: Tensor, labels: Tensor, radius: int) -> tuple[float, Tensor]:
    """The paper's way: every path gathered, pair labels of each class as tensors, autograd."""
    logits = logits.clone().requires_grad_()
    height, width = logits.shape[-2:]
    place = torch.arange(height * width, device=logits.device).view(height, width)
    flat, affinities, starts, ends = logits.sigmoid().flatten(1), [], [], []
    for direction in affinity.directions(radius):
        points = affinity.path(*direction)
        paths = torch.stack([affinity.shifted_view(place, direction, point).reshape(-1) for point in points])
        affinities.append(1 - flat[:, paths].amax(1))
        starts.append(affinity.shifted_view(place, direction).reshape(-1))
        ends.append(affinity.shifted_view(place, direction, direction).reshape(-1))
    pairs, start, end = torch.cat(affinities, dim=1), torch.cat(starts), torch.cat(ends)
    like, unlike = -torch.log(pairs.clamp(min=1e-12)), -torch.log((1 - pairs).clamp(min=1e-12))
    total, present = torch.zeros((), device=logits.device), 0
    for c in range(labels.shape[1]):
        first, second = labels[:, c].flatten(1)[:, start], labels[:, c].flatten(1)[:, end]
        background, foreground = (first == 0) & (second == 0), (first == 1) & (second == 1)
        other = (first != second) & (first != 255) & (second != 255)
        if background.any() or foreground.any() or other.any():
            present += 1
            for kind, values, share in ((background, like, 4), (foreground, like, 4), (other, unlike, 2)):
                total = total + (values * kind).sum() / kind.sum().clamp(min=1) / share
    loss = total / max(present, 1)
    loss.backward()
    return loss.item(), logits.grad


def _peak(step, sender, *inputs) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(*inputs)
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def peak_megabytes(step, device: torch.device, *inputs) -> float:
    """Memory that one call takes beyond its inputs: on the GPU, or of a process of its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(*inputs)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_peak, args=(step, sender, *inputs))
    process.start()
    sender.close()
    kilobytes = receiver.recv()
    process.join()
    return kilobytes / 2**10


@row("relation-loss", "IRNet's loss and gradient, 4 crops of 320 px, 10 classes, radius 10, against gathered pairs")
def relation_loss(device: torch.device) -> Case:
    logits, labels = (t.to(device) for t in relation_batch(4))
    shifted_step(logits, labels, 10)  # compiled (and cached) before its memory is measured
    memory = [peak_megabytes(step, device, logits, labels, 10) for step in (shifted_step, gathered_step)]

    def agreement(found, expected) -> float:
        return 1 - max(abs(found[0] - expected[0]), float((found[1] - expected[1]).abs().max()))

    return Case(
        ours=lambda: shifted_step(logits, labels, 10),
        reference=lambda: gathered_step(logits, labels, 10),
        agreement=agreement,
        least_agreement=1 - 1e-5,
        max_ratio=1 / 2,
        reference_repeats=3,
        note="memory: " + ", gathered ".join(f"{m:.0f} MB" if m >= 5 else "under 5 MB" for m in memory),
    )
