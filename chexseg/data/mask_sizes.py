"""The size of an image's masks, checked before anything of that size is made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chexseg.errors import DataError

MAX_SIDE = 100_000
MAX_PIXELS = 1 << 26  # of one image; three times the largest X-ray, small enough for some copies of it as float32
MAX_ROOM = 1 << 30  # pixels of all masks of an image


def check_size(size: Any, where: str) -> tuple[int, int]:
    """(height, width) as whole numbers. DataError where they are none, or would fill the memory."""
    if not isinstance(size, Sequence) or isinstance(size, (str, bytes)) or len(size) != 2:
        raise DataError(f"{where}: size {str(size)[:60]!r} is not (height, width)")
    height, width = (_whole(n) for n in size)
    if height is None or width is None:
        raise DataError(f"{where}: size {str(size)[:60]!r} is not (height, width) in whole pixels")
    if not is_size(height, width):
        raise DataError(
            f"{where}: {height} x {width} pixels cannot be an image's size: it has a pixel and at most "
            f"{MAX_PIXELS >> 20} million; correct the file"
        )
    return height, width


def is_size(height: int, width: int) -> bool:
    """Whether an image can have this size."""
    return 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS


def _whole(value: Any) -> int | None:
    """The whole number that a value is (also 320.0, as other tools write it); None for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    try:
        return None if isinstance(value, bool) else value.__index__()
    except AttributeError:
        return None


def check_room(sizes: Iterable[Sequence[int]], where: str) -> None:
    """DataError where the masks of an image, decoded, would fill the memory."""
    pixels = sum(height * width for height, width in sizes)
    if pixels > MAX_ROOM:
        raise DataError(
            f"{where}: its masks have {pixels} pixels together, more than {MAX_ROOM}; split the file by tasks"
        )


def common_size(entry: Mapping[str, Mapping], where: str) -> tuple[int, int]:
    """The size of all masks of an image. DataError where they differ: these formats have one for each image."""
    sizes = {tuple(mask["size"]) for mask in entry.values()}
    if len(sizes) != 1:
        raise DataError(f"{where}: masks of {len(sizes)} sizes, {sorted(sizes)[:3]}; this format has one for an image")
    return check_size(sizes.pop(), where)
