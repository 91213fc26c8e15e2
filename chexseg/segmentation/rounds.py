"""A round of self-training: a teacher's masks of a pool, and a student that learns from them and from experts.

Imports no torch: whether a round is up to date must cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chexseg.data import leak_guard, mask_files
from chexseg.data.chexpert import ImageSet
from chexseg.data.mask_files import MaskFile
from chexseg.errors import DataError
from chexseg.runtime import provenance, shards
from chexseg.segmentation import distillation, foreign, pasting
from chexseg.segmentation.choices import encoder_file
from chexseg.segmentation.dataset import SegmentationSet, build_cache, build_caches, inputs_of
from chexseg.training import draws
from chexseg.training.options import RunOptions
from chexseg.training.run_record import Run

if TYPE_CHECKING:
    from torch import nn

    from chexseg.data.sample_cache import SampleCache
    from chexseg.segmentation.model import SegmentationSpec
    from chexseg.segmentation.student import StudentTrainer

# Options that only say where things are: what is in the files counts, not their names.
PLACES = ("teacher_path", "expert_masks_path", "eval_masks_path", "encoder_weights", "labels_path")
POOL = ("train", "valid", "test")  # where to look for the pool's images, in this order


@dataclass(frozen=True)
class Films:
    """The experts' films: masks files to train on and to choose by, and where their images lie."""

    data_dir: Path
    cache_dir: Path
    splits: Sequence[str]
    aliases: Mapping[str, str]
    experts: Sequence[Path]
    evaluation: Sequence[Path]

    def caches(self, files: Sequence[Path], shape: Mapping[str, Any]) -> list[SampleCache]:
        """The decoded samples of masks files; shape: `image_size`, `tasks`, `num_workers`."""
        sets = [(path, self.splits) for path in files]
        return build_caches(self.cache_dir, sets, self.aliases, data_dir=self.data_dir, **shape)


@dataclass(frozen=True)
class Pool:
    """Films with labels, and the file that gets the teacher's masks of them."""

    images: ImageSet
    masks_path: Path


@dataclass(frozen=True)
class Teaching:
    """What the student is taught, and how often. The names are those of segmentation_distillation.py's options; common:
    the tasks that choose its epoch, empty: all."""

    targets: str = "logits"
    temperature: float = 6.0
    gated: bool = False
    floor: float = 0.0
    expert_sizes: tuple[float, float] | None = None
    strong_weight: float = 0.9
    epoch_len: int | None = None
    balance: float = 0.0
    paste: float = 0.0
    loss: str = "dice"
    augment: bool = False
    common: Sequence[str] = ()


@dataclass(frozen=True)
class Start:
    """What the student's weights are at first: an encoder's (`choices.encoder_file`), or all of the first teacher's."""

    weights: str = ""
    kind: str = ""
    from_teacher: bool = False

    def file(self, teachers: Sequence[Path], spec_encoder: str) -> Path | None:
        return teachers[0] if self.from_teacher else encoder_file(spec_encoder, self.weights, self.kind)


def run(
    folder: Path,
    teachers: Sequence[Path],
    films: Films,
    pool: Pool,
    teaching: Teaching,
    start: Start,
    options: RunOptions,
    arguments: Mapping[str, Any],
    *,
    code: str,
) -> None:
    """Write the teachers' masks of the pool to `pool.masks_path` and train a student in `folder`, or go on with that.
    A round that is up to date imports no torch.

    arguments: the command line's, for the record. code: the script's file.
    """
    here = Run(
        folder,
        provenance.describe(arguments, code=code),
        best=(folder / "best_model.pth", folder / "thresholds.txt"),
        record_path=folder / "args.json",
        places=PLACES,
    )
    if here.looks_finished(options.resume):
        shape: dict[str, Any] = {name: here.recorded().get(name) for name in ("image_size", "tasks", "encoder")}
        with suppress(DataError):  # what is wrong, if anything, is said below
            encoder = str(shape.pop("encoder"))
            inputs = _inputs(teachers, films, pool, shape, options, start.file(teachers, encoder))
            if here.with_inputs(inputs).finished_before():
                return

    from chexseg.runtime import distributed
    from chexseg.segmentation import model as networks
    from chexseg.segmentation.teachers import load_teachers
    from chexseg.segmentation.training import check_scorable
    from chexseg.training import loop

    loaded = load_teachers(teachers)
    spec = loaded[1]
    notes = {"image_size": spec.image_size, "tasks": list(spec.tasks), "encoder": spec.encoder}
    shape = {"image_size": spec.image_size, "tasks": spec.tasks, "num_workers": options.num_workers}
    evaluation = films.caches(films.evaluation, shape)
    check_scorable(SegmentationSet(evaluation), ", ".join(map(str, films.evaluation)), spec.tasks, teaching.common)
    experts = films.caches(films.experts, shape)
    make_masks(pool, teachers, experts, evaluation, teaching, options, spec.tasks)
    weak = build_cache(films.cache_dir, MaskFile(pool.masks_path), POOL, data_dir=films.data_dir, **shape)

    loop.seed_everything(options.seed)
    model = networks.build_model(spec)
    if start.from_teacher:
        model.load_state_dict(loaded[0][0].state_dict())
    else:
        networks.load_encoder(model, spec, start.weights, start.kind)
    model.to(distributed.device(options.device))
    source = start.file(teachers, spec.encoder)
    sources = [*teachers, *([source] if source else [])]
    trainer = student(model, loaded[0], sources, spec, experts, weak, evaluation, pool, teaching, folder, options)
    trainer.say_counts()
    notes_too = here.with_record(here.record, **notes)
    loop.fit(trainer, notes_too.with_inputs(_inputs(teachers, films, pool, shape, options, source)), options)


