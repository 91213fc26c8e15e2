"""A script in a child of this warm process: with limits on memory and time, and watched for what no file may make it do.

Watched for: connections and look-ups of names, programs started, files read or written outside the case's folder.
"""

import contextlib
import os
import re
import resource
import runpy
import select
import shutil
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MORE_MEMORY = 2 << 30  # bytes beyond what a valid input takes
SECONDS, PATIENCE = 30, 300  # of the processor; and by the clock, for a machine with more to do
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "os.system", "os.exec",
             "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn", "ctypes.dlopen")  # fmt: skip
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
          "shutil.rmtree")  # fmt: skip
HARMLESS = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True)
class Result:
    """How a script ended: its status (negative: killed, by a limit or a crash), what it said, what it did that no file
    may make it do, how much address space it came to take, and seconds of the processor."""

    status: int
    said: str
    did: tuple[str, ...]
    grown: int
    seconds: float

    @property
    def error(self) -> str:
        lines = self.said.strip().splitlines()
        return lines[-1] if lines else ""


def run(command: list[str], folder: Path, environment: dict[str, str], memory: int | None = None) -> Result:
    """A script (the command's first word) with its options, in `folder`. memory: bytes that it may grow by."""
    import cv2
    import torch

    # Here and not in the child: there the threads that would have to agree are gone, and it would wait for ever.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    log, notes = folder / ".log", folder / ".notes"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(command, folder, environment, memory, log, notes)
    os.close(writer)
    try:
        in_time = bool(select.select([reader], [], [], PATIENCE)[0])  # readable when the child's end is closed
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        _, ended, usage = os.wait4(pid, 0)
    finally:
        os.close(reader)
    found = notes.read_text().splitlines() if notes.exists() else []
    grown = next((int(line.split()[1]) for line in found if line.startswith("grown ")), 0)
    did = tuple(line for line in found if not line.startswith("grown "))
    status = os.waitstatus_to_exitcode(ended)
    return Result(status, log.read_text(errors="replace"), did, grown, usage.ru_utime + usage.ru_stime)


def _child(command, folder, environment, memory, log, notes) -> None:
    status = 70
    try:
        sys.dont_write_bytecode = True
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        noted = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")
        os.environ |= environment | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder)}
        os.chdir(folder)
        _prepare()
        sys.addaudithook(_watcher(folder, noted))
        before = _address_space("VmSize")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (before + memory, before + memory))
        script = ROOT / command[0]
        sys.argv = [str(script), *command[1:]]
        try:
            runpy.run_path(str(script), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        os.write(noted, f"grown {_address_space('VmPeak') - before}\n".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _prepare() -> None:
    """What a forked child of pytest needs: no handlers of pytest's, a lock of its own for tqdm."""
    import faulthandler
    import logging

    import numpy as np
    from tqdm import tqdm

    faulthandler.disable()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    tqdm.set_lock(threading.RLock())
    np.seterr(all="warn")


def _address_space(what: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", text)[1]) << 10


def _watcher(folder: Path, notes: int):
    """An audit hook that writes down what no file may cause. Reading is free in the code's own places."""
    code = (ROOT, sys.prefix, sys.base_prefix, Path(sys.modules["torch"].__file__).parents[1])
    inside = (os.path.realpath(folder), *map(os.path.realpath, code))
    libraries = ("/usr/", "/lib", "/etc/mime.types", "/etc/localtime", "/etc/fonts", *HARMLESS)
    folders = (inside[0], *HARMLESS)
    busy = False

    def note(text: str) -> None:
        os.write(notes, (text.replace("\n", " ")[:300] + "\n").encode(errors="replace"))

    def place(value: object) -> str | None:
        if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
            return os.path.realpath(os.path.abspath(os.fsdecode(value)))
        return None

    def watch(event: str, args: tuple) -> None:
        nonlocal busy
        if busy or (event not in FORBIDDEN and event not in WRITES and event != "open"):
            return
        busy = True
        try:
            if event in FORBIDDEN:
                if event != "ctypes.dlopen" or args[0] and not str(args[0]).startswith(("lib", "/")):
                    note(f"{event} {args[:2]}")
            elif event in WRITES:
                for value in args[:2]:
                    if (at := place(value)) and not at.startswith(folders):
                        note(f"{event} {at}")
            elif at := place(args[0]):
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if not at.startswith(folders if writes else (*inside, *libraries)):
                    note(f"{'write' if writes else 'read'} {at}")
        finally:
            busy = False

    return watch


def copied(world: Path, folder: Path) -> Path:
    """A copy of the world in hard links: whoever changes a file replaces it (`put`)."""
    shutil.copytree(world, folder, copy_function=os.link)
    return folder


def put(path: Path, content: bytes | str) -> None:
    """A file with this content instead of a link to the world's."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def warm() -> None:
    """Import what the scripts will, so that a child need not."""
    import importlib

    from tests.pipeline.stages import MODULES

    more = "matplotlib.font_manager pycocotools.mask chexseg.irnet.walk_tuning chexseg.irnet.relation_labels highdicom "
    more += "chexseg.irnet.quality_stage chexseg.segmentation.student chexseg.data.dicom_seg chexseg.data.coco_files"
    for name in [*MODULES.split(), *more.split(), "pydicom.pixels", "pandas.io.parsers", "numba"]:
        importlib.import_module(name)
