"""Checkpoints of our own training runs: when one is due, what is in it, and how to go on from it.

Not for weights that others made (see `classifier.checkpoints`); but a checkpoint may come from others too, so it is
loaded as theirs are.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from chexseg.data.safe_loading import load_checkpoint
from chexseg.errors import DataError
from chexseg.runtime import distributed, provenance
from chexseg.runtime.cli import TERMINATED
from chexseg.runtime.files import atomic
from chexseg.training.options import RunOptions
from chexseg.training.run_record import NEVER_MATTERS, Run
from chexseg.training.trainer import Trainer

log = logging.getLogger(__name__)
# Short epochs share a checkpoint: writing one costs as much as seconds of training.
SECONDS_BETWEEN_CHECKPOINTS = 20.0


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside weights and optimiser.

    totals: sum of loss x images, and images, of the epoch so far. tally: the caller's sums of the epoch so far.
    best: score, epoch (from 1) and metrics of the best epoch. average: weights of the moving average, if one is kept.
    """

    epoch: int = 0
    step: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    tally: Tensor | None = None
    best: dict | None = None
    finished: bool = False
    average: dict[str, Tensor] | None = None

    @torch.no_grad()
    def count(self, loss: Tensor, images: int, tally: Tensor | None) -> None:
        """Add one step's loss, the mean of `images`, and its tally."""
        self.step += 1
        loss = loss.double()
        self.totals += torch.stack((loss, torch.ones_like(loss))) * images  # no copy that the host would wait for
        if tally is not None:
            if self.tally is not None and self.tally.shape != tally.shape:
                raise DataError("the checkpoint's tally is not of this run; start anew with --resume none")
            self.tally = tally if self.tally is None else self.tally + tally

    def next_epoch(self, num_epochs: int) -> None:
        """Start the next epoch's sums."""
        self.epoch, self.step = self.epoch + 1, 0
        self.totals, self.tally = torch.zeros_like(self.totals), None
        self.finished = self.epoch == num_epochs


class Saver:
    """Writes checkpoints when they are due: by time, at the end of an epoch, and when the run is asked to stop."""

    def __init__(self, run: Run, trainer: Trainer, options: RunOptions):
        self.run, self.trainer, self.keep, self.save_every = run, trainer, options.keep_epoch, options.save_every
        self.best_weights: dict[str, Tensor] | None = None
        self.last = time.monotonic()
        self.deadline = self.last + 60 * options.max_minutes if options.max_minutes else float("inf")
        self.stop_requested = self.stopping = False

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """SIGTERM asks for a stop after the current step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    def _request_stop(self, signum: int, frame: object) -> None:
        self.stop_requested = True

    def due(self, *, end_of_epoch: bool = False) -> bool:
        """Whether to save now, the same on all ranks."""
        now = time.monotonic()
        patience = SECONDS_BETWEEN_CHECKPOINTS if end_of_epoch else 60 * self.save_every
        stop = self.stop_requested or now > self.deadline
        asked = torch.tensor([float(stop), float(now - self.last > patience)])
        stop, save = distributed.all_reduce_sum(asked).bool().tolist()
        self.stopping = self.stopping or stop
        return stop or save

    def consider(self, model: nn.Module, metrics: dict, progress: Progress) -> None:
        """Keep the epoch's weights, those of `model`, if its score is the highest so far; a score that is no number
        never is. With `keep_epoch` "last": every epoch's."""
        score = metrics["score"]
        highest = not math.isnan(score) and (not progress.best or score > progress.best["score"])
        if self.keep == "best" and not highest:
            return
        progress.best = {"score": score, "epoch": metrics["epoch"], "metrics": metrics}
        if distributed.is_main():
            self.best_weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def save(self, progress: Progress) -> None:
        """Write the best weights, then the checkpoint that knows of them; leave if the run is to stop."""
        totals = distributed.all_reduce_sum(progress.totals.clone())
        tally = None if progress.tally is None else distributed.all_reduce_sum(progress.tally.clone())
        if distributed.is_main():
            if self.best_weights is not None and progress.best is not None:
                self.trainer.save_best(self.best_weights, progress.best["metrics"])
                self.best_weights = None
            state = vars(progress) | {"totals": totals, "tally": tally}
            content = {
                "progress": state,
                "model": self.trainer.model.state_dict(),
                "optimizer": self.trainer.optimizer.state_dict(),
                "fingerprint": self.run.fingerprint,
                "arguments": self.run.arguments,
            }
            with atomic(self.run.checkpoint) as temporary:
                torch.save(content, temporary)
        self.last = time.monotonic()
        if self.stopping and not progress.finished:
            log.warning("stopped in epoch %d and saved", progress.epoch + 1)
            distributed.barrier()
            raise SystemExit(TERMINATED)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a run that was killed while it wrote. Only under the run's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def is_own(path: Path, resume: str) -> bool:
    """Whether `resume` means the run's own checkpoint `path`, not another's or none."""
    return resume == "auto" or Path(resume).resolve() == path.resolve()


