"""What is heard of a data worker that dies in the middle of a message to the process that reads its batches."""

import sys
import threading

import pytest
from torch.utils.data import DataLoader

from chexseg.training.loader import started


@pytest.fixture
def heard(monkeypatch):
    """The errors that reach the excepthook which was there before a loader with workers was started."""
    kinds: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: kinds.append(kind))
    loader = DataLoader([1, 2], num_workers=1)
    assert len(list(started(loader))) == 2
    return kinds


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_a_thread_says_nothing_of_a_message_that_broke_off(heard, kind):
    thread = threading.Thread(target=lambda: sys.excepthook(kind, kind(), None))
    thread.start()
    thread.join()
    assert heard == []


def test_all_else_is_told(heard):
    thread = threading.Thread(target=lambda: sys.excepthook(ValueError, ValueError(), None))
    thread.start()
    thread.join()
    sys.excepthook(ConnectionResetError, ConnectionResetError(), None)
    assert heard == [ValueError, ConnectionResetError]
