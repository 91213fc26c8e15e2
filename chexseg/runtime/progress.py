"""How far a long run is: a bar on a terminal, and in a log file, where a bar cannot be drawn, a line a minute."""

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


class Progress:
    """A bar that also speaks to log files: `with Progress("saliency maps", 500) as progress: progress.update()`.

    Only rank 0 shows one, of its own share: the other ranks keep in step with it.
    """

    def __init__(self, label: str, total: int, *, unit: str = "image", patience: float = 0.0):
        """`patience`: seconds in which there is nothing to show, for what is usually done by then."""
        from tqdm import tqdm  # only where there is work: a start is fast

        self.label, self.total, self.done = label, total, 0
        self.started = self.last_line = time.monotonic()
        self.silent = sys.stderr.isatty() or not distributed.is_main()
        hidden = True if not distributed.is_main() or not total else None  # None: where it is no terminal
        self.bar = tqdm(total=total, desc=label, unit=unit, disable=hidden, mininterval=0.5, delay=patience)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if not self.silent and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log.info("%s: %d of %d, about %s left", self.label, self.done, self.total, duration(left))
