"""Stages 3b and 4 as `shards.build` calls them: torch, Numba and the device come in when there is work, not before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from chexseg.irnet.pseudo_masks import Entry


def relation_labels(rows: Sequence[int], *, device: str, **values: Any) -> "Iterator[np.ndarray]":
    """`relation_labels.relation_labels` on the device that `--device` means."""
    from chexseg.irnet import relation_labels
    from chexseg.runtime import distributed

    return relation_labels.relation_labels(rows, device=distributed.device(device), **values)


def threshold_masks(rows: Sequence[int], **values: Any) -> "Iterator[Entry]":
    """`pseudo_masks.threshold_masks`."""
    from chexseg.irnet import pseudo_masks

    return pseudo_masks.threshold_masks(rows, **values)


def walk_masks(rows: Sequence[int], *, walk: Mapping[str, Any], device: str, **values: Any) -> "Iterator[Entry]":
    """`pseudo_masks.walk_masks` with the fields of a `Walk`, on the device that `--device` means."""
    from chexseg.irnet import pseudo_masks
    from chexseg.runtime import distributed

    walk_of = pseudo_masks.Walk(**walk)
    return pseudo_masks.walk_masks(rows, walk=walk_of, device=distributed.device(device), **values)
