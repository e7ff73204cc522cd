"""What is asked again and again of the same objects, remembered by identity.

Graphs share their nodes with the graphs they are made from, and the search asks the same of a node for every set that
holds it. To hash a node's structure would take as long as most answers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

__all__ = ["remembered"]

_MOST = 1 << 14  # objects

# As `id`, which is audited: some library's hook, run each time, would take as long as most answers.
_identity = object.__hash__


def remembered[T, R](function: Callable[[T], R]) -> Callable[[T], R]:
    """`function`, a pure one of an immutable object, with the results for the last objects kept.

    An object is held as long as its result is, so that no other can take its identity.
    """
    known: dict[int, tuple[T, R]] = {}

    @wraps(function)
    def answer(thing: T) -> R:
        found = known.get(_identity(thing))
        if found is None:
            if len(known) >= _MOST:
                known.clear()
            found = known[_identity(thing)] = thing, function(thing)
        return found[1]

    return answer
