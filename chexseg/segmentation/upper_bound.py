"""The oracle protocol for a network (`evaluation.oracle`): an upper bound, not a test's result."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexseg.data.images import fit_shape, upsample
from chexseg.evaluation import bootstrap, metrics, oracle, scoring
from chexseg.runtime import distributed
from chexseg.runtime.files import atomic
from chexseg.segmentation.model import load_model
from chexseg.segmentation.prediction import Originals, probabilities


def ious(
    model_path: Path,
    truth: Mapping[str, Mapping],
    paths: Mapping[str, Path],
    *,
    device: str,
    batch_size: int,
    precision: str = "auto",
    num_workers: int = 0,
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """(images, tasks, 20) IoU at each threshold of the network's probabilities, NaN where a finding is not there; the
    images, those of `paths` with ground truth, and the network's tasks."""
    network, spec, _ = load_model(model_path)
    images, where = [name for name in paths if name in truth], distributed.device(device)
    found = np.full((len(images), len(spec.tasks), len(oracle.THRESHOLDS)), np.nan)
    positive = {name: columns for name in images if (columns := oracle.positive_tasks(truth[name], spec.tasks))}
    row_of = {name: row for row, name in enumerate(images)}
    batches = probabilities(
        network.to(where),
        spec,
        Originals(paths, list(positive), spec.image_size),
        batch_size=batch_size,
        device=where,
        precision=precision,
        num_workers=num_workers,
    )
    for batch in batches:
        for film, planes in batch:
            name, columns = film["id"], positive[film["id"]]
            size: tuple[int, int] = tuple(film["size"].tolist())
            height, width = fit_shape(*size, spec.image_size)
            values = upsample(planes[columns, :height, :width], (oracle.SIDE, oracle.SIDE))
            masks = [truth[name][spec.tasks[c]] for c in columns]
            found[row_of[name], columns] = oracle.tallies(list(values), masks)
    return found, images, spec.tasks


def write(output: Path, truth: Mapping[str, Mapping], found: np.ndarray, images: Sequence[str],
          tasks: Sequence[str], leaks: Sequence[str] = ()) -> str:  # fmt: skip
    """Score `ious` and write the table `output`: protocol, task, iou, lower, upper, n_images, n_positive, threshold.
    Returns it for a terminal, its meaning first."""
    overlap = metrics.overlap(truth, truth, tasks, images)
    scores, thresholds = oracle.score(found, overlap, bootstrap.Resamples(images))
    table = bootstrap.table(scores, oracle.ORACLE)
    table["threshold"] = [*thresholds, np.nan]
    table = table[pd.notna(table["iou"])]
    with atomic(output) as temporary:
        scoring.stamped(table, leaks).to_csv(temporary, index=False, float_format="%.6f")
    return scoring.text(table)
