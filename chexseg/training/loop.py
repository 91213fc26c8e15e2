"""The one training loop: epochs, checkpoints, resuming, several processes, logging. Networks, losses and data are the
trainer's.

Order, augmentation and dropout are functions of (seed, epoch, position), never of what was drawn before. A checkpoint
therefore needs no random states beyond seed, epoch and step, and a resumed run skips straight to the next batch: it
ends with the same weights, bit for bit on a CPU, as one that was never stopped.
"""

import json
import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from chexseg.errors import DataError
from chexseg.runtime import distributed
from chexseg.runtime.files import locked
from chexseg.runtime.progress import duration
from chexseg.training import batch_norm, draws, finite, resuming
from chexseg.training.averaging import Average
from chexseg.training.loader import Loader
from chexseg.training.options import RunOptions
from chexseg.training.resuming import Progress
from chexseg.training.run_record import Run
from chexseg.training.tracking import JsonLines, Wandb
from chexseg.training.trainer import Batch, Trainer

log = logging.getLogger(__name__)


@dataclass
class Result:
    """`metrics` and `epoch` (from 1) are the best epoch's; `history` holds one record per epoch."""

    epoch: int
    score: float
    metrics: dict[str, Any]
    history: list[dict]


def seed_everything(*key: int) -> None:
    """Seed torch, NumPy's and Python's global generators from any number of whole numbers."""
    words = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[1])
    random.seed(int(words[0]))


def fit(trainer: Trainer, run: Run, options: RunOptions) -> Result:
    """Train `trainer.model` in place; on return it holds the last epoch's weights, and the best epoch's are saved: with
    `ema`, those of their moving average.

    Under torchrun the batch is divided among the ranks, gradients are averaged and batch norm sees all images: with a
    loss made of `distributed.sum_over_ranks` each step is, but for rounding, that of one process. Only rank 0 writes.
    On SIGTERM, and after `max_minutes`, it saves and raises SystemExit(143).

    DataError for a loss that is not finite (with the images of the batch), weights that are not, a checkpoint of other
    arguments, a damaged one, or one with nothing left to train, a best network that is gone, or a second run in the
    same folder.
    """
    model, device = trainer.model, next(trainer.model.parameters()).device
    lines, wandb = JsonLines(run.folder / "log.jsonl"), _wandb(run)
    base_lr = [group["lr"] for group in trainer.optimizer.param_groups]
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    with locked(run.folder / ".training.lock"):
        progress = resuming.restore(run, trainer, options.resume, device)
        finished_before = progress.finished
        if not finished_before:
            if progress.epoch >= options.num_epochs:
                raise DataError(f"{options.resume}: {progress.epoch} epochs are behind it already; raise --num_epochs")
            batch_norm.check_lone_image(trainer, options.batch_size)
            _begin(run, options, progress, lines, wandb)
            with closing(_Session(trainer, run, options, progress, base_lr, lines, wandb)) as session:
                session.train()
        distributed.barrier()
        result = _result(progress, lines)
        _check_best(run, finished_before)
        summary = f"best epoch {result.epoch}, {trainer.summary(result.metrics)}" if result.metrics else "no best epoch"
        if distributed.is_main():
            run.end(result.metrics, summary)
    wandb.close()
    (run.say_finished if finished_before else run.say)(summary)
    return result


def _wandb(run: Run) -> Wandb:
    config = {**run.record["arguments"], **run.record.get("paths", {})}
    return Wandb(run.wandb_project, run.wandb_run_name, config, run.folder)


def _begin(run: Run, options: RunOptions, progress: Progress, lines: JsonLines, wandb: Wandb) -> None:
    """Before the first step, once it is sure that this run trains: describe it, and drop what it replaces."""
    if not distributed.is_main():
        return
    resuming.remove_leftovers(run.folder)
    run.begin()
    own = resuming.is_own(run.checkpoint, options.resume)
    if not own:  # or a kill before the first save would bring the former run back
        run.checkpoint.unlink(missing_ok=True)
    lines.keep(progress.epoch if own else 0)
    wandb.start(resumed=own and progress.epoch + progress.step > 0)


def _check_best(run: Run, finished_before: bool) -> None:
    for path in run.best:
        if not path.is_file():
            raise DataError(f"{path}: no longer there; train again with --resume none")
    if finished_before and (damaged := run.damaged()):
        raise DataError(f"{damaged}: changed since it was trained (another checksum); train again with --resume none")


