"""What `pseudo_label_quality.py` does: gather sources and gates, measure, and write the table and the picture."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexseg.classifier.saliency_maps import SaliencyMaps
from chexseg.data import leak_guard
from chexseg.data.chexpert import patient_of
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.evaluation import metrics, quality, scoring
from chexseg.irnet import pseudo_sources
from chexseg.irnet.films import OtherFilms
from chexseg.irnet.gates import UNKNOWN, LabelGate, ProbabilityGate
from chexseg.runtime.files import atomic

log = logging.getLogger(__name__)


def measure(
    gt_path: Path,
    files: Mapping[str, Path],
    tasks: tuple[str, ...],
    *,
    aliases: Mapping[str, str],
    maps: SaliencyMaps | None,
    data_dir: Path | None,
    threshold_path: Path | None,
    weights: Path | None,
    walk: Mapping[str, Any],
    device: str,
    labels: Path | None,
    observations: Sequence[str],
    uncertain: str,
    least: float,
    side: int,
    num_replicates: int,
    seed: int,
) -> pd.DataFrame:
    """The table of `quality.measure` for the masks `files` and all sources that `maps` lead to, stamped with what was
    chosen on the very patients that it is measured on."""
    truth = MaskFile(gt_path, aliases)
    masks = {name: MaskFile(path, aliases) for name, path in files.items()}
    images = [i for i in truth if (maps is not None and i in maps) or any(i in file for file in masks.values())]
    if not images:
        raise DataError(f"{gt_path}: no source of pseudo masks has any of its images; make them of the same set")
    if lost := [image for image in truth if image not in images]:
        log.warning("%d images have no pseudo mask of any source: %s", len(lost), metrics.some(lost))
    sources: dict[str, quality.Source] = {}
    if maps is not None and data_dir is not None:
        sources |= sources_of_maps(maps, tasks, data_dir, aliases, threshold_path)
        if weights is not None:
            films = OtherFilms(maps.folder, tasks, data_dir, None)
            sources["walk"] = quality.MaskSource(pseudo_sources.walked(films, images, weights, walk, device))
    sources |= {name: quality.MaskSource(file) for name, file in masks.items()}
    patients = {patient_of(image) for image in images}
    leaks = leak_guard.check(
        [maps.path if maps else None, *files.values(), threshold_path, weights], patients, allow=True
    )
    counts = quality.count(sources, truth, tasks, images, side)
    gates = open_gates(images, tasks, labels, observations, aliases, uncertain, maps, least)
    return scoring.stamped(quality.measure(counts, gates, num_replicates=num_replicates, seed=seed), leaks)


def sources_of_maps(
    maps: SaliencyMaps,
    tasks: tuple[str, ...],
    data_dir: Path,
    aliases: Mapping[str, str],
    threshold_path: Path | None,
) -> dict[str, quality.Source]:
    """The pipeline's sources before the walk, in its order: thresholds, then the CRF."""
    from chexseg.classifier.saliency_masks import read_task_values

    thresholds = read_task_values(threshold_path, "threshold", tasks, aliases) if threshold_path else None
    found: dict[str, quality.Source] = {}
    found |= pseudo_sources.of_maps(maps, tasks, thresholds=thresholds)
    found |= pseudo_sources.of_crf(OtherFilms(maps.folder, tasks, data_dir, None))
    return found


def open_gates(
    images: Sequence[str],
    tasks: Sequence[str],
    labels: Path | None,
    observations: Sequence[str],
    aliases: Mapping[str, str],
    uncertain: str,
    maps: SaliencyMaps | None,
    least: float,
) -> dict[str, np.ndarray]:
    """What each gate says of each finding, (images, tasks): by label and by probability, where these are known."""
    gates = {}
    if labels is not None:
        try:
            gates["label"] = LabelGate(labels, observations, aliases, uncertain).decide(images, tasks)
        except DataError as error:
            log.warning("no gate by labels: %s", error)
    if maps is not None:
        known = [image for image in images if image in maps]
        decisions = np.full((len(images), len(tasks)), UNKNOWN, np.int8)
        decisions[[image in maps for image in images]] = ProbabilityGate(maps, least).decide(known, tasks)
        gates["probability"] = decisions
    return gates


def write(table: pd.DataFrame, output: Path, picture: Path) -> str:
    """Write the CSV and the PNG; returns the table for a terminal."""
    tasks = [task for task in dict.fromkeys(table["task"]) if task != "mIoU"]
    with atomic(picture) as temporary:
        quality.draw(temporary, table, tasks)
    with atomic(output) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")
    return quality.text(table)
