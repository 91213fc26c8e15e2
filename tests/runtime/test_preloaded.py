"""Stages forked by a Python that is warm: arguments, output and exit statuses as of a Python of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.pipeline.scripts import ROOT

SCRIPT = """
import json, os, signal, sys, time
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
if sys.argv[1:2] == ["say"]:
    sys.exit("what is wrong")
if sys.argv[1:2] == ["raise"]:
    raise ValueError("a bug")
if sys.argv[1:2] == ["die"]:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1:2] == ["sleep"]:
    print(os.getpid(), flush=True)
    time.sleep(60)
import sibling
print(json.dumps([__name__, sys.argv[1:], "colorsys" in sys.modules, sys.stdin.read(), sibling.HERE]))
"""


@pytest.fixture
def server(tmp_path):
    """(process, ask): `ask(*words)` runs a script with them in a child of the process and returns the exit status."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "sibling.py").write_text("HERE = 'beside the script'")
    reader, writer = os.pipe()
    command = f"exec {sys.executable} -m chexseg.runtime.preloaded colorsys 3>&{writer}"
    # Of a shell that runs it in the background a process inherits that Ctrl-C is ignored.
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"preexec_fn": heeding, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, pass_fds=[writer], start_new_session=True, **pipes)
    os.close(writer)
    with open(reader) as statuses, process:

        def send(*words):
            given = [str(tmp_path / "script.py"), *words]
            process.stdin.write(b"".join(os.fsencode(word) + b"\0" for word in [str(len(given)), *given]))
            process.stdin.flush()

        def ask(*words):
            send(*words)
            return int(statuses.readline())

        process.send = send
        yield process, ask
        process.stdin.close()


def test_a_stage_gets_its_words_as_they_are_and_nothing_of_the_next_command(server):
    process, ask = server
    words = ["", "two words", "a\nline", "'quotes\" and \\", "µ"]
    assert ask(*words) == 0
    said = process.stdout.readline().decode()
    assert json.loads(said) == ["__main__", words, True, "", "beside the script"]


def test_statuses_are_those_of_the_stages_and_none_ends_the_others(server):
    process, ask = server
    assert [ask("exit", "2"), ask("die"), ask("exit", "0")] == [2, 128 + signal.SIGKILL, 0]
    assert [ask("say"), ask("raise"), ask("exit", "130")] == [1, 1, 130]
    process.stdin.close()
    assert process.wait(10) == 0


def test_an_interrupt_of_the_group_ends_the_stage_and_not_the_server(server):
    process, ask = server
    process.send("sleep")
    stage = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(stage, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the stage goes on")
    assert process.poll() is None
