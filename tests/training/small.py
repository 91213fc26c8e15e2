"""A small training that takes milliseconds a step: random images, dropout, batch norm; and processes to run it in."""

import json
import multiprocessing
import os
import time
from types import MethodType

import numpy as np
import torch
from torch import nn

from chexseg.runtime import provenance
from chexseg.training import draws, loop, losses
from chexseg.training.options import RunOptions
from chexseg.training.run_record import Run
from chexseg.training.trainer import Trainer

EPOCHS, IMAGES, BATCH = 3, 22, 4
STEPS = 6  # in an epoch: 22 images in batches of at most 4


class Noisy:
    """Images of random numbers, their masks, and noise that depends on the draw: stands for augmentation."""

    def __init__(self, bad=None):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(IMAGES, 3, 8, 8, generator=generator)
        self.bad = bad

    def __getitem__(self, draw):
        image = self.images[draw.index]
        if draw.key:
            image = image + float(np.random.default_rng(draw.key).normal())
        if draw.index == self.bad:
            image = image * float("nan")
        return {"image": image, "masks": (self.images[draw.index, :2] > 0), "id": f"patient{draw.index:05d}"}


def build_model(dropout=0.3):
    loop.seed_everything(3)
    norm, drop = nn.BatchNorm2d(6), nn.Dropout(dropout)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), norm, nn.ReLU(), drop, nn.Conv2d(6, 2, 1))


def compute_loss(network, batch):
    logits = network(batch["image"])
    return losses.dice_loss(logits, batch["masks"]), logits


def tally(logits, batch):
    return (logits > 0).sum((0, 2, 3))


class SmallTrainer(Trainer):
    """`changes` are methods to take instead of these."""

    def __init__(self, model, dataset, lr, saved, **changes):
        self.model, self.dataset, self.saved = model, dataset, saved
        self.order = draws.shuffled(IMAGES, 17)
        self.optimizer = torch.optim.Adam(model.parameters(), lr)
        for name, method in changes.items():
            setattr(self, name, method or MethodType(getattr(Trainer, name), self))

    def compute_loss(self, network, batch):
        return compute_loss(network, batch)

    def tally(self, outputs, batch):
        return tally(outputs, batch)

    def evaluate(self, model, tally):
        return {"predicted": tally.tolist()}

    def schedule(self, step, steps):
        return 1 - step / steps

    def save_best(self, weights, metrics):
        self.saved.update(weights=weights, metrics=metrics)


def train(folder, *, model=None, dataset=None, lr=0.01, keep=None, record_path=None, **changes):
    """Run `fit` with small things; `changes` are options of the run or methods of the trainer. Returns the model and
    the result."""
    model, saved = model or build_model(), keep if keep is not None else {}
    options = {name: changes.pop(name) for name in list(changes) if name in RunOptions.__dataclass_fields__}
    trainer = SmallTrainer(model, dataset or Noisy(), lr, saved, **changes)
    run = Run(folder, provenance.describe({"lr": lr, "batch_size": BATCH}), record_path=record_path)
    given = {"num_epochs": EPOCHS, "batch_size": BATCH, "lr": lr, "seed": 17}
    return model, loop.fit(trainer, run, RunOptions(**(given | options)))


def log_of(folder):
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_weights(model, expected):
    for (name, tensor), (_, other) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(tensor, other), name


class Killed(Exception):
    pass


class Fatal(Noisy):
    """Dies after some samples."""

    def __init__(self, samples):
        super().__init__()
        self.left = samples

    def __getitem__(self, draw):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__getitem__(draw)


class Slow(Noisy):
    def __getitem__(self, draw):
        time.sleep(0.004)
        return super().__getitem__(draw)


def in_child(function):
    """Run `function` in a forked process, which starts in milliseconds. Returns the process."""

    def body():
        torch.set_num_threads(1)
        try:
            function()
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process
