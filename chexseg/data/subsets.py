"""Seeded parts of a masks JSON: a subset of pseudo masks, and the experts' images split without sharing a patient."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import compress, groupby
from pathlib import Path

from chexseg.data import leak_guard, mask_files, task_counts
from chexseg.data.chexpert import patient_of
from chexseg.errors import DataError
from chexseg.runtime import provenance, shards

log = logging.getLogger(__name__)


def draw(source: mask_files.MaskFile, count: int, seed: int) -> list[str]:
    """`count` image ids of a masks JSON, sorted. DataError where it has fewer."""
    return sorted(random.Random(seed).sample(_enough(source, sorted(source), count), count))


def split(
    source: mask_files.MaskFile,
    count: int,
    seed: int,
    *,
    only_with_finding: bool,
    patients: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """`count` image ids of a masks JSON and all the others, no patient on both sides; see `split_by_patient`.

    only_with_finding  leave out images whose masks are all empty
    patients           whose an image is, where its id does not say so
    """
    ids = sorted(source)
    showing = list(compress(ids, source.show(ids)))
    what = "left out" if only_with_finding else "split like them"
    log.info(
        "%s: %d images show a finding; %d without one, %s", source.path, len(showing), len(ids) - len(showing), what
    )
    ids = showing if only_with_finding else ids
    return split_by_patient(_enough(source, ids, count), count, seed, patients)


def _enough(source: mask_files.MaskFile, ids: list[str], count: int) -> list[str]:
    if len(ids) < count:
        raise DataError(f"{source.path}: {len(ids)} images; --subset_len {count} asks for more")
    return ids


def split_by_patient(
    ids: Sequence[str], count: int, seed: int, patients: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """`count` of `ids` and the rest: patients in random order, each taken whole if it still fits.

    Where whole patients do not add up to `count`, one of them is on both sides, and a warning says so.
    """
    whose = partial(patient_of, patients=patients)
    groups = [list(group) for _, group in groupby(sorted(ids, key=lambda i: (whose(i), i)), key=whose)]
    random.Random(seed).shuffle(groups)
    chosen: set[str] = set()
    for images in groups:
        if len(chosen) + len(images) <= count:
            chosen.update(images)
    if missing := count - len(chosen):
        images = next(images for images in groups if images[0] not in chosen)
        chosen.update(images[:missing])
        log.warning("%s stands on both sides: whole patients do not add up to %d", whose(images[0]), count)
    return sorted(chosen), sorted(set(ids) - chosen)


def write(source: mask_files.MaskFile, ids: Sequence[str], path: Path, record: dict) -> None:
    """Write the masks of some images of a masks JSON to another one, sealed with `provenance.describe`'s record. Whose
    patients made the source made the subset too."""
    leak_guard.inherit(path, [source.path])
    tally = task_counts.Tally()

    def entries() -> Iterator[tuple[str, Mapping]]:
        for image_id, entry in zip(ids, source.read(ids), strict=True):
            tally.add(entry)
            yield image_id, entry

    mask_files.write(path, entries())
    shards.seal(path, record, provenance.fingerprint(record))
    tasks = list(tally.tasks)
    log.info("%s: %d images\n%s", path, len(ids), "\n".join(task_counts.lines(tally.counts(tasks), tasks)))
