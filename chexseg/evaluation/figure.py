"""The picture of a report: for a few images the X-ray and, beside it, what each reader and method saw in it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from chexseg.data import rle
from chexseg.data.chexpert import patient_of
from chexseg.data.images import fit_shape
from chexseg.evaluation import metrics
from chexseg.evaluation.hits import Maps

# Told apart on grey, by people with a red-green deficiency too as far as ten colours go.
COLOURS = (
    "#4dc9ff", "#ff4f4f", "#ffe119", "#58d858", "#b892ff",
    "#ff9d2e", "#ff6fd0", "#12f5c0", "#3f7bff", "#ffffff",
)  # fmt: skip
THEMES = {"dark": ("#0d0f12", "#f2f2f2", "#9aa0a8"), "light": ("#ffffff", "#14181f", "#4a5361")}  # paper, text, faint
BACKGROUND, TEXT, FAINT = THEMES["dark"]  # of pictures that have one theme
METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
PANEL = 480  # longer side of a panel in pixels
WIDTH = 2.35  # of a panel in inches
DPI = 128
FILL = 0.22  # opacity of a mask's area; its outline is opaque
HEAT = 0.62  # opacity of a saliency map at its peak
FOOTNOTE = "IoU: mean over the findings that the expert marked. Dashed: an outline that coincides with another."
MAP_FOOTNOTE = " Saliency map: of these findings, each scaled to its own maximum."
SAME, DASH = 0.85, 9  # IoU above which two outlines count as one; length of a dash in pixels


@dataclass
class Column:
    """A column of the picture: an image's masks by task, or its saliency maps; the X-ray itself where both are None."""

    title: str
    masks: Mapping[str, Mapping] | None = None
    maps: Maps | None = None
    against_truth: bool = False  # caption with the IoU


@dataclass(frozen=True)
class Panel:
    """One picture (h, w, 3), its caption, and the tasks drawn in it."""

    picture: np.ndarray
    note: str = ""
    tasks: frozenset[str] = frozenset()


def choose(truth: Mapping[str, Mapping], images: Sequence[str], tasks: Sequence[str], count: int) -> list[str]:
    """`count` images that together show as many tasks as they can, rather two to four findings an image than more,
    and of different patients as long as there are any."""
    shown = {}
    for image in images:
        entry = truth[image]
        present = [task for task in tasks if task in entry]
        areas = rle.area([entry[task] for task in present]).tolist() if present else []
        shown[image] = {task for task, area in zip(present, areas, strict=True) if area}
    chosen: list[str] = []
    seen: set[str] = set()
    for _ in range(min(count, len(images))):
        known = {patient_of(image) for image in chosen}
        left = [image for image in images if patient_of(image) not in known]
        left = left or [image for image in images if image not in chosen]
        new = {image: len(shown[image] - seen) - 0.4 * abs(len(shown[image]) - 3) for image in left}
        best = max(left, key=lambda image: new[image])
        chosen.append(best)
        seen |= shown[best]
        if seen >= set().union(*shown.values()):
            seen = set()
    return chosen


