"""A training that ended is not taken up again, and its next start imports neither torch nor what rests on it."""

import os
import subprocess
import sys

import pytest

from tests.pipeline import stages

HEAVY = ("torch", "torchvision", "segmentation_models_pytorch")


def without_torch(workspace, stage, *more):
    """Run a stage where importing torch fails."""
    script, *given = workspace.command(stage, *more)
    code = f"import runpy, sys\nsys.modules.update(dict.fromkeys({HEAVY}))\nsys.argv = {[script, *given]}\n"
    code += f"sys.path.insert(0, {str((stages.ROOT / script).parent)!r})\n"
    code += f"runpy.run_path({str(stages.ROOT / script)!r}, run_name='__main__')"
    environment = os.environ | workspace.environment() | {"PYTHONPATH": str(stages.ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("stage", stages.TRAINERS)
def test_a_finished_training_starts_without_torch(tiny_run, stage):
    before = tiny_run.content(tiny_run.made[stage])
    ended = without_torch(tiny_run, stage)
    assert ended.returncode == 0, ended.stderr
    assert "finished before; nothing to do" in ended.stderr and "best epoch" in ended.stderr
    assert tiny_run.content(tiny_run.made[stage]) == before
    tried = without_torch(tiny_run, stage, "--lr", "0.5")
    assert tried.returncode and "ModuleNotFoundError: import of torch halted" in tried.stderr  # it would look further
