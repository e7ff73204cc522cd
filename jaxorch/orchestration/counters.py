"""The counters of a plan's launches set to zero by a kernel before them, in place of a launch of their own.

Input: a plan.  Output: the same plan, in which the last kernel before the first that counts fills the counters.
Invariant: nothing else changes; where no kernel is before, or none compiles so, the program fills them as it would.
"""

from __future__ import annotations

from dataclasses import replace

from jaxorch.codegen.source import zeroing
from jaxorch.errors import CompileError
from jaxorch.orchestration.plan import KernelStep, Plan, arguments, counters
from jaxorch.orchestration.session import Session
from jaxorch.runtime.launch import check

__all__ = ["with_zeros"]


def with_zeros(plan: Plan, session: Session) -> Plan:
    """The plan with a kernel that fills the counters of those behind it."""
    steps = list(plan.steps)
    kernels = [(number, step) for number, step in enumerate(steps) if isinstance(step, KernelStep)]
    first = next((k for k, (_, step) in enumerate(kernels) if step.source.tickets), 0)
    for number, step in reversed(kernels[:first]):
        if step.source.combine is not None:
            continue
        source, compiled = zeroing(step.source, counters(plan)), step.compiled
        if session.options.backend != "interpret":
            types = arguments(plan.graph, step.kernel)
            try:
                compiled = check(source, *types, **session.device.limits, store=session.store)
            except CompileError:
                continue
            except KeyboardInterrupt:
                if not session.live:
                    raise
                session.interrupt()
                break
        steps[number] = replace(step, source=source, compiled=compiled)
        break
    return replace(plan, steps=tuple(steps))
