"""Long work in shards that survive a kill: each is written under a temporary name, flushed, renamed and checksummed.

A stage turns items (image ids) into one output file. `build` splits the items into shards, skips those that a former
run completed, shares the rest among ranks, and merges them in order on rank 0. The output has the same bytes whatever
the shard size, the number of ranks or workers, and however often it was killed.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from chexseg.errors import DataError
from chexseg.runtime import distributed, plain_json, provenance
from chexseg.runtime.files import atomic, check_room, locked, remove_temporaries
from chexseg.runtime.progress import Progress, duration
from chexseg.runtime.shard_format import ShardFormat

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 10.0


def is_valid(output: Path, fingerprint: str) -> str | None:
    """None where `output` is whole and was made with `fingerprint`; else the reason, for people."""
    manifest = provenance.manifest_path(output)
    if not output.exists() or not manifest.exists():
        return "missing"
    try:
        record = plain_json.read(manifest, finite=False)
        recorded = record["fingerprint"], record["output"]["size"], record["output"]["sha256"]
    except (ValueError, LookupError, TypeError):
        return "its manifest is damaged"
    if recorded[0] != fingerprint:
        return "stale: inputs, arguments or code changed"
    if output.stat().st_size != recorded[1] or provenance.sha256(output) != recorded[2]:
        return "damaged: its checksum differs"
    return None


def seal(output: Path, record: dict, fingerprint: str) -> None:
    """Write the manifest that ties `output` to what made it."""
    status = output.stat()
    made = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": provenance.sha256(output)}
    provenance.write(provenance.manifest_path(output), {**record, "fingerprint": fingerprint, "output": made})


def build(
    output: Path,
    items: Sequence[T],
    *,
    process: Callable[[Sequence[T]], Iterator[R]],
    shard_format: ShardFormat[R],
    record: dict,
    shard_size: int = 256,
    label: str = "images",
    item_fingerprint: Callable[[T], str] = str,
    on_lock: str = "refuse",
) -> bool:
    """Make `output` from `items`; return False where it is already there, made from the same things.

    process           yields one record per item, in order. It is called at most once a rank, with all items that are
                      left to do, so that decoding, computing and writing overlap across shard boundaries; where
                      nothing is left it is not called at all, so it is the place to load a network in
    shard_format      writes a shard's records, and merges the shards
    record            `provenance.describe(...)`: what the result depends on, beside the items
    item_fingerprint  what else a shard depends on, item by item (an image's size and time of change, say)
    shard_size        items of a shard at most; a small set has smaller ones, so that there is work for 16 ranks
    on_lock           `refuse` a second run on the same output, or `wait` for the first
    """
    output = Path(output)
    shard_size = max(1, min(shard_size, 16 * -(-len(items) // 256)))  # of whole batches of 16
    with locked(output.with_name(f".{output.name}.lock"), wait=on_lock == "wait"):
        distributed.barrier()
        shards = [items[i : i + shard_size] for i in range(0, len(items), shard_size)]
        look = partial(_look_for_changes, output, record, shards, item_fingerprint, label)
        fingerprints, of_all, reason = distributed.from_main(look)
        folder = output.with_name(f".{output.name}.parts")
        if reason is None:
            log.info("%s: up to date", output)
            if distributed.is_main():  # a kill may have come between the last seal and this
                shutil.rmtree(folder, ignore_errors=True)
            return False
        if reason != "missing":
            log.warning("%s: %s; making it again", output, reason)
        paths = [folder / f"{i:06d}-of-{len(shards):06d}" for i in range(len(shards))]
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_all_but(paths, folder)
            for path in (output, provenance.manifest_path(output)):
                remove_temporaries(path)
        distributed.barrier()
        done = distributed.broadcast_object(_are_done(paths, fingerprints) if distributed.is_main() else None)
        _work(shards, paths, fingerprints, done, process, shard_format, label)
        distributed.barrier()
        if distributed.is_main():
            _merge(paths, fingerprints, output, shard_format)
            seal(output, record, of_all)
            shutil.rmtree(folder)
        distributed.barrier()
    return True


def _look_for_changes(
    output: Path, record: dict, shards: Sequence[Sequence], item_fingerprint: Callable, label: str
) -> tuple[list[str], str, str | None]:
    """Fingerprints of each shard and of all, and `is_valid`'s answer.

    Rank 0 alone looks at the items: a million of them on 32 ranks take long, and copies of the data on several machines
    differ in their times.
    """
    common, fingerprints, of_all = provenance.fingerprint(record), [], hashlib.sha256()
    of_all.update(common.encode())
    started = told = time.monotonic()
    for count, shard in enumerate(shards, 1):
        each = [f"{item}\0{item_fingerprint(item)}" for item in shard]
        fingerprints.append(_hash([common, *each]))
        for text in each:
            of_all.update(text.encode() + b"\0")
        if time.monotonic() - told > SECONDS_BETWEEN_LOOKS:
            told = time.monotonic()
            left = duration((told - started) / count * (len(shards) - count))
            log.info("%s: looking for changes, %d of %d shards, about %s left", label, count, len(shards), left)
    return fingerprints, of_all.hexdigest(), is_valid(output, of_all.hexdigest())


def _hash(values: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.encode() + b"\0")
    return digest.hexdigest()


def _are_done(paths: Sequence[Path], fingerprints: Sequence[str]) -> list[bool]:
    """Which shards need not be made again; says why of those that are there but must be."""
    problems = [_problem(path, expected) for path, expected in zip(paths, fingerprints, strict=True)]
    for path, why in zip(paths, problems, strict=True):
        if why and why != "missing":
            log.warning("%s: %s; making it again", path, why)
    return [why is None for why in problems]


def _remove_all_but(paths: Sequence[Path], folder: Path) -> None:
    """Remove what a kill left half-written, and shards of another shard size or item count."""
    keep = {path.name for path in paths}
    for path in folder.iterdir():
        if path.name.removesuffix(".json") not in keep:
            path.unlink()


def _problem(path: Path, expected: str) -> str | None:
    """None where the shard at `path` is whole and current, else why not."""
    seal_path = path.with_name(path.name + ".json")
    if not path.exists() or not seal_path.exists():
        return "missing"
    try:
        recorded = json.loads(seal_path.read_text())
        if recorded["fingerprint"] != expected:
            return "stale: made from other inputs, arguments or code"
        if recorded["sha256"] != provenance.sha256(path):
            return "damaged: its checksum differs"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "damaged: its checksum is unreadable"
    return None


def _work(
    shards: Sequence[Sequence[T]],
    paths: Sequence[Path],
    fingerprints: Sequence[str],
    done: Sequence[bool],
    process: Callable[[Sequence[T]], Iterator[R]],
    shard_format: ShardFormat[R],
    label: str,
) -> None:
    """This rank's share of the pending shards, through one call of `process`."""
    pending = [i for i, is_done in enumerate(done) if not is_done]
    mine = pending[distributed.rank() :: distributed.world_size()]
    if any(done):
        log.info("%s: %d of %d shards already made", label, sum(done), len(done))
    records = process([item for i in mine for item in shards[i]]) if mine else iter(())
    with Progress(label, sum(len(shards[i]) for i in mine)) as progress:
        for i in mine:
            shard = []
            for result in islice(records, len(shards[i])):
                shard.append(result)
                progress.update()
            if len(shard) != len(shards[i]):
                raise RuntimeError(f"{label}: {len(shards[i])} items gave {len(shard)} records")
            with atomic(paths[i]) as temporary:
                shard_format.write(shard, temporary)
                checksum = provenance.sha256(temporary)
            with atomic(paths[i].with_name(paths[i].name + ".json")) as temporary:
                temporary.write_text(json.dumps({"fingerprint": fingerprints[i], "sha256": checksum}))


def _merge(paths: Sequence[Path], fingerprints: Sequence[str], output: Path, shard_format: ShardFormat) -> None:
    """Check every shard once more, and join them."""
    for path, expected in zip(paths, fingerprints, strict=True):
        if why := _problem(path, expected):
            raise DataError(f"{path}: {why} before the merge; run the same command again")
    with atomic(output) as temporary:
        check_room(temporary, sum(path.stat().st_size for path in paths))
        shard_format.merge(paths, temporary)
