"""A teacher's masks of films that no expert outlined, held against what the films' labels say.

A label knows whether a finding is there; a network that experts taught knows where. Neither is believed alone: a
finding that the label denies has an empty mask, whatever the network says; one that the label states and the network
does not see is unknown, as is one that the label is unsure of.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from chexseg.data import rle
from chexseg.data.images import fit_shape
from chexseg.data.sample_cache import SampleCache

TOP = 0.002  # share of the pixels, the most probable ones, whose mean is the belief that a finding is there at all
SEEN = 0.3  # of that belief: pixels above it are what the network sees, if the finding is there


def expert_sizes(caches: Sequence[SampleCache], percentiles: tuple[float, float]) -> np.ndarray:
    """(C, 2): the two percentiles of how much of the square image a finding covers in the films that show it; NaN for
    one that none shows."""
    shares: list[list[float]] = []
    for cache in caches:
        shares = shares or [[] for _ in range(cache.num_masks)]
        for i in range(len(cache)):
            known, there = cache.bits(i)
            if (known & there).any():
                covered = cache[i].masks.mean((1, 2), dtype=np.float64)
                for task in np.flatnonzero(known & there):
                    shares[task].append(covered[task])
    return np.array([np.percentile(each, percentiles) if each else (np.nan, np.nan) for each in shares])


def belief(probabilities: np.ndarray) -> np.ndarray:
    """(C,) how sure a network is that each finding is there: the mean of its most probable pixels in (C, S, S)."""
    flat = probabilities.reshape(len(probabilities), -1)
    count = max(1, int(TOP * flat.shape[1]))
    return np.partition(flat, -count, axis=1)[:, -count:].mean(1)


def sized_mask(probabilities: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    """Where a finding that is known to be there most probably lies in (S, S): as many pixels as are above SEEN of the
    belief, but not fewer nor more than experts outline (`bounds`, as shares of the image).

    A network that few films taught says too little of a rare finding: its probability is that the finding is there at
    all, times that it lies at this pixel. Given the label the first factor is 1, and the order of pixels and the usual
    size are what is left to know (size constraints: Kervadec et al. 2019).
    """
    flat = probabilities.reshape(-1)
    low, high = (max(1, round(bound * flat.size)) for bound in bounds)
    seen = int((probabilities > SEEN * belief(probabilities[None])[0]).sum())
    count = min(max(seen, low), high, flat.size)
    return probabilities >= np.partition(flat, -count)[-count]


def gate(
    probabilities: np.ndarray,
    labels: np.ndarray | None,
    *,
    thresholds: Sequence[float],
    sizes: np.ndarray | None = None,
    floor: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A film's masks (C, S, S), Boolean, from a teacher's probabilities (C, S, S), and which are known (C,).

    labels (C,) hold 1, 0, NaN (not mentioned: absent, as in CheXpert) and -1 or -2 (uncertain, no column: unknown).
    None: the teacher is believed throughout. A finding that the label states is `sized_mask` with sizes (C, 2), else
    what exceeds the teacher's threshold; it is unknown where the teacher's belief is below `floor`, the mask is empty,
    or no expert outlined such a finding (sizes NaN).
    """
    masks = probabilities > np.asarray(thresholds, np.float32)[:, None, None]
    if labels is None:
        return masks, np.ones(len(masks), bool)
    stated, known = labels == 1, ~(labels < 0)
    masks[~stated] = False
    certain = belief(probabilities) >= floor
    for task in np.flatnonzero(stated & certain):
        if sizes is not None:
            there = not np.isnan(sizes[task]).any()
            masks[task] = sized_mask(probabilities[task], sizes[task]) if there else False
        known[task] = masks[task].any()
    known[stated & ~certain] = False
    masks[~known] = False
    return masks, known


def teacher_masks(
    ids: Sequence[str],
    *,
    model_paths: Sequence[Path],
    paths: Mapping[str, Path],
    labels: Mapping[str, np.ndarray] | None,
    sizes: np.ndarray | None,
    floor: float,
    batch_size: int,
    device: str,
    precision: str = "auto",
    num_workers: int = 0,
) -> Iterator[tuple[str, dict[str, dict]]]:
    """(image id, {task: RLE}) of some films of a pool, in order, as `shards.build` wants them; a task that is unknown
    is missing. Masks have the size of the film as the network sees it.

    ids          the films wanted, in the order in which they stand in `paths`, which are the whole pool's
    model_paths  the teachers: the mean of their probabilities and of their thresholds counts
    """
    from chexseg.runtime import distributed
    from chexseg.segmentation.prediction import Originals, probabilities
    from chexseg.segmentation.teachers import Committee, load_teachers

    where = distributed.device(device)
    models, spec, thresholds = load_teachers(model_paths)
    row_of = {name: row for row, name in enumerate(paths)}
    batches = probabilities(
        Committee(models).to(where) if len(models) > 1 else models[0].to(where),
        spec,
        Originals(paths, ids, spec.image_size),
        batch_size=batch_size,
        device=where,
        precision=precision,
        num_workers=num_workers,
        rows=[row_of[name] for name in ids],
    )
    for batch in batches:
        for film, planes in batch:
            size: tuple[int, int] = tuple(film["size"].tolist())
            height, width = fit_shape(*size, spec.image_size)
            planes[:, height:], planes[:, :, width:] = 0, 0
            given = None if labels is None else labels[film["id"]]
            masks, known = gate(planes, given, thresholds=thresholds, sizes=sizes, floor=floor)
            coded = rle.encode(masks[:, :height, :width])
            yield film["id"], {task: coded[i] for i, task in enumerate(spec.tasks) if known[i]}
