"""Transformer blocks as a problem of choice alone: nodes with sizes, and candidates as a search would make them."""

from collections.abc import Iterable, Sequence

from jaxorch.ir.view import Value
from jaxorch.orchestration.check import Candidate

__all__ = ["Transformer", "kernel", "values"]


def kernel(nodes: Sequence[int], inputs: Iterable[int], outputs: Iterable[int], cost: float) -> Candidate:
    return Candidate(tuple(nodes), tuple(map(Value, inputs)), tuple(map(Value, outputs)), cost)


def values(*nodes: int) -> list[Value]:
    return [Value(node) for node in nodes]


class Transformer:
    """Pre-norm blocks as nodes `(kind, sources, megabytes)`, node 0 being what the first block reads."""

    def __init__(self, blocks):
        self.nodes = [("map", (), 1.0)]
        self.out = 0
        for _ in range(blocks):
            self.out = self.feed_forward(self.attention(self.out))
        self.readers = [
            [r for r, (_, sources, _) in enumerate(self.nodes) if n in sources] for n in range(len(self.nodes))
        ]

    def add(self, kind, *sources, size=1.0):
        self.nodes.append((kind, sources, size))
        return len(self.nodes) - 1

    def chain(self, x, *others, size=1.0):
        for sources in others:
            x = self.add("map", x, *sources, size=size)
        return x

    def norm(self, x):
        mean = self.add("reduce", x, size=0.01)
        square = self.add("reduce", self.chain(x, ()), size=0.01)
        scale = self.chain(mean, (square,), (), (), size=0.01)
        return self.chain(x, (mean,), (scale,), (), ())

    def attention(self, x):
        h = self.norm(x)
        q, k, v = (self.chain(self.add("dot", h), ()) for _ in range(3))
        q, k = (self.chain(t, (self.chain(t, ()),)) for t in (q, k))
        scores = self.chain(self.add("dot", q, k, size=4.0), (), (), size=4.0)
        weights = self.chain(scores, (self.add("reduce", scores, size=0.02),), (), size=4.0)
        weights = self.chain(weights, (self.add("reduce", weights, size=0.02),), size=4.0)
        return self.chain(x, (self.chain(self.add("dot", self.add("dot", weights, v)), ()),))

    def feed_forward(self, x):
        up = self.chain(self.add("dot", self.norm(x), size=4.0), (), size=4.0)
        gated = self.chain(up, (), (), (), (up,), size=4.0)
        return self.chain(x, (self.chain(self.add("dot", gated), ()),))

    def sets(self, limit):
        """The connected convex sets of at most `limit` nodes with at most one dot among them."""
        found = {frozenset([n]) for n in range(len(self.nodes))}
        todo = sorted(found, key=sorted)
        for nodes in todo:
            near = {m for n in nodes for m in (*self.nodes[n][1], *self.readers[n])} - nodes
            for grown in sorted((nodes | {m} for m in near), key=sorted):
                dots = sum(self.nodes[n][0] == "dot" for n in grown)
                if len(grown) <= limit and grown not in found and dots <= 1 and self.convex(grown):
                    found.add(grown)
                    todo.append(grown)
        return todo

    def convex(self, nodes):
        last, seen = max(nodes), set()
        todo = [r for n in nodes for r in self.readers[n] if r not in nodes]
        for n in todo:
            if n in nodes:
                return False
            if n < last and n not in seen:
                seen.add(n)
                todo.extend(self.readers[n])
        return True

    def candidates(self, limit):
        """Each set with all the values read elsewhere stored, and with the last alone, the others to be recomputed."""
        made = []
        for nodes in self.sets(limit):
            escaping = [n for n in sorted(nodes) if n == self.out or set(self.readers[n]) - nodes]
            for stored in dict.fromkeys((tuple(escaping), tuple(escaping[-1:]))):
                read = sorted({s for n in nodes for s in self.nodes[n][1]} - nodes)
                moved = sum(self.nodes[n][2] for n in (*read, *stored))
                work = sum((8.0 if self.nodes[n][0] == "dot" else 0.03) * self.nodes[n][2] for n in nodes)
                made.append(kernel(sorted(nodes), read, stored, 1.74 + 4 * moved + work))
        return made

    def expensive(self):
        return [n for n, (kind, _, _) in enumerate(self.nodes) if kind != "map"]
