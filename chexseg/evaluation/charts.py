"""Figures for the page and for papers: intervals, training curves, quality of pseudo masks, label budgets.

Each function returns a matplotlib figure in one of `STYLES`; `save` writes it as PNG and PDF, `data_uri` as SVG for a
page. Series differ in marker and dash as well as in colour (Okabe and Ito 2008), so that a grey print reads too.
"""

import base64
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from chexseg.evaluation.figure import METADATA, THEMES
from chexseg.runtime.files import atomic

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b5b5b", "#e69f00")
DARK_COLOURS = ("#56b4e9", "#ff8a3d", "#2fe0a0", "#ff9fd3", "#ffe95c", "#9fc5ff", "#c0c6ce", "#ffb000")
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
INK = {"light": ("#14181f", "#ffffff", "#d5dae1", "#4a5361"), "dark": ("#f0f2f5", "#0d1014", "#353e49", "#aeb7c2")}
STYLES = tuple(INK)
DPI = 300  # of the PNG: what journals ask for


def settings(style: str) -> dict[str, Any]:
    ink, paper, line, soft = INK[style]
    return {
        "axes.edgecolor": soft, "axes.facecolor": paper, "axes.labelcolor": ink, "axes.titlecolor": ink,
        "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9,
        "figure.facecolor": paper, "figure.constrained_layout.use": True, "font.family": "sans-serif", "font.size": 9,
        "grid.color": line, "grid.linewidth": 0.6, "legend.frameon": False, "legend.labelcolor": ink,
        "legend.fontsize": 8.5, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "chexseg",
        "text.color": ink, "xtick.color": soft, "ytick.color": soft, "xtick.labelcolor": ink, "ytick.labelcolor": ink,
    }  # fmt: skip


