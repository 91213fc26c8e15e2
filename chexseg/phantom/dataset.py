"""Phantom X-rays written in CheXpert's and CheXlocalize's layout, so that a killed run can go on and none is mixed.

The patients are in `patients`, their pictures and the readers' outlines in `images`.
"""

import csv
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2

from chexseg.data import json_lines
from chexseg.errors import DataError
from chexseg.phantom.images import annotate, render
from chexseg.phantom.patients import COLUMNS, DEVICES, OPACITY, TASKS, View, labels, views
from chexseg.phantom.presets import SPLITS, Spec
from chexseg.runtime import provenance
from chexseg.runtime.files import atomic, locked, replace
from chexseg.runtime.progress import Progress
from chexseg.runtime.workers import ordered_map

log = logging.getLogger(__name__)
# Real annotation files use either name of two tasks: the validation file here says these.
VALID_NAMES = {OPACITY: "Lung Opacity", DEVICES: "Support Device"}
JPEG_QUALITY = 90
BATCH = 8  # images a worker takes at once
RELEASE, TESTS = "CheXpert-v1.0", "test"  # folders below CheXpert/


def is_whole(path: Path) -> bool:
    """True for a JPEG that ends as one must."""
    try:
        with open(path, "rb") as file:
            file.seek(-2, 2)
            return file.read() == b"\xff\xd9"
    except OSError:
        return False


@dataclass(frozen=True)
class Job:
    """Some patients' images to draw into `folder`; annotations are wanted for the experts' splits."""

    views: tuple[View, ...]
    folder: Path
    size: int
    with_annotations: bool


