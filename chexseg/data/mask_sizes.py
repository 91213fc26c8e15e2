"""The size of an image's masks, checked before anything of that size is made."""

from collections.abc import Mapping, Sequence
from typing import Any

from chexseg.errors import DataError

MAX_PIXELS = 1 << 28  # of one image; larger than any X-ray, small enough for a decoded mask


def check_size(size: Sequence[Any], where: str) -> tuple[int, int]:
    """(height, width) as numbers. DataError where they are none, or would fill the memory."""
    try:
        height, width = (int(n) for n in size)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: size {str(size)[:60]!r} is not (height, width)") from error
    if not (0 < height and 0 < width and height * width <= MAX_PIXELS):
        raise DataError(f"{where}: {height} x {width} pixels cannot be an image's size")
    return height, width


def common_size(entry: Mapping[str, Mapping], where: str) -> tuple[int, int]:
    """The size of all masks of an image. DataError where they differ: these formats have one for each image."""
    sizes = {tuple(mask["size"]) for mask in entry.values()}
    if len(sizes) != 1:
        raise DataError(f"{where}: masks of {len(sizes)} sizes, {sorted(sizes)[:3]}; this format has one for an image")
    return check_size(sizes.pop(), where)