def draw(
    path: Path,
    images: Mapping[str, np.ndarray],
    truth: Mapping[str, Mapping],
    columns: Sequence[Column],
    tasks: Sequence[str],
    *,
    style: str = "dark",
    kind: str = "png",
) -> None:
    """Write a PNG or PDF (`kind`): a row per image (id -> (H, W) uint8) with the X-ray, the expert's masks, then
    `columns`, on dark or on light ground."""
    background, ink, faint = THEMES[style]
    colours = {task: np.array(to_rgb(COLOURS[i % len(COLOURS)])) for i, task in enumerate(tasks)}
    all_columns = [Column("X-ray"), Column("Expert", truth), *columns]
    rows = [_row(all_columns, image, pixels, truth[image], colours) for image, pixels in images.items()]
    used = [task for task in tasks if any(task in panel.tasks for row in rows for panel in row)]
    # In inches. Rows are as high as their images, so that nothing is stretched or framed by black bars.
    gap, head, caption, line = 0.06, 0.42, 0.24, 0.22
    heights = [WIDTH * row[0].picture.shape[0] / row[0].picture.shape[1] for row in rows]
    width = len(all_columns) * (WIDTH + gap) + gap
    per_line = max(1, int(width / 2))
    maps = any(column.maps is not None for column in columns)
    footnote = textwrap.fill(FOOTNOTE + MAP_FOOTNOTE * maps, int(width * 16))
    note_height = 0.16 * (footnote.count("\n") + 1)
    legend_height = line * -(-len(used) // per_line)
    height = head + sum(heights) + len(rows) * caption + legend_height + note_height + 0.2
    figure = Figure((width, height), dpi=DPI, facecolor=background)
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, color: str = faint, size: int = 8, **where) -> None:
        figure.text(x / width, y / height, text, color=color, size=size, **where)

    for number, column in enumerate(all_columns):
        middle = gap + number * (WIDTH + gap) + WIDTH / 2
        write(middle, height - 0.26, column.title, ink, 10, ha="center", va="center")
    top = height - head
    for image, row, row_height in zip(images, rows, heights, strict=True):
        top -= row_height
        for number, panel in enumerate(row):
            left = gap + number * (WIDTH + gap)
            axes = figure.add_axes((left / width, top / height, WIDTH / width, row_height / height))
            axes.imshow(panel.picture, interpolation="none")
            axes.set_axis_off()
            write(left + WIDTH / 2, top - 0.055, panel.note, ha="center", va="top")
        write(gap, top - 0.055, patient_of(image), va="top")
        top -= caption
    _legend(figure, used, colours, per_line, (0.5, (note_height + 0.1 + legend_height / 2) / height), style)
    write(width / 2, 0.06, footnote, ha="center", va="bottom")
    figure.savefig(path, format=kind, facecolor=background, metadata=METADATA[kind])


def _row(
    columns: Sequence[Column],
    image: str,
    pixels: np.ndarray,
    truth: Mapping[str, Mapping],
    colours: Mapping[str, np.ndarray],
) -> list[Panel]:
    height, width = pixels.shape
    shape = fit_shape(height, width, PANEL)
    base = grey(pixels, shape)
    present = {task: coded for task, coded in truth.items() if task in colours and rle.area([coded])[0]}
    return [_panel(column, image, base, present, colours) for column in columns]


