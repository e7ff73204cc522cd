"""XLA's version of what it may be left: compiled and timed alone, and counted in the choice."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.frontend.trace import flatten, missing
from jaxorch.options import Options
from jaxorch.orchestration import choice, clock, leftover
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.devices import device
from jaxorch.orchestration.measure import Timing
from jaxorch.orchestration.plan import Version
from jaxorch.orchestration.planner import plan_program
from jaxorch.pipeline import optimized_graph
from tests.orchestration.test_tuning import Machine, session_in

H200 = device("h200")


def network(x, w, v):
    y = jax.nn.softmax(x.T @ w, -1)
    return jnp.tanh(y[:, ::2] * v), y.sum(0)


SPECS = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((24, 32), (24, 48), (24,))]


@pytest.fixture
def timed(monkeypatch):
    """Every version that is timed, with its arguments; each takes 7 µs in two kernels."""
    met = []

    def times(versions, sets, **named):
        met.append((versions[0], sets[0]))
        return (Timing(7.0, 7.0, 7.0, 7, (("a", 3.0), ("b", 4.0)), "cupti"),)

    monkeypatch.setattr(leftover, "device_times", times)
    return met


def test_what_is_timed_is_the_traced_program_between_the_values(timed):
    """Of all sets of nodes together: their outputs are those of the program, from its own values as operands."""
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    graph = optimized_graph(trace, Options())
    lefts = [left for left in enumerate_candidates(graph).left if all(map(graph.variables, left.inputs))]
    assert len(lefts) > 3
    for left in lefts:
        assert leftover.xla_time(trace, graph, left, H200) == 7.0 + 2 * leftover.GAP_US
        version, operands = timed.pop()
        results = version(*operands)
        wanted = [graph.array(v) for v in left.outputs]
        assert [(r.shape, r.dtype) for r in results] == [(a.shape, a.dtype) for a in wanted]
    whole = next(left for left in lefts if graph.outputs[0] in left.outputs)
    leftover.xla_time(trace, graph, whole, H200)
    version, operands = timed.pop()
    assert all(np.isfinite(r).all() for r in version(*operands))


def test_arrays_that_the_nodes_fill_are_no_constants_of_what_is_timed(timed):
    """Although it is timed where JAX evaluates constants at once: filled in advance it would be another program."""

    def masked(x):
        return jnp.where(jnp.arange(512)[:, None] < jnp.arange(512), jnp.tanh(x), 0.0)

    trace = flatten(jax.make_jaxpr(masked)(jax.ShapeDtypeStruct((512, 512), jnp.float32)))
    graph = optimized_graph(trace, Options())
    (whole,) = (left for left in enumerate_candidates(graph).left if graph.outputs[0] in left.outputs)
    with jax.ensure_compile_time_eval():
        leftover.xla_time(trace, graph, whole, H200)
    ((version, _),) = timed
    assert "iota" in version.as_text()
    assert "constant({" not in version.as_text()


def test_operands_that_the_nodes_do_not_name_are_found():
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    x, w, v = trace.inputs
    assert missing(trace, set(), trace.outputs) == [x, w, v]
    assert missing(trace, {x, v}, trace.outputs) == [w]
    assert missing(trace, {*trace.outputs}, trace.outputs) == []


def test_without_the_profiler_the_estimate_stands(monkeypatch):
    monkeypatch.setattr(leftover, "device_times", lambda *a, **n: (Timing(9.0, 9.0, 9.0, 7, (), "clock"),))
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    graph = optimized_graph(trace, Options())
    assert leftover.xla_time(trace, graph, enumerate_candidates(graph).left[0], H200) is None


def normed(x):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True))


def planned(folder):
    session = session_in(folder)
    large = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    return plan_program(flatten(jax.make_jaxpr(normed)(large)), session, None), session


@pytest.mark.parametrize(("xla", "kernels"), [(1e-3, 0), (1e4, 1), (None, 1)])
def test_the_choice_counts_what_xla_takes(monkeypatch, tmp_path, xla, kernels):
    machine = Machine(monkeypatch)
    machine.times = lambda sources, sets, **named: [Timing(1e3, 1e3, 1e3, 7, (), "cupti")] * len(sources)
    monkeypatch.setattr("jaxorch.orchestration.tune.device_times", machine.times)
    asked = []
    monkeypatch.setattr(choice, "xla_time", lambda *args: asked.append(args) or xla)
    left = choice.left_time
    monkeypatch.setattr(choice, "left_time", lambda *args: min(left(*args), 2e3) if xla else 1e4)
    found, _ = planned(tmp_path)
    assert len(list(found.kernels)) == kernels
    again = len(asked)
    planned(tmp_path)
    assert len(asked) == again  # from the store


def test_the_cheapest_of_the_choices_met_is_taken(monkeypatch, tmp_path, kernels_win):
    """The first kernels take 10 µs, all that are tried afterwards 1000; the search ends after one more choice."""
    machine = Machine(monkeypatch)
    first = []

    def times(sources, sets, **named):
        first.append(sources[0].name)
        return [Timing(10.0 if len(first) == 1 else 1e3, 1.0, 1.0, 7, (), "cupti")] * len(sources)

    monkeypatch.setattr("jaxorch.orchestration.tune.device_times", times)
    monkeypatch.setattr(choice, "_ROUNDS", 1)
    monkeypatch.setattr(choice, "kernel_time", lambda *args: 1.0)  # one kernel, and then any other, looks better
    del machine
    found, _ = planned(tmp_path)
    assert [step.measured for step in found.kernels] == [10.0]


def test_memory_counts_among_the_choices_met(monkeypatch, tmp_path):
    Machine(monkeypatch)
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    way = choice.Way(Version(trace, optimized_graph(trace, Options())), session_in(tmp_path, memory_weight=3.0))
    larger = replace(way.choice, solution=replace(way.choice.solution, peak=way.choice.solution.peak + 2_000_000))
    assert way.known_cost(way.choice) == pytest.approx(way.cost + 3e-6 * way.choice.solution.peak)
    assert way.known_cost(larger) == pytest.approx(way.known_cost(way.choice) + 6.0)


@pytest.mark.parametrize(("cost", "taken"), [(100.5, 1), (102.0, 0)])
def test_of_choices_as_cheap_the_one_that_keeps_less_is_taken(monkeypatch, tmp_path, cost, taken):
    Machine(monkeypatch)
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    way = choice.Way(Version(trace, optimized_graph(trace, Options())), session_in(tmp_path))
    first, second = (replace(way.choice, solution=replace(way.choice.solution, peak=peak)) for peak in (4000, 0))
    way.choice = first
    monkeypatch.setattr(way, "choose", lambda: second)
    monkeypatch.setattr(way, "working", lambda until: (way.choice.solution.peak,))
    monkeypatch.setattr(way, "corrected", lambda choices: choices == 1)
    monkeypatch.setattr(way, "known_cost", lambda made: 100.0 if made is first else cost)
    assert way.steps() == ((4000,), (0,))[taken]
    assert way.choice is (first, second)[taken]


def test_a_choice_that_is_not_timed_in_time_is_dropped(monkeypatch, tmp_path):
    """The first plan has more time than what is tried beside it, and two corrections of it have as much."""
    Machine(monkeypatch)
    trace = flatten(jax.make_jaxpr(network)(*SPECS))
    way = choice.Way(Version(trace, optimized_graph(trace, Options())), session_in(tmp_path))
    asked = []

    def working(until=math.inf):
        if until == math.inf:
            return 0  # the last choice, of what is tuned
        asked.append(until)
        if len(asked) in out_of_time:
            raise choice.OutOfTimeError
        return len(asked)

    monkeypatch.setattr(way, "choose", lambda *among: way.choice)
    monkeypatch.setattr(way, "working", working)
    monkeypatch.setattr(way, "corrected", lambda choices: choices < 4)
    monkeypatch.setattr(way, "known_cost", lambda made: 1.0)
    out_of_time = {2}
    assert (way.steps(), len(asked)) == (1, 2)
    last, search = asked[0], clock.Clock("default")._search
    assert last == asked[1] > search
    out_of_time = set()
    asked.clear()
    way.steps()
    assert [until == last for until in asked] == [True, True, True, False]
    asked.clear()
    way.steps(first=False)
    assert last not in asked
    out_of_time = {1}
    asked.clear()
    with pytest.raises(choice.OutOfTimeError):
        way.steps(first=False)
