"""How far a long run is and how long it still takes: a line a minute for log files, where a bar cannot be drawn."""

import logging
import sys
import time

from chexseg.runtime import distributed

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 60.0


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class ProgressLines:
    """What a bar says, as a line a minute for a log file: how much is done, and about when it will be."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self.started = self.told = time.monotonic()
        self.silent = sys.stderr.isatty() or not distributed.is_main()

    def update(self) -> None:
        """One more is done."""
        self.done += 1
        now = time.monotonic()
        if not self.silent and now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log.info("%s: %d of %d, about %s left", self.label, self.done, self.total, duration(left))
