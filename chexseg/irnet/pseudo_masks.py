"""Stage 4: pseudo masks of films, from saliency maps as they are and from a random walk that stops at boundaries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chexseg.classifier import saliency_masks
from chexseg.data import rle
from chexseg.data.images import normalise
from chexseg.irnet import boundary_net, random_walk
from chexseg.irnet.films import Film, Films
from chexseg.irnet.gates import PRESENT, UNKNOWN, Gate
from chexseg.runtime.workers import ordered_map
from chexseg.training import draws, loop

Entry = tuple[str, dict[str, dict]]  # image id, {task: run-length mask}


@dataclass(frozen=True)
class Walk:
    """The random walk's constants; the defaults are the paper's (design: `random_walk.propagate`)."""

    beta: float = 5.0
    exp_times: int = 3
    radius: int = 3
    threshold: float = 0.6  # foreground above this part of a score's maximum


def threshold_masks(rows: Sequence[int], *, films: Films, num_workers: int = 0) -> Iterator[Entry]:
    """The masks of stage 2 for the films of `rows`, in order."""
    return ordered_map(partial(threshold_film, films), rows, num_workers)


def threshold_film(films: Films, row: int) -> Entry:
    """The masks of stage 2 for one film."""
    film = films(row)
    return entry(films, row, saliency_masks.threshold_maps(film.maps, film.size, network_size=film.pixels.shape))


def entry(films: Films, row: int, stack: np.ndarray, known: np.ndarray | None = None) -> Entry:
    """A film's masks (T, h, w) as a line of a masks JSON; without the tasks that are not `known` (T,) bool."""
    masks = dict(zip(films.tasks, rle.encode(stack), strict=True))
    return films.ids[row], {t: masks[t] for i, t in enumerate(films.tasks) if known is None or known[i]}


def walk_masks(
    rows: Sequence[int],
    *,
    films: Films,
    gate: Gate,
    weights: Path,
    walk: Walk,
    contradiction: str = "empty",
    device: torch.device,
    batch_size: int = 16,
    precision: str = "auto",
    num_workers: int = 0,
) -> Iterator[Entry]:
    """Masks by the boundary network in `weights` and a random walk, for the films of ascending `rows`, in order.

    A finding that the gate calls absent has an empty mask, one that it calls unknown is left out of the image's entry.
    `contradiction` says what becomes of a finding that the gate calls present and of which nothing is left, because its
    map or its score is zero: `empty` mask, or `unknown`. A mask does not depend on which rows are asked for.
    """
    verdicts = gate.decide(films.ids, films.tasks)
    batches = boundaries(
        rows,
        films=films,
        weights=weights,
        device=device,
        batch_size=batch_size,
        precision=precision,
        num_workers=num_workers,
    )
    for some, batch, boundary in batches:
        maps = torch.from_numpy(np.stack([film.maps for film in batch])).to(device)
        allowed = torch.from_numpy(verdicts[some] == PRESENT).to(device)
        scores = random_walk.pseudo_scores(
            maps, boundary, allowed, beta=walk.beta, exp_times=walk.exp_times, radius=walk.radius
        )
        # Originals differ in size, and one of them fills much of a small GPU.
        step = len(some) if films.of_one_size else 1
        for start in range(0, len(some), step):
            size, part = batch[start].size, scores[start : start + step]
            stacks = random_walk.masks_from_scores(part, size, threshold=walk.threshold).cpu().numpy()
            for row, stack in zip(some[start:], stacks, strict=False):
                known = verdicts[row] != UNKNOWN
                if contradiction == "unknown":
                    known &= (verdicts[row] != PRESENT) | stack.any((1, 2))
                yield entry(films, row, stack, known)


def boundaries(
    rows: Sequence[int],
    *,
    films: Films,
    weights: Path,
    device: torch.device,
    batch_size: int = 16,
    precision: str = "auto",
    num_workers: int = 0,
) -> Iterator[tuple[list[int], list[Film], Tensor]]:
    """One batch after the other: its rows, their films, and boundary probabilities (n, 1, S / 4, S / 4) on the device,
    by the network in `weights`.

    Fixed-size batches: row r always occupies slot r % batch_size, so that how the network rounds does not depend on
    which rows are asked for; an empty slot holds a black image.
    """
    network, spec = boundary_net.load(weights)
    network = network.to(device)
    stream = ordered_map(films, rows, num_workers)
    for slots in draws.fixed_slots(rows, batch_size):
        in_use = [slot for slot, row in enumerate(slots) if row is not None]
        batch = [next(stream) for _ in in_use]
        pixels = np.zeros((batch_size, *batch[0].pixels.shape), np.uint8)
        pixels[in_use] = [film.pixels for film in batch]
        images = torch.from_numpy(pixels).to(device)
        with torch.inference_mode(), loop.autocast(device, precision):
            boundary = random_walk.mirrored_boundary(network, normalise(images, spec.normalisation))[in_use]
        yield [row for row in slots if row is not None], batch, boundary
