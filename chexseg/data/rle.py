"""Binary masks as COCO run lengths: encoding, checking, resizing without decoding; and polygons filled to masks.

A mask on disk is `{"size": [h, w], "counts": "<COCO RLE>"}` (pycocotools). Files of masks are in `mask_files`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from chexseg.data.mask_sizes import check_size
from chexseg.errors import DataError

_MASKS = 200  # pycocotools cannot tell the areas of 256 masks at once (their number is a uint8 there)
MAX_COORDINATE = 1_000_000  # of a polygon, which may reach out of its image
MAX_RUN = (1 << 32) - 1  # pycocotools counts a run in 32 bits
_MAX_DIGITS = 7  # of base 32, in a difference of two such runs


def encode(masks: np.ndarray) -> list[dict]:
    """(T, h, w) masks, non-zero = inside -> T run-length masks."""
    columns = np.asfortranarray(np.moveaxis(np.asarray(masks) != 0, 0, -1).view(np.uint8))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in coco.encode(columns)]


def encode_box(columns: np.ndarray, top: int, left: int, size: Sequence[int]) -> dict:
    """The run-length mask of `size` (height, width) that is 0 but for a box at row `top` and column `left`, given by
    its columns (w, h) uint8 in {0, 1}: what `encode` gives for the whole mask, at the cost of the box's columns."""
    height, width = (int(n) for n in size)
    whole = np.zeros((len(columns), height), np.uint8)
    whole[:, top : top + columns.shape[1]] = columns
    inside = whole.ravel()
    ends = [np.flatnonzero(inside[1:] != inside[:-1]) + 1]
    if inside[0]:
        ends.insert(0, np.zeros(1, np.int64))
    if inside[-1]:
        ends.append(np.array([inside.size]))
    found = np.concatenate(ends) + left * height
    runs = np.diff(found[found < height * width], prepend=0, append=height * width).tolist()
    coded = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": coded["counts"].decode()}


def empty(size: Sequence[int]) -> dict:
    """The run-length mask of `size` (h, w) without a pixel."""
    height, width = (int(n) for n in size)
    run = coco.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)  # no pixel is touched
    return {"size": [height, width], "counts": run["counts"].decode()}


def decode(rles: Sequence[Mapping]) -> np.ndarray:
    """T run-length masks of one size -> (T, h, w) uint8 in {0, 1}."""
    return np.moveaxis(coco.decode(list(rles)), -1, 0)


def check(rle: Mapping, where: str) -> dict:
    """A mask in the one form that the rest of the code expects: size as two ints, counts as text.

    Accepts counts as bytes and as an uncompressed list. Raises DataError, starting with `where`, for anything else,
    and for damaged run lengths.
    """
    if type(rle) is Vetted:
        return rle
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise DataError(f"{where}: {str(rle)[:60]!r} is not a mask; expected size [h, w] and counts")
    height, width = check_size(rle["size"], where)
    counts = rle["counts"]
    if isinstance(counts, (list, tuple)):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != height * width:
            raise DataError(f"{where}: its run lengths do not add up to {height} x {width}")
        counts = coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if not isinstance(counts, str):
        raise DataError(f"{where}: counts of type {type(counts).__name__}; expected text or a list of numbers")
    rle = {"size": [height, width], "counts": counts}
    if _is_damaged(height, width, counts):
        raise DataError(f"{where}: its run lengths are damaged: they do not add up to {height} x {width}")
    return rle


@lru_cache(maxsize=64)  # most masks of a file are one and the same: empty
def _is_damaged(height: int, width: int, counts: str) -> bool:
    try:
        run_lengths({"size": (height, width), "counts": counts})
    except DataError:
        return True
    return False


