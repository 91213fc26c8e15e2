"""What a reading room shows of each film: the picture, outlines of every source, saliency maps, and how well each
source agrees with the expert and the methods with each other. The page itself is made in `page`.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from chexseg.data import rle
from chexseg.data.images import fit_shape
from chexseg.errors import DataError
from chexseg.evaluation import metrics, outlines
from chexseg.evaluation.hits import Maps

SIDE = 768  # longer side of a shown film in pixels; smaller films keep their size
QUALITIES = (88, 82, 75, 66, 55, 40, 25)  # of JPEG, the first that keeps a film below MAX_BYTES
MAX_BYTES = 105_000
MAP_SIDE = 40  # cells of a saliency map along a side, at most
EXPERT, READER, METHOD, PSEUDO = "expert", "reader", "method", "pseudo"
KINDS = (EXPERT, READER, METHOD, PSEUDO)
Masks = Mapping[str, Mapping]  # task -> run-length mask


@dataclass(frozen=True)
class Source:
    """Whose outlines: a `key` for links (without a comma), a title, one of `KINDS`, and the masks by image id."""

    key: str
    title: str
    kind: str
    masks: Mapping[str, Masks]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Picture:
    """A film as it is shown, `jpeg`, and its own `size` (height, width)."""

    jpeg: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Room:
    """A set of films and what is shown on them; the expert, where there is one, is what the others are scored against.

    read   an image's pixels (H, W) uint8
    ready  its `Picture` where that was made before: the film needs not be read again
    """

    images: Sequence[str]
    tasks: tuple[str, ...]
    sources: Sequence[Source]
    read: Callable[[str], np.ndarray]
    maps: Maps | None = None
    ready: Callable[[str], Picture | None] = lambda image: None

    @property
    def truth(self) -> Mapping[str, Masks] | None:
        return next((source.masks for source in self.sources if source.kind == EXPERT), None)


def entry(room: Room, image: str) -> dict[str, Any]:
    """A film's line in the list: id, for each source the tasks that it marks (None: it does not have the film), IoU and
    missed share of the union with the expert in thousandths, and how far the methods are apart (1 - mean IoU).

    `known` lists the tasks that the expert judged where those are not all: the others are unknown, not absent.
    """
    masks = _on_one_grid(room, image)
    marked = [None if one is None else _marked(one, room.tasks) for one in masks]
    truth = next((one for one, source in zip(masks, room.sources, strict=True) if source.kind == EXPERT), None)
    scores = [
        _scores(one, truth, room.tasks) if source.kind != EXPERT else None
        for one, source in zip(masks, room.sources, strict=True)
    ]
    methods = [
        one for one, source in zip(masks, room.sources, strict=True) if source.kind == METHOD and one is not None
    ]
    found: dict[str, Any] = {
        "id": image,
        "has": marked,
        "iou": [score and score[0] for score in scores],
        "missed": [score and score[1] for score in scores],
        "apart": _apart(methods, room.tasks),
    }
    if truth is not None and not set(room.tasks) <= set(truth):
        found["known"] = [number for number, task in enumerate(room.tasks) if task in truth]
    return found


def content(room: Room, image: str, peaks: Mapping[str, float]) -> tuple[dict[str, Any], bytes]:
    """A film's outlines and maps, and its picture as JPEG. `peaks`: the value that each finding's scale ends at."""
    if (picture := room.ready(image)) is None:
        pixels = room.read(image)
        if pixels.ndim != 2:
            raise DataError(f"{image}: expected one grey film, found shape {pixels.shape}")
        picture = Picture(jpeg(shown(pixels)), pixels.shape)
    shape = shown_shape(picture.size)
    found: dict[str, Any] = {"size": [int(n) for n in shape], "original": [int(n) for n in picture.size]}
    found["outlines"] = [_outlines(source.masks.get(image), room.tasks, shape) for source in room.sources]
    if room.maps is not None and image in room.maps:
        found |= _maps(room.maps, image, room.tasks, peaks)
    return found, picture.jpeg


def shown_shape(size: tuple[int, int]) -> tuple[int, int]:
    """The shape that a film of `size` (height, width) is shown at."""
    return fit_shape(*size, min(SIDE, max(size)))


def shown(pixels: np.ndarray) -> np.ndarray:
    """A film (H, W) uint8 at the size that it is shown at, a pixel the mean of those below it. A large one is halved
    first, which takes a third of the time; a last row or column that has no partner is left out."""
    shape = shown_shape(pixels.shape)
    while min(n // 2 - m for n, m in zip(pixels.shape, shape, strict=True)) > 0:
        height, width = (n // 2 for n in pixels.shape)
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return pixels if shape == pixels.shape else cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA)


def peaks(room: Room) -> dict[str, float]:
    """The largest value of each task's maps over all films: one scale a finding, so that films can be compared."""
    highest = dict.fromkeys(room.tasks, 0.0)
    if room.maps is None:
        return {}
    tasks = list(room.maps.tasks)
    rows = {task: tasks.index(task) for task in room.tasks if task in tasks}
    for image in room.images:
        if image in room.maps:
            maps = np.nan_to_num(room.maps[image]["maps"], posinf=0, neginf=0)
            for task, row in rows.items():
                highest[task] = max(highest[task], float(maps[row].max()))
    return {task: highest[task] for task in rows}


