"""Any X-ray under any name: image ids from paths, file names from image ids, the images below a folder.

An image's id is its path below the folder that was named, without the suffix, "/" turned to "__"; a path that ends in
CheXpert's patient/study/view gives `patient00001_study1_view1_frontal`, and one that ends as MIMIC-CXR's does gives
`p10000032_s50414267_<image>`. Characters that are no text, such as a line's end, are written as %XX. Decoding images is
in `images`.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from urllib.parse import quote, unquote

from chexseg.data.names import MAX_ID, NO_TEXT
from chexseg.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm", ".dicom")
MAX_NAME = 200  # bytes; file systems allow 255, of which a suffix and a temporary name's ends take some

_PATIENT_FIRST = ((r"patient\w+", r"study\w+", r"view\w+"), (r"p\d+", r"s\d+", r"[\w-]+"))  # CheXpert, MIMIC-CXR
# What a file name may hold as it is: no path separator, no control character, nothing that a shell or a
# file system reads as more than a name.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\%:*?"<>|\ud800-\udfff]')


def image_id(path: PurePath) -> str:
    """The id of an image whose path below the named folder is `path`."""
    *folders, name = path.parts
    stem = name[: -len(path.suffix)] if path.suffix.lower() in SUFFIXES else name
    last = [*folders[-2:], stem]
    for forms in _PATIENT_FIRST:
        if len(last) == 3 and all(re.fullmatch(form, word) for form, word in zip(forms, last, strict=True)):
            return "_".join(last)
    name = "__".join([*folders, stem])
    # A file system allows what is no text, and a thousand folders in each other; an id (`names.check_id`) does not.
    name = NO_TEXT.sub(lambda found: quote(found.group(), safe="", errors="surrogateescape"), name)
    return name if len(name) <= MAX_ID else name[: MAX_ID - 17] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]


def file_stem(text: str) -> str:
    """The file name, without a suffix, of an image id or a task: never hidden, never a path, at most 200 bytes.

    What is not safe is written as %XX, so that `text_of` turns it back; a text that is too long ends in a hash.
    """
    name = _UNSAFE.sub(lambda found: _percent(found.group()), text)
    if name.startswith((".", " ", "-")) or not name:
        name = _percent(name[0]) + name[1:] if name else "%"
    data = name.encode()
    if len(data) <= MAX_NAME:
        return name
    return data[: MAX_NAME - 17].decode(errors="ignore") + "~" + hashlib.sha256(data).hexdigest()[:16]


def _percent(character: str) -> str:
    if character in ".-":  # which `quote` leaves alone
        return f"%{ord(character):02X}"
    return quote(character, safe="", errors="surrogatepass")


def text_of(stem: str) -> str:
    """The image id or task that `file_stem` turned into `stem`."""
    return "" if stem == "%" else unquote(stem, errors="surrogatepass")


def find(places: Sequence[Path], suffixes: Sequence[str] = SUFFIXES, *, without: Path | None = None) -> dict[str, Path]:
    """The images in `places`, folders (with all below them) or files, by id, in the order of their ids.

    A file that was named itself has its name as id, whatever its suffix. What is below the folder `without` is left
    out: the output of an earlier run. DataError for a place that is not there or has no image, and for two files with
    one id.
    """
    leave = None if without is None else os.path.realpath(without)
    found: dict[str, Path] = {}
    for place in places:
        place, count = Path(place), 0
        for path, relative in _below(place, tuple(suffixes), leave):
            count += 1
            name = image_id(relative)
            if name in found and not os.path.samefile(found[name], path):
                raise DataError(f"{found[name]} and {path} both have the image id {name!r}; rename or move one of them")
            found.setdefault(name, path)
        if not count:
            raise DataError(f"{place}: no image in this folder; looked for {', '.join(suffixes)}")
    return dict(sorted(found.items()))


def by_last_word(place: Path) -> dict[str, list[tuple[str, Path]]]:
    """The images below a folder, (id, path) by the last word of their id: what stands behind the last `__`."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path, relative in _below(place, SUFFIXES, None):
        name = image_id(relative)
        found.setdefault(name.rsplit("__", 1)[-1], []).append((name, path))
    return found


def _below(place: Path, suffixes: tuple[str, ...], leave: str | None) -> Iterator[tuple[Path, PurePath]]:
    """(path, path below the place) of a file, or of every image in a folder; hidden files and folders are left out."""
    if place.is_file():
        yield place, PurePath(place.name)
        return
    if not place.is_dir():
        raise DataError(f"{place}: no such file or folder")
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(folder, name)) != leave
        )
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                path = Path(folder, name)
                yield path, path.relative_to(place)
