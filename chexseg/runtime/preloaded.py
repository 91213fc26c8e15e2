"""A Python that has imported torch already and forks for each command: a stage of a long run starts at once.

    python -m chexseg.runtime.preloaded LIBRARY... <commands 3>statuses

A command is the number of its words, then the words (a script and its arguments), each ended by a NUL. Its exit status
is written to descriptor 3, as a line. The stage is a process of its own, with the output, environment and process group
of this one. Start it with OMP_NUM_THREADS=1: threads that a library starts on being imported do not survive a fork.
"""

import atexit
import gc
import importlib
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NoReturn


def words(stream: BinaryIO) -> Iterator[str]:
    """The NUL-ended words of a stream, as they come."""
    while character := stream.read(1):
        word = bytearray()
        while character not in (b"\0", b""):
            word += character
            character = stream.read(1)
        yield os.fsdecode(bytes(word))


def run(command: list[str]) -> NoReturn:
    """The command as `python COMMAND...` would run it, in this process, which ends with it: at once, since to take all
    that was imported apart again would take longer than a small stage."""
    sys.argv = command
    sys.path[0] = os.path.dirname(command[0])
    status: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does that ends: other threads first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)


def serve(commands: BinaryIO, statuses: BinaryIO) -> None:
    """Fork for each command until the stream ends."""
    stream = words(commands)
    for count in stream:
        command = [next(stream) for _ in range(int(count))]
        child = os.fork()
        if not child:
            statuses.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), commands.fileno())
            run(command)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        statuses.write(b"%d\n" % (status if status >= 0 else 128 - status))


if __name__ == "__main__":
    # Ctrl-C reaches the stage too, which says how it ends; this process goes when its commands do.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what was imported is shared with the children as long as no collection writes to it
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGINT, handler))
    serve(open(0, "rb", buffering=0), open(3, "wb", buffering=0))
