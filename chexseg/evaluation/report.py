"""The report folder: its tables, text and picture, and the manifest by which a finished report is known.

Light until something must be made: `is_current` reads files and compares checksums, no more.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chexseg.data import csv_tables
from chexseg.errors import DataError
from chexseg.evaluation import timings
from chexseg.evaluation.methods import short
from chexseg.runtime import plain_json, provenance
from chexseg.runtime.files import atomic

if TYPE_CHECKING:
    import pandas as pd

    from chexseg.evaluation.comparison import Comparison
    from chexseg.evaluation.figure import Column
    from chexseg.evaluation.hits import Maps

log = logging.getLogger(__name__)
TABLE, TEXT, PICTURE, TIMINGS = "table.csv", "table.md", "sheet.png", "timings.csv"
METRICS, PAIRED, QUALITY = "metrics.csv", "paired.csv", "quality.csv"
TEMPLATES = Path(__file__).with_name("templates")  # of the page, which `page` makes
MANIFEST, BUDGET, FIGURES = "table.manifest.json", "label_budget.csv", "figures"
STYLES = ("light", "dark")  # of figures for papers


def is_current(folder: Path, fingerprint: str) -> str | None:
    """None where the report was made with `fingerprint`, and its files and the picture's sources are as they were then;
    else the reason, for people. The times in table.md take no part: they change with every run."""
    path = folder / MANIFEST
    if not path.is_file():
        return "missing"
    try:
        record = plain_json.read(path, finite=False)
    except DataError:
        return "its manifest is damaged"
    try:
        recorded, outputs, sources = record["fingerprint"], record["outputs"], record["picture_sources"]
        if recorded != fingerprint:
            return "stale: inputs, arguments or code changed"
        if any(not (folder / name).is_file() for name in (*outputs, TEXT)):
            return "incomplete"
        if any(provenance.sha256(folder / name) != digest for name, digest in outputs.items()):
            return "damaged: its checksum differs"
        if any(provenance.stat_fingerprint(Path(name)) != known for name, known in sources.items()):
            return "stale: an image or a map of the picture changed"
    except DataError:
        return "stale: an image or a map of the picture is gone"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is damaged"
    return None


def write_tables(folder: Path, comparison: "Comparison", leaks: Sequence[str] = ()) -> str:
    """Write table.csv, metrics.csv, paired.csv and table.md, each stamped with `leaks`; returns the latter's text."""
    from chexseg.evaluation import scoring, tables
    from chexseg.evaluation.comparison import paired_table

    times = timings.read(folder / TIMINGS)
    made = {
        TABLE: tables.long_table(comparison),
        METRICS: tables.metric_table(comparison),
        PAIRED: paired_table(comparison),
    }
    for name, table in made.items():
        with atomic(folder / name) as temporary:
            scoring.stamped(table, leaks).to_csv(temporary, index=False, float_format="%.6f")
    text = timings.with_section(tables.markdown(comparison, leaks), times)
    with atomic(folder / TEXT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def refresh_times(folder: Path) -> str:
    """Bring the times in a current report's table.md up to date; returns its text."""
    before = (folder / TEXT).read_text(encoding="utf-8")
    text = timings.with_section(before, timings.read(folder / TIMINGS))
    if text != before:
        with atomic(folder / TEXT) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text


@dataclass(frozen=True)
class PictureSources:
    """What the picture shows beside the masks of the methods."""

    image_dir: Path
    maps: "Maps | None" = None
    pseudo: Mapping[str, Mapping] | None = None


def draw(
    path: Path,
    comparison: "Comparison",
    truth: Mapping[str, Mapping],
    methods: Mapping[str, Mapping[str, Mapping]],
    sources: PictureSources,
    *,
    examples: Sequence[str] | None = None,
    count: int = 4,
    style: str = "dark",
) -> list[Path]:
    """Draw `examples`, or a varied choice of `count` images; those in every file are preferred. Returns their paths.

    A path that ends in .pdf gets a PDF, any other a PNG.
    """
    from chexseg.data import chexpert
    from chexseg.data.images import read_image
    from chexseg.evaluation import figure

    everywhere = [image for image in comparison.images if all(image in masks for masks in methods.values())]
    chosen = examples or figure.choose(truth, everywhere or comparison.images, comparison.tasks, count)
    for image in chosen:
        if image not in truth:
            raise DataError(f"--examples {image}: not in the ground truth")
    paths = {image: chexpert.find_image(sources.image_dir, image) for image in chosen}
    images = {image: read_image(file) for image, file in paths.items()}
    columns: list[Column] = []
    if sources.maps is not None:
        columns.append(figure.Column("Saliency map", maps=sources.maps))
    if sources.pseudo is not None:
        columns.append(figure.Column("Pseudo mask", sources.pseudo, against_truth=True))
    columns += [figure.Column(short(name), masks, against_truth=True) for name, masks in methods.items()]
    with atomic(path) as temporary:
        kind = "pdf" if path.suffix == ".pdf" else "png"
        figure.draw(temporary, images, truth, columns, comparison.tasks, style=style, kind=kind)
    return list(paths.values())


def _budget(path: Path) -> "pd.DataFrame":
    """mIoU by the number of expert images, as whoever measured it wrote it down."""
    table = csv_tables.frame(path, ("method", "n_expert", "iou"), texts=("method",))
    for name in table.columns.intersection(["n_expert", "iou", "lower", "upper"]):
        if table[name].dtype.kind not in "if":
            raise DataError(f"{path}: {name}: not a number in each row; correct the file")
    return table


def write_figures(folder: Path, comparison: "Comparison", style: str) -> list[str]:
    """Figures for a paper as PNG and PDF: mIoU and paired differences under every protocol; the quality of pseudo masks
    and the label budget where quality.csv and label_budget.csv lie in `folder`. Returns their names there."""

    from chexseg.evaluation import charts, run_content, summary

    made = {}
    for protocol in comparison.scores:
        made[f"miou_{protocol}"] = charts.forest(summary.means(comparison, protocol), "mIoU", style=style)
        if rows := [(one.label, *one.values) for one in summary.differences(comparison, protocol)]:
            label = "paired difference of mIoU"
            made[f"differences_{protocol}"] = charts.forest(rows, label, zero=True, style=style)
    if (frame := run_content.read_quality(folder / QUALITY)) is not None:
        made["quality"] = charts.quality(frame, style=style)
    if (folder / BUDGET).is_file():
        made["label_budget"] = charts.label_budget(_budget(folder / BUDGET), style=style)
    written = [path for name, one in made.items() for path in charts.save(one, folder / FIGURES / name)]
    return [f"{FIGURES}/{path.name}" for path in written]


def templates_version() -> str:
    """Hash of the page's templates, styles and scripts: they decide it as much as the code does."""
    return " ".join(provenance.sha256(path)[:16] for path in sorted(TEMPLATES.iterdir()) if path.is_file())


def seal(
    folder: Path, record: Mapping, fingerprint: str, picture_sources: Sequence[Path], pages: Sequence[str] = ()
) -> None:
    """Write the manifest: from now on the report is known to be whole and what it was made from."""
    made = [TABLE, METRICS, PAIRED, *([PICTURE] if picture_sources else []), *pages]
    more = {
        "fingerprint": fingerprint,
        "outputs": {name: provenance.sha256(folder / name) for name in made},
        "picture_sources": {str(path.resolve()): provenance.stat_fingerprint(path) for path in picture_sources},
    }
    provenance.write(folder / MANIFEST, {**record, **more})
