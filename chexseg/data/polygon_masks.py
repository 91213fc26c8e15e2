"""Stage 2 for radiologists: polygons of an annotation file -> masks of every task at each image's own size."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chexseg.data import rle
from chexseg.data.mask_files import PolygonFile, Polygons
from chexseg.runtime.workers import LazySequence, ordered_map


@dataclass(frozen=True)
class PolygonMasks:
    """Masks of `tasks` for the images of an annotation file; a task without a polygon gets an empty mask."""

    annotations: PolygonFile
    tasks: tuple[str, ...]

    def count(self) -> tuple[Counter[str], int]:
        """How many images have a polygon of each task that occurs, and how many have none of `tasks`."""
        images_with: Counter[str] = Counter()
        blank = 0
        for _, polygons in self.annotations.values():
            images_with.update(task for task, outlines in polygons.items() if outlines)
            blank += not any(polygons.get(task) for task in self.tasks)
        return images_with, blank

    def process(self, ids: Sequence[str], *, num_workers: int = 0) -> Iterator[tuple[str, dict]]:
        """(image id, masks by task) of the given images, in order. The file is read here, an image at its turn;
        `num_workers` processes fill the polygons."""
        outlines = LazySequence(ids, lambda image_id: (image_id, *self.annotations[image_id]))
        fill = _Filler(str(self.annotations.path), self.tasks)
        return ordered_map(fill, outlines, num_workers)


@dataclass(frozen=True)
class _Filler:
    """What a worker does; `path` is named in errors."""

    path: str
    tasks: tuple[str, ...]

    def __call__(self, item: tuple[str, tuple[int, int], Polygons]) -> tuple[str, dict]:
        image_id, size, polygons = item
        masks = {task: rle.empty(size) for task in self.tasks}
        for task in self.tasks:
            if outlines := polygons.get(task):
                mask = rle.from_polygons(outlines, size, f"{self.path}: {image_id}: {task}")
                masks[task] = rle.encode(mask[None])[0]
        return image_id, masks
