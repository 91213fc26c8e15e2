"""How a training runs, whatever it trains: its command-line options as one value. Light to import: no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from chexseg.errors import UsageError
from chexseg.runtime import cli

KEPT = ("best", "last")
PRECISIONS = ("auto", "fp32", "bf16")
# What CheXpert's uncertain label (-1) means to the loss. `multiclass`: a head of three outputs per observation.
UNCERTAIN_POLICIES = ("ignore", "zeros", "ones", "multiclass")
MENTION_POLICIES = ("zeros", "ignore")


@dataclass(frozen=True)
class RunOptions:
    """What every training script lets the user choose, beside the network and its data.

    batch_size    images of a step, all processes together
    precision     `auto` is bf16 where the chip multiplies it (`loop.autocast`)
    ema           evaluate and save a moving average of the weights, of which this part is kept at each step
                  (`averaging`); 0: the weights themselves
    keep_epoch    whose weights are saved: the `best` epoch's, or the `last`'s, where the score says little
    one_cycle     let the learning rate rise over a fifth of the run, then fall to zero (`loop.one_cycle`)
    num_workers   processes that read samples; 0: this one
    resume        `auto`: go on from the run's own checkpoint where its arguments agree, start where there is none;
                  `none`: start anew; a path: go on from that checkpoint, whatever its arguments
    save_every    minutes between checkpoints within an epoch. There is one after every epoch too, unless the last is
                  less than 20 s old
    max_minutes   after so long, save and exit with status 143, as on SIGTERM: the same command goes on from there

    UsageError for a value that no run could have.
    """

    num_epochs: int
    batch_size: int
    lr: float
    seed: int = 17
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    keep_epoch: str = "best"
    one_cycle: bool = False
    ema: float = 0.0
    num_workers: int = 0
    device: str = "auto"
    resume: str = "auto"
    save_every: float = 10.0
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("keep_epoch", KEPT)):
            if getattr(self, name) not in choices:
                raise UsageError(f"--{name} {getattr(self, name)}: choose from {', '.join(choices)}")
        for name in ("num_epochs", "batch_size", "lr", "save_every", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name} {value}: expected a number above 0")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema {self.ema}: expected a number from 0, and below 1")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: expected a whole number of at least 0")

    @staticmethod
    def add_to(
        parser: argparse.ArgumentParser,
        *,
        num_epochs: int,
        batch_size: int,
        lr: float,
        seed: int = 17,
        one_cycle: bool = False,
    ) -> None:
        """Add the options, with these defaults; `--one_cycle` only where the script has no schedule of its own."""
        add = parser.add_argument
        if one_cycle:
            text = "let the learning rate rise, then fall to zero; else it is constant"
            cli.add_boolean(parser, "--one_cycle", help=text)
        add("--num_epochs", type=cli.positive_int, default=num_epochs, help="passes over the draws")
        add("--batch_size", type=cli.positive_int, default=batch_size, help="images, all processes together")
        add("--lr", type=cli.positive_float, default=lr, help="learning rate")
        add("--seed", type=cli.non_negative_int, default=seed, help="fixes initialisation, order, augmentation")
        add(
            "--keep_epoch",
            choices=KEPT,
            default="best",
            help="save the weights of the epoch that scores best, or the last",
        )
        add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it")
        cli.add_boolean(parser, "--channels_last", default=True, help="memory layout that convolutions prefer")
        text = "evaluate and save a moving average of the weights, of which this part is kept at each step (try 0.99)"
        add("--ema", type=cli.fraction, default=0.0, help=text)
        cli.add_boolean(parser, "--compile", help="compile the network first: pays in long runs on a GPU")
        add("--resume", default="auto", help="auto (go on where this run stopped), none, or a checkpoint")
        add("--save_every", type=cli.positive_float, default=10.0, help="minutes between checkpoints")
        add("--max_minutes", type=cli.positive_float, help="save and exit (status 143) after this long")
        cli.add_run_options(parser, shard_size=None)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """The options among the arguments that the user gave (`vars` of a namespace)."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})
