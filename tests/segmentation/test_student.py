"""What a student is taught: targets by hand, gated; experts alone are tallied; whose patients it saw."""

import numpy as np
import pytest
import torch
from torch import nn

from chexseg.data import leak_guard
from chexseg.data.chexpert import patient_of
from chexseg.data.mask_files import MaskFile
from chexseg.evaluation.pooled_iou import PooledIoU
from chexseg.segmentation.dataset import SegmentationSet, build_cache
from chexseg.segmentation.pasting import StudentSet
from chexseg.segmentation.student import SoftStudentTrainer, StudentTrainer
from chexseg.segmentation.teachers import Committee
from chexseg.training import draws
from chexseg.training.losses import dice_loss
from chexseg.training.options import RunOptions
from tests.segmentation.small import SPEC, TASKS


class Constant(nn.Module):
    """The same logit everywhere, for all tasks."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(float(logit)))

    def forward(self, images):
        return self.logit.expand(len(images), len(TASKS), *images.shape[-2:])


@pytest.fixture
def given(folder):
    options = {"data_dir": folder, "tasks": TASKS, "image_size": 32}
    cache = build_cache(folder / "cache", MaskFile(folder / "masks.json", {}), ("train", "valid"), **options)
    dataset = StudentSet([cache], [cache])
    more = {"folder": folder, "order": draws.shuffled(6, 0), "options": RunOptions(1, 2, 1e-3)}
    return (Constant(0), SPEC, dataset, SegmentationSet([cache])), more


def batch_of(dataset, *rows):
    samples = [dataset[draws.Draw(row)] for row in rows]
    return torch.utils.data.default_collate(samples)


def soft(given, labels, floor=0.0, logits=(6.0,)):
    args, more = given
    teachers = [Constant(logit) for logit in logits]
    return SoftStudentTrainer(*args, **more, teachers=teachers, temperature=6.0, labels=labels, floor=floor)


def targets(given, dataset, *options, **more):
    trainer, seen = soft(given, *options, **more), {}

    def loss(logits, masks, known):
        seen.update(logits=logits, masks=masks, known=known)
        return logits.sum()

    trainer.loss = loss
    trainer.compute_loss(Constant(3.0), batch_of(dataset, 0, 3))
    return seen


def test_soft_targets_at_the_temperature(given):
    dataset = given[0][2]
    seen = targets(given, dataset, None)
    expert = dataset[draws.Draw(0)]["masks"]
    torch.testing.assert_close(seen["masks"][0], expert.float())
    torch.testing.assert_close(seen["masks"][1], torch.full_like(seen["masks"][1], 0.7310586))
    assert (seen["logits"][0] == 3).all() and (seen["logits"][1] == 0.5).all() and seen["known"].all()


def test_soft_targets_of_several_teachers_are_the_mean(given):
    seen = targets(given, given[0][2], None, logits=(6.0, -6.0))
    torch.testing.assert_close(seen["masks"][1], torch.full_like(seen["masks"][1], 0.5))


@pytest.mark.parametrize(
    ("label", "floor", "is_known", "is_empty"),
    [
        (1.0, 0.0, True, False),
        (0.0, 0.0, True, True),
        (np.nan, 0.0, True, True),
        (-1.0, 0.0, False, False),
        (1.0, 0.999, False, False),
    ],
)
def test_soft_targets_gated_by_labels(given, label, floor, is_known, is_empty):
    dataset = given[0][2]
    name = dataset[draws.Draw(3)]["id"]
    seen = targets(given, dataset, {name: np.full(len(TASKS), label, np.float32)}, floor)
    assert (seen["known"][1] == is_known).all() and (seen["masks"][1] == 0).all() == is_empty
    assert seen["known"][0].all()  # an expert's film is as the expert says


def test_teachers_are_not_trained(given):
    trainer = soft(given, None)
    loss, _ = trainer.compute_loss(trainer.model, batch_of(given[0][2], 0, 3))
    loss.backward()
    assert trainer.model.logit.grad is not None and trainer.teachers[0].logit.grad is None


def test_experts_alone_are_tallied(given):
    args, more = given
    trainer, batch = StudentTrainer(*args, **more), batch_of(args[2], 0, 3, 4)
    logits = torch.randn(3, len(TASKS), 32, 32, generator=torch.Generator().manual_seed(0))
    alone = PooledIoU(len(TASKS))
    alone.update(logits[:1].sigmoid(), batch["masks"][:1], batch["known"][:1])
    assert torch.equal(trainer.tally(logits, batch), alone.counts)


def test_the_record_of_patients_includes_the_teachers(given, folder):
    args, more = given
    teacher = folder / "teacher" / "best_model.pth"
    teacher.parent.mkdir()
    leak_guard.record(teacher, {"trained": ["patient99999"]})
    trainer = StudentTrainer(*args, **more, sources=[teacher])
    trainer.save_best(dict(trainer.model.state_dict()), {"thresholds": [0.5] * len(TASKS)})
    trained = leak_guard.read(folder / "best_model.pth")["best_model.pth"]["trained"]
    assert {leak_guard.hashed(patient_of(name)) for name in args[2].caches[0].ids} <= set(trained)
    assert leak_guard.hashed("patient99999") in trained


def test_a_committees_probability_is_the_mean():
    images = torch.zeros(2, 3, 8, 8)
    found = Committee([Constant(2.0), Constant(-1.0)])(images).sigmoid()
    torch.testing.assert_close(found, torch.full_like(found, (0.8807971 + 0.2689414) / 2))


def test_the_loss_is_the_one_asked_for(given):
    trainer = soft(given, None)
    assert trainer.loss is dice_loss
