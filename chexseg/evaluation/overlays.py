"""One film with the outlines of what was found in it, and many of them on a contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from chexseg.data.images import opened
from chexseg.evaluation.figure import COLOURS, THEMES, outlined
from chexseg.runtime.files import replace

BACKGROUND, TEXT, FAINT = THEMES["dark"]
SIDE = 512  # longer side of an overlay's film in pixels
CELL, SHEET = 232, 60  # side of a film on the contact sheet, and how many films it has at most
LINE, MARGIN = 22, 8


def overlay(film: np.ndarray, masks: Mapping[str, np.ndarray], tasks: Sequence[str]) -> np.ndarray:
    """A film (h, w) uint8 with the outlines of `masks` (h, w) by task: (h + legend, w, 3) uint8. `tasks`: all that the
    network knows, in order, so that a task has one colour on all films."""
    colours = {task: np.array(to_rgb(COLOURS[i % len(COLOURS)])) for i, task in enumerate(tasks)}
    stack = {task: mask.astype(np.uint8) for task, mask in masks.items() if mask.any()}
    picture = outlined(_stretched(film), stack, colours)
    return np.concatenate([picture, legend(list(stack), tasks, film.shape[1])])


def _stretched(film: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h, w, 3) uint8, contrast stretched between the 1st and 99th percentile."""
    below = np.bincount(film.ravel(), minlength=256).cumsum()
    low, high = np.searchsorted(below, (0.01 * film.size, 0.99 * film.size))
    table = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1) * 0.92 * 255
    return cv2.cvtColor(cv2.LUT(film, np.rint(table).astype(np.uint8)), cv2.COLOR_GRAY2RGB)


def legend(shown: Sequence[str], tasks: Sequence[str], width: int) -> np.ndarray:
    """A strip (h, width, 3) with the colours of the tasks in `shown`."""
    font = ImageFont.load_default(size=13)
    places, x, y = [], MARGIN, 4
    for task in shown:
        length = LINE + int(font.getlength(task)) + 2 * MARGIN
        if x > MARGIN and x + length > width:
            x, y = MARGIN, y + LINE
        places.append((x, y, task))
        x += length
    strip = Image.new("RGB", (width, y + LINE), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    if not shown:
        draw.text((MARGIN, y), "nothing found", fill=FAINT, font=font)
    for x, y, task in places:
        draw.rectangle((x, y + 3, x + 12, y + 14), fill=COLOURS[list(tasks).index(task) % len(COLOURS)])
        draw.text((x + LINE, y), task, fill=TEXT, font=font)
    return np.asarray(strip)


def save(path: Path, picture: np.ndarray) -> None:
    """Write (h, w, 3) uint8 as PNG (`files.replace`)."""
    data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    replace(path, data)


def contact_sheet(overlays: Mapping[str, tuple[Path, tuple[int, int]]], tasks: Sequence[str], total: int) -> np.ndarray:
    """Small copies of overlays, (path, shape of the film on it) by image id, under their ids: (h, w, 3) uint8.

    `total`: films that there are; `chosen` says which are shown.
    """
    count = max(1, len(overlays))
    columns = min(count, max(3, round((1.4 * count) ** 0.5)))
    height, width = CELL + LINE, columns * (CELL + MARGIN) + MARGIN
    head = legend(tasks, tasks, width)
    sheet = Image.new("RGB", (width, len(head) + -(-count // columns) * height + LINE), BACKGROUND)
    sheet.paste(Image.fromarray(head), (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image_id, (path, shape)) in enumerate(overlays.items()):
        x, y = MARGIN + number % columns * (CELL + MARGIN), len(head) + number // columns * height
        with opened(path, formats=("PNG",)) as picture:
            small = picture.convert("RGB").crop((0, 0, shape[1], shape[0]))
        small.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
        draw.text((x, y + CELL + 2), _shortened(image_id, font), fill=FAINT, font=font)
    said = f"{len(overlays)} of {total} films" if len(overlays) < total else f"{total} films"
    draw.text((MARGIN, sheet.height - LINE + 4), said, fill=FAINT, font=font)
    return np.asarray(sheet)


def chosen(ids: Sequence[str], count: int = SHEET) -> list[str]:
    """At most `count` of the ids, evenly spread."""
    return list(ids) if len(ids) <= count else [ids[i * len(ids) // count] for i in range(count)]


def _shortened(text: str, font) -> str:
    """The text, or its beginning and end, as wide as a cell."""
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    cut, half = text, len(text) // 2
    while font.getlength(cut) > CELL and half > 1:
        half -= 1
        cut = f"{text[:half]}...{text[-half:]}"
    return cut
