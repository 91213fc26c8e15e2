"""Checkpoints of our own training runs: when one is due, what is in it, and how to go on from it.

Not for weights that others made (see `classifier.checkpoints`).
"""

import logging
import math
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

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
    try:
        state = _read(source)
        progress, arguments, found = Progress(**state["progress"]), state["arguments"], state["fingerprint"]
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such checkpoint") from error
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # torch and pickle raise anything of a damaged file
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
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
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: not of this network ({type(error).__name__}); start anew with --resume none"
        ) from error
    if not distributed.is_main():
        progress.totals, progress.tally = torch.zeros_like(progress.totals), None
    if not progress.finished:
        log.info("going on from %s: epoch %d, batch %d", source, progress.epoch + 1, progress.step + 1)
    return _on_device(progress, device)


def _read(path: Path) -> dict:
    """What `Saver.save` wrote. torch does not look at the checksums in its file: a flipped byte would go unnoticed."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as parts:
        if (part := parts.testzip()) is not None:
            raise ValueError(f"the checksum of {part} differs")
    return torch.load(path, map_location="cpu", weights_only=True)


def _on_device(progress: Progress, device: torch.device) -> Progress:
    progress.totals = progress.totals.to(device)
    progress.tally = None if progress.tally is None else progress.tally.to(device)
    return progress


def _difference(before: Mapping, now: Mapping) -> str:
    """Which arguments differ, for people."""
    skip = {*provenance.NEVER_MATTERS, *NEVER_MATTERS}
    changed = [k for k in sorted({*before, *now}) if k not in skip and before.get(k) != now.get(k)]
    return ", ".join(f"{k} was {before.get(k)}, is {now.get(k)}" for k in changed) or "input files or code changed"