def _on_one_grid(room: Room, image: str) -> list[Masks | None]:
    """Each source's masks of the film at the expert's size, or the first source's; None where it lacks the film."""
    entries = [source.masks.get(image) for source in room.sources]
    order = sorted(range(len(entries)), key=lambda i: KINDS.index(room.sources[i].kind))
    sizes = ((int(m["size"][0]), int(m["size"][1])) for i in order for m in (entries[i] or {}).values())
    size = next(sizes, None)
    if size is None:  # no mask of any source
        return list(entries)
    return [None if one is None else {task: _fitted(m, size) for task, m in one.items()} for one in entries]


def _fitted(coded: Mapping, size: tuple[int, int]) -> Mapping:
    return coded if tuple(coded["size"]) == size else rle.encode(rle.resize([coded], size))[0]


def _marked(masks: Masks, tasks: Sequence[str]) -> list[int]:
    """Which tasks have a pixel, by number."""
    return [number for number, task in enumerate(tasks) if task in masks and rle.area([masks[task]])[0]]


def _scores(masks: Masks | None, truth: Masks | None, tasks: Sequence[str]) -> tuple[list, list] | None:
    """Per task IoU and missed share of the union, in thousandths; None where both are empty or nothing is known."""
    if masks is None or truth is None:
        return None
    found = metrics.overlap({"": masks}, {"": truth}, tasks, [""])
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, missed = found.intersection[0] / found.union[0], (found.truth - found.intersection)[0] / found.union[0]
    return _thousandths(iou), _thousandths(missed)


def _apart(methods: Sequence[Masks], tasks: Sequence[str]) -> list[int | None]:
    """1 - mean IoU of all pairs of methods, in thousandths; None where no method marks the task, or there is one only.
    Of a pair, two empty masks agree."""
    found = []
    for task in tasks:
        coded = [masks[task] for masks in methods if task in masks]
        if len(coded) < 2 or not rle.area(coded).any():
            found.append(np.nan)
            continue
        iou, empty = coco.iou(coded, coded, [0] * len(coded)), rle.area(coded) == 0
        pairs = [1.0 if empty[i] and empty[j] else iou[i, j] for i, j in combinations(range(len(coded)), 2)]
        found.append(1 - float(np.mean(pairs)))
    return _thousandths(np.array(found))


def _thousandths(values: np.ndarray) -> list[int | None]:
    return [None if np.isnan(value) else round(1000 * float(value)) for value in values]


def _outlines(masks: Masks | None, tasks: Sequence[str], shape: tuple[int, int]) -> dict[int, str] | None:
    """Outlines by the task's number, at the size that the film is shown at."""
    if masks is None:
        return None
    resized = {number: rle.resize([masks[tasks[number]]], shape)[0] for number in _marked(masks, tasks)}
    return {number: outlines.encode(outlines.trace(mask)) for number, mask in resized.items() if mask.any()}


def _maps(maps: Maps, image: str, tasks: Sequence[str], peaks: Mapping[str, float]) -> dict[str, Any]:
    """Each task's map as bytes, 255 at the end of its scale."""
    found = np.nan_to_num(np.asarray(maps[image]["maps"], np.float32), posinf=0, neginf=0)
    size = tuple(min(n, MAP_SIDE) for n in found.shape[1:])
    coded = {}
    for number, task in enumerate(tasks):
        if not peaks.get(task):
            continue
        one = found[list(maps.tasks).index(task)]
        one = one if one.shape == size else cv2.resize(one, size[::-1], interpolation=cv2.INTER_AREA)
        levels = np.rint(255 * (one / peaks[task]).clip(0, 1)).astype(np.uint8)
        coded[number] = base64.b64encode(levels.tobytes()).decode()
    return {"maps": coded, "map_size": [int(n) for n in size]}


def jpeg(pixels: np.ndarray) -> bytes:
    """(h, w) uint8 as JPEG, of the best of `QUALITIES` that keeps it small."""
    for quality in QUALITIES:
        done, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
        if done and len(coded) <= MAX_BYTES:
            break
    return coded.tobytes()
