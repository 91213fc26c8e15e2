"""The workflow of all methods as a figure, from the steps that reproduce.sh runs:   python docs/workflow.py

Writes docs/workflow.png, or with `--output NAME` the files NAME.png and NAME.pdf; `--style dark` for dark ground. The
names of steps and scripts are read from reproduce.sh; a step that has no place here yet is listed below the others.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Box:
    """A step, or several that run the same script: where it stands (columns, rows) and what it makes."""

    x: float
    y: float
    title: str
    steps: tuple[str, ...] = ()
    kind: str = "shared"  # or `input`, or a method


BOXES = {
    "xrays": Box(0, 4.6, "X-rays with\nimage labels", ("phantom",), "input"),
    "outlines": Box(0, 1.3, "Expert outlines,\nvalidation films", (), "input"),
    "test_outlines": Box(0, 0, "Two readers,\ntest films", (), "input"),
    "classifier": Box(1, 4.6, "Classifier", ("classifier",)),
    "maps": Box(2, 4.6, "Saliency maps\n(Grad-CAM)", ("saliency_maps", "test_saliency_maps", "valid_saliency_maps")),
    "threshold": Box(2, 3.45, "Threshold masks", ("threshold_masks",)),
    "hdf5": Box(3, 4.6, "Films and maps\nin one file", ("hdf5",)),
    "relations": Box(4, 4.6, "Relation labels\n(dense CRF)", ("relation_labels",)),
    "irnet": Box(5, 4.6, "IRNet:\nboundaries", ("irnet",)),
    "pseudo": Box(4, 3.15, "Pseudo masks\n(random walk)", ("pseudo_masks", "test_pseudo_masks")),
    "subset": Box(5, 2.5, "Subset of films", ("pseudo_subset",)),
    "expert": Box(1.5, 1.3, "Expert masks", ("expert_masks",)),
    "split": Box(3.3, 1.3, "To train on; the rest\nchooses thresholds", ("expert_split",)),
    "truth": Box(1.5, 0, "Test masks", ("test_masks", "radiologist_masks")),
    "weak_cam": Box(6.35, 4.6, "Weak (Grad-CAM)", ("train_weak_cam",), "weak_cam"),
    "weak_irnet": Box(6.35, 3.5, "Weak (IRNet)", ("train_weak_irnet",), "weak_irnet"),
    "chexseg": Box(6.35, 2.4, "CheXseg", ("train_chexseg", "train_chexseg_plus"), "chexseg"),
    "full": Box(6.35, 1.3, "Fully supervised", ("train_full", "train_full_plus", "train_teacher"), "full"),
    "predictions": Box(7.6, 2.95, "Masks of\ntest films", ("test_masks_of_methods",)),
    "report": Box(8.75, 2.95, "Tables, picture,\nreport page", ("table",)),
}
METHODS = ("weak_cam", "weak_irnet", "full", "chexseg")
# From, to, the method whose masks go there or "", and where the arrow leaves and arrives (right, left, top, bottom).
ARROWS = (
    ("xrays", "classifier", "", "rl"), ("classifier", "maps", "", "rl"), ("maps", "threshold", "", "bt"),
    ("maps", "hdf5", "", "rl"), ("hdf5", "relations", "", "rl"), ("relations", "irnet", "", "rl"),
    ("hdf5", "pseudo", "", "bl"), ("irnet", "pseudo", "", "br"), ("pseudo", "weak_cam", "weak_cam", "rl"),
    ("pseudo", "weak_irnet", "weak_irnet", "rl"), ("pseudo", "subset", "chexseg", "bl"),
    ("subset", "chexseg", "chexseg", "rl"), ("outlines", "expert", "", "rl"), ("expert", "split", "", "rl"),
    ("split", "full", "full", "rl"), ("split", "chexseg", "chexseg", "rl"),
    ("weak_cam", "predictions", "weak_cam", "rl"),
    ("weak_irnet", "predictions", "weak_irnet", "rl"), ("chexseg", "predictions", "chexseg", "rl"),
    ("full", "predictions", "full", "rl"), ("predictions", "report", "", "rl"), ("test_outlines", "truth", "", "rl"),
    ("truth", "report", "", "rb"),
)  # fmt: skip
# How far up or down an arrow leaves and arrives beside the middle of a side, so that no two lie on each other.
SHIFTS = {
    ("irnet", "pseudo"): (0, 0.24), ("pseudo", "weak_cam"): (0.05, 0), ("pseudo", "weak_irnet"): (-0.14, 0),
    ("split", "chexseg"): (0.16, -0.12), ("subset", "chexseg"): (0, 0.1),
    ("weak_cam", "predictions"): (0, 0.24), ("weak_irnet", "predictions"): (0, 0.08),
    ("chexseg", "predictions"): (0, -0.08), ("full", "predictions"): (0, -0.24),
}  # fmt: skip
BENDS = {("pseudo", "weak_cam"): 0.3, ("split", "chexseg"): 0.3, ("weak_cam", "predictions"): 0.12,
         ("full", "predictions"): 0.12}  # fmt: skip
WIDE, HIGH = 0.86, 0.72  # of a box
SCALE = (1.72, 1.12)  # inches a column and a row


def steps(script: str) -> dict[str, str]:
    """Step -> the Python script that it runs, as reproduce.sh has them."""
    found: dict[str, str] = {}
    for name, path in re.findall(r'\bstep\s+"?([\w$]+)"?\s+"\$here/([\w/]+\.py)"', script):
        if name.endswith("$1"):
            for argument in re.findall(r"^ *train (\w+)", script, re.M):
                found[name.replace("$1", argument)] = path
        else:
            found[name] = path
    return found


def draw(found: dict[str, str], style: str = "light"):
    """The figure of the steps."""
    import matplotlib
    from matplotlib.figure import Figure

    from chexseg.evaluation import charts

    ink, paper, line, soft = charts.INK[style]
    palette = charts.DARK_COLOURS if style == "dark" else charts.COLOURS
    colours = dict(zip(METHODS, (palette[3], palette[2], palette[0], palette[1]), strict=True))
    placed = {step for box in BOXES.values() for step in box.steps}
    more = [f"{name} ({path})" for name, path in found.items() if name not in placed]
    with matplotlib.rc_context(charts.settings(style)):
        figure = Figure((9.75 * SCALE[0], (6.0 + 0.3 * bool(more)) * SCALE[1]), layout="none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-0.55, 9.3)
        axes.set_ylim(-0.6 - 0.3 * bool(more), 5.3)
        for start, end, method, sides in ARROWS:
            colour, bend = colours.get(method, soft), BENDS.get((start, end), 0.2)
            _arrow(axes, BOXES[start], BOXES[end], colour, sides, SHIFTS.get((start, end), (0, 0)), bend)
        for box in BOXES.values():
            _box(axes, box, found, colours.get(box.kind, soft), (ink, paper, line))
        if more:
            axes.text(-0.43, -0.72, "Also: " + ", ".join(more), color=soft, fontsize=9)
    return figure


def _box(axes, box: Box, found: dict[str, str], colour: str, theme: tuple[str, str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    ink, paper, line = theme
    is_method = box.kind in METHODS
    axes.add_patch(
        FancyBboxPatch(
            (box.x - WIDE / 2, box.y - HIGH / 2), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.08", zorder=3,
            facecolor=line if box.kind == "input" else paper, edgecolor=colour, linewidth=3 if is_method else 1.2,
        )
    )  # fmt: skip
    scripts = list(dict.fromkeys(found[step].rpartition("/")[2] for step in box.steps if step in found))
    up = 0.1 if scripts else 0
    axes.text(box.x, box.y + up, box.title, ha="center", va="center", color=ink, zorder=4,
              fontsize=10, fontweight="bold" if is_method else "normal", linespacing=1.15)  # fmt: skip
    if scripts:
        axes.text(box.x, box.y - 0.25, "\n".join(scripts), ha="center", va="center", color=ink, zorder=4,
                  fontsize=6.6, family="monospace")  # fmt: skip


def _arrow(axes, start: Box, end: Box, colour: str, sides: str, shifts: tuple[float, float], bend: float) -> None:
    """An arrow between sides; where both lie level it has two bends, the second one `bend` before the end."""
    from matplotlib.patches import FancyArrowPatch

    offsets = {"r": (WIDE / 2, 0), "l": (-WIDE / 2, 0), "t": (0, HIGH / 2), "b": (0, -HIGH / 2)}
    (ax, ay), (bx, by) = (offsets[side] for side in sides)
    leave, arrive = (start.x + ax, start.y + ay + shifts[0]), (end.x + bx, end.y + by + shifts[1])
    straight = abs(leave[1] - arrive[1]) < 1e-6 or abs(leave[0] - arrive[0]) < 1e-6
    angles = {"r": 0, "l": 180, "t": 90, "b": -90}
    connection = f"angle3,angleA={angles[sides[0]]},angleB={angles[sides[1]]}"
    if sides == "rl" and not straight:  # an S of two bends
        middle = arrive[0] - bend
        axes.plot([leave[0], middle, middle, arrive[0]], [leave[1], leave[1], arrive[1], arrive[1]], color=colour,
                  linewidth=2, solid_joinstyle="round", zorder=1)  # fmt: skip
        leave = (arrive[0] - 0.05, arrive[1])
        connection = "arc3"
    axes.add_patch(
        FancyArrowPatch(leave, arrive, arrowstyle="-|>", mutation_scale=13, color=colour, linewidth=2, shrinkA=0,
                        shrinkB=0, connectionstyle="arc3" if straight else connection, zorder=2)
    )  # fmt: skip


def main(args: argparse.Namespace) -> None:
    from chexseg.evaluation import charts

    figure = draw(steps((ROOT / "reproduce.sh").read_text(encoding="utf-8")), args.style)
    if args.output:
        charts.save(figure, args.output)
    else:
        figure.savefig(ROOT / "docs" / "workflow.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="write NAME.png and NAME.pdf instead of docs/workflow.png")
    parser.add_argument("--style", choices=("light", "dark"), default="light", help="ground (default: light)")
    main(parser.parse_args())
