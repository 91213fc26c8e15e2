"""The ordered map over processes, when all of them die at once."""

import subprocess
import sys

STOPPED_AS_WORKERS_DIE = """
import os, signal, time
from chexseg.runtime.workers import ordered_map

def slow(x):
    time.sleep(0.02)
    return x

if __name__ == "__main__":
    for run in range(6):
        results = ordered_map(slow, range(50), 2)
        assert next(results) == 0
        for pid in list(results.gi_frame.f_locals["workers"]):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.0008 * run)
        results.close()
    print("ended")
"""


def test_a_map_that_is_stopped_as_its_workers_die_says_nothing(tmp_path):
    """A signal to all processes does so. The pool's thread then tells every waiting item, and no other thread may."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_AS_WORKERS_DIE)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ended\n", "")
