"""Figures of the page and for papers: they show what they are given, in both styles, and come out the same twice."""

import base64

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from chexseg.evaluation import charts

ROWS = [("CheXseg − full", 0.1, 0.05, 0.15), ("full − weak", -0.02, -0.1, 0.06)]
LOG = [{"epoch": e, "train_loss": 1 / e, "score": s, "lr": 1e-3 / e} for e, s in ((1, 0.2), (2, 0.5), (3, 0.4))]
QUALITY = pd.DataFrame(
    [("cams", "labels", "Edema", 0.3, 0.2, 0.4), ("cams", "labels", "Fracture", np.nan, np.nan, np.nan),
     ("irnet", None, "Edema", 0.5, 0.4, 0.6)], columns=["source", "gate", "task", "iou", "lower", "upper"],
)  # fmt: skip
BUDGET = pd.DataFrame(
    [(m, n, v, v - 0.02, v + 0.02) for m, n, v in (("full", 60, 0.2), ("full", 15, 0.1), ("chexseg", 60, 0.3))],
    columns=["method", "n_expert", "iou", "lower", "upper"],
)  # fmt: skip


def figures(style):
    yield charts.forest(ROWS, "difference", zero=True, style=style)
    yield charts.training(LOG, 2, style=style)
    yield charts.quality(QUALITY, style=style)
    yield charts.label_budget(BUDGET, style=style)


def words(figure):
    return {text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text"))}


def contrast(one, other):
    """WCAG's ratio of luminances."""

    def luminance(colour):
        values = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * values[0] + 0.7152 * values[1] + 0.0722 * values[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("style", charts.STYLES)
def test_figures_are_written_as_png_and_pdf_the_same_twice(tmp_path, style):
    for number, figure in enumerate(figures(style)):
        written = charts.save(figure, tmp_path / str(number))
        first = [path.read_bytes() for path in written]
        assert first[0].startswith(b"\x89PNG") and first[1].startswith(b"%PDF")
        charts.save(list(figures(style))[number], tmp_path / str(number))
        assert [path.read_bytes() for path in written] == first


def test_svg_is_inside_the_address_and_the_same_twice():
    first, second = (charts.data_uri(charts.forest(ROWS, "x")) for _ in range(2))
    head, content = first.split(",")
    assert first == second and head == "data:image/svg+xml;base64"
    assert "CheXseg − full" in base64.b64decode(content).decode()


def test_figures_show_what_they_are_given():
    forest, training, quality, budget = figures("light")
    assert {"CheXseg − full", "full − weak", "difference"} <= words(forest)
    assert {"training loss", "score", "learning rate", "epoch"} <= words(training)
    assert {"cams", "irnet", "gate: labels", "Edema", "Fracture"} <= words(quality)
    assert {"full", "chexseg", "mIoU"} <= words(budget)
    assert [len(axes.lines) for axes in training.axes] == [3, 3, 3]  # curve, the kept epoch's line and star
    (line, *_) = budget.axes[0].lines
    assert list(line.get_xdata()) == [15, 60]


def test_a_training_without_scores_has_no_empty_panel():
    figure = charts.training([{"epoch": 1, "train_loss": 0.5, "lr": float("nan")}], None)
    assert len(figure.axes) == 1


@pytest.mark.parametrize("style", charts.STYLES)
def test_series_can_be_told_apart(style):
    """3 to 1 with the paper for lines (WCAG 1.4.11), 7 to 1 for words; markers and dashes differ too."""
    ink, paper, _, soft = charts.INK[style]
    colours = charts.DARK_COLOURS if style == "dark" else charts.COLOURS
    assert contrast(ink, paper) > 7 and contrast(soft, paper) > 4.5
    assert all(contrast(colour, paper) > 3 for colour in colours[:5])
    assert len(set(charts.MARKERS)) == len(set(map(str, charts.DASHES))) == len(set(colours)) == 8
