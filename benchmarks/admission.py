"""The peers of a case through the gate: built, held against the reference, or missing with the reason."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax

from benchmarks.correctness import Verdict, judge, poison
from benchmarks.inputs import Draw
from benchmarks.limit import OutOfTime, limit
from benchmarks.peers import PEERS, ArgumentSets, Built, Case, Peer
from benchmarks.records import PeerRecord, Side


@dataclass(frozen=True, slots=True)
class Expected:
    """What the gate holds a version against: the float64 reference, and XLA's own outputs, for what `key` draws.

    `permitted` computes the reference with products in the least precision that the program permits.
    """

    draw: Draw
    key: jax.Array
    reference: Sequence[jax.Array]
    xla: Sequence[jax.Array]
    permitted: Callable[[], Sequence[jax.Array]]


def admitted(
    case: Case, kinds: Sequence[str], expected: Expected, each: float, together: float
) -> list[tuple[PeerRecord, Built | None]]:
    """The peers of each of `kinds`, built and judged; those without a `Built` are missing.

    Args:
        case: what they are versions of.
        kinds: words of `benchmarks.peers.PEERS`.
        expected: what they are held against.
        each: seconds that one may take.
        together: seconds that all may take, so that time is left for timing.
    """
    end = time.monotonic() + together
    peers = [peer for kind in kinds for peer in PEERS[kind](case)]
    return [_admitted(peer, expected, min(each, end - time.monotonic())) for peer in peers]


def ready(
    entries: Sequence[tuple[PeerRecord, Built | None]], sets: ArgumentSets
) -> list[tuple[PeerRecord, Callable[..., object] | None]]:
    """What is timed of each peer; one that cannot be called on these argument sets is missing from now on."""
    return [(entry, None) if built is None else _ready(entry, built, sets) for entry, built in entries]


def _ready(entry: PeerRecord, built: Built, sets: ArgumentSets) -> tuple[PeerRecord, Callable[..., object] | None]:
    try:
        return entry, built.timed(sets)
    except Exception as err:  # noqa: BLE001 - told by the record, and the others are timed
        return replace(entry, missing=_told(err)), None


def _told(err: Exception) -> str:
    said = (str(err).strip() or "no message").splitlines()[0]
    return f"{type(err).__name__}: {said}"


def judged(built: Built, expected: Expected) -> Verdict:
    """What the gate finds of a version."""
    arguments = expected.draw(expected.key)
    poison(expected.xla)
    outputs = built.outputs(*arguments)
    verdict = judge(outputs, expected.xla, expected.reference)
    if verdict.passed:
        return verdict
    return judge(outputs, expected.xla, expected.reference, expected.permitted())


def _admitted(peer: Peer, expected: Expected, seconds: float) -> tuple[PeerRecord, Built | None]:
    if seconds <= 0:
        return PeerRecord(peer.name, missing="not made: the time for peers was over"), None
    try:
        with limit(seconds):
            built = peer.build(expected.draw(expected.key))
            side = Side(built.compile_s, built.temp_bytes())
            verdict = judged(built, expected)
    except OutOfTime as err:
        return PeerRecord(peer.name, missing=str(err)), None
    except Exception as err:  # noqa: BLE001 - told by the record, and the case goes on
        return PeerRecord(peer.name, missing=_told(err)), None
    if not verdict.passed:
        return PeerRecord(peer.name, side, verdict, f"wrong: {verdict.reason}"), None
    return PeerRecord(peer.name, side, verdict), built
