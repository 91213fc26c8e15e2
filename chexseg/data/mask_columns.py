"""Masks of many images as arrays by task, for whoever counts pixels: a mapping of mappings costs ten times as much."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chexseg.data import json_lines, rle


@dataclass(frozen=True)
class MaskColumns:
    """Of some images and tasks, (images, tasks) each: pixels inside the mask, -1 where there is none of the task;
    height and width (.., 2); run lengths, text or bytes."""

    area: np.ndarray
    size: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, images: int, tasks: int) -> "MaskColumns":
        """Without a mask."""
        shape = images, tasks
        return cls(np.full(shape, -1, np.int64), np.zeros((*shape, 2), np.int64), np.full(shape, None, object))

    def put(self, row: int, entry: Mapping[str, Mapping], tasks: Sequence[str]) -> None:
        """Take in the masks of one image."""
        places = [column for column, task in enumerate(tasks) if entry.get(task) is not None]
        masks = [entry[tasks[column]] for column in places]
        if masks:
            self.area[row, places] = rle.area(masks)
            self.size[row, places] = [mask["size"] for mask in masks]
            self.counts[row, places] = [mask["counts"] for mask in masks]

    def masks(self, places: np.ndarray) -> list[dict]:
        """The masks at `places` (a Boolean for each image and task), row by row."""
        sizes, counts = self.size[places].tolist(), self.counts[places].tolist()
        return [{"size": size, "counts": each} for size, each in zip(sizes, counts, strict=True)]


def read(masks: Mapping[str, Mapping], ids: Iterable[str], tasks: Sequence[str]) -> Iterator[MaskColumns]:
    """The masks of many images, block by block in the order of `ids`; of a file as fast as it can be read."""
    for block in json_lines.blocks(ids):
        if hasattr(masks, "columns"):
            yield masks.columns(block, tasks)
        else:
            found = MaskColumns.empty(len(block), len(tasks))
            for row, image_id in enumerate(block):
                found.put(row, masks[image_id], tasks)
            yield found
