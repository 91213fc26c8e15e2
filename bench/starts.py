"""What a start costs: `--help`, wrong usage and a stage that is up to date, against `python -c "import torch"`.

None of the three needs torch. The targets are 0.5 s, and 1 s for a stage that looks at its files, on a machine where
torch takes 1.8 s.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from bench import pipeline
from bench.harness import Case, row

SCRIPTS = sorted(
    str(path.relative_to(pipeline.ROOT))
    for folder in (pipeline.ROOT, pipeline.ROOT / "localization_eval", pipeline.ROOT / "IRNet")
    for path in folder.glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
START, LOOK = 0.5 / 1.8, 1 / 1.8
STAGES = {command.split()[0]: stage for stage, command in pipeline.commands(Path(), 0, 0).items()}


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


def register(name: str, title: str, ours: Callable[[], Callable[[], None]], target: float) -> None:
    @row(name, title)
    def case(device: torch.device) -> Case:
        return Case(ours=ours(), reference=import_torch, reference_repeats=3, max_ratio=target)


def up_to_date(stage: str) -> Callable[[], None]:
    root = finished_run()
    script, *options = pipeline.commands(root, 16, 64, experts=8)[stage].split()
    return lambda: call([str(pipeline.ROOT / script), *options], root=root)


for script in SCRIPTS:
    path = str(pipeline.ROOT / script)
    register(f"starts help {script}", "--help", lambda path=path: lambda: call([path, "--help"]), START)
    register(f"starts usage {script}", "wrong usage", lambda path=path: lambda: call([path, "--wrong"], 2), START)
    if script in STAGES:
        register(f"starts again {script}", "up to date", lambda stage=STAGES[script]: up_to_date(stage), LOOK)
