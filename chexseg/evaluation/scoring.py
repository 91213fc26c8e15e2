"""One method against the ground truth, from masks to tables of scores; several methods are `comparison`'s."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.evaluation import bootstrap, film_list, metrics, oracle
from chexseg.evaluation.hits import Maps, hits
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)
HIT_RATE = "hit_rate"
MEANINGS = bootstrap.PROTOCOLS | {
    HIT_RATE: "peak of the saliency map inside the ground truth, of those with one",
    oracle.ORACLE: oracle.MEANING,
}


@dataclass
class Evaluation:
    """Scores of one method.

    table    protocol, task, iou, lower, upper, n_images, n_positive
    metrics  protocol, metric, task, value, lower, upper, n_images, n_positive, for every metric
    images   those that are scored
    overlap, resamples, hits   what the tables are made of; `hits` (images, tasks) is None without maps
    notes    what is to be said of the scores
    missing  which images only one of the files has
    """

    table: pd.DataFrame
    metrics: pd.DataFrame
    images: list[str]
    overlap: metrics.Overlap
    resamples: bootstrap.Resamples
    hits: np.ndarray | None
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
    films: Collection[str] | None = None,
    with_oracle: bool = False,
    patients: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score the images that both have, under every protocol; with `maps` also their hit rate, in which only images
    with a map count, and, where wanted, the oracle protocol. `films`: all images of the set (see `film_list`);
    `patients`: whose an image is, where its id does not say so."""
    missing = {"prediction": set(truth) - set(predictions), "ground truth": set(predictions) - set(truth)}
    notes = []
    if films is not None:
        whole = film_list.complete(truth, {"prediction": predictions}, films, tasks)
        truth, predictions, notes = whole.truth, whole.methods["prediction"], whole.notes
        missing["ground truth"] -= set(truth)
        missing["prediction"] = set()
    images = [image for image in truth if image in predictions]
    found = metrics.overlap(predictions, truth, tasks, images)
    resamples = bootstrap.Resamples(images, num_replicates, seed, patients)
    rows = [bootstrap.table(bootstrap.score(found, resamples, name), name) for name in bootstrap.PROTOCOLS]
    notes += found.notes
    hit_or_miss = None
    if maps is not None:
        if without := sum(image not in maps for image in images):
            notes.append(f"{without} images have no saliency map: not in the hit rate")
        hit_or_miss = hits(maps, truth, tasks, images)
        rates = bootstrap.score_means(hit_or_miss, found, resamples)
        rows.append(bootstrap.table(rates, HIT_RATE).replace({"task": {"mIoU": "mean"}}))
        if with_oracle:
            bound, thresholds = oracle.score(oracle.ious(maps, truth, tasks, images), found, resamples)
            rows.append(bootstrap.table(bound, oracle.ORACLE))
            chosen = [f"{task} {t:.2f}" for task, t in zip(tasks, thresholds, strict=True) if t == t]
            notes.append(f"{oracle.ORACLE} is no test result; its thresholds: {', '.join(chosen)}")
    every = metric_table(found, resamples)
    return Evaluation(pd.concat(rows), every, images, found, resamples, hit_or_miss, notes, missing)


def metric_table(overlap: metrics.Overlap, resamples: bootstrap.Resamples) -> pd.DataFrame:
    """Every metric under every protocol: protocol, metric, task, value, lower, upper, n_images, n_positive. The mean
    over the tasks is the task `mean`."""
    tables = []
    for protocol in bootstrap.PROTOCOLS:
        for metric in metrics.METRICS:
            rows = bootstrap.table(bootstrap.score(overlap, resamples, protocol, metric), protocol)
            rows.insert(1, "metric", metric)
            tables.append(rows.rename(columns={"iou": "value"}).replace({"task": {"mIoU": "mean"}}))
    return pd.concat(tables)


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


def stamped(table: pd.DataFrame, leaks: Sequence[str]) -> pd.DataFrame:
    """The table with a column `leak` that says why its scores are no test's; as it is where there is no leak."""
    return table.assign(leak="; ".join(leaks)) if leaks else table


def text(table: pd.DataFrame) -> str:
    """The table for a terminal, a block per protocol that begins with its meaning."""
    blocks = []
    for protocol, rows in table.groupby("protocol", sort=False):
        figures = rows.drop(columns="protocol").to_string(index=False, float_format="%.3f", na_rep="-")
        blocks.append(f"\n{protocol} ({MEANINGS[str(protocol)]})\n{figures}")
    return "\n".join(blocks)
