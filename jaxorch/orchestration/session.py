"""What the planning of one program shares: the device and the store, what is known of its kernels, the time left.

Input: the options and the target.  Output: a `Session`, which all of the program's graphs, and the bodies in it, fill.
Invariant: what is recorded under a structure holds for every kernel, or part left to XLA, of that structure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jaxorch.codegen.source import Source
from jaxorch.errors import JaxorchWarning
from jaxorch.frontend.trace import Trace
from jaxorch.options import Options, cache_dir
from jaxorch.orchestration.clock import Clock
from jaxorch.orchestration.devices import Device, device
from jaxorch.orchestration.plan import Version
from jaxorch.orchestration.progress import Progress
from jaxorch.orchestration.tune import Tuned
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import call, interpreted_call
from jaxorch.runtime.store import Store
from jaxorch.target import Target, local_arch

__all__ = ["Over", "Session"]

type Over = tuple[tuple[int, int], ...]
"""Inputs of a kernel that outputs overwrite, both by number."""


class Session:
    """What the plans of a program and of the bodies in it have in common."""

    def __init__(self, options: Options, target: Target, versions: Callable[[Trace], Sequence[Version]]) -> None:
        """`versions` gives the graphs of a trace, all of one meaning, the one to prefer, of the trace itself, first."""
        self.options, self.target, self.versions = options, target, versions
        self.device: Device = device(target.device)
        if target.live:
            self.device = replace(self.device, arch=local_arch())
        self._live = target.live and options.effort != "fast" and options.backend != "interpret"
        self.interrupted = self.hurries = False
        self.progress = Progress()
        self.clock = Clock(options.effort)
        self.store = Store(cache_dir(options))
        # by structure: equal kernels are priced, tuned and compiled once
        self.estimates: dict[str, float] = {}
        self.overwrites: dict[str, Over] = {}
        self.timed: dict[str, float] = {}
        self.xla: dict[str, float] = {}  # what XLA takes, by structure of the nodes
        self.tuned: dict[str, Tuned] = {}
        self.failed: dict[str, None] = {}
        self.failures: dict[str, None] = {}
        # by a source's digest and what is overwritten: kernels that write over operands
        self.overwriting: dict[tuple[str, Over], tuple[Source, Compiled | None]] = {}

    @property
    def live(self) -> bool:
        """Whether plans are timed, and kernels while there is time for it."""
        return self._live and not self.interrupted

    @property
    def times_kernels(self) -> bool:
        """Whether kernels are timed that were not before."""
        return self.live and not self.hurries

    @property
    def counts_memory(self) -> bool:
        """Whether memory has a say in the choice."""
        return self.options.memory_limit is not None or self.options.memory_weight > 0

    def interrupt(self) -> None:
        """Times nothing from now on: what is known so far makes the program."""
        self.interrupted = True
        warnings.warn(
            "jaxorch's tuning was interrupted: the program runs with what was found so far, and the next process "
            "tunes on from there. Interrupt again to stop the program.",
            JaxorchWarning,
            stacklevel=2,
        )

    def hurry(self) -> None:
        """Times no kernel from now on, but the plan that holds them."""
        self.hurries = True
        warnings.warn(
            "jaxorch's tuning has taken the time that it has: kernels that it did not reach run in their first "
            "configuration, and the next process tunes on from there.",
            JaxorchWarning,
            stacklevel=2,
        )

    @property
    def searches(self) -> bool:
        """Whether kernels are timed and time is left to look for better ones."""
        return self.times_kernels and self.clock.searches

    def launch(self) -> Callable[..., list[Any]]:
        """What launches a kernel in traced code."""
        if self.options.backend == "interpret":
            return interpreted_call
        return partial(call, arch=None if self.target.live else self.device.arch)
