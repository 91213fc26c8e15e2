"""One method against the ground truth, from masks to a table of scores; several methods are `comparison`'s."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from chexseg.evaluation import bootstrap, metrics
from chexseg.evaluation.hits import Maps, hits
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
HIT_RATE = "hit_rate"
MEANINGS = bootstrap.PROTOCOLS | {HIT_RATE: "peak of the saliency map inside the ground truth, of those with one"}


@dataclass
class Evaluation:
    """Scores of one method: `table` (protocol, task, iou, lower, upper, n_images, n_positive), what is to be said of
    them, and which images only one of the files has."""

    table: pd.DataFrame
    images: list[str]
    notes: list[str]
    missing: dict[str, set[str]]


def evaluate(
    predictions: Mapping[str, Mapping],
    truth: Mapping[str, Mapping],
    tasks: Sequence[str],
    *,
    num_replicates: int = 1000,
    seed: int = 17,
    maps: Maps | None = None,
    map_size: tuple[int, int] | None = None,
) -> Evaluation:
    """Score the images that both have, under every protocol; with `maps` also their hit rate, in which only images
    with a map count (`map_size`: the classifier's input, see `hits`)."""
    images = [image for image in truth if image in predictions]
    found = metrics.overlap(predictions, truth, tasks, images)
    resamples = bootstrap.Resamples(images, num_replicates, seed)
    tables = [bootstrap.table(bootstrap.score(found, resamples, name), name) for name in bootstrap.PROTOCOLS]
    notes = list(found.notes)
    if maps is not None:
        if without := sum(image not in maps for image in images):
            notes.append(f"{without} images have no saliency map: not in the hit rate")
        rates = bootstrap.score_means(hits(maps, truth, tasks, images, map_size), found, resamples)
        tables.append(bootstrap.table(rates, HIT_RATE).replace({"task": {"mIoU": "mean"}}))
    missing = {"prediction": set(truth) - set(predictions), "ground truth": set(predictions) - set(truth)}
    return Evaluation(pd.concat(tables), images, notes, missing)


def write_missing(sides: Mapping[str, set[str]], path: Path) -> None:
    """Say which images are only on one side, and list them all in a CSV; no file where there is none."""
    rows = [(image, side) for side, names in sides.items() for image in sorted(names)]
    for side, names in sides.items():
        if names:
            log.warning("%d images have no %s and are not scored: %s", len(names), side, metrics.some(sorted(names)))
    if rows:
        with atomic(path) as temporary:
            pd.DataFrame(rows, columns=["image_id", "missing"]).to_csv(temporary, index=False)
        log.warning("all of them: %s", path)
    else:
        path.unlink(missing_ok=True)


def text(table: pd.DataFrame) -> str:
    """The table for a terminal, a block per protocol that begins with its meaning."""
    blocks = []
    for protocol, rows in table.groupby("protocol", sort=False):
        figures = rows.drop(columns="protocol").to_string(index=False, float_format="%.3f", na_rep="-")
        blocks.append(f"\n{protocol} ({MEANINGS[str(protocol)]})\n{figures}")
    return "\n".join(blocks)
