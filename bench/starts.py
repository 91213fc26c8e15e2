"""What a start costs: `--help`, wrong usage and a stage that is up to date, against `python -c "import torch"`.

None of the three needs torch. Each row times the slowest script. The targets are 0.5 s, and 1 s for a stage that looks
at its files, on a machine where torch takes 1.8 s.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch

from bench import pipeline
from bench.harness import Case, row, timed

SCRIPTS = sorted(
    str(path.relative_to(pipeline.ROOT))
    for folder in (pipeline.ROOT, pipeline.ROOT / "localization_eval", pipeline.ROOT / "IRNet")
    for path in folder.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
START, LOOK = 0.5 / 1.8, 1 / 1.8


def call(command: Sequence[str], status: int = 0, root: Path | None = None) -> None:
    """Run Python on `command`, which must end with `status`."""
    environment = os.environ | {"PYTHONPATH": str(pipeline.ROOT)} | (pipeline.folders(root) if root else {})
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr}")


def import_torch() -> None:
    call(["-c", "import torch"])


@cache
def finished_run() -> Path:
    """A folder in which every stage has run, on 16 phantoms of 64 pixels; removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="starts"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for command in pipeline.commands(root, 16, 64, experts=8).values():
        pipeline.run(root, command)
    return root


def slowest(commands: dict[str, Callable[[], None]]) -> tuple[str, Callable[[], None]]:
    """The command that takes longest, each run once after a first time for the disk's sake."""
    for command in commands.values():
        command()
    return max(commands.items(), key=lambda item: timed(item[1], torch.device("cpu"))[0])


def against_torch(commands: dict[str, Callable[[], None]], target: float) -> Case:
    script, command = slowest(commands)
    note = f"{script}, the slowest of {len(commands)}"
    return Case(ours=command, reference=import_torch, reference_repeats=3, max_ratio=target, note=note)


@row("starts help", "--help")
def help_(device: torch.device) -> Case:
    return against_torch({script: partial(call, [str(pipeline.ROOT / script), "--help"]) for script in SCRIPTS}, START)


@row("starts usage", "wrong usage")
def usage(device: torch.device) -> Case:
    wrong = {script: partial(call, [str(pipeline.ROOT / script), "--wrong"], 2) for script in SCRIPTS}
    return against_torch(wrong, START)


@row("starts again", "a stage that is up to date")
def again(device: torch.device) -> Case:
    root = finished_run()
    stages = [command.split() for command in pipeline.commands(root, 16, 64, experts=8).values()]
    commands = {
        script: partial(call, [str(pipeline.ROOT / script), *options], root=root) for script, *options in stages
    }
    return against_torch(commands, LOOK)