def restore(run: Run, trainer: Trainer, resume: str, device: torch.device) -> Progress:
    """Load the checkpoint that `resume` (auto, none or a path) means into the trainer's model and optimiser; return how
    far that run had come.

    Sums over ranks stay with rank 0. The best epoch that another run's checkpoint knows of is forgotten: its weights
    are not here. DataError for a checkpoint of other inputs or arguments that was not named outright, or one that does
    not fit.
    """
    path, named = run.checkpoint, resume not in ("auto", "none")
    source = Path(resume) if named else path
    if resume == "none" or not (named or distributed.broadcast_object(source.exists())):
        return _on_device(Progress(), device)
    if named and not source.exists():
        raise DataError(f"{source}: no such checkpoint")
    try:
        state = load_checkpoint(source)
        progress, arguments, found = _progress(state["progress"]), _arguments(state), str(state["fingerprint"])
    except Exception as error:  # a damaged file may hold anything
        if isinstance(cause := error.__cause__ or error, (MemoryError, PermissionError)):
            raise cause from None  # no fault of the file
        why = " ".join((str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}").split())
        why = why.removeprefix(f"{source}: ")[:200]
        if named:
            raise DataError(f"{source}: damaged, or no checkpoint of ours ({why}); name another one") from error
        log.warning("%s: damaged (%s); it is left out, and the training starts anew", source, why)
        return _on_device(Progress(), device)
    if found != run.fingerprint:
        difference = _difference(arguments, run.arguments)
        if not named:
            raise DataError(
                f"{source}: made with other inputs or arguments ({difference}); "
                "start anew with --resume none, which replaces that network, or use what it was made with"
            )
        log.warning("%s: made with other inputs or arguments (%s); going on from it as asked", source, difference)
        progress.finished = False
    if not is_own(path, resume):
        progress.best, progress.finished = None, False
    try:
        trainer.model.load_state_dict(state["model"])
        _load_optimizer(trainer.optimizer, state["optimizer"])
    except (RuntimeError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: not of this network ({type(error).__name__}); start anew with --resume none"
        ) from error
    if not distributed.is_main():
        progress.totals, progress.tally = torch.zeros_like(progress.totals), None
    if not progress.finished:
        log.info("going on from %s: epoch %d, batch %d", source, progress.epoch + 1, progress.step + 1)
    return _on_device(progress, device)


def _progress(saved: dict) -> Progress:
    """What `Saver.save` wrote of it. Raises TypeError, ValueError or KeyError for values that no run comes to."""
    progress = Progress(**saved)
    if not (type(progress.epoch) is type(progress.step) is int and min(progress.epoch, progress.step) >= 0):
        raise ValueError("its epoch and batch are no counts")
    totals, tally = progress.totals, progress.tally
    if not (isinstance(totals, Tensor) and (totals.shape, totals.dtype) == ((2,), torch.float64)):
        raise ValueError("its sums are no two numbers")
    if not (tally is None or isinstance(tally, Tensor)):
        raise ValueError("its tally is no tensor")
    if progress.best is not None:
        float(progress.best["score"]), int(progress.best["epoch"]), dict(progress.best["metrics"])
    return progress


def _arguments(state: dict) -> dict:
    """The run's arguments, which are values that can be compared."""
    arguments = dict(state["arguments"])
    if not all(isinstance(name, str) and not isinstance(value, Tensor) for name, value in arguments.items()):
        raise ValueError("its arguments are none")
    return arguments


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Take in the optimiser's state; ValueError where its next step would fail on it."""
    groups = saved["param_groups"]
    for ours, theirs in zip(optimizer.state_dict()["param_groups"], groups, strict=True):
        for name, value in ours.items():
            if name != "params" and isinstance(value, float) and not isinstance(theirs.get(name, value), (float, int)):
                raise ValueError(f"{name} is no number")
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        for weights in group["params"]:
            for name, value in optimizer.state.get(weights, {}).items():
                if isinstance(value, Tensor) and value.numel() != 1 and value.shape != weights.shape:
                    raise ValueError(f"{name} of another shape")


def _on_device(progress: Progress, device: torch.device) -> Progress:
    progress.totals = progress.totals.to(device)
    progress.tally = None if progress.tally is None else progress.tally.to(device)
    return progress


def _difference(before: Mapping, now: Mapping) -> str:
    """Which arguments differ, for people."""
    skip = {*provenance.NEVER_MATTERS, *NEVER_MATTERS}
    changed = [k for k in sorted({*before, *now}) if k not in skip and before.get(k) != now.get(k)]
    return (
        ", ".join(f"{k} was {str(before.get(k))[:200]}, is {now.get(k)}" for k in changed[:20])
        or "input files or code changed"
    )
