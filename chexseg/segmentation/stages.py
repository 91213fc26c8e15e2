"""Stage 7 as `shards.build` calls it: the network, torch and the device come in when there is work, not before."""

from collections.abc import Iterator, Sequence
from typing import Any


def predicted_masks(ids: Sequence[str], *, device: str, **values: Any) -> Iterator[tuple[str, dict[str, dict]]]:
    """`prediction.predict_originals` on the device that `--device` means."""
    from chexseg.runtime import distributed
    from chexseg.segmentation import prediction

    return prediction.predict_originals(ids, device=distributed.device(device), **values)