def grey(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 -> (*shape, 3) float in 0..1, contrast stretched between the 1st and 99th percentile."""
    small = cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.percentile(small, (1, 99))
    return np.repeat(np.clip((small - low) / max(high - low, 1), 0, 1)[..., None], 3, -1) * 0.92


def _resized(coded: Mapping, shape: tuple[int, int]) -> np.ndarray:
    """The mask at the panel's size; of a structure thinner than a panel's pixel, those that it fills to a tenth."""
    height, width = coded["size"]
    if height <= shape[0] or width <= shape[1]:
        return rle.resize([coded], shape)[0]
    return (cv2.resize(rle.decode([coded])[0] * 255, shape[::-1], interpolation=cv2.INTER_AREA) > 25).astype(np.uint8)


def _panel(
    column: Column, image: str, base: np.ndarray, truth: Mapping[str, Mapping], colours: Mapping[str, np.ndarray]
) -> Panel:
    if column.maps is not None:
        if image not in column.maps:
            return Panel(base * 0.35, "no map")
        return Panel(_heat(base, column.maps, image, truth))
    if column.masks is None:
        return Panel(base)
    if image not in column.masks:
        return Panel(base * 0.35, "no mask")
    entry = column.masks[image]
    stack = {task: _resized(entry[task], base.shape[:2]) for task in colours if task in entry}
    stack = {task: mask for task, mask in stack.items() if mask.any()}
    note = "" if stack else "empty"
    if column.against_truth and truth:
        note = f"IoU {_mean_iou(entry, truth):.2f}"
    return Panel(outlined(np.rint(255 * base).astype(np.uint8), stack, colours), note, frozenset(stack))


def _mean_iou(entry: Mapping[str, Mapping], truth: Mapping[str, Mapping]) -> float:
    """Mean over the true masks, none of them empty, at their size."""

    def fitted(task: str) -> Mapping:
        size = tuple(truth[task]["size"])
        return entry[task] if tuple(entry[task]["size"]) == size else rle.encode(rle.resize([entry[task]], size))[0]

    fitted_entry = {task: fitted(task) for task in truth if task in entry}
    pixels = metrics.overlap({"": fitted_entry}, {"": truth}, list(truth), [""])
    return float((pixels.intersection / pixels.union).mean())


def outlined(base: np.ndarray, stack: Mapping[str, np.ndarray], colours: Mapping[str, np.ndarray]) -> np.ndarray:
    """Masks as tinted areas with outlines, large ones below small ones, on base (h, w, 3) uint8; colours in 0..1."""
    picture = base.copy()
    areas = {task: int(np.count_nonzero(mask)) for task, mask in stack.items()}
    ordered = sorted(stack, key=lambda task: -areas[task])
    for task in ordered:
        x, y, width, height = cv2.boundingRect(stack[task])
        box = picture[y : y + height, x : x + width]
        if box.size:
            tint = np.rint((1 - FILL) * np.arange(256)[:, None] + FILL * 255 * colours[task]).astype(np.uint8)
            cv2.copyTo(cv2.LUT(box, tint[None]), stack[task][y : y + height, x : x + width], box)
    for number, task in enumerate(ordered):
        # Outlines that coincide (oedema that is also an opacity) are dashed, so that both colours are seen.
        hides = any(_alike(task, other, stack, areas) for other in ordered[:number])
        corners = cv2.CHAIN_APPROX_NONE if hides else cv2.CHAIN_APPROX_SIMPLE
        contours, _ = cv2.findContours(stack[task], cv2.RETR_CCOMP, corners)
        pieces = [piece for contour in contours for piece in (_dashes(contour) if hides else [contour])]
        cv2.polylines(picture, pieces, not hides, np.rint(255 * colours[task]).tolist(), 2, cv2.LINE_AA)
    return picture


def _alike(one: str, other: str, stack: Mapping[str, np.ndarray], areas: Mapping[str, int]) -> bool:
    """Whether two masks coincide but for an edge. The areas alone mostly tell that they do not."""
    if min(areas[one], areas[other]) <= SAME * max(areas[one], areas[other]):
        return False
    both = cv2.countNonZero(cv2.bitwise_and(stack[one], stack[other]))
    return both > SAME * (areas[one] + areas[other] - both)


def _dashes(contour: np.ndarray) -> list[np.ndarray]:
    return [contour[start : start + DASH] for start in range(0, len(contour), 2 * DASH)]


def _heat(base: np.ndarray, maps_of: Maps, image: str, truth: Mapping[str, Mapping]) -> np.ndarray:
    """The maps of the tasks that the expert marked, each scaled to its own maximum, as one heat over the X-ray."""
    rows = [list(maps_of.tasks).index(task) for task in truth if task in maps_of.tasks]
    if not rows:
        return base
    # OpenCV's bilinear, to look at: torch's (`images.upsample`) takes seconds to import.
    small = np.nan_to_num(maps_of[image]["maps"][rows], nan=0.0, posinf=0.0, neginf=0.0)
    maps = np.stack([cv2.resize(each, base.shape[1::-1], interpolation=cv2.INTER_LINEAR) for each in small])
    peak = maps.max((1, 2), keepdims=True)
    heat = (maps / np.where(peak > 0, peak, 1)).clip(0, 1).max(0)
    opacity = (HEAT * heat)[..., None]
    return (1 - opacity) * base + opacity * colormaps["inferno"](0.15 + 0.85 * heat)[..., :3]


def _legend(
    figure: Figure,
    tasks: Sequence[str],
    colours: Mapping[str, np.ndarray],
    per_line: int,
    centre: tuple[float, float],
    style: str,
) -> None:
    _, ink, faint = THEMES[style]
    rim = [] if style == "dark" else [Stroke(linewidth=6.5, foreground=faint)]  # white on white is none
    effects = [*rim, Normal()]
    handles = [Line2D([], [], color=colours[task], linewidth=5, label=task, path_effects=effects) for task in tasks]
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=centre,
        ncols=min(per_line, max(1, len(tasks))),
        frameon=False,
        labelcolor=ink,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.6,
        borderpad=0,
    )
