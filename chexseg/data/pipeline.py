"""The paper's stages in order: what each needs and writes, how far it is, the command that makes it, and about how long
that takes. `reproduce.sh paper` runs these; `doctor.py` shows them before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexseg.runtime import plain_json, provenance
from chexseg.runtime.checks import Check
from chexseg.runtime.progress import duration

FINISHED, BEGUN, UNRECORDED, TO_DO = "finished", "begun", "there, unknown from what", "to do"
BOUNDARY_NETWORK = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
NETWORKS = (".pth", ".ckpt", ".pt")
METHODS = ("weak_cam", "weak_irnet", "full", "chexseg")


@dataclass(frozen=True)
class Settings:
    """The paper's settings, as in `reproduce.sh paper`: sizes of the sets, and epochs of each training."""

    image_size: int = 320
    encoder: str = "resnet18"
    experts: int = 147
    subset: int = 100
    classifier_epochs: int = 3
    boundary_epochs: int = 5
    epochs: int = 20


@dataclass(frozen=True)
class Places:
    """Where things are: the three folders, the checkpoint, and the runs of the training and the test set."""

    base: Path
    truth: Path
    checkpoint: Path
    run: Path
    test_run: Path
    annotations: Path  # of the experts' validation images

    @property
    def trials(self) -> Path:
        return self.base / "seg_trials"

    @property
    def boundary_network(self) -> Path:
        return self.base / "weakly_supervised" / "saved_models" / BOUNDARY_NETWORK

    @property
    def rest(self) -> Path:
        """Experts' masks that epochs and thresholds are chosen on."""
        return self.truth / "valid_encoded_rest.json"

    @property
    def networks(self) -> list[Path]:
        return [self.boundary_network, *(self.model(method) for method in METHODS)]

    def expert_masks(self, count: int) -> Path:
        return self.truth / f"valid_encoded_{count}.json"

    def subset(self, count: int) -> Path:
        return self.run / f"pseudo_seg_labels_irnet_{count}_cxrs.json"

    def model(self, method: str) -> Path:
        return self.trials / method / "best_model.pth"


@dataclass(frozen=True)
class Counts:
    """Images of each set: the classifier's training set, the experts' set, and the test set's frontal views."""

    train: int = 0
    experts: int = 0
    test: int = 0


@dataclass(frozen=True)
class Speed:
    """Seconds: `forward` of the classifier's network for one image, `read` of decoding one. 0 where not measured."""

    forward: float = 0.0
    read: float = 0.0
    processors: int = 1


@dataclass(frozen=True)
class Stage:
    """One stage. `needs` names stages and inputs; `seconds` is an estimate, 0 where nothing is known."""

    name: str
    command: str
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    images: int = 0
    seconds: float = 0.0


def paper_stages(places: Places, counts: Counts, speed: Speed, settings: Settings) -> list[Stage]:
    """All stages. The costs are in forward passes of the classifier, with ratios as docs/performance.md has them."""
    return [
        *_maps(places, counts, speed, settings),
        *_masks(places, counts, speed),
        *_irnet(places, counts, speed, settings),
        *_subsets(places, counts, settings),
        *_methods(places, counts, speed, settings),
    ]


def _maps(places: Places, counts: Counts, speed: Speed, settings: Settings) -> Iterator[Stage]:
    """The classifier, where there is none yet, and its maps."""
    size, epochs, read = settings.image_size, settings.classifier_epochs, speed.read / speed.processors
    yield Stage(
        "classifier",
        f"train.py --ckpt_path {places.checkpoint} --architecture {settings.encoder} --image_size {size} "
        f"--num_epochs {epochs} --batch_size 16 --lr 1e-4 --weights imagenet --augment",
        (places.checkpoint,),
        ("train", "valid", "classifier", "classifier weights"),
        counts.train,
        counts.train * (read + 3 * speed.forward * epochs),
    )
    of_train = "saliency maps", places.run, counts.train, "train", " --save_train_cams True"
    of_test = "test maps", places.test_run, counts.test, "test", ""
    for name, folder, count, split, more in (of_train, of_test):
        command = f"test.py --ckpt_path {places.checkpoint} --image_size {size} --save_cams True{more}"
        command += f" --save_dir_predictions {folder.parent}"
        outputs = (folder / "cams" / "saliency.h5",)
        yield Stage(name, command, outputs, ("classifier", split), count, count * max(1.15 * speed.forward, read))