def run_lengths(rle: Mapping) -> np.ndarray:
    """Lengths of the runs, column by column from the top left, the first of zeros. DataError where they are not
    numbers that add up to the size, none of them negative (pycocotools would read past the end on these).

    The format is pycocotools' (maskApi.c, rleToString): base-32 digits from "0" on, low digit first, bit 5 = goes on,
    bit 4 of the last digit = sign; from the fourth number on, the difference to the number two before.
    """
    (height, width), counts = rle["size"], rle["counts"].encode("utf-8", "surrogatepass")
    digits = np.frombuffer(counts, np.uint8) - np.uint8(48)
    last = np.flatnonzero(digits < 32)
    size = np.diff(last, prepend=-1)
    # Nothing but digits, the last one closing a number; none so long that it could overflow.
    if digits.size and digits.max() < 64 and digits[-1] < 32 and size.max() <= _MAX_DIGITS:
        low = digits & np.uint8(31)
        lengths = (low[last] ^ np.uint8(16)).astype(np.int64) - 16  # bits 0 to 3 and the sign
        for back in range(1, size.max()):
            more = np.flatnonzero(size > back)
            lengths[more] = lengths[more] * 32 + low[last[more] - back]
        lengths[1::2] = np.cumsum(lengths[1::2])
        lengths[2::2] = np.cumsum(lengths[2::2])
        if lengths.min() >= 0 and lengths.max() <= MAX_RUN and lengths.sum() == height * width:
            return lengths
    raise DataError(f"a mask of {height} x {width} has damaged run lengths; make its file again")


class Vetted(dict):
    """A mask that is known to be as `check` returns them, and its `area` in pixels. Not to be changed."""

    __slots__ = ("area",)
    area: int


def vetted(size: list[int], counts: bytes, area: int) -> Vetted:
    """A mask of what `areas` has looked at."""
    mask = Vetted(size=size, counts=counts.decode("ascii"))
    mask.area = area
    return mask


def areas(pixels: np.ndarray, counts: Sequence[bytes]) -> np.ndarray:
    """Pixels inside each of many masks of films of `pixels` (T,): (T,) int64; -1 where the run lengths are not whole by
    the rules of `run_lengths`. It is done for all in one row of digits, in a tenth of the time of one after another."""
    found = np.full(len(counts), -1, np.int64)
    chars = np.fromiter(map(len, counts), np.int64, len(counts))
    begin = np.cumsum(chars) - chars
    digits = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    fine = chars > 0
    if digits.size:
        filled = np.flatnonzero(fine)
        fine[filled] = digits[begin[filled] + chars[filled] - 1] < 32  # the last digit ends a number
        if digits.max() >= 64:
            fine[filled] &= np.maximum.reduceat(digits, begin[filled]) < 64
    if not fine.all():
        rest = np.flatnonzero(fine)
        found[rest] = areas(pixels[rest], [counts[row] for row in rest.tolist()])
        return found
    if not counts:
        return found
    last = np.flatnonzero(digits < 32)
    digits &= np.uint8(31)
    size, more = np.diff(last, prepend=-1), np.arange(len(last))
    longest = int(size.max())
    first = np.searchsorted(last, begin)  # each mask's first run
    runs = np.diff(first, append=len(last))
    # Sums of so few numbers of so few digits have room in 32 bits.
    kind: Any = np.int32 if longest < 6 and (int(runs.max()) << (5 * longest)) < 1 << 31 else np.int64
    lengths = (digits[last] ^ np.uint8(16)).astype(kind) - kind(16)
    for back in range(1, min(longest, _MAX_DIGITS)):
        more = more[size[more] > back]
        lengths[more] = lengths[more] * kind(32) + digits[last[more] - back]
    # Two rows, zeros and ones by turns, in which each mask begins a column: a length is told as the difference to the
    # one before it, but for the first of all and those of the first column with ones.
    columns = (runs + 1) // 2
    start = np.cumsum(columns) - columns
    by_turns = np.zeros(2 * int(columns.sum()), kind)
    by_turns[np.arange(len(last)) + np.repeat(2 * start - first, runs)] = lengths
    zeros, ones = by_turns[::2].copy(), by_turns[1::2].copy()
    opening = zeros[start]
    zeros[start] = 0
    for row in (zeros, ones):
        before = row[start]
        np.cumsum(row, dtype=kind, out=row)
        row -= np.repeat(row[start] - before, columns)
    zeros[start] = opening
    odd = np.flatnonzero(runs % 2)
    ones[start[odd] + columns[odd] - 1] = 0  # where a mask ends with zeros there is nothing
    whole = np.maximum.reduceat(size, first) <= _MAX_DIGITS
    for row in (zeros, ones):
        whole &= (np.minimum.reduceat(row, start) >= 0) & (np.maximum.reduceat(row, start) <= MAX_RUN)
    inside = np.add.reduceat(ones, start, dtype=np.int64)
    whole &= np.add.reduceat(zeros, start, dtype=np.int64) + inside == pixels
    found[whole] = inside[whole]
    return found


