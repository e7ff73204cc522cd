"""torch.compile as a peer: what is compiled, what is overwritten, what a timed call does; on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import runner
from benchmarks.baselines import baselines
from benchmarks.inputs import drawer
from benchmarks.peers import Case
from benchmarks.peers.torch_compile import MODES, torch_peers
from jaxorch.orchestration.measure import Rotation, program_times

SPEC = jax.ShapeDtypeStruct((4, 8), jnp.float32)


def update(cache, row, place):
    """As a decode step does: a row written into a cache, and something made of the whole."""
    cache = lax.dynamic_update_slice(cache, row, (place, 0))
    return cache, jnp.tanh(cache).sum(1)


UPDATE = Case(update, (SPEC, jax.ShapeDtypeStruct((1, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)), (0,))


def arguments(seed=0):
    rng = np.random.default_rng(seed)
    cache, row = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8), (1, 8)))
    return [cache, row, jnp.int32(2)]


def test_without_torch_its_peers_say_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for peer in torch_peers(UPDATE):
        with pytest.raises(ImportError, match="torch is not installed"):
            peer.build(arguments())
    assert [peer.name for peer in torch_peers(UPDATE)] == list(MODES)


class TestWithTorch:
    @pytest.fixture(autouse=True)
    def program(self, monkeypatch):
        torch = pytest.importorskip("torch", reason="torch is not installed: it is no dependency, only a peer")
        from benchmarks.peers import torch_program

        # The compiler itself takes half a minute for this on a CPU: one slow test runs it.
        self.compile = torch.compile
        monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
        self.torch, self.program = torch, torch_program

    def test_outputs_are_those_of_xla_and_arguments_stay(self):
        built = torch_peers(UPDATE)[0].build(arguments())
        given = arguments(seed=1)
        found = built.outputs(*given)
        for got, want in zip(found, jax.jit(update)(*given), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_array_equal(given[0], arguments(seed=1)[0])  # a copy was overwritten

    def test_a_donated_argument_is_overwritten_by_its_output(self):
        jaxpr = jax.make_jaxpr(update)(*UPDATE.specs)
        tensors = self.program.borrowed(arguments(), (0,))
        graph = self.program.traced(jaxpr, tensors, (0,))
        cache, _ = graph(*tensors)
        assert cache.data_ptr() == tensors[0].data_ptr()
        np.testing.assert_allclose(tensors[0].numpy(), update(*arguments())[0])
        copies = [node for node in graph.graph.nodes if node.target is self.torch.ops.aten.copy_.default]
        assert len(copies) == 1
        # What torch's compiler needs to write in place: the update is of the argument itself and goes back as it is.
        [put] = [node for node in graph.graph.nodes if node.target is self.torch.ops.aten.index_put.default]
        argument = next(node for node in graph.graph.nodes if node.op == "placeholder")
        assert copies[0].args[:2] == (argument, put)
        assert put.args[0] is argument

    def test_what_was_read_of_a_donated_argument_is_not_overwritten(self):
        case = Case(lambda x: (x * 2, x[1], x.T), (SPEC,), (0,))
        given = arguments()[:1]
        found = torch_peers(case)[0].build(given).outputs(*given)
        for got, want in zip(found, case.function(*given), strict=True):
            np.testing.assert_array_equal(got, want)

    def test_arrays_go_over_without_a_copy(self):
        given = arguments()
        shared = self.program.borrowed(given, ())
        assert [tensor.data_ptr() for tensor in shared] == [array.unsafe_buffer_pointer() for array in given]

    def test_outputs_take_the_place_of_donated_arguments_as_under_jax(self):
        def empty(*shape):
            return self.torch.empty(shape)

        pairs = self.program.replaced([empty(2), empty(3), empty(2)], [empty(3), empty(2), empty(2)], (2, 0, 1))
        assert pairs == [(0, 1), (1, 0), (2, 2)]
        assert self.program.replaced([empty(2)], [empty(3)], (0,)) == []

    def test_a_timed_call_takes_the_argument_sets_in_turn(self):
        ran = []
        sets = [(self.torch.full((2,), float(k)),) for k in range(3)]
        turns = self.program.Turns(lambda *tensors: ran.append(int(tensors[0][0])), sets, ())
        for _ in range(4):
            turns(jnp.zeros(2))[1].block_until_ready()
        assert ran == [0, 1, 2, 0]

    def test_it_is_timed_beside_programs_that_donate(self):
        sets = [arguments(seed) for seed in range(3)]
        timed = torch_peers(UPDATE)[0].build(arguments()).timed(sets)
        jitted = jax.jit(update, donate_argnums=(0,))
        ours, theirs = program_times([jitted, timed], sets, donated=(0,), repeats=4)
        assert ours.samples == theirs.samples == 4
        assert theirs.median_us > 0
        rotation = Rotation([arguments()], (0,))
        rotation.call(timed)
        assert not rotation.sets[0][0].is_deleted()

    def test_one_product_that_asks_for_more_makes_all_exact(self):
        def asks(precision, spec=SPEC):
            function = lambda x: lax.dot(x, x.T, precision=precision) + jax.jit(jnp.dot)(x, x.T)  # noqa: E731
            return self.program.asks_for_more(jax.make_jaxpr(function)(spec))

        assert not asks(None)
        assert not asks(lax.Precision.DEFAULT)
        assert not asks("TF32_TF32_F32")
        assert asks(lax.Precision.HIGHEST)
        assert not asks(lax.Precision.HIGHEST, jax.ShapeDtypeStruct((4, 8), jnp.bfloat16))

    def test_what_has_no_translation_is_missing_with_the_reason(self, monkeypatch):
        def loop(x):
            return lax.while_loop(lambda y: y.sum() < 9, jnp.exp, x)

        monkeypatch.setitem(runner.MODELS, "loop_B1", lambda size: (loop, (SPEC,), ()))
        found = runner.run_case("loop_B1", runner.Settings(0, repeats=2, size="tiny", peers=("torch",)))
        assert found.failure == ""
        assert {peer.missing for peer in found.peers} == {"NotTranslatedError: no rule for while"}

    def test_a_network_has_torch_for_a_peer(self):
        found = runner.run_case("llama_unrolled_B1", runner.Settings(0, repeats=2, size="tiny", peers=("torch",)))
        assert found.failure == ""
        assert [peer.missing for peer in found.peers] == ["", ""]
        assert all(peer.verdict.passed for peer in found.peers)
        record = {"xla": {"timing": {"median_us": 1e9}}, "peers": [plain(peer) for peer in found.peers]}
        assert baselines(record).torch == min(peer.side.timing.median_us for peer in found.peers)

    @pytest.mark.slow
    @pytest.mark.parametrize("place", range(len(MODES)))
    def test_the_compiler_takes_it(self, monkeypatch, place):
        monkeypatch.setattr(self.torch, "compile", self.compile)
        case = Case(lambda x, w: jax.nn.softmax(x @ w), (SPEC, SPEC.update(shape=(8, 8))), ())
        draw = drawer("any", case.specs)
        built = torch_peers(case)[place].build(draw(jax.random.key(0)))
        given = draw(jax.random.key(1))
        np.testing.assert_allclose(built.outputs(*given)[0], case.function(*given), rtol=1e-5)
        assert built.compile_s > 0
        assert built.temp_bytes() is None


def plain(peer):
    return {"name": peer.name, "missing": peer.missing, "side": {"timing": {"median_us": peer.side.timing.median_us}}}
