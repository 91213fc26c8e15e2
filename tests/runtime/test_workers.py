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


STOPPED_EARLY = """
import sys, time
from multiprocessing import active_children
from pathlib import Path
from chexseg.runtime.workers import ordered_map

def noted(x):
    time.sleep(0.1 if x else 0)
    (Path(sys.argv[1]) / str(x)).touch()
    return x

if __name__ == "__main__":
    results = ordered_map(noted, range(50), 4)
    assert next(results) == 0
    assert len(list(results.gi_frame.f_locals["waiting"])) == 16
    results.close()
    assert not active_children()
    print("ended")
"""


def test_a_map_that_is_stopped_leaves_what_waits_and_no_worker(tmp_path):
    """What its workers have begun, or are about to be given, is done; the rest of the sixteen is not."""
    script, done = tmp_path / "early.py", tmp_path / "done"
    script.write_text(STOPPED_EARLY)
    done.mkdir()
    run = subprocess.run([sys.executable, script, done], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ended\n", "")
    assert len(list(done.iterdir())) < 17


def test_a_map_that_is_stopped_as_its_workers_die_says_nothing(tmp_path):
    """A signal to all processes does so. The pool's thread then tells every waiting item, and no other thread may."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_AS_WORKERS_DIE)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ended\n", "")
