"""What made a file, written beside it: resolved arguments, package versions, input fingerprints, code version."""

import hashlib
import json
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from chexseg.errors import MissingError
from chexseg.runtime.code_version import code_version
from chexseg.runtime.files import atomic

PACKAGES = (
    "chexseg",
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "numpy",
    "opencv-python-headless",
    "h5py",
    "pillow",
)
log = logging.getLogger(__name__)
# Options that say where or how fast, never what: they take no part in a fingerprint.
NEVER_MATTERS = ("num_workers", "shard_size", "device", "resume", "wandb_project_name", "wandb_run_name", "save_every")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest_path(output: Path) -> Path:
    """Where the provenance of `output` stands: `<output>.manifest.json`."""
    return output.with_name(output.name + ".manifest.json")


def file_fingerprint(path: Path) -> str:
    """Fingerprint of an input file by content. A file that another stage made is known by its manifest's checksum
    while size and time of change agree with it, so that 100 GB are not read again."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file")
    manifest = manifest_path(path)
    if manifest.is_file():
        made = read_record(manifest).get("output")
        if isinstance(made, dict) and isinstance(made.get("sha256"), str):
            status = path.stat()
            if (made.get("size"), made.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
                return made["sha256"]
    return sha256(path)


def read_record(path: Path) -> dict:
    """A record as `write` wrote it; empty, with a warning, where it is damaged: it is as if nothing were known."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}")
    except (ValueError, RecursionError) as error:
        log.warning("%s: damaged (%s); it is left out", path, " ".join(str(error).split()) or type(error).__name__)
        return {}
    return record


def stat_fingerprint(path: Path) -> str:
    """Fingerprint of one image among a million: size and time of change, without reading it."""
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that do the work, as installed; nothing is imported."""
    from importlib import metadata

    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def describe(args: Mapping, inputs: Sequence[Path | None] = (), *, code: str | Path | None = None) -> dict:
    """The record of a run: its arguments, fingerprints of its input files, package versions, and the version of the
    code that `code` (a script's or module's `__file__`) reaches.

    Arguments that are paths stand apart: what is in the files counts, not where they lie. An input's place in `inputs`
    is its role; one that is absent (None) keeps its place.
    """
    roles = [None if path is None else str(path) for path in inputs]
    return {
        "command": Path(sys.argv[0]).name,
        "arguments": {key: _plain(value) for key, value in sorted(args.items()) if not isinstance(value, Path)},
        "paths": {key: str(value) for key, value in sorted(args.items()) if isinstance(value, Path)},
        "inputs": {path: file_fingerprint(Path(path)) for path in roles if path is not None},
        "roles": roles,
        "versions": versions(),
        "code": code_version(Path(code)) if code else "",
    }


def _plain(value):
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def fingerprint(record: Mapping, ignore: Sequence[str] = ()) -> str:
    """Hash of what decides a result: arguments (less `ignore` and those that never matter), input contents, code.

    Paths and package versions take no part: a moved folder is the same data, and an upgrade in mid-run is recorded
    but does not throw a week's work away.
    """
    skip = {*NEVER_MATTERS, *ignore}
    arguments = {k: v for k, v in record["arguments"].items() if k not in skip and v is not None}
    inputs, roles = record["inputs"], record["roles"]
    others = sorted(value for path, value in inputs.items() if path not in roles)
    parts = [arguments, [inputs.get(path) for path in roles], others, record["code"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write(path: Path, record: Mapping) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
