"""Stage 1 as a whole: X-rays in, records of the saliency store out.

Light to import: torch and the network come in when the first image is processed, so a stage that is up to date costs
neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chexseg.classifier.ensemble import Ensemble, Members, files
from chexseg.classifier.saliency_store import SaliencyRecord, StoreShards
from chexseg.data.chexpert import ImageSet


@dataclass
class SaliencyStage:
    """Saliency maps and probabilities of an image set by the classifier at `checkpoint`, or by an ensemble of them; the
    process and the shard format of `shards.build`.

    checkpoint     a file, or the files of each task
    tasks          names of a foreign checkpoint's outputs, in order; our own checkpoints name theirs
    image_size     side of the network's input, None = the checkpoint's
    normalisation  of the input, None = the checkpoint's
    output_stride  16 or 8 for denser maps than those of the checkpoint's training; None = the checkpoint's
    map_scales, map_mirror  what maps are averaged over; see `cam.averaged_saliency`
    pickles        folder for CheXlocalize's pickles, beside the store; None = none are written
    """

    checkpoint: Path | Members
    images: ImageSet
    tasks: Sequence[str]
    image_size: int | None = None
    normalisation: str | None = None
    cam_method: str = "gradcam"
    output_stride: int | None = None
    map_scales: Sequence[float] = (1.0,)
    map_mirror: bool = False
    batch_size: int = 16
    num_workers: int = 0
    device: str = "auto"
    pickles: Path | None = None

    @cached_property
    def classifier(self) -> Ensemble:
        """The networks in eval mode, on the CPU."""
        from chexseg.classifier import models

        paths = [self.checkpoint] if isinstance(self.checkpoint, Path) else files(self.checkpoint)
        networks = {
            path: models.load_classifier(
                path, self.tasks, normalisation=self.normalisation, output_stride=self.output_stride
            )
            for path in paths
        }
        if isinstance(self.checkpoint, Path):
            return Ensemble(networks, {task: paths for task in networks[self.checkpoint].spec.tasks})
        return Ensemble(networks, self.checkpoint)

    @property
    def size(self) -> int:
        """Side of the network's input."""
        return self.image_size or self.classifier.image_size

    def process(self, ids: Sequence[str]) -> Iterator[SaliencyRecord]:
        """One record an image, in order. Raises DataError for a checkpoint or an image that cannot be read."""
        from chexseg.classifier.dataset import read_batches
        from chexseg.classifier.saliency_pickles import write_pickles
        from chexseg.runtime import distributed

        device = distributed.device(self.device)
        model = self.classifier.to(device)
        labels = self.images.frame.reindex(columns=model.tasks)
        for names, pixels, sizes in read_batches(self.images, ids, self.size, self.batch_size, self.num_workers):
            saliency = model.saliency(
                pixels.to(device, non_blocking=True), self.cam_method, scales=self.map_scales, mirror=self.map_mirror
            )
            maps, probabilities = (t.float().cpu().numpy() for t in saliency)
            for slot, image_id in enumerate(names):
                if image_id is None:  # an empty slot of a batch
                    continue
                record: SaliencyRecord = {
                    "id": image_id,
                    "maps": maps[slot],
                    "probabilities": probabilities[slot],
                    "size": sizes[slot],
                }
                if self.pickles:
                    image = pixels[slot].numpy()
                    write_pickles(self.pickles, image_id, model.tasks, record, image, labels.loc[image_id].to_numpy())
                yield record

    @property
    def _shards(self) -> StoreShards:
        return StoreShards(self.classifier.tasks, self.size, len(self.images.ids))

    def write(self, records: Sequence[SaliencyRecord], path: Path) -> None:
        self._shards.write(records, path)

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        self._shards.merge(parts, path)
