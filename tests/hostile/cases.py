"""What a hostile input is: a file of the world that is replaced, the command that reads it, and how that must end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import sandbox, world

# refused: status 1, one line that names the file; same: the valid input's result, to the byte; either: one of these;
# safe: either, or another result where a changed value is a valid one.
REFUSED, SAME, EITHER, SAFE = "refused", "same", "either", "safe"
Change = bytes | str | Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`change` replaces the content of `file` (relative to the world), or is called with its path."""

    kind: str
    name: str
    command: str
    file: str
    change: Change
    verdict: str = REFUSED

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} ({self.command})"


@dataclass(frozen=True)
class Valid:
    """How a command ends with the world's own files."""

    outputs: dict[str, bytes]
    grown: int


def outputs(command: str, folder: Path) -> dict[str, bytes]:
    """The files that a command made."""
    found = {}
    for pattern in world.COMMANDS[command].outputs:
        for path in folder.glob(pattern):
            content = path.read_bytes()
            found[str(path.relative_to(folder))] = content.replace(bytes(folder), b"WORLD")
    return found


def run(command: str, folder: Path, memory: int | None = None) -> sandbox.Result:
    return sandbox.run(world.COMMANDS[command].argv(folder), folder, world.environment(folder), memory)


def attack(case: Case, origin: Path, folder: Path, valid: Valid) -> list[str]:
    """What is wrong with how the command took the hostile input; nothing where it held."""
    sandbox.copied(origin, folder)
    path = folder / case.file
    if callable(case.change):
        case.change(path)
    else:
        sandbox.put(path, case.change)
    outside = sorted(p.name for p in folder.parent.iterdir())
    result = run(case.command, folder, valid.grown + sandbox.MORE_MEMORY)
    faults = [f"it did: {what}" for what in result.did[:3]]
    if sorted(p.name for p in folder.parent.iterdir()) != outside:
        faults.append("it made a file beside its folder")
    if "Traceback" in result.said or result.status not in (0, 1):
        return [*faults, f"status {result.status} after {result.seconds:.0f} s: {result.said[-600:]}"]
    if result.seconds > sandbox.SECONDS:
        faults.append(f"{result.seconds:.0f} s")
    if result.status == 0:
        same = outputs(case.command, folder) == valid.outputs
        if case.verdict == REFUSED or case.verdict in (SAME, EITHER) and not same:
            faults.append(f"taken {'as it is' if same else 'with another result'}: {result.said[-300:]}")
    else:
        if case.verdict == SAME:
            faults.append(f"refused: {result.error[-300:]}")
        # Of an input that may be taken, the error may name another file that does not go with it.
        if ": error: " not in result.error or case.verdict != SAFE and not _names(result.said, path):
            faults.append(f"not named: {result.said[-400:]}")
        if len(result.error) > 5000:
            faults.append(f"an error of {len(result.error)} characters")
    return faults


def _names(said: str, path: Path) -> bool:
    """Whether the messages name the file, or the folder that is read as one."""
    folders = [parent.name for parent in path.parents if parent.name in ("png", "pickles", "seg", "films")]
    names = [path.name, ascii(path.name)[1:-1], *folders]
    return any(name in line for name in names for line in said.splitlines() if "error" in line or "skipped" in line)
