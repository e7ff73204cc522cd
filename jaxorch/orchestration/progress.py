"""What is being tuned and how long is left, on a terminal; nowhere else is anything written.

Input: how many steps are ahead, and each as it begins.  Output: a bar on standard error that goes when all is done.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """A bar over the kernels and plans that are compiled and timed; used as a context manager."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._ahead = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def expect(self, steps: int) -> None:
        """Says how many steps are ahead, the one under way not among them."""
        self._ahead = steps

    @contextmanager
    def step(self, what: str) -> Generator[None]:
        """Shows `what` while it is done."""
        bar = self._shown()
        if bar is None:
            yield
            return
        (task,) = bar.task_ids
        done = int(bar.tasks[0].completed)
        bar.update(task, description=what, total=done + max(self._ahead, 1), refresh=True)
        try:
            yield
        finally:
            self._ahead = max(self._ahead - 1, 0)
            bar.update(task, completed=done + 1)

    def _shown(self) -> Bar | None:
        if self._bar is None and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task("", total=None)
            self._bar.start()
        return self._bar


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("jaxorch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
