"""On a CUDA device: XLA's other flags and torch beside jaxorch, by the same clock and behind the same gate."""

import jax
import numpy as np
import pytest

from benchmarks import runner
from benchmarks.cases import CASES
from benchmarks.inputs import drawer
from benchmarks.peers import Case
from benchmarks.peers.torch_compile import torch_peers

pytestmark = pytest.mark.gpu


def settings(*peers):
    return runner.Settings(seed=0, repeats=5, reference="device", peers=peers, peer_limit=300)


def test_every_flag_set_that_fits_is_timed():
    found = runner.run_case("vit_attention_half", settings("xla"))
    assert found.failure == ""
    # An experimental option may fail a program, but not all of them.
    timed = [peer for peer in found.peers if not peer.missing]
    assert len(timed) > len(found.peers) // 2, [peer.missing for peer in found.peers]
    assert {peer.side.timing.source for peer in timed} == {found.ours.timing.source}
    assert all(peer.side.timing.kernels and peer.side.timing.median_us > 0 for peer in timed)


@pytest.mark.parametrize("name", ["groupnorm_silu", "decode_B1_bksd_einsum", "mbconv"])
def test_torch_is_timed_by_its_kernels(name):
    pytest.importorskip("torch", reason="torch is not installed: it is no dependency, only a peer")
    found = runner.run_case(name, settings("torch"))
    assert found.failure == ""
    assert [peer.missing for peer in found.peers] == ["", ""]
    for peer in found.peers:
        assert peer.side.timing.kernels
        assert peer.side.timing.source == found.ours.timing.source
        assert peer.side.temp_bytes is not None
        # No arguments are copied into buffers of a graph's own.
        assert not [kernel for kernel, _ in peer.side.timing.kernels if "foreach_copy" in kernel]


def test_a_graph_replays_on_arguments_where_they_are():
    torch = pytest.importorskip("torch", reason="torch is not installed: it is no dependency, only a peer")
    case = Case(*CASES["cache_row_dus"]())
    draw = drawer("cache_row_dus", case.specs)
    sets = [draw(jax.random.key(k)) for k in range(3)]
    built = torch_peers(case)[0].build(sets[0])
    expected = [np.asarray(jax.jit(case.function)(*arguments), np.float32) for arguments in sets]
    timed = built.timed(sets)
    for _ in range(4):
        outputs, pending = timed(*sets[0])
        pending.block_until_ready()
        assert [output is sets[0][k] for output, k in zip(outputs, case.donated, strict=True)]
    torch.cuda.synchronize()
    # What was donated to the jitted call is elsewhere by now: the graphs have copies of their own.
    assert len(expected) == 3
    np.testing.assert_array_equal(np.asarray(built.outputs(*sets[1])[0], np.float32), expected[1])
