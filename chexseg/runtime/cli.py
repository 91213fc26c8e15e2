"""What every script shares on its command line: option types, help, and errors that end in one line."""

import argparse
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from chexseg.errors import DataError, MissingError, UsageError
from chexseg.runtime import distributed
from chexseg.runtime.progress import duration

TERMINATED = 143
DOCTOR = "python doctor.py"
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|unable to open shared memory")
_WORKER = re.compile(r"DataLoader worker \((pid[^)]*(?:\) [\d, ]+)?)")  # how torch names one that was killed
TRUE, FALSE = {"true", "t", "yes", "y", "1"}, {"false", "f", "no", "n", "0"}


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose description is the script's docstring and whose help shows every default."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Formatter, allow_abbrev=False)


def boolean(text: str) -> bool:
    """argparse type for `True` and `False` (any case; also yes/no, 1/0)."""
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def add_boolean(parser: argparse.ArgumentParser, name: str, *, default: bool = False, help: str) -> None:
    """Add `--name True`, `--name False` and a bare `--name` (= True)."""
    parser.add_argument(name, nargs="?", const=True, default=default, type=boolean, metavar="True|False", help=help)


def _number(kind: type, low: float, high: float, what: str) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse


INFINITY = float("inf")
positive_int = _number(int, 1, INFINITY, "a whole number of at least 1")
non_negative_int = _number(int, 0, INFINITY, "a whole number of at least 0")
positive_float = _number(float, sys.float_info.min, sys.float_info.max, "a number above 0")
non_negative_float = _number(float, 0, sys.float_info.max, "a number of at least 0")
fraction = _number(float, 0, 1, "a number from 0 to 1")


def add_run_options(parser: argparse.ArgumentParser, *, shard_size: int | None = 256, workers: int = 0) -> None:
    """Options of every heavy stage; none of them changes a result on one kind of device."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    parser.add_argument("--num_workers", type=non_negative_int, default=workers, help="processes that read and decode")
    if shard_size:
        parser.add_argument("--shard_size", type=positive_int, default=shard_size, help="images lost at most by a kill")


def _log_to_stderr() -> None:
    logging.raiseExceptions = False  # a log on a full disk says nothing, where a traceback would say it a hundred times
    logging.basicConfig(format="%(message)s", level=logging.INFO if distributed.is_main() else logging.WARNING)


def run(
    main: Callable[[argparse.Namespace], None],
    build_parser: Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse, run `main(args)`, exit: 0 done, 1 bad data, 2 wrong usage, 130 interrupted, 143 terminated.

    Blank arguments (`\\ ` at the end of a pasted line) are dropped, and a line says what the shell made of them.
    """
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    kept = [word for word in words if word == "" or word.strip()]
    if len(kept) < len(words) and distributed.is_main():
        print(
            f"{parser.prog}: a blank stands among the options: did one follow a backslash at a line's end? "
            "The shell ends the command there, and the lines below are not part of it",
            file=sys.stderr,
            flush=True,
        )
    args = parser.parse_args(kept)
    handler = signal.signal(signal.SIGTERM, _terminated)
    started, status = time.monotonic(), 0
    try:
        distributed.setup()
        _log_to_stderr()
        main(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        status = TERMINATED
    except Exception as error:
        if not (status := _stop_behind(error)):
            message = None if os.environ.get("CHEXSEG_TRACEBACK") else _said(error)
            if message is None:
                raise
            more = f" ({DOCTOR} looks at everything at once)" if isinstance(error, MissingError) else ""
            _tell(f"{parser.prog}: error: {' '.join(message.split())}{more}")
            status = 2 if isinstance(error, UsageError) else 1
    else:
        if distributed.is_main():
            _tell(f"{parser.prog}: done in {duration(time.monotonic() - started)}")
        distributed.cleanup()
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    if status in (130, TERMINATED):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, and it ends at once
        what = "interrupted" if status == 130 else "stopped"
        _tell(f"{parser.prog}: {what}; run the same command again to go on")
    # A failed rank must not wait for its peers in a destructor: torchrun ends them.
    if status not in (0, TERMINATED) and distributed.world_size() > 1:
        os._exit(status)
    sys.exit(status)


def _tell(line: str) -> None:
    """A line for people, the last one, if anybody can hear it: the log itself may lie on a full disk."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _stop_behind(error: Exception) -> int:
    """130 or 143 where a signal is behind the error, else 0: before 3.12 Python makes a RuntimeError of whatever is
    raised while a class is made, as at the import of a module."""
    seen: set[int] = set()  # a chain may be a circle: an error that is kept, and raised again by what it caused
    behind: BaseException | None = error
    while behind is not None and id(behind) not in seen:
        if isinstance(behind, KeyboardInterrupt):
            return 130
        if isinstance(behind, SystemExit) and behind.code == TERMINATED:
            return TERMINATED
        seen.add(id(behind))
        behind = behind.__cause__ or behind.__context__
    return 0


def _said(error: Exception) -> str | None:
    """What to tell of an error that is not a bug of ours; None of any other.

    Of one in a DataLoader's worker, which torch folds into its traceback, the last part."""
    text = str(error)
    if isinstance(error, (DataError, UsageError, OSError)):
        if text.startswith("Caught ") and "Original Traceback" in text:
            text = re.split(rf"^[\w.]*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
        return text
    if isinstance(error, RuntimeError) and (
        worker := re.search(r"DataLoader worker \((pid[^)]*(?:\) [\d, ]+)?)", text)
    ):
        from chexseg.runtime import workers

        return workers.died(worker[1].replace("(s)", "").strip())
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _NO_MEMORY.search(text):
        reason = text.strip().splitlines()[0] if text.strip() else "MemoryError"
        return f"memory ran out ({reason}); try a smaller --batch_size, --image_size or --num_workers"
    return None


def _terminated(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
