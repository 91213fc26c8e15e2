"""Stage 7 for films of any place: X-rays in, masks, overlays and numbers out.

Light to import: torch and the network come in when the first film is processed.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexseg.data import image_folder, json_lines
from chexseg.errors import DataError
from chexseg.runtime.files import atomic, replace

if TYPE_CHECKING:
    import numpy as np

    from chexseg.segmentation.model import SegmentationSpec

log = logging.getLogger(__name__)
MASKS, FINDINGS, SKIPPED, SHEET = "masks.json", "findings.csv", "skipped.csv", "contact_sheet.png"
PAGE, PICTURES = "reading_room.html", ".reading_room"  # the page, and the pictures that wait for it


@dataclass(frozen=True)
class FilmStage:
    """Masks of films by the network at `model_path`: the process and the shard format of `shards.build`.

    paths      the films by id, in order
    folder     where everything is written: `masks.json`, `findings.csv`, `skipped.csv`, `overlays/`, `dicom_seg/`
    overlays   write a picture of each film
    dicom_seg  write a DICOM SEG of each film, which refers to the film's file where that is DICOM
    page       keep a small picture of each film, until `write_page` has used them
    """

    paths: Mapping[str, Path]
    folder: Path
    model_path: Path
    thresholds_path: Path
    overlays: bool = True
    dicom_seg: bool = False
    page: bool = False
    batch_size: int = 8
    precision: str = "auto"
    num_workers: int = 0
    device: str = "auto"

    @property
    def output(self) -> Path:
        return self.folder / MASKS

    def overlay_path(self, image_id: str) -> Path:
        return self.folder / "overlays" / f"{image_folder.file_stem(image_id)}.png"

    def seg_path(self, image_id: str) -> Path:
        return self.folder / "dicom_seg" / f"{image_folder.file_stem(image_id)}.dcm"

    def picture_path(self, image_id: str) -> Path:
        return self.folder / PICTURES / f"{image_folder.file_stem(image_id)}.jpg"

    def process(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """One record a film, in order: `id`, `masks` and `rows` (see `findings`), or `problem` where its file cannot be
        read. Pictures and DICOM SEG files are written before their record is given."""
        from concurrent.futures import ThreadPoolExecutor

        import torch

        from chexseg.runtime import distributed
        from chexseg.segmentation import prediction
        from chexseg.segmentation.films import Films
        from chexseg.segmentation.model import load_model
        from chexseg.segmentation.thresholds import read_thresholds

        for name, wanted in (("overlays", self.overlays), ("dicom_seg", self.dicom_seg), (PICTURES, self.page)):
            if wanted:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        device = distributed.device(self.device)
        model, spec, _ = load_model(self.model_path)
        thresholds = read_thresholds(self.thresholds_path, len(spec.tasks))
        row_of = {name: row for row, name in enumerate(self.paths)}
        batches = prediction.probabilities(
            model.to(device),
            spec,
            Films(self.paths, ids, spec.image_size, preview=self.overlays, picture=self.page),
            batch_size=self.batch_size,
            device=device,
            precision=self.precision,
            num_workers=self.num_workers,
            rows=[row_of[name] for name in ids],
        )
        with ThreadPoolExecutor(max(1, min(4, torch.get_num_threads()))) as pool:
            for samples in batches:
                yield from pool.map(partial(self._record, spec=spec, thresholds=thresholds), samples)

    def _record(
        self, film: tuple[dict, np.ndarray], *, spec: SegmentationSpec, thresholds: Sequence[float]
    ) -> dict[str, Any]:
        from chexseg.segmentation import findings, prediction

        sample, planes = film
        image_id, problem = sample["id"], sample["problem"]
        if problem:
            return {"id": image_id, "problem": problem}
        size = tuple(sample["size"].tolist())
        masks = dict(zip(spec.tasks, prediction.original_masks(planes, size, thresholds), strict=True))
        spacing = tuple(sample["spacing"].tolist())
        known = spacing if spacing[0] > 0 else None
        rows = findings.rows(image_id, masks, planes, thresholds, known, sample["spacing_at"])
        if self.overlays:
            from chexseg.segmentation.films import draw_overlay

            draw_overlay(self.overlay_path(image_id), sample["preview"].numpy(), size, planes, spec.tasks, thresholds)
        if self.page:
            replace(self.picture_path(image_id), sample["picture"])
        if self.dicom_seg:
            from chexseg.data import dicom_images, dicom_seg

            path = self.paths[image_id]
            source = path if dicom_images.is_dicom(path) else None
            dicom_seg.write(self.seg_path(image_id), image_id, masks, source=source)
        return {"id": image_id, "masks": masks, "rows": rows}

    def write(self, records: Sequence[dict[str, Any]], path: Path) -> None:
        """A shard: a line of JSON a film."""
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def merge(self, parts: Sequence[Path], path: Path) -> None:
        """The masks JSON at `path`; beside it the table of findings, and of the films that could not be read."""
        from chexseg.segmentation.findings import COLUMNS

        tables = _table(self.folder / FINDINGS, COLUMNS), _table(self.folder / SKIPPED, ("id", "why"))
        with tables[0] as findings, tables[1] as skipped, open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            between = "\n"
            for record in _records(parts):
                if "problem" in record:
                    skipped.writerow({"id": record["id"], "why": record["problem"]})
                    continue
                file.write(between + json_lines.line(record["id"], record["masks"]))
                between = ",\n"
                findings.writerows(record["rows"])
            file.write("\n}\n")

    def is_whole(self) -> bool:
        """Whether all that belongs to a finished run is there; contents are for `shards.build` to look at."""
        if not all((self.folder / name).is_file() for name in (FINDINGS, SKIPPED)):
            return False
        skipped = {row["id"] for row in read_skipped(self.folder)}
        done = [name for name in self.paths if name not in skipped]
        wanted = [self.overlay_path] * self.overlays + [self.seg_path] * self.dicom_seg
        return all(place(name).is_file() for place in wanted for name in done)

    def draw_sheet(self) -> None:
        """The contact sheet of the finished run's overlays."""
        from chexseg.data.images import fit_shape
        from chexseg.data.mask_files import MaskFile
        from chexseg.evaluation import overlays

        masks = MaskFile(self.output)
        tasks = list(next(iter(masks.values()), {}))
        sizes = {name: next(iter(masks[name].values()))["size"] for name in overlays.chosen(list(masks))}
        found = {
            name: (self.overlay_path(name), fit_shape(size[0], size[1], overlays.SIDE)) for name, size in sizes.items()
        }
        overlays.save(self.folder / SHEET, overlays.contact_sheet(found, tasks, len(masks)))

    def has_page(self) -> bool:
        """Whether the page was written, and to its end: its pictures are taken away then."""
        return (self.folder / PAGE).is_file() and not (self.folder / PICTURES).exists()

    def write_page(self) -> None:
        """The reading room of the films that were read: one HTML file, or several of a large set."""
        from chexseg.data.mask_files import MaskFile
        from chexseg.evaluation import films, page

        masks = MaskFile(self.output)
        tasks = list(next(iter(masks.values()), {}))

        def ready(image_id: str) -> films.Picture | None:
            path = self.picture_path(image_id)
            height, width = next(iter(masks[image_id].values()))["size"]
            return films.Picture(path.read_bytes(), (height, width)) if path.is_file() else None

        if len(masks):
            room = page.own_films({name: self.paths[name] for name in masks}, masks, tasks, ready=ready)
            page.write_reading_room(self.folder, room, name=PAGE)
        self.drop_pictures()

    def drop_pictures(self) -> None:
        """Take the pictures away, as before a run without a page: it would leave those of films that changed as they
        were, for a later page."""
        shutil.rmtree(self.folder / PICTURES, ignore_errors=True)


@contextmanager
def _table(path: Path, columns: Sequence[str]) -> Iterator[csv.DictWriter]:
    """A CSV writer whose file appears when the block ends; a name that is no text keeps its bytes."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        yield writer


def _records(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with open(part, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def read_skipped(folder: Path) -> list[dict[str, str]]:
    """The films of a finished run that could not be read: `id` and `why`."""
    with open(folder / SKIPPED, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def refuse_skipped(folder: Path, total: int, shown: int = 20) -> None:
    """Name the films that could not be read, and raise DataError if there are any."""
    skipped = read_skipped(folder)
    for row in skipped[:shown]:
        log.warning("skipped: %s", row["why"])
    if skipped:
        raise DataError(f"{len(skipped)} of {total} images could not be read: {folder / SKIPPED} names them all")