def _masks(places: Places, counts: Counts, speed: Speed) -> Iterator[Stage]:
    """Masks by a threshold on the maps, and the readers' own."""
    yield Stage(
        "threshold masks",
        f"localization_eval/pred_segmentation.py --map_dir {places.run}",
        (places.run / "seg_labels_encoded.json",),
        ("saliency maps",),
        counts.train,
        0.01 * counts.train / speed.processors,
    )
    of_experts = "expert masks", places.annotations, "valid", counts.experts
    of_test = "test masks", places.truth / "gt_annotations_test.json", "test", counts.test
    for name, annotations, split, count in (of_experts, of_test):
        output = places.truth / f"{split}_encoded.json"
        command = f"localization_eval/gt_segmentation.py --ann_path {annotations} --output_path {output}"
        yield Stage(name, command, (output,), (f"{split} outlines",), count, 0.01 * count)


def _irnet(places: Places, counts: Counts, speed: Speed, settings: Settings) -> Iterator[Stage]:
    """From maps to the pseudo masks of a random walk."""
    run, n, cores = places.run, counts.train, speed.processors
    yield Stage(
        "images and maps",
        f"IRNet/convert_to_hdf5.py --map_dir {run} --image_size {settings.image_size}",
        (run / "hdf5_files" / "train_set",),
        ("saliency maps",),
        n,
        n * (speed.read / cores + 0.004),
    )
    yield Stage(
        "relation labels",
        f"IRNet/cam_to_ir_label_hdf5.py --map_dir {run} --num_workers {cores}",
        (run / "hdf5_files" / "ir_labels",),
        ("images and maps",),
        n,
        0.19 * n / cores,
    )
    yield Stage(
        "boundary network",
        f"IRNet/train_irnet.py --map_dir {run} --backbone_weights {places.checkpoint} --lr 0.01 --weight_decay 0.0 "
        f"--num_epochs {settings.boundary_epochs}",
        (places.boundary_network,),
        ("relation labels",),
        n,
        3 * n * speed.forward * settings.boundary_epochs,
    )
    yield Stage(
        "pseudo masks",
        f"make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {run} --irn_best_model_name {BOUNDARY_NETWORK} "
        "--irn_is_training True",
        (run / "pseudo_seg_labels_encoded_cams.json", run / "pseudo_seg_labels_encoded_irnet.json"),
        ("boundary network",),
        n,
        n * (2 * speed.forward + 0.1 / cores),
    )


def _subsets(places: Places, counts: Counts, settings: Settings) -> Iterator[Stage]:
    """The experts' images for training and for choosing the epoch, and the pseudo masks that go with them."""
    yield Stage(
        "expert split",
        f"create_train_set_subsets.py --masks_path {places.truth / 'valid_encoded.json'} "
        f"--subset_len {settings.experts} --rest_path {places.rest}",
        (places.expert_masks(settings.experts), places.rest),
        ("expert masks", "expert set"),
        counts.experts,
    )
    yield Stage(
        "pseudo subset",
        f"create_train_set_subsets.py --map_dir {places.run} --subset_len {settings.subset} --pseudo_labels_type irnet",
        (places.subset(settings.subset),),
        ("pseudo masks", "pseudo set"),
        settings.subset,
    )


def _methods(places: Places, counts: Counts, speed: Speed, settings: Settings) -> Iterator[Stage]:
    """The four segmentation networks, and their masks of the test set."""
    run, expert_masks = places.run, places.expert_masks(settings.experts)
    common = (
        f"--save_dir {places.trials} --eval_masks_path {places.rest} --encoder {settings.encoder} --batch_size 8 "
        f"--lr 1e-4 --encoder_weights_type CheXpert --encoder_weights {places.checkpoint} "
        f"--num_epochs {settings.epochs}"
    )
    masks = {
        "weak_cam": f"--train_masks_path {run / 'pseudo_seg_labels_encoded_cams.json'}",
        "weak_irnet": f"--train_masks_path {run / 'pseudo_seg_labels_encoded_irnet.json'}",
        "full": f"--train_set valid --train_masks_path {expert_masks} --valid_common_pathologies True",
        "chexseg": f"--semi_supervised True --weighted True --ss_expert_annotations_masks_path {expert_masks} "
        f"--ss_dnn_generated_masks_path {places.subset(settings.subset)} --valid_common_pathologies True",
    }
    trained_on = {"full": settings.experts, "chexseg": settings.experts + settings.subset}
    needs = {"full": ("expert split",), "chexseg": ("expert split", "pseudo subset")}
    always = "valid", "encoder"
    for method in METHODS:
        images = trained_on.get(method, counts.train)
        seconds = images * (speed.read / speed.processors + 8 * speed.forward * settings.epochs)
        command = f"segmentation_train.py --experiment_name {method} {common} {masks[method]}"
        wanted = (*needs.get(method, ("pseudo masks", "expert split")), *always)
        yield Stage(f"train {method}", command, (places.model(method),), wanted, images, seconds)
    outputs = tuple(places.model(method).with_name("test_masks.json") for method in METHODS)
    command = f"segmentation_test.py --test_masks_path {places.truth / 'test_encoded.json'} --model_path "
    command += f"{' '.join(str(places.model(method)) for method in METHODS)} "
    command += f"--output_path {' '.join(map(str, outputs))}"
    wanted = ("test masks", "test", *(f"train {method}" for method in METHODS))
    seconds = len(METHODS) * counts.test * (2.5 * speed.forward + speed.read + 0.06)
    yield Stage("predicted masks", command, outputs, wanted, counts.test, seconds)


