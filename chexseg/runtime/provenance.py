"""What made a file, written beside it: resolved arguments, package versions, input fingerprints, code version."""

import ast
import copy
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from chexseg import __version__
from chexseg.errors import DataError
from chexseg.runtime.files import atomic

PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "opencv-python-headless", "h5py", "pillow")
PACKAGE = Path(__file__).resolve().parents[1]
# Rooms of the package whose code changes no output.
DECIDE_NOTHING = ("runtime", "errors")
# Options that say where or how fast, never what: they take no part in a fingerprint.
NEVER_MATTERS = ("num_workers", "shard_size", "device", "resume", "wandb_project_name", "wandb_run_name", "save_every")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256_blocks(file)


def _sha256_blocks(file) -> str:
    digest = hashlib.sha256()
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
        raise DataError(f"{path}: no such file")
    manifest = manifest_path(path)
    if manifest.is_file():
        try:
            made = json.loads(manifest.read_text())["output"]
        except (ValueError, KeyError):
            made = {}
        status = path.stat()
        if (made.get("size"), made.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
            return made["sha256"]
    return sha256(path)


def stat_fingerprint(path: Path) -> str:
    """Fingerprint of one image among a million: size and time of change, without reading it."""
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


def code_version(start: Path, package: Path = PACKAGE) -> str:
    """Hash of the code that decides a result: `start`, and every module of `package` that it reaches by imports.

    Syntax trees are compared without docstrings, messages of errors and log lines, so that rewording makes nothing
    stale. Of a script its command line takes no part, since the arguments themselves are recorded; of `constants` only
    the assignments do, since its functions say where files are. `runtime` and `errors` decide nothing.
    """
    digest = hashlib.sha256()
    for path in sorted(import_closure(Path(start), package)):
        digest.update(_code_without_words(path).encode())
    return digest.hexdigest()[:16]


def import_closure(start: Path, package: Path = PACKAGE) -> set[Path]:
    """The files that `start` imports, at its top or inside functions, and what they import; itself among them."""
    found, waiting = set(), [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += (other for other in _imports(path, package) if other.is_file())
    return found


def _imports(path: Path, package: Path) -> Iterator[Path]:
    """The files of the package, and `constants.py` beside it, that a file may mean by its imports."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        else:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            first, *rest = name.split(".")
            if name == "constants":
                yield package.parent / "constants.py"
            elif first == package.name and rest and rest[0] not in DECIDE_NOTHING:
                yield package.joinpath(*rest).with_suffix(".py")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


class _WithoutWords(ast.NodeTransformer):
    """Takes out what only people read: docstrings, messages of errors, log lines."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        value = node.value
        is_log = isinstance(value, ast.Call) and ast.unparse(value.func).startswith("log.")
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return ast.Pass() if is_log or is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=node.exc.func) if isinstance(node.exc, ast.Call) else node


def _code_without_words(path: Path) -> str:
    body = copy.deepcopy(_tree(path)).body
    if path.name == "constants.py":
        body = [node for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    body = [node for node in body if not (isinstance(node, ast.FunctionDef) and node.name == "build_parser")]
    return ast.dump(_WithoutWords().visit(ast.Module(body, [])))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "chexseg": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(args: Mapping, inputs: Sequence[Path | None] = (), *, code: str | Path | None = None) -> dict:
    """The record of a run: `args` (vars of a namespace), fingerprints of its input files, package
    versions, and the version of the code that `code` (a script's or module's `__file__`) starts.

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
    found, roles = record["inputs"], record["roles"]
    more = sorted(value for path, value in found.items() if path not in roles)
    parts = [arguments, [found.get(path) for path in roles], more, record["code"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write(path: Path, record: Mapping) -> None:
    """Write a record as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
