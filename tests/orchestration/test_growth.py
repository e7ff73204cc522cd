"""The search for sets: surroundings that were seen before give what they gave, as a search without memory would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import deep
from jaxorch.frontend.trace import flatten
from jaxorch.options import Options
from jaxorch.orchestration import candidates, growth
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.pipeline import graphs, optimized_graph
from tests.orchestration.test_random_plans import programs, runnable


def graph_of(function, specs):
    return optimized_graph(flatten(jax.make_jaxpr(function)(*specs)), Options())


def found(graph):
    every = enumerate_candidates(graph)
    return every.fused, every.left


def without_memory(graph):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth._Search, "places", lambda *_: None)
        return found(graph)


class Counts:
    def __init__(self, monkeypatch):
        self.anew = self.repeated = 0
        anew, repeat = growth._Search.anew, growth._Search.repeat

        def counted_anew(search, *args):
            self.anew += 1
            return anew(search, *args)

        def counted_repeat(search, *args):
            self.repeated += 1
            return repeat(search, *args)

        monkeypatch.setattr(growth._Search, "anew", counted_anew)
        monkeypatch.setattr(growth._Search, "repeat", counted_repeat)


@pytest.mark.slow
def test_kernels_of_variants_are_built_once(monkeypatch):
    function, specs = deep.decoder_step(3)
    made, build = [], candidates.build
    monkeypatch.setattr(candidates, "build", lambda *args: made.append(args) or build(*args))
    built, counts = {}, []
    for graph in graphs(flatten(jax.make_jaxpr(function)(*specs)), Options()):
        alone = enumerate_candidates(graph)
        made.clear()
        shared = enumerate_candidates(graph, built)
        counts.append(len(made))
        assert (shared.left, shared.rejected) == (alone.left, alone.rejected)
        for ours, theirs in zip(shared.fused, alone.fused, strict=True):
            assert (ours.structure, ours.inputs) == (theirs.structure, theirs.inputs)
            assert (ours.kernel.nodes, ours.kernel.outputs) == (theirs.kernel.nodes, theirs.kernel.outputs)
            assert sorted(ours.kernel.inputs) == sorted(theirs.kernel.inputs)
    first, *others = counts
    assert others
    assert all(0 < count < first for count in others)


@pytest.mark.slow
@pytest.mark.parametrize("model", [deep.decoder, deep.decoder_step])
def test_layers_are_searched_as_if_each_were_the_first(model, monkeypatch):
    function, specs = model(5)
    for graph in graphs(flatten(jax.make_jaxpr(function)(*specs)), Options()):
        counts = Counts(monkeypatch)
        assert found(graph) == without_memory(graph)
        assert counts.repeated > 20


def blocks(x, w):
    """Equal blocks, with one in the midst that is not, and one that reads what an earlier one made."""
    values = [x]
    for k in range(8):
        y = jax.nn.softmax(values[-1] * w[k]) + values[-1]
        y = jnp.tanh(y) if k == 3 else y
        values.append(y + values[1] if k == 6 else jnp.sort(y, axis=0) if k % 3 == 2 else y)
    return values[-1], values[4]


def test_what_differs_is_searched_anew():
    graph = graph_of(blocks, (jax.ShapeDtypeStruct((64, 64), np.float32), jax.ShapeDtypeStruct((8, 64), np.float32)))
    assert found(graph) == without_memory(graph)


def routed(x, *places):
    """Layers of two products each that share what both may compute, the second of what the first makes."""
    for place in places:
        hot = jax.nn.one_hot(place, x.shape[0])
        x = jnp.sort(hot.T @ jnp.tanh(hot @ x), axis=0)
    return x


def test_layers_that_redo_what_they_share_are_searched_as_if_each_were_the_first(monkeypatch):
    shapes = ((64, 64), np.float32), *[((512,), np.int32)] * 20  # more than a value that is shared brings together
    graph = graph_of(routed, [jax.ShapeDtypeStruct(*s) for s in shapes])
    counts = Counts(monkeypatch)
    assert found(graph) == without_memory(graph)
    assert counts.repeated > 10


@given(programs(), st.integers(2, 4))
@settings(max_examples=40)
def test_drawn_programs_in_a_row(drawn, times):
    program = runnable(*drawn)

    def row(x, y):
        for _ in range(times):
            x = sum(program(x, y))
        return x

    graph = graph_of(row, [jax.ShapeDtypeStruct((5, 5), np.float32)] * 2)
    assert found(graph) == without_memory(graph)


def test_the_search_does_not_grow_with_depth(monkeypatch):
    seen = []
    for layers in (4, 12):
        counts = Counts(monkeypatch)
        enumerate_candidates(graph_of(*deep.decoder(layers)))
        seen.append(counts.anew)
    assert seen[1] <= 1.1 * seen[0]
