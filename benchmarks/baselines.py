"""What jaxorch is held against in a record: plain `jax.jit`, XLA with the flags that suit the case, torch.compile.

Input: a record as in the result files; those of before peers were timed have none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.peers.torch_compile import PREFIX as TORCH
from benchmarks.peers.xla import PREFIX as FLAGS

type Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Baselines:
    """The fastest versions of a case beside jaxorch's, in µs.

    Attributes:
        jit: plain `jax.jit`.
        xla: the fastest of plain `jax.jit` and XLA with other flags; None where no flags were timed.
        flags: the name of those flags; empty where none are faster than the plain one.
        torch: the faster of torch's compilations; None where none was timed.
    """

    jit: float
    xla: float | None = None
    flags: str = ""
    torch: float | None = None

    @property
    def best(self) -> float | None:
        """The fastest of all, None where there is only the plain `jax.jit`."""
        others = [us for us in (self.xla, self.torch) if us is not None]
        return min(self.jit, *others) if others else None


def baselines(record: Json) -> Baselines:
    """Those of a record that has times."""
    plain = record["xla"]["timing"]["median_us"]
    flagged, torch = (dict(_timed(record, prefix)) for prefix in (FLAGS, TORCH))
    if not flagged:
        return Baselines(plain, torch=min(torch.values(), default=None))
    name = min(flagged, key=flagged.__getitem__)
    xla, flags = (flagged[name], name.removeprefix(FLAGS)) if flagged[name] < plain else (plain, "")
    return Baselines(plain, xla, flags, min(torch.values(), default=None))


def missing(record: Json) -> dict[str, str]:
    """The peers that a record has no time of, and why."""
    return {peer["name"]: peer["missing"] for peer in record.get("peers", ()) if peer["missing"]}


def _timed(record: Json, prefix: str) -> Iterator[tuple[str, float]]:
    for peer in record.get("peers", ()):
        if peer["name"].startswith(prefix) and not peer["missing"]:
            yield peer["name"], peer["side"]["timing"]["median_us"]
