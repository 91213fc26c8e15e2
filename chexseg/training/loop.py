"""The one training loop: epochs, checkpoints, resuming, several processes, logging. Networks, losses and data are the
caller's.

Order, augmentation and dropout are functions of (seed, epoch, position), never of what was drawn before. A checkpoint
therefore needs no random states beyond seed, epoch and step, and a resumed run skips straight to the next batch: it
ends with the same weights, bit for bit on a CPU, as one that was never stopped.
"""

import argparse
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from chexseg.errors import DataError
from chexseg.runtime import cli, distributed
from chexseg.runtime.files import locked
from chexseg.runtime.progress import duration
from chexseg.training import batch_norm, draws, resuming
from chexseg.training.loader import Loader
from chexseg.training.resuming import Progress
from chexseg.training.tracking import JsonLines

log = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16")

Batch = dict[str, Any]


@dataclass
class Result:
    """`metrics` and `epoch` (from 1) are the best epoch's; `history` holds one record per epoch."""

    epoch: int
    score: float
    metrics: dict[str, Any]
    history: list[dict]


def add_options(
    parser: argparse.ArgumentParser, *, num_epochs: int, batch_size: int, lr: float, seed: int = 17
) -> None:
    """The options that every training script shares; `options(args)` hands them to `fit`."""
    parser.add_argument("--num_epochs", type=cli.positive_int, default=num_epochs, help="passes over the draws")
    parser.add_argument(
        "--batch_size", type=cli.positive_int, default=batch_size, help="images, all processes together"
    )
    parser.add_argument("--lr", type=cli.positive_float, default=lr, help="learning rate")
    parser.add_argument(
        "--seed", type=cli.non_negative_int, default=seed, help="fixes initialisation, order, augmentation"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the chip multiplies it"
    )
    cli.add_boolean(parser, "--channels_last", default=True, help="memory layout that convolutions prefer")
    cli.add_boolean(parser, "--compile", help="compile the network first: pays in long runs on a GPU")
    parser.add_argument("--resume", default="auto", help="auto (go on where this run stopped), none, or a checkpoint")
    parser.add_argument("--save_every", type=cli.positive_float, default=10.0, help="minutes between checkpoints")
    parser.add_argument("--max_minutes", type=cli.positive_float, help="save and exit (status 143) after this long")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `fit` that `add_options` and `cli.add_run_options` define."""
    names = "num_epochs batch_size seed precision channels_last compile resume save_every max_minutes num_workers"
    return {name: getattr(args, name) for name in names.split()}


def seed_everything(*key: int) -> None:
    """Seed torch, NumPy's and Python's global generators from any number of whole numbers."""
    words = np.random.SeedSequence(key).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[1])
    random.seed(int(words[0]))


def fit(
    model: nn.Module,
    dataset: Any,
    *,
    order: draws.Order,
    compute_loss: Callable[[nn.Module, Batch], tuple[Tensor, Any]],
    optimizer: torch.optim.Optimizer,
    folder: Path,
    record: Mapping,
    num_epochs: int,
    batch_size: int,
    seed: int,
    save_best: Callable[[dict[str, Tensor], dict], None],
    score: Callable[[dict], float] = lambda metrics: -metrics["train_loss"],
    evaluate: Callable[[nn.Module, Tensor | None], dict[str, Any]] | None = None,
    tally: Callable[[Any, Batch], Tensor] | None = None,
    schedule: Callable[[int, int], float] | None = None,
    begin: Callable[[bool], None] | None = None,
    track: Callable[[dict], None] | None = None,
    device: torch.device | None = None,
    precision: str = "auto",
    channels_last: bool = True,
    compile: bool = False,
    num_workers: int = 0,
    resume: str = "auto",
    save_every: float = 10.0,
    max_minutes: float | None = None,
) -> Result:
    """Train `model` in place; on return it holds the last epoch's weights, and `save_best` got the best epoch's.

    dataset       `dataset[draws.Draw]` gives a dict of tensors with the image's name under "id"; default collation
    order         epoch (from 0) -> indices of all its draws (`draws.shuffled`, `draws.mixed`)
    compute_loss  (network, batch on the device) -> (loss of the batch, anything `tally` wants); runs under autocast
    optimizer     over the model's parameters, which must be on `device` already
    folder        gets `checkpoint.pt` and `log.jsonl`
    record        `provenance.describe(...)`; a checkpoint is continued only where its fingerprint agrees
    save_best     (weights on the CPU, metrics with "epoch"), on rank 0, with a checkpoint that knows of a new best
    score         of an epoch's metrics; the highest wins, the earlier of equals; default: lowest training loss
    evaluate      (model in eval mode, sum of the tallies) -> metrics that JSON can hold; on every rank, no gradients
    tally         (second value of `compute_loss`, batch) -> tensor of fixed shape, summed over batches and ranks
    schedule      (step, steps of the whole run) -> factor of the learning rate
    begin         called on rank 0 before the first step, with whether an earlier run is resumed: the place for what
                  describes the run, since a run that is refused or finished never comes so far
    track         called with each epoch's record on rank 0 (`tracking.Wandb(...).log`)
    resume        `auto`: go on from `folder` where its arguments agree, else DataError; start where there is nothing;
                  `none`: start anew; a path: go on from that checkpoint, whatever its arguments, and without its best
                  epoch where it is another folder's
    save_every    minutes between checkpoints within an epoch. There is one after every epoch too, unless the last is
                  less than 20 s old
    max_minutes   after so long, and on SIGTERM, save and raise SystemExit(143): the same command goes on from there

    Under torchrun `batch_size` is divided among the ranks, gradients are averaged and batch norm sees all images: with
    a loss made of `distributed.sum_over_ranks` each step is, but for rounding, that of one process. Only rank 0 writes.
    DataError for a loss that is not finite (with the images of the batch), weights that are not, a checkpoint of other
    arguments or with nothing left to train, or a second run in the same folder.
    """
    device = device or next(model.parameters()).device
    checkpoint, lines = folder / "checkpoint.pt", JsonLines(folder / "log.jsonl")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    base_lr = [group["lr"] for group in optimizer.param_groups]
    with locked(folder / ".training.lock"):
        progress = resuming.restore(checkpoint, resume, record, model, optimizer, device)
        if progress.finished:
            log.info("%s: finished before; nothing to do", folder)
            return _result(progress, lines)
        if progress.epoch >= num_epochs:
            raise DataError(f"{resume}: {progress.epoch} epochs are behind it already; raise --num_epochs")
        if distributed.is_main():
            resuming.remove_leftovers(folder)
            own = resuming.is_own(checkpoint, resume)
            if not own:  # or a kill before the first save would bring the former run back
                checkpoint.unlink(missing_ok=True)
            lines.keep(progress.epoch if own else 0)
            if begin:
                begin(own and progress.epoch + progress.step > 0)
        network = _wrap(model, device, compile)
        loader = Loader(dataset, num_workers=num_workers, pin_memory=device.type == "cuda")
        saver = resuming.Saver(checkpoint, record, model, optimizer, save_best, save_every, max_minutes)
        per_epoch = -(-len(order(0)) // batch_size)
        steps = num_epochs * per_epoch
        bar = tqdm(total=steps, unit="batch", mininterval=0.5, disable=None if distributed.is_main() else True)
        first, began = progress.epoch * per_epoch + progress.step, time.monotonic()
        bar.update(first)

        def train_step(batch: Batch, epoch: int) -> Tensor:
            seed_everything(seed, epoch, progress.step, distributed.rank())
            factor = schedule(epoch * per_epoch + progress.step, steps) if schedule else 1.0
            for group, lr in zip(optimizer.param_groups, base_lr, strict=True):
                group["lr"] = lr * factor
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, precision):
                loss, outputs = compute_loss(network, batch)
            check.add(loss.detach(), batch["id"], epoch)
            loss.backward()
            optimizer.step()
            progress.count(loss.detach(), len(batch["id"]), tally(outputs, batch) if tally else None)
            return loss

        with bar, saver.heeding_signals(), closing(loader):
            while progress.epoch < num_epochs:
                epoch, started, check = progress.epoch, time.monotonic(), _FiniteCheck(device)
                bar.set_description(f"epoch {epoch + 1}/{num_epochs}")
                share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
                plan = draws.batches(order(epoch), batch_size, key=(seed, epoch), **share)
                network.train()
                for batch in loader(plan[progress.step :]):
                    loss = train_step(to_device(batch, device), epoch)
                    bar.update()
                    if device.type == "cpu" or progress.step % 20 == 0:
                        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
                    if progress.step < len(plan) and saver.due():
                        check.all()
                        resuming.check_finite(model, epoch)
                        saver.save(progress)
                check.all()
                resuming.check_finite(model, epoch)
                metrics = _end_epoch(model, progress, evaluate, device, precision)
                metrics |= {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
                metrics["score"] = float(score(metrics))
                saver.consider(metrics, progress)
                if distributed.is_main():
                    metrics = metrics | {"seconds": round(time.monotonic() - started, 3)}  # in no weights file
                    lines.write(metrics)
                    if bar.disable:  # no terminal: a line for the log file
                        spent, done = time.monotonic() - began, (epoch + 1) * per_epoch
                        _say(metrics, num_epochs, spent / (done - first) * (steps - done))
                    if track:
                        track(metrics)
                progress.next_epoch(num_epochs)
                if progress.finished or saver.due(end_of_epoch=True):
                    saver.save(progress)
        distributed.barrier()
        return _result(progress, lines)


def _say(metrics: dict, num_epochs: int, left: float) -> None:
    loss, score, spent = (metrics[name] for name in ("train_loss", "score", "seconds"))
    which, times = f"epoch {metrics['epoch']}/{num_epochs}", f"{duration(spent)}, {duration(left)} left"
    log.info("%s: loss %.4f, score %.4f, %s", which, loss, score, times)


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
    network = model
    if distributed.world_size() > 1:
        batch_norm.share(model, device)
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    return torch.compile(network) if compile else network


def _on_its_way(value: Tensor) -> Callable[[], float]:
    """Send a number to the host. What is returned waits for it alone, not for what a GPU was given to do since."""
    if value.device.type != "cuda":
        return value.item
    copy = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    arrival = torch.cuda.current_stream(value.device).record_event()

    def arrived() -> float:
        arrival.synchronize()
        return copy.item()

    return arrived


class _FiniteCheck:
    """Raises DataError for a loss that is not finite; on a GPU a step late, when it has long arrived: the host then
    gives out one step while the GPU works at the one before."""

    def __init__(self, device: torch.device):
        self._late = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[Callable[[], float], list[str], int]] = deque()

    def add(self, loss: Tensor, ids: list[str], epoch: int) -> None:
        self._waiting.append((_on_its_way(loss), ids, epoch))
        self._check(self._late)

    def all(self) -> None:
        """Check what is left: nothing may be saved before."""
        self._check(0)

    def _check(self, keep: int) -> None:
        while len(self._waiting) > keep:
            arrived, ids, epoch = self._waiting.popleft()
            loss = arrived()
            if not math.isfinite(loss):
                raise DataError(
                    f"the loss became {loss} in epoch {epoch + 1} on the images {', '.join(ids)}; "
                    "lower --lr, or look at these images and their masks"
                )


def _end_epoch(
    model: nn.Module,
    progress: Progress,
    evaluate: Callable[[nn.Module, Tensor | None], dict[str, Any]] | None,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Metrics of the epoch, the same on all ranks."""
    loss_sum, count = distributed.all_reduce_sum(progress.totals).tolist()
    metrics: dict[str, Any] = {"train_loss": loss_sum / count}
    if progress.tally is not None:
        distributed.all_reduce_sum(progress.tally)
    _synchronise_buffers(model)
    if evaluate:
        model.eval()
        with torch.no_grad(), autocast(device, precision):
            metrics |= evaluate(model, progress.tally)
    # A checkpoint holds plain values only: an array or a tensor among them fails here, not on resuming.
    return json.loads(json.dumps(metrics))


def _synchronise_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's batch-norm statistics, which are the ones that are saved."""
    if distributed.world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _result(progress: Progress, lines: JsonLines) -> Result:
    best = progress.best or {"epoch": 0, "score": float("nan"), "metrics": {}}
    history = distributed.broadcast_object(lines.read() if distributed.is_main() else None)
    return Result(epoch=best["epoch"], score=best["score"], metrics=best["metrics"], history=history)