def bytes_needed(counts: Counts, settings: Settings) -> float:
    """Of the disk, roughly: what `python -m bench.storage` shows for 320 pixels, the same again for shards, and the
    caches that the classifier (1) and the weakly supervised networks (2) train from."""
    per_image = 2 * 122e3 + 102e3 + 2 * 230e3
    return (counts.train + counts.test) * per_image * (settings.image_size / 320) ** 2 + 1e9


def state(stage: Stage) -> str:
    """How far a stage is, by its files alone. Whether its inputs changed since, the stage itself finds out."""
    states = [_state(output) for output in stage.outputs]
    for worse in (TO_DO, BEGUN, UNRECORDED):
        if any(found.startswith(worse) for found in states):
            begun = [found for found in states if found.startswith(BEGUN)]
            return begun[0] if begun else worse
    return FINISHED


def _state(output: Path) -> str:
    if output.suffix in NETWORKS:
        return _training_state(output)
    if not output.is_file():
        parts = output.with_name(f".{output.name}.parts")
        made = [path.name for path in parts.glob("*-of-*") if path.suffix != ".json"]
        return f"{BEGUN}: {len(made)} of {int(made[0].rpartition('-of-')[2])} shards" if made else TO_DO
    size = _read(provenance.manifest_path(output)).get("output", {}).get("size")
    return FINISHED if size == output.stat().st_size else UNRECORDED


def _training_state(output: Path) -> str:
    """Of a network. Its record stands beside it, or in the folder of its training."""
    beside = provenance.manifest_path(output), output.parent / "args.json"
    of_boundaries = output.parent / output.stem.removeprefix("best_")
    folders = output.with_name(f"{output.name}.training"), output.parent, of_boundaries
    if not output.is_file():
        return BEGUN if any((folder / "checkpoint.pt").is_file() for folder in folders) else TO_DO
    record = next((path for path in (*beside, of_boundaries / "args.json") if path.is_file()), None)
    if record and "finished" in _read(record):
        return FINISHED
    return BEGUN if record and any((folder / "checkpoint.pt").is_file() for folder in folders) else UNRECORDED


def _read(path: Path) -> dict:
    """A record; empty where it cannot be read."""
    try:
        content = plain_json.read(path, finite=False)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def blocked(stages: Sequence[Stage], stopping: Sequence[Check]) -> dict[str, str]:
    """The check that each blocked stage waits for: its own input's, or that of a stage before it. A finished stage, or
    one whose file is there, is not blocked and blocks nobody."""
    problems: dict[str, str] = {}
    for check in reversed(stopping):
        # `train labels` and `train images` are both about `train`.
        for name in (check.what, check.what.removesuffix(" labels").removesuffix(" images")):
            problems[name] = check.what
    reasons: dict[str, str] = {}
    for stage in stages:
        if state(stage) not in (FINISHED, UNRECORDED):
            for need in stage.needs:
                reason = reasons.get(need) if need != stage.name else None
                reason = reason or problems.get(need)
                if reason:
                    reasons.setdefault(stage.name, reason)
    return reasons


def table(stages: Sequence[Stage], reasons: Mapping[str, str]) -> str:
    """A line a stage: how far it is, of how many images, about how long what is left takes, and what is in its way."""
    width = max(len(stage.name) for stage in stages)
    lines = ["STAGES"]
    for number, stage in enumerate(stages, 1):
        how_far = state(stage)
        left = "" if how_far == FINISHED or not stage.seconds else f"about {duration(stage.seconds)}"
        text = how_far
        if stage.name in reasons:
            text = f"BLOCKED by {reasons[stage.name]}, see above"
        images = f"{stage.images} images" if stage.images else ""
        lines.append(f"  {number:2} {stage.name:{width}}  {images:>14}  {left:>18}  {text}".rstrip())
    work = sum(stage.seconds for stage in stages if state(stage) != FINISHED and stage.name not in reasons)
    if work:
        lines.append(f"  about {duration(work)} of work left on this machine, in one process")
    return "\n".join(lines)


def next_stage(stages: Sequence[Stage], reasons: Mapping[str, str]) -> Stage | None:
    """The first stage that is not finished and not blocked."""
    ready = (stage for stage in stages if stage.name not in reasons and state(stage) != FINISHED)
    return next((stage for stage in ready if state(stage) != UNRECORDED), None)
