"""Looking at a classifier and its maps before days are spent on them, as rows of checks. Whether it is any good is not
looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from chexseg.classifier import saliency_store, torch_cache
from chexseg.runtime.checks import BAD, MISSING, ODD, OK, Check, Checks, some


def checkpoint(checks: Checks, path: Path, observations: Sequence[str], tasks: Sequence[str], encoder: str) -> None:
    """Whether a checkpoint can be read, knows the outlined tasks, and fits the segmentation network that starts from it
    (an encoder of another architecture would fail after all heavy stages)."""
    from chexseg.classifier import models

    model = checks.attempt("classifier", lambda: models.load_classifier(path, observations))
    if model is None:
        return
    spec = model.spec
    detail = (
        f"{path}: {spec.architecture}, {len(spec.tasks)} tasks, {spec.image_size} px, input as {spec.normalisation}"
    )
    if absent := [task for task in tasks if task not in spec.tasks]:
        checks.add(BAD, "classifier", f"{detail}; it does not know {some(absent)}", "train one with train.py")
    elif spec.architecture != encoder:
        way_out = f"--encoder {spec.architecture}, here and of segmentation_train.py; or another checkpoint"
        detail += f"; the segmentation networks' encoder is {encoder}, which cannot start from it"
        checks.add(BAD, "encoder", detail, way_out)
    else:
        checks.add(OK, "classifier", detail)


def imagenet_weights(checks: Checks, architecture: str) -> None:
    """Whether torch's own cache has what a classifier is trained from; nothing is downloaded."""
    path = torch_cache.only_file(architecture)
    if path:
        checks.add(OK, "classifier weights", f"no classifier yet; it will be trained from {path}")
        return
    detail = f"no checkpoint, and no ImageNet weights of {architecture} in {torch_cache.folder()} to train one from"
    checks.add(
        MISSING, "classifier weights", detail, "name a checkpoint with --ckpt_path, or put torchvision's weights there"
    )


def forward_seconds(architecture: str, image_size: int, device: str = "auto", batch: int = 8) -> float:
    """Seconds of one image in a forward pass, measured on random pixels; the better of two."""
    import torch

    from chexseg.classifier import networks
    from chexseg.runtime import distributed

    place = distributed.device(device)
    network = networks.build_network(architecture, 14).to(place).eval()
    pixels = torch.rand(batch, 3, image_size, image_size, device=place)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            started = perf_counter()
            network(pixels).sum().item()  # waits for a GPU
            times.append(perf_counter() - started)
    return min(times[1:]) / batch


def maps(checks: Checks, run: Path, ids: Sequence[str], tasks: Sequence[str], *, sample: int, what: str) -> None:
    """Whether a run's maps are of the images in the label file, finite, and not all empty."""
    store = checks.attempt(what, lambda: saliency_store.open_maps(run))
    if store is None or checks.attempt(what, lambda: store.task_rows(tasks)) is None:
        return
    rows = store.task_rows(tasks)
    without = [image_id for image_id in ids if image_id not in store]
    foreign = len(store.ids) - (len(ids) - len(without))
    if without or foreign:
        detail = f"{store.path}: {len(without)} images of the label file have no map ({some(without)}), "
        checks.add(ODD, what, detail + f"{foreign} maps are of other images", "test.py makes the missing ones")
    step = max(1, len(store.ids) // max(sample, 1))
    empty = broken = looked = 0
    for image_id in store.ids[::step][:sample]:
        saliency = checks.attempt(what, partial(store.__getitem__, image_id))
        if saliency is None:
            return
        read = saliency["maps"][rows]
        looked += 1
        broken += not np.isfinite(read).all()
        empty += not (read > 0).any()
    detail = f"{store.path}: {len(store.ids)} images, {len(store.tasks)} tasks"
    if broken or empty:
        checks.add(ODD, what, f"{detail}; of {looked} looked at, {empty} are zero everywhere and {broken} not finite")
    else:
        checks.add(OK, what, f"{detail}; {looked} looked at")


@dataclass
class Runs:
    """Rows about the classifier and its maps, and the run folders that hold those of the three sets."""

    rows: list[Check]
    run: Path
    test_run: Path
    valid_run: Path


def classifier_and_maps(
    path: Path,
    run: Path | None,
    base: Path,
    ids: Mapping[str, Sequence[str]],
    observations: Sequence[str],
    tasks: Sequence[str],
    encoder: str,
    *,
    must_exist: bool,
    sample: int,
) -> Runs:
    """Look at the checkpoint at `path` (unless it may be trained yet) and at the maps of the training and test `ids`.

    Where the checkpoint has no run below `base` and there is one other, that is taken, and a row says so.
    """
    checks = Checks("classifier")
    if must_exist or path.is_file():
        checkpoint(checks, path, observations, tasks, encoder)
    else:
        imagenet_weights(checks, encoder)
    name = f"{path.parent.name}_{path.name}"
    others = [folder for folder in runs(base) if folder.parent.name in ("train_cams", "train_cams_temp")]
    expected = base / "train_cams" / name
    if run is None:
        run = expected if expected in others or len(others) != 1 else others[0]
        if others and run != expected:
            detail = f"none of {expected.name}, which the checkpoint would have; there is {run}"
            checks.add(ODD, "saliency maps", detail, f"--ckpt_path <the checkpoint of {run.name}>, or --map_dir")
        elif others and expected not in others:
            detail = f"none of {expected.name}, which the checkpoint would have; there are {some(others)}"
            checks.add(ODD, "saliency maps", detail, "name one with --map_dir")
    test_run, valid_run = (
        next((base / split / of for of in (run.name, name) if (base / split / of).is_dir()), base / split / name)
        for split in ("test_cams", "valid_cams")
    )
    looked_at = ("saliency maps", run, "train"), ("test maps", test_run, "test"), ("valid maps", valid_run, "valid")
    for what, folder, split in looked_at:
        if (folder / "cams").is_dir() or (folder / saliency_store.STORE).is_file():
            if not any((folder / "cams").glob("saliency.h5")) and (folder / "cams" / ".saliency.h5.parts").is_dir():
                continue  # half-made: the stage's state says so
            maps(checks, folder, ids.get(split, ()), tasks, sample=sample, what=what)
    return Runs(checks.rows, run, test_run, valid_run)


def runs(base: Path) -> list[Path]:
    """Folders of runs of test.py below the usual places, by the maps in them."""
    stores = base.glob(f"*_cams*/*/{saliency_store.STORE}")
    return sorted(path.parents[1] for path in stores)
