"""Which sample is drawn when: a function of (seed, epoch, position), whatever the number of ranks or resumptions.

How they are read is in `loader`. Imports no torch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from chexseg.errors import DataError, UsageError

Order = Callable[[int], np.ndarray]
# One stream of random numbers per purpose.
_KIND, _FIRST, _SECOND, _BALANCED = 1, 2, 3, 4


class Draw(NamedTuple):
    """What a dataset is indexed with. `key` seeds the sample's augmentation; empty means none (evaluation)."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name, which no draw needs
    key: tuple[int, ...] = ()


def shuffled(length: int, seed: int) -> Order:
    """Order of an epoch: every sample once, in another order each time."""
    _check_length(length, "to train on")
    return lambda epoch: np.random.default_rng((seed, epoch)).permutation(length)


def mixed(
    n_strong: int,
    n_weak: int,
    *,
    strong_weight: float,
    seed: int,
    epoch_len: int | None = None,
    balance: float = 0.0,
    positives: Sequence[np.ndarray] = (),
) -> Order:
    """Order of an epoch over the samples 0 .. n_strong-1 (expert masks), n_strong .. n_strong+n_weak-1 (pseudo masks).

    Each of the `epoch_len` draws (default: as many as there are samples) is an expert's with probability
    `strong_weight`, independently. Within each set samples come in a random order without replacement, reshuffled when
    all have been drawn, across epochs too.

    balance: the share of the pseudo-labelled draws that are made by class instead (class-aware sampling, Shen et al.
    2016): first one of `positives`, all equally likely, then one of its samples; each holds the pseudo-labelled samples
    (from 0) that show a class, and an empty one takes no part. A rare finding is then drawn as often as a common one.
    """
    classes = [np.asarray(rows) for rows in positives if len(rows)]
    if balance > 0 and not classes:
        raise DataError("no pseudo mask has a pixel: there is no class to balance the draws by")
    if strong_weight > 0:
        _check_length(n_strong, "with expert masks")
    if strong_weight < 1:
        _check_length(n_weak, "with pseudo masks")
    length = epoch_len or n_strong + n_weak

    @cache
    def is_strong(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, _KIND, epoch)).random(length) < strong_weight

    def order(epoch: int) -> np.ndarray:
        strong = is_strong(epoch)
        before = sum(int(is_strong(e).sum()) for e in range(epoch))
        indices = np.empty(length, np.int64)
        indices[strong] = _stream(n_strong, (seed, _FIRST), before, int(strong.sum()))
        start = epoch * length - before
        weak = _stream(n_weak, (seed, _SECOND), start, int((~strong).sum()))
        if balance > 0:
            rng = np.random.default_rng((seed, _BALANCED, epoch))
            for place in np.flatnonzero(rng.random(len(weak)) < balance):
                weak[place] = rng.choice(classes[rng.integers(len(classes))])
        indices[~strong] = n_strong + weak
        return indices

    return order


def _stream(length: int, key: tuple[int, ...], start: int, count: int) -> np.ndarray:
    """Elements start .. start+count-1 of an endless sequence of permutations of 0 .. length-1."""
    if count == 0:
        return np.empty(0, np.int64)
    first, last = start // length, (start + count - 1) // length
    passes = [np.random.default_rng((*key, p)).permutation(length) for p in range(first, last + 1)]
    return np.concatenate(passes)[start - first * length :][:count]


def _check_length(length: int, what: str) -> None:
    if length < 1:
        raise DataError(f"there are no images {what}; check the masks file")


def batches(
    order: np.ndarray, batch_size: int, *, key: tuple[int, ...], rank: int, world_size: int
) -> list[list[Draw]]:
    """This rank's part of each batch of an epoch.

    `batch_size` is that of all ranks together. The draws are split evenly: sizes differ by one at most, and no batch is
    left with a single image. Rank r takes every `world_size`-th draw from the r-th on.
    """
    if batch_size < world_size:
        raise UsageError(f"--batch_size {batch_size} cannot be divided among {world_size} processes")
    parts = np.array_split(np.arange(len(order)), -(-len(order) // batch_size))
    if len(parts[-1]) < world_size:
        raise DataError(
            f"{len(order)} images in batches of {batch_size} at most come down to {len(parts[-1])} in a batch, too few "
            f"for {world_size} processes; start fewer, or raise --batch_size"
        )
    return [[Draw(int(order[p]), (*key, int(p))) for p in part[rank::world_size]] for part in parts]


def in_order(length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[Draw]]:
    """Batches of this rank's share of all samples, without augmentation: for evaluation."""
    mine = range(rank, length, world_size)
    return [[Draw(i) for i in mine[start : start + batch_size]] for start in range(0, len(mine), batch_size)]


def fixed_slots(rows: Iterable[int], batch_size: int) -> Iterator[list[int | None]]:
    """Fixed-size batches of ascending rows: row r always occupies slot r % batch_size; empty slots are None.

    A network's rounding depends on the slot (not on what is in the others), and an image's result must not depend on
    which images are still to be done, by whom, and in what shards.
    """
    for _, group in groupby(rows, key=lambda row: row // batch_size):
        batch: list[int | None] = [None] * batch_size
        for row in group:
            batch[row % batch_size] = row
        yield batch