class Jobs:
    """A split's jobs, made as they are needed: a million patients take no memory. `images` is how many are missing."""

    def __init__(self, spec: Spec, split: str, folder: Path, with_annotations: bool):
        self.spec, self.split, self.folder, self.with_annotations = spec, split, folder, with_annotations
        self.images = sum(1 for _ in self._pending())

    def _pending(self) -> Iterator[View]:
        for patient in views(self.spec, self.split):
            yield from (view for view in patient if self.with_annotations or not is_whole(self.folder / view.path))

    def __len__(self) -> int:
        return -(-self.images // BATCH)

    def __iter__(self) -> Iterator[Job]:
        pending = self._pending()
        while batch := tuple(islice(pending, BATCH)):
            yield Job(batch, self.folder, self.spec.size, self.with_annotations)


def work(job: Job) -> list[tuple[str, tuple[int, int], dict, dict]]:
    """Write the job's missing images; return (path, (height, width), first and second reader's polygons)."""
    results = []
    for view in job.views:
        path = job.folder / view.path
        if is_whole(path) and not job.with_annotations:
            continue
        if job.with_annotations:
            picture, first, second = annotate(view, job.size)
        else:
            picture, first, second = render(view, job.size)[0], {}, {}
        if not is_whole(path):
            replace(path, cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())
        results.append((view.path, picture.shape, first, second))
    return results


def generate(spec: Spec, out_dir: Path, gt_dir: Path, *, num_workers: int = 0, overwrite: bool = False) -> None:
    """Write the whole set below `out_dir/CheXpert` and the readers' files into `gt_dir`; what is there already stays.

    DataError where either folder holds a set of other arguments (unless `overwrite`) or files this never made.
    """
    root = out_dir / "CheXpert"
    cv2.setNumThreads(1)  # films are small: processes help, threads do not
    record = provenance.describe(asdict(spec), code=__file__)
    with locked(root / ".phantom.lock"):
        finished = _claim(root, gt_dir, record, overwrite)
        files: dict[str, str] = {}
        for split in SPLITS:
            made = _write_split(spec, split, root, gt_dir, finished, num_workers)
            files |= {path.name: provenance.sha256(path) for path in made}
        record |= {"fingerprint": provenance.fingerprint(record), "files": files}
        for folder in (root, gt_dir):
            provenance.write(_manifest(folder), record)


def _manifest(folder: Path) -> Path:
    return folder / "phantom.manifest.json"


def _targets(split: str, root: Path, gt_dir: Path) -> list[Path]:
    """The label and annotation files of a split."""
    if split == "train":
        return [root / RELEASE / "train.csv"]
    if split == "valid":
        return [root / RELEASE / "valid.csv", gt_dir / "gt_annotations_valid.json"]
    names = ("test_labels.csv", "gt_annotations_test.json", "human_annotations_test.json")
    return [gt_dir / name for name in names]


def _folder(split: str, root: Path) -> Path:
    return root / TESTS if split == "test" else root / RELEASE / split


def _claim(root: Path, gt_dir: Path, record: dict, overwrite: bool) -> dict[str, str]:
    """Make the folders ours; return the checksums of files that a former run with these arguments finished."""
    images = [_folder(split, root) for split in SPLITS]
    targets = [path for split in SPLITS for path in _targets(split, root, gt_dir)]
    former = _read_manifests(root, gt_dir)
    for path in [*images, *targets]:
        owner = gt_dir if path.parent == gt_dir else root
        if path.exists() and former[owner] is None:
            raise DataError(f"{path} was not made by this script and is left alone; choose another folder")
    known = [manifest for manifest in former.values() if manifest is not None]
    for manifest in known:
        theirs, ours = manifest["arguments"], record["arguments"]
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing and not overwrite:
            what = ", ".join(f"{name} {theirs.get(name)} instead of {ours[name]}" for name in differing)
            raise DataError(
                f"{root}: holds phantom X-rays of other arguments ({what}); pass --overwrite True to replace"
            )
    fresh = provenance.fingerprint(record)
    stale = [manifest for manifest in known if manifest["fingerprint"] != fresh]
    if stale:
        log.warning("%s: replacing phantom X-rays of other arguments or code", root)
        for folder in images:
            shutil.rmtree(folder, ignore_errors=True)
        for path in targets:
            path.unlink(missing_ok=True)
        known = []
    of_images = former[root]
    finished = of_images["files"] if known and of_images else {}
    for folder in (root, gt_dir):
        provenance.write(_manifest(folder), {**record, "fingerprint": fresh, "files": finished})
    return finished


def _read_manifests(root: Path, gt_dir: Path) -> dict[Path, dict | None]:
    """The manifests of both folders, None where there is none. They say the same: one that is damaged is named, and the
    other stands in for it. DataError where neither is whole."""
    found: dict[Path, dict | None] = {}
    damaged = []
    for path in map(_manifest, (root, gt_dir)):
        record = provenance.read_record(path) if path.exists() else None
        kinds = (("arguments", dict), ("fingerprint", str), ("files", dict))
        if record is not None and not all(isinstance(record.get(name), kind) for name, kind in kinds):
            damaged.append(path)
            record = None
        found[path.parent] = record
    whole = next((record for record in found.values() if record is not None), None)
    if damaged and whole is None:
        raise DataError(f"{damaged[0]}: damaged; remove {damaged[0].parent} and run again")
    return found | {path.parent: whole for path in damaged}


def _write_split(spec: Spec, split: str, root: Path, gt_dir: Path, finished: dict, num_workers: int) -> list[Path]:
    """Write what is missing of a split; return its label and annotation files."""
    targets, folder = _targets(split, root, gt_dir), _folder(split, root)
    intact = all(path.exists() and provenance.sha256(path) == finished.get(path.name) for path in targets)
    with_annotations = split != "train" and not intact
    jobs = Jobs(spec, split, folder, with_annotations)
    if intact and not jobs.images:
        log.info("%s: up to date", folder)
        return targets
    names = VALID_NAMES if split == "valid" else {}
    outlined = {}  # by the first reader: the labels agree with it
    with ExitStack() as files:
        # The last entered is renamed first: the files appear in their order, after the labels.
        paths = targets[:0:-1] if with_annotations else []
        readers = [files.enter_context(json_lines.writer(path)) for path in paths][::-1]
        with Progress(f"phantom X-rays, {split}", jobs.images) as progress:
            for results in ordered_map(work, jobs, num_workers):
                for path, size, *found in results if with_annotations else ():
                    outlined[path] = frozenset(map(sys.intern, found[0]))
                    for reader, add in enumerate(readers):
                        _add_annotations(add, path, size, found, reader, names)
                progress.update(len(results))
        if not intact:
            _write_labels(targets[0], spec, split, outlined)
    return targets


def _write_labels(path: Path, spec: Spec, split: str, outlined: dict[str, frozenset]) -> None:
    """train.csv and valid.csv as in CheXpert; test_labels.csv as in CheXlocalize, without Frontal/Lateral and AP/PA."""
    about = ["Sex", "Age", "Frontal/Lateral", "AP/PA"] if split != "test" else []
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Path", *about, *COLUMNS])
        for view in (view for patient in views(spec, split) for view in patient):
            study = view.study
            truth = None if split == "train" else study.present
            if truth is not None and view.is_frontal:
                # An expert's 1 means that there is something to outline.
                truth = (truth - set(TASKS)) | outlined[view.path]
            side = ["Frontal", "AP" if study.ap else "PA"] if view.is_frontal else ["Lateral", ""]
            person = [study.patient.sex, study.patient.age, *side] if about else []
            prefix = TESTS if split == "test" else f"{RELEASE}/{split}"
            writer.writerow([f"{prefix}/{view.path}", *person, *labels(view, truth)])


def _add_annotations(add: Callable, path: str, size: tuple, found: list[dict], reader: int, names: dict) -> None:
    """A reader's polygons of an image. Images without a finding are absent, as in CheXlocalize; the second reader was
    given those that the first outlined something in, and may have found nothing there."""
    polygons = found[reader]
    if polygons or (reader and found[0]):
        image_id = path.removesuffix(".jpg").replace("/", "_")
        add(image_id, {"img_size": list(size), **{names.get(t, t): p for t, p in polygons.items()}})
