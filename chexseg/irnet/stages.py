"""Stages 3b and 4 as a script calls them: torch, Numba and the device come in when there is work, not before."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexseg.data import task_counts
from chexseg.data.mask_files import MaskFile, MaskShards
from chexseg.irnet.films import Films
from chexseg.irnet.gates import Gate
from chexseg.runtime import distributed, shards

if TYPE_CHECKING:
    import numpy as np

    from chexseg.irnet.pseudo_masks import Entry
    from chexseg.irnet.walk_curves import Grid

log = logging.getLogger(__name__)


def build_masks(
    output: Path,
    films: Films,
    process: "Callable[[Sequence[int]], Iterator[Entry]]",
    *,
    record: dict,
    shard_size: int,
    label: str,
) -> bool:
    """Make the masks JSON `output` of all films, and say how many masks of each task it holds; False where it is up to
    date. `process` gives the entries of the rows that it is called with."""
    made = shards.build(
        output,
        range(len(films.ids)),
        process=process,
        shard_format=MaskShards(),
        record=record,
        shard_size=shard_size,
        label=label,
        item_fingerprint=films.fingerprint,
    )
    if made and distributed.is_main():
        log.info("%s:\n%s", output, task_counts.summary(MaskFile(output), films.tasks))
    return made


def relation_labels(rows: Sequence[int], *, device: str, **values: Any) -> "Iterator[np.ndarray]":
    """`relation_labels.relation_labels` on the device that `--device` means."""
    from chexseg.irnet import relation_labels

    return relation_labels.relation_labels(rows, device=distributed.device(device), **values)


def threshold_masks(rows: Sequence[int], **values: Any) -> "Iterator[Entry]":
    """`pseudo_masks.threshold_masks`."""
    from chexseg.irnet import pseudo_masks

    return pseudo_masks.threshold_masks(rows, **values)


def walk_masks(rows: Sequence[int], *, walk: Mapping[str, Any], device: str, **values: Any) -> "Iterator[Entry]":
    """`pseudo_masks.walk_masks` with the fields of a `Walk`, on the device that `--device` means."""
    from chexseg.irnet import pseudo_masks

    walk_of = pseudo_masks.Walk(**walk)
    return pseudo_masks.walk_masks(rows, walk=walk_of, device=distributed.device(device), **values)


def boundaries(rows: Sequence[int], *, device: str, **values: Any) -> "Iterator[np.ndarray]":
    """`walk_tuning.boundaries` on the device that `--device` means."""
    from chexseg.irnet import walk_tuning

    return walk_tuning.boundaries(rows, device=distributed.device(device), **values)


def walk_counts(
    rows: Sequence[int],
    *,
    all_rows: Sequence[int],
    boundaries: Path,
    films: Films,
    truth: MaskFile,
    gate: Gate,
    grid: "Grid",
    num_workers: int = 0,
) -> "Iterator[np.ndarray]":
    """`walk_tuning.WalkCounter` of each row, with the boundaries of `all_rows` in an .npz file."""
    import numpy as np

    from chexseg.irnet import walk_tuning
    from chexseg.runtime.workers import ordered_map

    with np.load(boundaries) as file:
        boundary_of = dict(zip(all_rows, file["boundaries"], strict=True))
    present = gate.present(films.ids, films.tasks)
    return ordered_map(walk_tuning.WalkCounter(films, boundary_of, truth, present, grid), rows, num_workers)
