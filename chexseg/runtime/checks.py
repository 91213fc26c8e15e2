"""What is here and what is not: rows of a table, one a thing that was looked at; and the machine itself.

A check never raises for what it finds: a bad file is a row that says so, so that one run tells everything at once.
"""

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from chexseg.errors import DataError, UsageError

T = TypeVar("T")
# `odd` stops nothing; `missing` and `bad` do.
OK, ODD, MISSING, BAD = "ok", "odd", "missing", "bad"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `area` groups the rows, `way_out` is what to do where it is not ok."""

    area: str
    what: str
    status: str
    detail: str
    way_out: str = ""

    @property
    def stops(self) -> bool:
        return self.status in (MISSING, BAD)


@dataclass
class Checks:
    """Rows of one area as they are found."""

    area: str
    rows: list[Check] = field(default_factory=list)

    def add(self, status: str, what: str, detail: str, way_out: str = "") -> None:
        self.rows.append(Check(self.area, what, status, detail, way_out))

    def attempt(self, what: str, read: Callable[[], T], way_out: str = "") -> T | None:
        """What `read` gives; None and a row where it raises one of our errors, which name file, value and way out."""
        try:
            return read()
        except (DataError, UsageError) as error:
            missing = isinstance(error.__cause__, FileNotFoundError) or "no such" in str(error)
            self.add(MISSING if missing else BAD, what, " ".join(str(error).split()), way_out)
        except OSError as error:
            self.add(BAD, what, str(error), way_out)
        return None


def machine(needed: Sequence[str]) -> list[Check]:
    """Python, packages (none is imported), processors and memory of this machine."""
    from importlib import metadata

    checks = Checks("machine")
    version = platform.python_version()
    checks.add(OK if sys.version_info >= (3, 10) else BAD, "Python", version, "Python 3.10 or later")
    installed, absent = [], []
    for name in needed:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        checks.add(MISSING, "packages", f"not installed: {', '.join(absent)}", "pip install -r requirements.txt")
    else:
        checks.add(OK, "packages", ", ".join(installed))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= 4e9
    detail = f"{memory / 1e9:.0f} GB, {os.cpu_count()} processors"
    checks.add(OK if enough else ODD, "memory", detail, "--num_workers 0")
    return checks.rows


def accelerator() -> Check:
    """The GPU that `--device auto` would take. Imports torch."""
    try:
        import torch
    except ImportError as error:
        return Check("machine", "torch", MISSING, f"cannot be imported: {error}", "pip install -r requirements.txt")
    if not torch.cuda.is_available():
        return Check("machine", "GPU", OK, f"none; torch {torch.__version__} computes on the CPU")
    free, total = torch.cuda.mem_get_info()
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    text = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    return Check("machine", "GPU", OK if free > 2e9 else ODD, text)


def room(folder: Path, needed: float) -> list[Check]:
    """Whether the disk of `folder` has room for `needed` bytes."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.0f} GB free for {folder}, about {needed / 1e9:.0f} GB needed"
    return [Check("disk", "room", OK if free >= needed else BAD, detail, "make room, or name another folder")]


def variables(folders: Mapping[str, Path], what: Mapping[str, str]) -> list[Check]:
    """The variables that name folders; `folders` are those in use, set or not, `what` says what belongs there."""
    checks = Checks("variables")
    for name, folder in folders.items():
        value = os.environ.get(name)
        if value and not Path(value).expanduser().is_dir():
            checks.add(BAD, name, f"{value}: no such folder", "make the folder, or point the variable elsewhere")
        elif value:
            checks.add(OK, name, str(folder))
        elif folder.is_dir():
            checks.add(ODD, name, f"not set: {folder}", f"export {name}={what[name]}")
        else:
            checks.add(MISSING, name, f"not set, and {folder} is not there", f"export {name}={what[name]}")
    return checks.rows


def some(names: Iterable[object], limit: int = 3) -> str:
    """The first of some names, and how many more there are."""
    texts = [str(name) for name in names]
    rest = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + rest


def table(checks: Sequence[Check], width: int = 120) -> str:
    """Rows for a terminal: a mark, what, and the detail with the way out below it; a blank line between areas."""
    marks = {OK: "ok", ODD: "odd", MISSING: "MISSING", BAD: "BAD"}
    column = max((len(check.what) for check in checks), default=0)
    lines: list[str] = []
    area = ""
    for check in checks:
        if check.area != area:
            lines += ["", check.area.upper()] if lines else [check.area.upper()]
            area = check.area
        head = f"  {marks[check.status]:8}{check.what:{column}}  "
        room = max(width - len(head), 40)
        text = textwrap.wrap(check.detail, room, break_long_words=False, break_on_hyphens=False) or [""]
        if check.way_out and check.status != OK:
            text += textwrap.wrap("-> " + check.way_out, room, break_long_words=False, break_on_hyphens=False)
        lines += [head + text[0], *(" " * len(head) + line for line in text[1:])]
    return "\n".join(lines)