def _inputs(
    teachers: Sequence[Path],
    films: Films,
    pool: Pool,
    shape: Mapping[str, Any],
    options: RunOptions,
    source: Path | None,
) -> list[Path | None]:
    """The files that a student depends on, each in its role."""
    shape = {**shape, "num_workers": options.num_workers}
    experts, evaluation = films.caches(films.experts, shape), films.caches(films.evaluation, shape)
    weak = build_cache(films.cache_dir, MaskFile(pool.masks_path), POOL, data_dir=films.data_dir, **shape)
    beside = [path for teacher in teachers for path in foreign.side_files(teacher)]
    return [*inputs_of(experts, [weak], evaluation, source=source), *teachers, pool.images.csv, *beside]


def make_masks(
    pool: Pool,
    teachers: Sequence[Path],
    experts: Sequence[SampleCache],
    evaluation: Sequence[SampleCache],
    teaching: Teaching,
    options: RunOptions,
    tasks: Sequence[str],
) -> None:
    """The teachers' masks of the pool, without films that are an expert's already (`distillation.teacher_masks`)."""
    taken = {name for caches in (experts, evaluation) for cache in caches for name in cache.ids}
    images = pool.images
    ids = sorted(name for name in images.ids if name not in taken)
    if not ids:
        raise DataError(f"{images.csv}: no film in it for the pool (see --views): all are experts' already")
    labels = sizes = None
    if teaching.gated:
        table = images.frame.loc[ids, list(tasks)].to_numpy(np.float32)
        labels = dict(zip(ids, table, strict=True))
        if teaching.expert_sizes:
            sizes = distillation.expert_sizes(experts, teaching.expert_sizes)
    how = {name: value for name, value in asdict(teaching).items() if name in ("gated", "floor", "expert_sizes")}
    work = {name: getattr(options, name) for name in ("device", "precision", "num_workers")}
    leak_guard.inherit(pool.masks_path, teachers)
    beside = [path for teacher in teachers for path in foreign.side_files(teacher)]
    shards.build(
        pool.masks_path,
        ids,
        process=partial(
            distillation.teacher_masks,
            model_paths=teachers,
            paths={name: images.path(name) for name in ids},
            labels=labels,
            sizes=sizes,
            floor=teaching.floor,
            batch_size=options.batch_size,
            **work,
        ),
        shard_format=mask_files.MaskShards(),
        record=provenance.describe(
            how | work | {"batch_size": options.batch_size},
            [*teachers, images.csv, *(cache.path for cache in experts), *beside],
            code=__file__,
        ),
        label="teacher's masks",
        item_fingerprint=images.fingerprint,
    )


def student(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    sources: Sequence[Path],
    spec: SegmentationSpec,
    experts: Sequence[SampleCache],
    weak: SampleCache,
    evaluation: Sequence[SampleCache],
    pool: Pool,
    teaching: Teaching,
    folder: Path,
    options: RunOptions,
) -> StudentTrainer:
    """The trainer of a round's student. sources: the files that its teachers' and its own first weights are from."""
    from chexseg.segmentation import student as trainers

    dataset = pasting.StudentSet(experts, [weak], augment=teaching.augment, paste=teaching.paste)
    order = draws.mixed(
        dataset.n_experts,
        len(weak),
        strong_weight=teaching.strong_weight,
        seed=options.seed,
        epoch_len=teaching.epoch_len,
        balance=teaching.balance,
        positives=pasting.positives([weak]) if teaching.balance else (),
    )
    given = (model, spec, dataset, SegmentationSet(evaluation))
    more: dict[str, Any] = {"folder": folder, "order": order, "options": options, "loss": teaching.loss}
    more["common"] = teaching.common
    more["sources"] = [*sources, pool.masks_path]
    if teaching.targets == "masks":
        return trainers.StudentTrainer(*given, **more)
    labels = None
    if teaching.gated:
        labels = {name: pool.images.frame.loc[name, list(spec.tasks)].to_numpy(np.float32) for name in weak.ids}
    soft: dict[str, Any] = {
        "teachers": teachers,
        "temperature": teaching.temperature,
        "labels": labels,
        "floor": teaching.floor,
    }
    return trainers.SoftStudentTrainer(*given, **more, **soft)
