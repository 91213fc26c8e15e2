"""Stage 7 as a script calls it: the network, torch and the device come in when there is work, not before."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chexseg.data.mask_files import MaskShards
from chexseg.runtime import provenance, shards
from chexseg.segmentation.thresholds import read_thresholds


def build_masks(
    output: Path, *, paths: Mapping[str, Path], thresholds_path: Path, record: dict, shard_size: int, **values: Any
) -> bool:
    """Make the masks JSON `output` of the images in `paths`; `values` are those of `prediction.predict_originals`.
    False where it is up to date. What is wrong with the thresholds is said before the work begins."""
    read_thresholds(thresholds_path)
    return shards.build(
        output,
        list(paths),
        process=partial(predicted_masks, paths=paths, thresholds_path=thresholds_path, **values),
        shard_format=MaskShards(),
        record=record,
        shard_size=shard_size,
        label="predicted masks",
        item_fingerprint=lambda name: provenance.stat_fingerprint(paths[name]),
    )


def predicted_masks(ids: Sequence[str], *, device: str, **values: Any) -> Iterator[tuple[str, dict[str, dict]]]:
    """`prediction.predict_originals` on the device that `--device` means."""
    from chexseg.runtime import distributed
    from chexseg.segmentation import prediction

    return prediction.predict_originals(ids, device=distributed.device(device), **values)
