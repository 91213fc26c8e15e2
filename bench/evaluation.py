"""Masks and scores: the whole evaluation, IoU on run lengths, IoU at 20 thresholds, masks at the network's size."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pycocotools import mask as coco

from bench.harness import Case, row
from chexseg.data import mask_files, rle
from chexseg.data.images import fit_shape
from chexseg.evaluation import bootstrap, metrics, pooled_iou

IMAGES, PATIENTS, TASKS, REPLICATES = 668, 500, tuple("abcdefghij"), 1000
SIZE = (2320, 2828)
PROTOCOLS = ("pooled", "per_image")


def blobs(count: int, seed: int = 0) -> list[dict]:
    """Run-length masks of an original's size: two smooth, wavy outlines each, as an organ's or an opacity's."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    found = []
    for _ in range(count):
        outlines = []
        for _ in range(2):
            centre, radius = rng.uniform((700, 600), (2100, 1700)), rng.uniform(100, 550)
            waves = 1 + 0.15 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6))
            points = centre + radius * waves[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
            outlines.append(points.ravel().tolist())
        coded = coco.merge(coco.frPyObjects(outlines, *SIZE))
        found.append({"size": list(coded["size"]), "counts": coded["counts"].decode()})
    return found


def mask_set(share: float, seed: int) -> dict[str, dict]:
    """Masks of 668 test images; each task is there in a `share` of them."""
    rng, pool, nothing = np.random.default_rng(seed), blobs(60, seed), rle.empty(SIZE)
    return {
        f"patient{i * PATIENTS // IMAGES:05d}_study{i}_view1_frontal": {
            task: pool[rng.integers(len(pool))] if rng.random() < share else nothing for task in TASKS
        }
        for i in range(IMAGES)
    }


def pandas_bootstrap(found: metrics.Overlap, weights: np.ndarray) -> np.ndarray:
    """(protocols, tasks + 1, 3): value and 95% interval, one replicate after the other, for the same draws."""
    names = ("intersection", "union", "predicted", "truth")
    frames = {name: pd.DataFrame(getattr(found, name), columns=list(found.tasks)) for name in names}
    patients = pd.Series(found.images).str.split("_").str[0]
    rows_of = [np.asarray(rows) for _, rows in sorted(patients.groupby(patients).indices.items())]
    both = (frames["predicted"] > 0) & (frames["truth"] > 0)
    each = (frames["intersection"] / frames["union"]).where(both)
    values: list[list[pd.Series]] = [[], []]
    for drawn in weights:
        rows = np.concatenate([rows_of[p] for p in np.repeat(np.arange(len(drawn)), drawn)])
        pooled = frames["intersection"].take(rows).sum() / frames["union"].take(rows).sum()
        for kept, iou in zip(values, (pooled, each.take(rows).mean()), strict=True):
            kept.append(pd.concat([iou, pd.Series({"mIoU": iou.mean()})]))
    tables = [pd.DataFrame(kept) for kept in values]
    return np.stack([np.stack([t.iloc[0], *(t.iloc[1:].quantile(q) for q in (0.025, 0.975))], 1) for t in tables])


@row("evaluation", "668 images x 10 tasks, 1000 replicates, two protocols, against the same with a pandas bootstrap")
def evaluation(device: torch.device) -> Case:
    folder = tempfile.TemporaryDirectory()
    paths = [Path(folder.name) / f"{name}.json" for name in ("truth", "predictions")]
    for seed, (path, share) in enumerate(zip(paths, (0.25, 0.9), strict=True)):
        mask_files.write(path, mask_set(share, seed).items())

    def counted() -> tuple[metrics.Overlap, bootstrap.Resamples]:
        truth, predictions = (mask_files.MaskFile(path) for path in paths)
        found = metrics.overlap(predictions, truth, TASKS, truth)
        return found, bootstrap.Resamples(found.images, REPLICATES)

    def ours() -> np.ndarray:
        found, resamples = counted()
        scores = [bootstrap.score(found, resamples, protocol).values for protocol in PROTOCOLS]
        return np.array([[bootstrap.interval(column) for column in values.T] for values in scores])

    def reference(folder: object = folder) -> np.ndarray:  # holds the folder for as long as the row lives
        found, resamples = counted()
        return pandas_bootstrap(found, resamples.weights)

    return Case(
        ours=ours,
        reference=reference,
        reference_repeats=2,
        agreement=lambda a, b: 1 - float(np.abs(a - b).max()),
        least_agreement=1 - 1e-9,
        limit_s=3.0,
        note="from the JSON files; both sides count pixels on run lengths",
    )


@row("rle_iou", "IoU of a pair of 2320 x 2828 masks, against pycocotools.decode and NumPy")
def rle_iou(device: torch.device) -> Case:
    ours, truth = blobs(20, 1), blobs(20, 2)

    def decoded() -> list[float]:
        pairs = ((coco.decode(a).astype(bool), coco.decode(b).astype(bool)) for a, b in zip(ours, truth, strict=True))
        return [np.logical_and(a, b).sum() / np.logical_or(a, b).sum() for a, b in pairs]

    def run_lengths() -> list[float]:
        names = [str(i) for i in range(len(ours))]
        sides = ({n: {"task": coded} for n, coded in zip(names, side, strict=True)} for side in (ours, truth))
        found = metrics.overlap(*sides, ("task",), names)
        return (found.intersection / found.union)[:, 0].tolist()

    return Case(
        ours=run_lengths,
        reference=decoded,
        reference_repeats=3,
        agreement=lambda a, b: 1 - float(np.abs(np.subtract(a, b)).max()),
        least_agreement=1 - 1e-12,
        max_ratio=1 / 20,
        items=len(ours),
    )


@row("iou20", "IoU at 20 thresholds, 8 x 10 masks of 320 px, against binarising 20 times")
def iou20(device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(8, 10, 320, 320, generator=generator).to(device)
    targets = (torch.rand(8, 10, 320, 320, generator=generator) < 0.15).to(device)

    def histogram() -> torch.Tensor:
        pooled = pooled_iou.PooledIoU(10, device)
        pooled.update(probabilities, targets)
        return pooled.iou()

    def repeated() -> torch.Tensor:
        columns = []
        for threshold in pooled_iou.THRESHOLDS:
            predicted = probabilities > threshold
            intersection = (predicted & targets).sum((0, 2, 3))
            columns.append(intersection / (predicted | targets).sum((0, 2, 3)))
        return torch.stack(columns, 1).double().cpu()

    return Case(
        ours=histogram,
        reference=repeated,
        agreement=lambda a, b: 1 - float((a - b).abs().max()),
        # The reference compares in float32, ours in double: a probability that is exactly float32(0.3) is above 0.3 in
        # double. That is 3 of these 8.2 million pixels; compared in double, the two are equal
        # (tests/evaluation/test_pooled_iou.py).
        least_agreement=1 - 1e-5,
        max_ratio=1 / 5,
        note="the reference compares in float32: 3 of 8.2 million pixels lie on a threshold",
    )


@row("fit_masks", "10 masks of 2320 x 2828 reduced to 320 px, against pycocotools.decode and PIL's nearest")
def fit_masks(device: torch.device) -> Case:
    rles = blobs(10, 3)
    height, width = fit_shape(*SIZE, 320)

    def decoded() -> np.ndarray:
        pictures = (Image.fromarray(coco.decode(coded)) for coded in rles)
        return np.stack([np.asarray(p.resize((width, height), Image.Resampling.NEAREST)) for p in pictures])

    return Case(
        ours=lambda: rle.resize(rles, (height, width)),  # what `segmentation.dataset.prepare` does to masks
        reference=decoded,
        agreement=lambda a, b: float((a == b).mean()),
        least_agreement=0.9999,
        max_ratio=1 / 5,
    )
