"""The paper's stages in order: what each needs and writes, the command that makes it, about how long
that takes and how much of the disk. `reproduce.sh paper` runs these; `doctor.py` shows them before. How far each is, is
in `stage_states`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOUNDARY_NETWORK = "best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth"
METHODS = ("weak_cam", "weak_irnet", "full", "chexseg", "full_plus", "chexseg_plus")
TEACHER = "teacher"
NETWORK_BYTES = 3e8  # of a training: its best network, and the state that it goes on from after a kill


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
    """Where things are: the three folders, the checkpoint, the runs of the three sets, and the folder of the report."""

    base: Path
    truth: Path
    checkpoint: Path
    run: Path
    test_run: Path
    valid_run: Path
    annotations: Path  # of the experts' validation images
    report: Path

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
        return [self.boundary_network, *(self.model(method) for method in (*METHODS, TEACHER))]

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
    """One stage. `needs` names stages and inputs; `seconds` and `bytes` of the disk are estimates, 0 where nothing is
    known. While a stage runs its shards take what its output takes."""

    name: str
    command: str
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    images: int = 0
    seconds: float = 0.0
    bytes: float = 0.0


def paper_stages(places: Places, counts: Counts, speed: Speed, settings: Settings) -> list[Stage]:
    """All stages. The costs are in forward passes of the classifier, with ratios as docs/performance.md has them."""
    return [
        *_maps(places, counts, speed, settings),
        *_masks(places, counts, speed),
        *_irnet(places, counts, speed, settings),
        *_subsets(places, counts, settings),
        *_methods(places, counts, speed, settings),
        *_report(places, counts, speed, settings),
    ]


def _size(settings: Settings) -> float:
    """Of an image, in those of 320 pixels, which the bytes below are of (`python -m bench.storage`)."""
    return (settings.image_size / 320) ** 2


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
        NETWORK_BYTES + 102e3 * counts.train * _size(settings),
    )
    of_train = "saliency maps", places.run, counts.train, "train", " --save_train_cams True"
    of_test = "test maps", places.test_run, counts.test, "test", " --phase test"
    of_valid = "valid maps", places.valid_run, counts.experts, "valid", " --phase valid"
    for name, folder, count, split, more in (of_train, of_test, of_valid):
        command = f"test.py --ckpt_path {places.checkpoint} --image_size {size} --save_cams True{more}"
        command += f" --save_dir_predictions {folder.parent}"
        outputs = (folder / "cams" / "saliency.h5",)
        seconds = count * max(1.15 * speed.forward, read)
        yield Stage(name, command, outputs, ("classifier", split), count, seconds, 12e3 * count * _size(settings))


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
    of_reader = "radiologist masks", places.truth / "human_annotations_test.json", "test_human", counts.test
    for name, annotations, split, count in (of_experts, of_test, *[of_reader] * of_reader[1].is_file()):
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
        213e3 * n * _size(settings),
    )
    yield Stage(
        "relation labels",
        f"IRNet/cam_to_ir_label_hdf5.py --map_dir {run} --num_workers {cores}",
        (run / "hdf5_files" / "ir_labels",),
        ("images and maps",),
        n,
        0.19 * n / cores,
        11e3 * n * _size(settings),
    )
    yield Stage(
        "boundary network",
        f"IRNet/train_irnet.py --map_dir {run} --backbone_weights {places.checkpoint} --lr 0.01 --weight_decay 0.0 "
        f"--num_epochs {settings.boundary_epochs}",
        (places.boundary_network,),
        ("relation labels",),
        n,
        3 * n * speed.forward * settings.boundary_epochs,
        NETWORK_BYTES,
    )
    yield Stage(
        "pseudo masks",
        f"make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {run} --irn_best_model_name {BOUNDARY_NETWORK} "
        "--irn_is_training True",
        (run / "pseudo_seg_labels_encoded_cams.json", run / "pseudo_seg_labels_encoded_irnet.json"),
        ("boundary network",),
        n,
        n * (2 * speed.forward + 0.1 / cores),
        6e3 * n,
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
    """The segmentation networks, and their masks of the test set. All but the weak ones draw as many images,
    teacher and student half of them each."""
    run, experts, draws = places.run, places.expert_masks(settings.experts), settings.experts + settings.subset
    start = f"--encoder {settings.encoder} --encoder_weights_type CheXpert --encoder_weights {places.checkpoint}"
    common = f"--save_dir {places.trials} --eval_masks_path {places.rest} --lr 1e-4"
    of_experts = f"--train_set valid --train_masks_path {experts}"
    plus = "--loss bce_dice --batch_size 4"
    whole, half = (
        f"--num_epochs {epochs} --epoch_len {draws} --valid_common_pathologies True"
        for epochs in (settings.epochs, max(1, settings.epochs // 2))
    )
    options = {
        "full": f"{of_experts} {whole}",
        **{
            f"weak_{kind}": f"--train_masks_path {run / f'pseudo_seg_labels_encoded_{file}.json'} "
            f"--num_epochs {settings.epochs}"
            for kind, file in (("cam", "cams"), ("irnet", "irnet"))
        },
        "chexseg": f"--semi_supervised True --weighted True --ss_expert_annotations_masks_path {experts} "
        f"--ss_dnn_generated_masks_path {places.subset(settings.subset)} {whole}",
        "full_plus": f"{of_experts} {plus} {whole}",
        TEACHER: f"{of_experts} {plus} {half}",
        "chexseg_plus": f"--teacher_path {places.model(TEACHER)} --from_teacher True --expert_masks_path {experts} "
        f"--strong_labels_weight 0.5 --targets masks --gate labels --expert_sizes 20 80 --floor 0.02 --balance 0.5 "
        f"--paste 0.5 {plus} {half}",
    }
    weak, pool = ("pseudo masks", "expert split"), ("expert split", f"train {TEACHER}", "train")
    needs = {"weak_cam": weak, "weak_irnet": weak, "chexseg": ("expert split", "pseudo subset"), "chexseg_plus": pool}
    cached = {"weak_cam": counts.train, "weak_irnet": counts.train, "chexseg": draws, "chexseg_plus": counts.train}
    for method, more in options.items():
        images = cached.get(method, settings.experts)
        drawn = images if method.startswith("weak") else draws
        epochs = settings.epochs / (2 if method in (TEACHER, "chexseg_plus") else 1)
        seconds = images * speed.read / speed.processors + 8 * drawn * speed.forward * epochs
        script = f"segmentation_train.py {start}" if method != "chexseg_plus" else "segmentation_distillation.py"
        yield Stage(
            f"train {method}",
            f"{script} --experiment_name {method} {common} {more}",
            (places.model(method),),
            (*needs.get(method, ("expert split",)), "valid", "encoder"),
            images,
            seconds,
            NETWORK_BYTES + 230e3 * images * _size(settings),
        )
    outputs = tuple(places.model(method).with_name("test_masks.json") for method in METHODS)
    command = f"segmentation_test.py --test_masks_path {places.truth / 'test_encoded.json'} --model_path "
    command += f"{' '.join(str(places.model(method)) for method in METHODS)} "
    command += f"--output_path {' '.join(map(str, outputs))}"
    wanted = ("test masks", "test", *(f"train {method}" for method in METHODS))
    seconds = len(METHODS) * counts.test * (2.5 * speed.forward + speed.read + 0.06)
    yield Stage("predicted masks", command, outputs, wanted, counts.test, seconds)


def _report(places: Places, counts: Counts, speed: Speed, settings: Settings) -> Iterator[Stage]:
    """How good the pseudo masks are, those of the test set, to look at, and the tables."""
    teacher, experts = places.model(TEACHER).with_name("valid_masks.json"), places.expert_masks(settings.experts)
    yield Stage(
        "teacher masks",
        f"segmentation_test.py --model_path {places.model(TEACHER)} --allow_leak True --test_masks_path {places.rest} "
        f"--output_path {teacher}",
        (teacher,),
        (f"train {TEACHER}", "valid"),
    )
    thresholds = places.valid_run / "thresholds.csv"
    yield Stage(
        "map thresholds",
        f"localization_eval/tune_thresholds.py --map_dir {places.valid_run} --only_positive True --gt_path {experts}",
        (thresholds,),
        ("valid maps", "expert split"),
        counts.experts,
    )
    yield Stage(
        "quality",
        f"pseudo_label_quality.py --gt_path {places.rest} --map_dir {places.valid_run} --threshold_path {thresholds} "
        f"--boundary_net {BOUNDARY_NETWORK} --source teacher={teacher} --output_dir {places.report}",
        (places.report / "quality.csv",),
        ("valid maps", "map thresholds", "boundary network", "teacher masks"),
        counts.experts,
    )
    pseudo = places.test_run / "pseudo_seg_labels_encoded_irnet.json"
    yield Stage(
        "test pseudo masks",
        f"make_pseudo_seg_labels.py --irn_pseudo_labels_save_dir {places.test_run} --irn_best_model_name "
        f"{BOUNDARY_NETWORK} --irn_is_training False --gate probability",
        (pseudo,),
        ("test maps", "boundary network", "test"),
        counts.test,
        counts.test * (2 * speed.forward + speed.read + 0.1),
    )
    methods = (f"--method {method}={places.model(method).with_name('test_masks.json')}" for method in METHODS)
    human = places.truth / "test_human_encoded.json"
    yield Stage(
        "tables",
        f"make_tables.py --ground_truth {places.truth / 'test_encoded.json'} --output_dir {places.report} "
        f"{' '.join(methods)} --maps {places.test_run} --pseudo {pseudo}" + f" --human {human}" * human.is_file(),
        (places.report / "table.md",),
        ("predicted masks", "test maps", "test pseudo masks", "test"),
        counts.test,
    )