class _Session:
    """The steps and epochs of a run that has something left to train."""

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        options: RunOptions,
        progress: Progress,
        base_lr: list[float],
        lines: JsonLines,
        wandb: Wandb,
    ):
        self.trainer, self.options, self.progress, self.base_lr = trainer, options, progress, base_lr
        self.model, self.optimizer = trainer.model, trainer.optimizer
        self.device = next(self.model.parameters()).device
        self.lines, self.wandb = lines, wandb
        self.average = Average(self.model, options.ema, progress.average) if options.ema else None
        progress.average = (
            self.average.model.state_dict() if self.average else None
        )  # the tensors that `update` changes
        self.network = _wrap(self.model, self.device, options.compile)
        pin = self.device.type == "cuda"
        self.loader = Loader(trainer.dataset, num_workers=options.num_workers, pin_memory=pin)
        self.saver = resuming.Saver(run, trainer, options)
        self.per_epoch = -(-len(trainer.order(0)) // options.batch_size)
        self.steps = options.num_epochs * self.per_epoch
        self.bar = tqdm(
            total=self.steps, unit="batch", mininterval=0.5, disable=None if distributed.is_main() else True
        )
        self.first, self.began = progress.epoch * self.per_epoch + progress.step, time.monotonic()
        self.bar.update(self.first)

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and saved as the best: the average where one is kept."""
        return self.average.model if self.average else self.model

    def close(self) -> None:
        self.loader.close()
        self.bar.close()

    def train(self) -> None:
        """All that is left of the run."""
        with self.saver.heeding_signals():
            while self.progress.epoch < self.options.num_epochs:
                self.epoch()
                self.progress.next_epoch(self.options.num_epochs)
                if self.progress.finished or self.saver.due(end_of_epoch=True):
                    self.saver.save(self.progress)

    def epoch(self) -> None:
        """What is left of the epoch, then its metrics."""
        epoch, progress, started = self.progress.epoch, self.progress, time.monotonic()
        check = finite.LossCheck(self.device)
        self.bar.set_description(f"epoch {epoch + 1}/{self.options.num_epochs}")
        plan = self._plan(epoch)
        self.network.train()
        for batch in self._batches(plan[progress.step :]):
            loss = self.step(batch, epoch, check)
            self.bar.update()
            if self.device.type == "cpu" or progress.step % 20 == 0:
                self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            if progress.step < len(plan) and self.saver.due():
                check.all()
                finite.check_weights(self.model, epoch)
                self.saver.save(progress)
        check.all()
        finite.check_weights(self.model, epoch)
        metrics = self._evaluate()
        metrics |= {"epoch": epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        metrics["score"] = float(self.trainer.score(metrics))
        self.saver.consider(self.evaluated, metrics, progress)
        if distributed.is_main():
            self._write(metrics | {"seconds": round(time.monotonic() - started, 3)})  # in no weights file

    def step(self, batch: Batch, epoch: int, check: finite.LossCheck) -> Tensor:
        """One step of the optimiser."""
        options, progress = self.options, self.progress
        seed_everything(options.seed, epoch, progress.step, distributed.rank())
        factor = self._schedule(epoch * self.per_epoch + progress.step)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, options.precision):
            loss, outputs = self.trainer.compute_loss(self.network, batch)
        check.add(loss.detach(), batch["id"], epoch)
        loss.backward()
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, epoch * self.per_epoch + progress.step)
        progress.count(loss.detach(), len(batch["id"]), self.trainer.tally(outputs, batch))
        return loss

    def _schedule(self, step: int) -> float:
        return one_cycle(step, self.steps) if self.options.one_cycle else self.trainer.schedule(step, self.steps)

    def _plan(self, epoch: int) -> list[list[draws.Draw]]:
        share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        order, key = self.trainer.order(epoch), (self.options.seed, epoch)
        return draws.batches(order, self.options.batch_size, key=key, **share)

    def _batches(self, plan: list[list[draws.Draw]]) -> Iterator[Batch]:
        for batch in self.loader(plan):
            yield to_device(batch, self.device)

    def _evaluate(self) -> dict[str, Any]:
        """Metrics of the epoch, the same on all ranks."""
        progress = self.progress
        loss_sum, count = distributed.all_reduce_sum(progress.totals).tolist()
        metrics: dict[str, Any] = {"train_loss": loss_sum / count}
        if progress.tally is not None:
            distributed.all_reduce_sum(progress.tally)
        for module in (self.model, self.evaluated):
            _synchronise_buffers(module)
        self.evaluated.eval()
        with torch.no_grad(), autocast(self.device, self.options.precision):
            metrics |= self.trainer.evaluate(self.evaluated, progress.tally)
        # A checkpoint holds plain values only: an array or a tensor among them fails here, not on resuming.
        return json.loads(json.dumps(metrics))

    def _write(self, metrics: dict) -> None:
        """Add the epoch to the log; where there is no terminal, say a line about it."""
        self.lines.write(metrics)
        if self.bar.disable:
            done = metrics["epoch"] * self.per_epoch
            left = (time.monotonic() - self.began) / (done - self.first) * (self.steps - done)
            which = f"epoch {metrics['epoch']}/{self.options.num_epochs}"
            times = f"{duration(metrics['seconds'])}, {duration(left)} left"
            log.info("%s: loss %.4f, score %.4f, %s", which, metrics["train_loss"], metrics["score"], times)
        self.wandb.log(metrics)


def one_cycle(step: int, steps: int) -> float:
    """A schedule: a linear rise over a fifth of the run, then a cosine to zero (after Smith & Topin 2019)."""
    warm = max(1, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for `bf16`, and for `auto` on a chip with bf16 matrix units (Ampere and later; AMX on a CPU)."""
    if precision == "auto":
        if device.type == "cuda":
            enabled = torch.cuda.get_device_capability(device)[0] >= 8
        else:
            enabled = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    else:
        enabled = precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _wrap(model: nn.Module, device: torch.device, compile: bool) -> nn.Module:
    """What runs in training: the model, under DistributedDataParallel where there are ranks, compiled on request."""
    network: Any = model
    if distributed.world_size() > 1:
        batch_norm.share(model, device)
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    return cast(nn.Module, torch.compile(network)) if compile else network


def _synchronise_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's batch-norm statistics, which are the ones that are saved."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _result(progress: Progress, lines: JsonLines) -> Result:
    best = progress.best or {"epoch": 0, "score": float("nan"), "metrics": {}}
    history = distributed.broadcast_object(lines.read() if distributed.is_main() else None)
    return Result(epoch=best["epoch"], score=best["score"], metrics=best["metrics"], history=history)
