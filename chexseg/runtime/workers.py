"""Work shared among processes of this machine: an ordered map, and workers that end when their parent does."""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

from chexseg.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
Item = TypeVar("Item", covariant=True)


class Items(Protocol[Item]):
    """What can be mapped: a list, or a set of jobs that are made as they are asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...


def ordered_map(function: Callable[[T], R], items: Items[T], num_workers: int) -> Iterator[R]:
    """`map(function, items)` over `num_workers` processes, results in order; 0 computes them in this process.

    At most four items a worker are ahead of the one that is yielded, so a million items take no more memory than a
    hundred. `function` must be picklable: workers are spawned, so they inherit no lock, file or GPU context.
    """
    if num_workers == 0 or len(items) < 2:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_start_worker, initargs=(function,))
    waiting: deque[Future[R]] = deque()
    workers: dict[int, BaseProcess] = {}
    rest = iter(items)

    def submit(count: int) -> None:
        for item in islice(rest, count):
            with deaf_children(signal.SIGINT, signal.SIGTERM):
                waiting.append(pool.submit(_call, item))
            workers.update(pool._processes or {})

    try:
        submit(4 * num_workers)
        while waiting:
            result = waiting.popleft().result()
            submit(1)
            yield result
    except BrokenProcessPool as error:
        time.sleep(0.3)  # until the killed worker can be told by its exit code
        killed = [str(pid) for pid, process in workers.items() if process.exitcode]
        raise DataError(died(f"pid {', '.join(killed)}" if killed else "a process of the pool")) from error
    finally:
        # By the thread of the pool: an item cancelled from here may be one whose failure it is about to tell. Once, and
        # waited for: a second `shutdown`, as at the end of `with pool`, takes the first one's order to cancel back.
        pool.shutdown(cancel_futures=True)


def died(which: str) -> str:
    """What to say of a worker that was killed."""
    return (
        f"a data worker ({which}) was killed, most likely because memory ran out; what is done is kept: run the same "
        "command again with a smaller --num_workers, or with --num_workers 0"
    )


@contextmanager
def deaf_children(*signals: signal.Signals, later: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Processes that are started in the block never hear these signals, from their first moment on. Ctrl-C and
    schedulers send to all processes: it is the parent that stops, and its workers with it. What this process does on
    these signals, and on those of `later`, it does when the block has ended."""
    if not signals or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # starting it later would undo the mask
    # A thread without the mask may take the signal, and its handler would interrupt what starts the workers half-way;
    # a thread that was about to start would then miss what `threading` knows of it, and say so on the terminal.
    came: list[int] = []
    handlers = {each: signal.signal(each, lambda number, frame: came.append(number)) for each in (*signals, *later)}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        for each, handler in handlers.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        for number in came:
            signal.raise_signal(number)


_function: Callable  # a worker's, set when it starts


def _start_worker(function: Callable) -> None:
    """Once per worker: keep the function, which may be large, and use one thread, as the other workers do."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before there is a handler that starts another thread: it would wait for ever for the lock that this one needs.
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # What `function` needs is imported by now, since unpickling it did so.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    _function = function


def _end_soon(signum: int, frame: object) -> None:
    """Whoever sent SIGTERM to this worker alone has it ended; a parent that got it, too, has a second to end the pool,
    which would take the sudden death of a worker for a failure."""
    ending = threading.Timer(1.0, os._exit, (0,))
    ending.daemon = True
    ending.start()


def end_with_parent() -> None:
    """Exit when the parent dies: a worker would wait for ever for the next item of a killed run."""
    parent = parent_process()
    assert parent, "only in a worker"
    parent.join()
    os._exit(1)


def _call(item):
    return _function(item)


class LazySequence(Generic[R]):
    """`function` of each item, computed in the parent when its turn comes."""

    def __init__(self, items: Items[T], function: Callable[[T], R]):
        self.items, self.function = items, function

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[R]:
        return map(self.function, self.items)