@contextmanager
def _styled(style: str) -> Iterator[Sequence[str]]:
    """matplotlib in a style; gives its colours."""
    with matplotlib.rc_context(settings(style)):
        yield DARK_COLOURS if style == "dark" else COLOURS


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path` with the suffixes .png and .pdf. The same figure gives the same bytes."""
    written: list[Path] = []
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # which tells of every table of a font that it drops
    for suffix, metadata in METADATA.items():
        target = path.with_name(f"{path.name}.{suffix}")
        with matplotlib.rc_context({"pdf.fonttype": 42}), atomic(target) as temporary:
            figure.savefig(temporary, format=suffix, dpi=DPI, metadata=metadata, facecolor=figure.get_facecolor())
        written.append(target)
    return written


def data_uri(figure: Figure) -> str:
    """The figure as an address that an <img> shows without fetching anything."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chexseg"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()


def quality_panels(number: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side for the IoU of pseudo masks, dark as films are; `save_quality` writes them."""
    figure = Figure(size, dpi=128, facecolor=THEMES["dark"][0], layout="constrained")
    return figure, figure.subplots(1, number, sharey=True, squeeze=False)[0]


def save_quality(figure: Figure, panels: Sequence[Axes], path: Path) -> None:
    """Give the panels their axes and one legend, and write a PNG."""
    background, ink, faint = THEMES["dark"]
    for panel in panels:
        panel.set_facecolor(background)
        panel.tick_params(colors=faint, labelsize=8)
        panel.grid(axis="y", color=faint, alpha=0.25, lw=0.6)
        for side in panel.spines.values():
            side.set_color(faint)
    panels[0].set_ylim(0, None)
    panels[0].set_ylabel("pooled IoU against the experts", color=ink, size=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, labelcolor=ink, fontsize=8)
    figure.savefig(path, format="png", facecolor=background, metadata={"Software": None})


def forest(
    rows: Sequence[tuple[str, float, float, float]], label: str, *, zero: bool = False, style: str = "light"
) -> Figure:
    """A forest plot: (name, value, lower, upper) from the top down. `zero` draws the line of no difference."""
    with _styled(style) as colours:
        figure = Figure((6.4, 0.75 + 0.36 * max(len(rows), 1)))
        axes = figure.subplots()
        for place, (_, value, lower, upper) in enumerate(rows):
            clear = zero and not (lower <= 0 <= upper)
            axes.plot([lower, upper], [place, place], color=colours[0], linewidth=2.2, solid_capstyle="butt")
            fill = colours[0] if clear or not zero else axes.get_facecolor()
            axes.plot([value], [place], "s", color=colours[0], markerfacecolor=fill, markersize=6.5)
        if zero:
            axes.axvline(0, color=INK[style][0], linewidth=1)
        else:
            axes.set_xlim(left=0)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
    return figure


def training(
    log: Sequence[Mapping], best: int | None, score: tuple[str, str] = ("score", "score"), *, style: str = "light"
) -> Figure:
    """Loss, score and learning rate by epoch, as a training's log.jsonl has them. `best` is the epoch that was kept,
    `score` the key of the score in the log and its title."""
    panels = [("train_loss", "training loss"), score, ("lr", "learning rate")]
    panels = [(key, title) for key, title in panels if any(_is_number(line.get(key)) for line in log)]
    with _styled(style) as colours:
        figure = Figure((9.2, 2.3), layout="none")  # the page draws many: a computed layout takes most of their time
        grid = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
        figure.subplots_adjust(left=0.065, right=0.99, bottom=0.2, top=0.84, wspace=0.28)
        for axes, (key, title), colour in zip(grid, panels, colours, strict=False):
            points = [(line["epoch"], line[key]) for line in log if _is_number(line.get(key))]
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, "-o", color=colour, markersize=3.5 if len(points) < 40 else 0, linewidth=1.6)
            if best in epochs:
                axes.axvline(best, color=INK[style][3], linestyle=":", linewidth=1.2)
                axes.plot([best], [values[epochs.index(best)]], "*", color=INK[style][0], markersize=11, zorder=5)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    return figure


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def quality(table: pd.DataFrame, *, label: str = "IoU with the expert", style: str = "light") -> Figure:
    """Quality of pseudo masks: a panel a gate, IoU of each task (rows) by source, with intervals; columns source, gate,
    task, iou, lower, upper. Without a gate there is one panel."""
    gates = table["gate"].fillna("").astype(str) if "gate" in table else pd.Series("", table.index)
    kinds, tasks, names = (list(dict.fromkeys(column)) for column in (gates, table["task"], table["source"]))
    with _styled(style) as colours:
        height = 1.1 + (0.16 + 0.11 * len(names)) * max(len(tasks), 1)
        figure = Figure((2.6 + 2.9 * max(len(kinds), 1), height))
        panels = figure.subplots(1, max(len(kinds), 1), sharex=True, sharey=True, squeeze=False)[0]
        for axes, gate in zip(panels, kinds, strict=False):
            for number, name in enumerate(names):
                rows = table[(gates == gate) & (table["source"] == name)].drop_duplicates("task").set_index("task")
                shift = 0.8 / len(names) * (number - (len(names) - 1) / 2)
                known = [task for task in tasks if task in rows.index and np.isfinite(rows.loc[task, "iou"])]
                places, colour = [tasks.index(task) + shift for task in known], colours[number % len(colours)]
                chosen = rows.loc[known]
                axes.hlines(places, chosen["lower"], chosen["upper"], color=colour, linewidth=1.4)
                axes.plot(chosen["iou"], places, MARKERS[number % len(MARKERS)], color=colour, markersize=4.5,
                          linestyle="", label=name)  # fmt: skip
            axes.set_title(f"gate: {gate}" if gate else "")
            axes.set_xlabel(label)
            axes.grid(False, axis="y")
            for place in range(1, len(tasks)):
                axes.axhline(place - 0.5, color=INK[style][2], linewidth=0.6)
        panels[0].set_yticks(range(len(tasks)), tasks)
        panels[0].set_ylim(len(tasks) - 0.5, -0.5)
        panels[0].set_xlim(left=0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(names), 5))
    return figure


def boxes(values: Mapping[str, np.ndarray], label: str, *, style: str = "light") -> Figure:
    """A box plot a name: median, quartiles, whiskers of 1.5 times their distance, and every value as a dot."""
    with _styled(style) as colours:
        figure = Figure((7.2, 3.8))
        axes = figure.subplots()
        filled = {place: each for place, each in enumerate(values.values()) if len(each)}
        if filled:
            axes.boxplot(list(filled.values()), positions=list(filled), showfliers=False, widths=0.6)
        for place, each in filled.items():
            aside = np.linspace(-0.2, 0.2, len(each)) if len(each) > 1 else [0.0]
            axes.plot(place + np.asarray(aside), each, "o", color=colours[0], markersize=2.5, alpha=0.5)
        axes.set_xticks(range(len(values)), list(values), rotation=40, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.grid(False, axis="x")
        axes.set_ylabel(label)
    return figure


def label_budget(table: pd.DataFrame, *, style: str = "light") -> Figure:
    """mIoU by the number of expert images: columns method, n_expert, iou, and lower, upper where they are known."""
    with _styled(style) as colours:
        figure = Figure((5.4, 3.6))
        axes = figure.subplots()
        for number, (name, rows) in enumerate(table.groupby("method", sort=False)):
            rows, colour = rows.sort_values("n_expert"), colours[number % len(colours)]
            axes.plot(rows["n_expert"], rows["iou"], marker=MARKERS[number % len(MARKERS)], color=colour, linewidth=1.7,
                      linestyle=DASHES[number % len(DASHES)], markersize=5.5, label=str(name))  # fmt: skip
            if {"lower", "upper"} <= set(rows):
                axes.fill_between(rows["n_expert"], rows["lower"], rows["upper"], color=colour, alpha=0.16, linewidth=0)
        budgets = sorted(set(table["n_expert"]))
        if budgets and budgets[0] > 0:
            axes.set_xscale("log")
            _plain_ticks(axes, budgets)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("images that an expert outlined")
        axes.set_ylabel("mIoU")
        axes.legend()
    return figure


def _plain_ticks(axes: Axes, places: Sequence[float]) -> None:
    axes.set_xticks(places)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
