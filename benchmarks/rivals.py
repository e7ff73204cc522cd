"""The peers of a case through the gate: built, held against the reference, or missing with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from benchmarks.correctness import Verdict, judge, poison
from benchmarks.inputs import Draw
from benchmarks.limit import OutOfTime, limit
from benchmarks.peers import PEERS, Built, Case, Peer
from benchmarks.records import Rival, Side


@dataclass(frozen=True, slots=True)
class Expected:
    """What the gate holds a version against: the float64 reference, and XLA's own outputs, for what `key` draws."""

    draw: Draw
    key: jax.Array
    reference: Sequence[jax.Array]
    xla: Sequence[jax.Array]


def admitted(case: Case, kinds: Sequence[str], expected: Expected, seconds: float) -> list[tuple[Rival, Built | None]]:
    """The peers of each of `kinds`, each with at most `seconds` to be built and judged; no `Built`: it is missing."""
    return [_admitted(peer, expected, seconds) for kind in kinds for peer in PEERS[kind](case)]


def judged(built: Built, expected: Expected) -> Verdict:
    """What the gate finds of a version."""
    arguments = expected.draw(expected.key)
    poison(expected.xla)
    return judge(built.outputs(*arguments), expected.xla, expected.reference)


def _admitted(peer: Peer, expected: Expected, seconds: float) -> tuple[Rival, Built | None]:
    try:
        with limit(seconds):
            built = peer.build(expected.draw(expected.key))
            side = Side(built.compile_s, built.temp_bytes())
            verdict = judged(built, expected)
    except OutOfTime as err:
        return Rival(peer.name, missing=str(err)), None
    except Exception as err:  # noqa: BLE001 - told by the record, and the case goes on
        said = (str(err).strip() or "no message").splitlines()[0]
        return Rival(peer.name, missing=f"{type(err).__name__}: {said}"), None
    if not verdict.passed:
        return Rival(peer.name, side, verdict, f"wrong: {verdict.reason}"), None
    return Rival(peer.name, side, verdict), built
