"""Any folder of X-rays as an image set without labels; what cannot be read is named and left out."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from chexseg.data.chexpert import ImageSet
from chexseg.data.images import read_image
from chexseg.errors import DataError
from chexseg.runtime import distributed, plain_json, provenance
from chexseg.runtime.files import atomic
from chexseg.runtime.workers import ordered_map

log = logging.getLogger(__name__)
CHECKED = "checked.json"  # image id -> [the file's fingerprint, why it cannot be read or ""]


class FolderSet(ImageSet):
    """Images by id and path, as `image_folder.find` gives them."""

    def __init__(self, paths: Mapping[str, Path]):
        index = pd.Index(list(paths), name="image_id", dtype=object)
        self.frame = pd.DataFrame({"Path": [str(path) for path in paths.values()]}, index=index)
        self.ids, self.paths, self.csv = list(paths), dict(paths), None
        self.rows = {name: row for row, name in enumerate(self.ids)}

    def path(self, image_id: str) -> Path:
        return self.paths[image_id]


def readable(paths: Mapping[str, Path], folder: Path, num_workers: int = 0) -> FolderSet:
    """The images that can be decoded. Each is tried once: what came of it stands in `folder`/checked.json, until the
    file changes. DataError where none can be read."""
    checked = distributed.from_main(lambda: _check(paths, folder / CHECKED, num_workers))
    good = {name: path for name, path in paths.items() if not checked[name][1]}
    if not good:
        raise DataError(f"{len(paths)} images, and none can be read; the first: {next(iter(checked.values()))[1]}")
    return FolderSet(good)


def _check(paths: Mapping[str, Path], record: Path, num_workers: int) -> dict[str, list[str]]:
    try:
        known = plain_json.read(record)
        if not all(type(why) is str for _, why in known.values()):
            known = {}
    except (OSError, ValueError, AttributeError, TypeError):  # of another version, or damaged: looked at again
        known = {}
    prints = {name: provenance.stat_fingerprint(path) for name, path in paths.items()}
    stale = [name for name in paths if known.get(name, [""])[0] != prints[name]]
    problems = dict(zip(stale, ordered_map(_problem, [paths[name] for name in stale], num_workers), strict=True))
    checked = {name: [prints[name], problems[name] if name in problems else known[name][1]] for name in paths}
    if checked != known:
        with atomic(record) as temporary:
            temporary.write_text(json.dumps(checked, indent=0) + "\n")
    return checked


def _problem(path: Path) -> str:
    try:
        read_image(path)
    except DataError as error:
        return " ".join(str(error).split())
    return ""


def refuse_skipped(folder: Path, shown: int = 20) -> None:
    """Name the images that could not be read, and raise DataError if there are any."""
    checked = json.loads((folder / CHECKED).read_text())
    skipped = [why for _, why in checked.values() if why]
    for why in skipped[:shown]:
        log.warning("skipped: %s", why)
    if skipped:
        raise DataError(f"{len(skipped)} of {len(checked)} images could not be read: {folder / CHECKED} names them all")
