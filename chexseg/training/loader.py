"""Reading batches of draws, in this process or with workers. Which samples are drawn when is in `draws`."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from chexseg.runtime.workers import deaf_children, end_with_parent
from chexseg.training.draws import Draw

STOPS = signal.SIGINT, signal.SIGTERM


class Loader:
    """Reads batches of draws from a dataset, in this process or with workers that live until `close`.

    The global random state is never touched, so that a resumed run sees the same one. Workers hear neither
    SIGINT nor SIGTERM, which go to all processes: it is their parent that stops, saves and closes.
    """

    def __init__(self, dataset: Any, *, num_workers: int = 0, pin_memory: bool = False):
        self._plan: list[list[Draw]] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Replayed(self._plan),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=start_worker,
        )

    def __call__(self, plan: Sequence[list[Draw]]) -> Iterator[dict]:
        """The batches of `plan`, in order."""
        self._plan[:] = plan
        return started(self._loader)

    def close(self) -> None:
        """End the workers; without this, leaving Python would wait for them. The next call starts others."""
        iterator: Any = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:  # torch gives up after 5 s and sends SIGTERM, which they ignore
                if worker.is_alive():
                    worker.kill()
                worker.join()
            self._loader._iterator = None


class _Replayed:
    """A batch sampler over a list that is filled anew before each epoch."""

    def __init__(self, plan: list[list[Draw]]):
        self._plan = plan

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(list(self._plan))

    def __len__(self) -> int:
        return len(self._plan)


def started(loader: DataLoader) -> Iterator:
    """Its batches, its workers started: whole, even if a signal comes, or one of them is killed, in the meantime."""
    if not loader.num_workers:
        return iter(loader)
    # torch's handler raises an error where a worker has died. It is set before the first worker is there, or torch
    # would set it inside, and it would be lost.
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler()
    if sys.excepthook is not _tell:
        _tell.former, sys.excepthook = sys.excepthook, _tell
    with deaf_children(*STOPS, later=(signal.SIGCHLD,)):
        return iter(loader)


class _Told:
    """An excepthook that leaves out what a thread says of a worker that died in the middle of a message: the thread of
    `multiprocessing` that hands over files prints a traceback then, and the run has its own line for it."""

    former: Any = staticmethod(sys.__excepthook__)

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main or not issubclass(kind, (ConnectionError, EOFError)):
            self.former(kind, error, trace)


_tell = _Told()


def start_worker(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: the worker ends with its parent, however that ends. torch's own watch looks
    every five seconds, and never sees it where a fork server stands between the two (the default from Python 3.14)."""
    torch.set_num_threads(1)
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
