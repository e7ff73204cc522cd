"""Time limits: a block that is interrupted when its seconds are over, inside others of its kind."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType


class OutOfTime(BaseException):
    """A block's time is over. No `Exception`, or a library would take it for a mistake of its own and go on."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Run the block for `seconds` at most, or as long as the block around it may run if that is less.

    Raises:
        OutOfTime: the time was over. Stuck in native code, a block is interrupted when that returns.
    """
    start = time.monotonic()

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"not finished within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    around, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, around) if around else seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        # What is over around this block is so at once.
        left = max(around - (time.monotonic() - start), 1e-3) if around else 0.0
        signal.setitimer(signal.ITIMER_REAL, left)