def area(rles: Sequence[Mapping]) -> np.ndarray:
    """Pixels inside each mask, (T,) int64."""
    found = np.array([coded.area if type(coded) is Vetted else -1 for coded in rles], np.int64)
    if unknown := np.flatnonzero(found < 0).tolist():
        for start in range(0, len(unknown), _MASKS):
            some = unknown[start : start + _MASKS]
            found[some] = coco.area([rles[row] for row in some])
    return found


def sample(rle: Mapping, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The mask at the grid of distinct, ascending `rows` (a,) and `columns` (b,): (a, b) uint8, at a cost of its runs,
    not its pixels: a 2320 x 2828 mask is reduced to 320 x 320 without ever being decoded."""
    height = rle["size"][0]
    ends = np.cumsum(run_lengths(rle))
    column, row = np.divmod(ends, height)
    # How many grid points, column by column, lie before each run's end.
    whole = np.searchsorted(columns, column)
    begun = np.searchsorted(columns, column, "right") > whole
    before = whole * len(rows) + begun * np.searchsorted(rows, row)
    values = np.repeat(np.arange(len(ends), dtype=np.uint8) & 1, np.diff(before, prepend=0))
    return values.reshape(len(columns), len(rows)).T


def resize(rles: Sequence[Mapping], size: tuple[int, int]) -> np.ndarray:
    """T masks -> (T, *size) uint8 by nearest neighbour, pixel centres aligned as when an image is resized.

    Masks of one image may differ in size: each is stretched to `size`.
    """
    resized = np.zeros((len(rles), *size), np.uint8)
    for target, rle in zip(resized, rles, strict=True):
        # Distinct source rows and columns first, then their repeats: nothing to do when the mask shrinks.
        (rows, again_y), (columns, again_x) = (
            np.unique(nearest(n, m), return_inverse=True) for n, m in zip(size, rle["size"], strict=True)
        )
        small = sample(rle, rows, columns)
        target[:] = small if small.shape == tuple(size) else small[again_y][:, again_x]
    return resized


def nearest(count: int, source: int) -> np.ndarray:
    """The source index under the centre of each of `count` pixels that cover `source` pixels."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * source) // (2 * count)


def from_polygons(polygons: Iterable[Sequence], size: Sequence[int], where: str = "polygons") -> np.ndarray:
    """Union of the filled polygons, outlines included, as (h, w) uint8. A polygon is a list of (x, y) in pixels."""
    height, width = size
    canvas = Image.new("L", (int(width), int(height)))
    draw = ImageDraw.Draw(canvas)
    try:
        for polygon in polygons:
            points = [(float(x), float(y)) for x, y in polygon]
            if not np.isfinite(points).all() or (points and np.abs(points).max() > MAX_COORDINATE):
                raise ValueError(f"a coordinate is not a number up to {MAX_COORDINATE}")
            if len(points) == 1:
                draw.point(points, 1)
            elif points:
                draw.polygon(points, outline=1, fill=1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: not a list of polygons [[[x, y], ...], ...] ({error})") from error
    return np.asarray(canvas)
