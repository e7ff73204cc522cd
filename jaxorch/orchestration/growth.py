"""Which sets of pieces are tried: convex ones, grown from each piece and from each pair of products that may be one.

Input: pieces, and a test of a set.  Output: none; each set is tested once.  Invariant: what grows from a seed whose
surroundings are those of another is what grew from that, so the layers of a deep model cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxorch.orchestration.pieces import Pieces

__all__ = ["BEAM", "BUDGET", "LARGEST", "try_convex_sets"]

BEAM = 16  # sets kept at each size while growing from one piece
LARGEST = 24  # pieces in one set
BUDGET = 128  # sets grown from one piece

_RECENT = 4  # earlier seeds of a kind that a seed is compared with


def try_convex_sets(pieces: Pieces, kinds: Sequence[object], is_legal: Callable[[frozenset[int]], bool]) -> None:
    """Tries convex sets of pieces, each once.

    What grew from a legal set comes first, then what saves most bytes; a set that no schedule runs may still
    grow into one that some schedule does.

    Args:
        pieces: of which the sets are made.
        kinds: of the pieces; equal ones are the same kernel by themselves.
        is_legal: whether some schedule runs a set; called for every set tried, but for those that equal a set that was
            not, elsewhere.
    """
    search = _Search(pieces, kinds, is_legal)
    for seed in pieces.chains():
        search.grow(seed, everywhere=True)
    for start in range(len(pieces.all)):
        search.grow(frozenset((start,)), everywhere=False)


@dataclass(frozen=True, slots=True)
class _Growth:
    """What was tried from a seed, with the outcome, and the pieces that had a say in it."""

    seed: tuple[int, ...]
    tried: tuple[tuple[frozenset[int], bool], ...]
    seen_before: frozenset[frozenset[int]]
    around: frozenset[int]


class _Search:
    def __init__(self, pieces: Pieces, kinds: Sequence[object], is_legal: Callable[[frozenset[int]], bool]) -> None:
        self.pieces, self.is_legal = pieces, is_legal
        self.seen: set[frozenset[int]] = set()
        wiring = [pieces.wiring(k) for k in range(len(pieces.all))]
        self.sharers = [[together for together, _, _ in values] for values in wiring]
        ties = [tuple((len(together), *rest) for together, *rest in values) for values in wiring]
        self.kinds = list(zip(kinds, ties, strict=True))
        self.grown: dict[object, list[_Growth]] = {}

    def grow(self, seed: frozenset[int], *, everywhere: bool) -> None:
        """Tries `seed` and what it grows into, by pieces after its first one alone unless `everywhere`."""
        first = tuple(sorted(seed))
        known = self.grown.setdefault((everywhere, *(self.kinds[k] for k in first)), [])
        for growth in known:
            places = self.places(growth, first)
            if places is not None:
                self.repeat(growth, places)
                return
        known[:] = [self.anew(seed, -1 if everywhere else first[0]), *known[: _RECENT - 1]]

    def anew(self, seed: frozenset[int], start: int) -> _Growth:
        pieces, frontier, budget = self.pieces, [seed], BUDGET
        tried: list[tuple[frozenset[int], bool]] = []
        passed: set[frozenset[int]] = set()
        around = set(seed)
        for _ in range(LARGEST):
            passed |= self.seen.intersection(frontier)
            fresh = [s for s in frontier if s not in self.seen][:budget]
            budget -= len(fresh)
            self.seen.update(fresh)
            grown: dict[frozenset[int], bool] = {}  # whether a legal set grew into it
            for chosen in fresh:
                legal = self.is_legal(chosen)
                tried.append((chosen, legal))
                near = set[int]().union(*(pieces.neighbours[j] for j in chosen)) - chosen
                around |= near
                for k in sorted(k for k in near if k > start):
                    larger = chosen | {k}
                    if pieces.may_join(larger):
                        grown[larger] = grown.get(larger, False) or legal
            passed |= self.seen.intersection(grown)
            convex = [s for s in grown if s not in self.seen and pieces.is_convex(s)]
            frontier = sorted(convex, key=lambda s: (not grown[s], -pieces.saved(s), tuple(sorted(s))))[:BEAM]
            if not frontier or not budget:
                break
        return _Growth(tuple(sorted(seed)), tuple(tried), frozenset(passed), frozenset(around))

    def places(self, growth: _Growth, seed: Sequence[int]) -> dict[int, int] | None:
        """Where each piece around a growth is around another seed; None if that does not look the same from there."""
        found = dict(zip(growth.seed, seed, strict=True))
        pending = list(found)
        for there in pending:
            here = found[there]
            if self.kinds[there] != self.kinds[here]:
                return None
            for theirs, ours in zip(self.sharers[there], self.sharers[here], strict=True):
                for a, b in zip(theirs, ours, strict=True):
                    if a not in growth.around:
                        continue
                    if a not in found:
                        found[a] = b
                        pending.append(a)
                    elif found[a] != b:
                        return None
        ordered = [found[k] for k in sorted(found)]
        if len(found) < len(growth.around) or any(a >= b for a, b in pairwise(ordered)):
            return None
        if any(frozenset(found[k] for k in s) not in self.seen for s in growth.seen_before):
            return None
        return found

    def repeat(self, growth: _Growth, places: dict[int, int]) -> None:
        for there, legal in growth.tried:
            chosen = frozenset(places[k] for k in there)
            if chosen in self.seen:
                continue
            self.seen.add(chosen)
            # of a piece by itself the reason is asked for, where there is one
            if (legal and self.pieces.is_convex(chosen)) or len(chosen) == 1:
                self.is_legal(chosen)
