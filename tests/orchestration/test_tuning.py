"""Tuning of whole programs with fakes for the device: interrupted, short of memory, twice at once; and its progress."""

import io
import sys
import threading
import time
import warnings
from concurrent.futures import Future
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxorch import pipeline
from jaxorch.errors import JaxorchWarning
from jaxorch.frontend.trace import flatten
from jaxorch.options import Options
from jaxorch.orchestration import choice, clock, planner, programs, progress, tune
from jaxorch.orchestration.guard import Verdict
from jaxorch.orchestration.measure import Timing
from jaxorch.orchestration.planner import plan_program
from jaxorch.orchestration.session import Session
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Answers
from jaxorch.runtime.store import Store
from jaxorch.target import Target

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: out of memory"


def two_kernels(x, y):
    return jax.nn.softmax(jnp.sort(jax.nn.softmax(x), axis=0)), jnp.tanh(y).T


SPECS = jax.ShapeDtypeStruct((64, 256), jnp.float32), jax.ShapeDtypeStruct((128, 64), jnp.float32)


def done(result):
    future = Future()
    future.set_result(result)
    return future


class Machine:
    """A GPU that compiles and times all kernels; what is asked of it may be made to fail."""

    def __init__(self, monkeypatch):
        self.timed, self.compared, self.started, self.before_timing = [], 0, 0, lambda: None
        self.before_comparing = lambda: None
        monkeypatch.setattr("jaxorch.orchestration.session.local_arch", lambda: 90)
        monkeypatch.setattr(tune, "check", lambda *args, **named: self.compiled())
        monkeypatch.setattr(tune, "check_soon", lambda sources, *a, **named: self.answers(len(sources)))
        monkeypatch.setattr(tune, "forget", lambda *args, **named: None)
        monkeypatch.setattr(tune, "launchable", lambda sources, inputs, outputs, compilers: [*map(done, sources)])
        monkeypatch.setattr(tune, "launched", lambda source, rotation: source.result())
        monkeypatch.setattr(tune, "agreeing", lambda versions, arguments, donated: [True] * len(versions))
        monkeypatch.setattr(programs, "random_arguments", lambda *args: [[jnp.zeros(1)]])
        monkeypatch.setattr(tune, "device_times", self.times)
        monkeypatch.setattr(planner, "compare", self.compare)
        monkeypatch.setattr(planner.workers, "start", self.start)

    def start(self):
        self.started += 1

    def compiled(self):
        return Compiled("", 32, 0, 0, 0.0)

    def answers(self, count):
        return Answers([], lambda: [self.compiled() for _ in range(count)])

    def times(self, sources, sets, **named):
        self.before_timing()
        self.timed.append(sources[0].name)
        return [Timing(1.0 + k, 1.0, 1.0, 7, (), "cupti") for k in range(len(sources))]

    def compare(self, runs, *args):
        self.before_comparing()
        self.compared += 1
        return Verdict(5.0, 9.0)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def session_in(folder, **options):
    target = Target("cuda", "h200", live=True)
    chosen = Options(**options)
    made = Session(chosen, target, partial(pipeline.versions, options=chosen))
    made.store = Store(folder)
    return made


def planned(session):
    return plan_program(flatten(jax.make_jaxpr(two_kernels)(*SPECS)), session, None)


def interrupt():
    raise KeyboardInterrupt


def test_kernels_are_timed_and_the_plan_is_remembered(machine, tmp_path, kernels_win):
    found = planned(session_in(tmp_path))
    assert len(machine.timed) == len(set(machine.timed)) > 1
    assert all(step.measured is not None for step in found.kernels)
    assert (found.verdict.planned, found.kept, machine.started) == (5.0, True, 1)
    machine.before_timing = machine.before_comparing = interrupt
    assert planned(session_in(tmp_path)).plan.steps[0].source.digest == found.plan.steps[0].source.digest
    assert machine.started == 1


def test_interrupted_tuning_leaves_a_program_and_what_was_timed(machine, tmp_path, kernels_win):
    machine.before_timing = lambda: machine.timed and interrupt()
    with pytest.warns(JaxorchWarning, match="tuning was interrupted") as caught:
        found = planned(session_in(tmp_path))
    assert len(caught) == 1
    assert len(machine.timed) == 1
    assert machine.compared == 0
    assert found.kept
    assert found.verdict.note == "not timed: tuning was interrupted"
    measured = {step.source.name for step in found.kernels if step.measured is not None}
    assert len(measured) == 1 < len({step.source.name for step in found.kernels})
    # the next one goes on from there, and ends with a plan that is remembered
    machine.before_timing = lambda: None
    (first,) = machine.timed
    again = planned(session_in(tmp_path))
    assert machine.timed.count(first) == 1
    assert len(machine.timed) > 1
    assert all(step.measured is not None for step in again.kernels)
    assert again.verdict.planned == 5.0


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 2), (60.0, 8)])
def test_a_choice_by_estimates_is_corrected_however_little_time_is_left(
    seconds, most, machine, tmp_path, kernels_win, monkeypatch
):
    monkeypatch.setitem(clock._SEARCH_S, "default", seconds)
    made, corrections = choice.Way.choose, []
    monkeypatch.setattr(choice.Way, "choose", lambda self, *a: corrections.append(self) or made(self, *a))
    monkeypatch.setattr(choice.Way, "corrected", lambda self, choices: True)
    monkeypatch.setattr(planner, "_worth_it", lambda ways, session: ways[:1])
    planned(session_in(tmp_path))
    again = [way for way in corrections if way is corrections[0]]
    assert len(again) == 1 + most + 1  # the last is of what is tuned


def test_where_time_is_out_the_best_of_what_was_timed_runs(machine, tmp_path, kernels_win, monkeypatch):
    """Of two parts one gains by its second choice, and the other loses: each has the better one in the end."""
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 300), (128, 700))]
    trace = flatten(jax.make_jaxpr(lambda x, y: (jax.nn.softmax(x), jax.nn.softmax(y)))(*specs))
    monkeypatch.setitem(clock._SEARCH_S, "default", 0.0)
    monkeypatch.setattr(planner, "_worth_it", lambda ways, session: ways[:1])
    made, rounds = choice.Way.choose, []
    monkeypatch.setattr(choice.Way, "choose", lambda self, *a: rounds.append(self) or made(self, *a))

    def times(sources, sets, **named):
        again = rounds.count(rounds[0]) > 1
        time = (1000.0 if again else 100.0) if "700" in sources[0].text else (1.0 if again else 100.0)
        return [Timing(time, 1.0, 1.0, 7, (), "cupti") for _ in sources]

    monkeypatch.setattr(tune, "device_times", times)
    found = plan_program(trace, session_in(tmp_path), None)
    measured = {("700" in step.source.text, step.measured) for step in found.kernels}
    assert measured == {(True, 100.0), (False, 1.0)}


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_a_search_that_is_cut_short_has_a_plan_whatever_the_times(tmp_path_factory, random):
    """Of what was met neither greedy merging nor no fusion need have a choice, and its best may not be the best."""

    def f(a, b, c, d, x):
        return jnp.tanh(a @ b + c @ d), jax.nn.softmax(jnp.sort(x, 0), -1).sum(0)

    shapes = (512, 512), (512, 512), (512, 256), (256, 512), (300, 700)
    trace = flatten(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes)))
    times = {}

    def timed(sources, sets, **named):
        time = times.setdefault(sources[0].name, random.choice([1.0, 3.0, 6.0, 8.0, 12.0, 20.0]))
        return [Timing(time, 1.0, 1.0, 7, (), "cupti") for _ in sources]

    with pytest.MonkeyPatch.context() as patch:
        Machine(patch)
        patch.setitem(clock._SEARCH_S, "default", 0.0)
        patch.setattr(tune, "device_times", timed)
        patch.setattr(choice, "xla_time", lambda *args: random.choice([6.0, 9.0, 20.0]))
        found = plan_program(trace, session_in(tmp_path_factory.mktemp("store")), None)
    assert found.solution.status == "optimal" or found.solution.gap == 1.0
    assert all(step.measured is not None for step in found.kernels)


@pytest.mark.parametrize("reached", [0, 1])
def test_where_time_is_out_the_rest_of_the_first_plan_is_not_timed(
    reached, machine, tmp_path, monkeypatch, kernels_win
):
    start, limits = time.monotonic(), [True]
    monkeypatch.setattr(time, "monotonic", lambda: start + 1e6 * bool(limits and machine.timed))
    monkeypatch.setitem(clock._LAST_S, "default", 180.0 * reached)
    with pytest.warns(JaxorchWarning, match="has taken the time that it has") as caught:
        found = planned(session_in(tmp_path))
    assert len(caught) == 1
    assert len(machine.timed) == reached
    assert len({s.source.name for s in found.kernels if s.measured is not None}) == reached
    assert len({s.source.name for s in found.kernels}) > reached
    assert (found.verdict.planned, machine.compared) == (5.0, 1)  # what runs is compared as ever
    # the next one goes on from there, and ends with a plan that is remembered
    limits.clear()
    monkeypatch.setitem(clock._LAST_S, "default", 180.0)
    again = planned(session_in(tmp_path))
    assert len(machine.timed) == len(set(machine.timed)) > reached
    assert all(step.measured is not None for step in again.kernels)
    machine.before_timing = machine.before_comparing = interrupt
    assert [s.source.digest for s in planned(session_in(tmp_path)).kernels] == [s.source.digest for s in again.kernels]


def six_kernels(*arrays):
    return [jax.nn.softmax(jnp.sort(x)) for x in arrays]


SIX = [jax.ShapeDtypeStruct((64, 2**k), jnp.float32) for k in range(5, 11)]


def six_planned(session):
    return plan_program(flatten(jax.make_jaxpr(six_kernels)(*SIX)), session, None)


def test_what_an_interrupt_leaves_is_compiled_beside_each_other(machine, tmp_path, monkeypatch, kernels_win):
    """The configurations to be timed are dropped, and the first of each kernel that is left begins at once."""
    asked = []
    monkeypatch.setattr(tune, "check_soon", lambda s, *a, **named: asked.append(s) or machine.answers(len(s)))
    monkeypatch.setattr(tune, "is_kept", lambda *args, **named: False)
    machine.before_timing = lambda: machine.timed and interrupt()
    with pytest.warns(JaxorchWarning, match="tuning was interrupted"):
        found = six_planned(session_in(tmp_path))
    firsts = [sources[0].digest for sources in asked if len(sources) == 1]
    untimed = {step.source.digest for step in found.kernels if step.measured is None}
    assert len(untimed) == 5
    assert untimed == {*firsts}
    assert len(firsts) == 5


@pytest.mark.parametrize(("kernels", "begun"), [(six_planned, 6), (planned, 0)])
def test_kernels_that_are_not_timed_are_compiled_beside_each_other_if_they_are_several(
    kernels, begun, machine, tmp_path, monkeypatch, kernels_win
):
    asked = []
    monkeypatch.setattr(tune, "check_soon", lambda s, *a, **named: asked.append(s) or machine.answers(len(s)))
    kept = []
    monkeypatch.setattr(tune, "is_kept", lambda *args, **named: bool(kept))
    found = kernels(session_in(tmp_path / "one", effort="fast"))
    assert [len(sources) for sources in asked] == [1] * begun
    assert {s.digest for sources in asked for s in sources} <= {step.source.digest for step in found.kernels}
    kept.append(True)
    kernels(session_in(tmp_path / "other", effort="fast"))
    assert len(asked) == begun


def test_an_interrupted_guard_keeps_the_plan_untimed(machine, tmp_path, kernels_win):
    machine.before_comparing = interrupt
    with pytest.warns(JaxorchWarning, match="tuning was interrupted"):
        found = planned(session_in(tmp_path))
    assert found.kept
    assert found.verdict.planned is None
    machine.before_comparing = lambda: None
    assert planned(session_in(tmp_path)).verdict.planned == 5.0


def test_a_second_interrupt_is_the_callers(machine, tmp_path, monkeypatch, kernels_win):
    machine.before_timing = interrupt
    monkeypatch.setattr(tune, "check", lambda *args, **named: interrupt())
    with pytest.warns(JaxorchWarning, match="Interrupt again"), pytest.raises(KeyboardInterrupt):
        planned(session_in(tmp_path))


def test_too_little_memory_to_time_a_kernel_is_no_failure_of_it(machine, tmp_path, kernels_win):
    def exhausted():
        raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)

    machine.before_timing = exhausted
    found = planned(session_in(tmp_path))
    assert found.plan.kernels
    assert not found.failures
    assert all(step.measured is None for step in found.kernels)
    machine.before_timing = lambda: None
    assert all(step.measured is not None for step in planned(session_in(tmp_path)).kernels)


def test_two_that_tune_at_once_come_to_the_same(machine, tmp_path, kernels_win):
    busy, met = threading.Lock(), []

    def timing():
        met.append(busy.acquire(blocking=False))
        time.sleep(0.05)
        busy.release()

    machine.before_timing = timing
    found = [None, None]

    def run(k):
        found[k] = planned(session_in(tmp_path))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    first, second = ([step.source.digest for step in f.kernels] for f in found)
    assert first == second
    assert all(met)  # one at a time
    assert len(machine.timed) == len(set(machine.timed)) == len(met)  # and no kernel twice
    assert not Store(tmp_path).problems
    machine.before_timing = interrupt
    assert [step.source.digest for step in planned(session_in(tmp_path)).kernels] == first


def test_what_was_timed_serves_where_no_device_is(machine, tmp_path, kernels_win):
    found = planned(session_in(tmp_path))
    options = Options(device="h200")
    elsewhere = Session(options, Target("cuda", "h200", live=False), partial(pipeline.versions, options=options))
    elsewhere.store = Store(tmp_path)
    again = planned(elsewhere)
    assert [step.measured for step in again.kernels] == [step.measured for step in found.kernels]
    assert again.verdict == found.verdict


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_what_is_tuned(machine, tmp_path, monkeypatch, kernels_win):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    session = session_in(tmp_path)
    with session.progress:
        planned(session)
    text = terminal.getvalue()
    assert "tunes rows" in text
    assert "times whole plans" in text


def test_nothing_is_written_elsewhere(machine, tmp_path, monkeypatch, kernels_win):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "_bar", lambda: pytest.fail("a bar, without a terminal"))
    session = session_in(tmp_path)
    with session.progress, warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(session)
    assert written.getvalue() == ""


def test_the_bar_counts_what_is_ahead(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress.Progress()
    with bar:
        bar.expect(3)
        seen = []
        for name in "abc":
            with bar.step(name):
                (task,) = bar._bar.tasks
                seen.append((task.description, task.completed, task.total))
        assert seen == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
        bar.expect(0)
        with bar.step("whole plans"):
            (task,) = bar._bar.tasks
            assert (task.completed, task.total) == (3, 4)
    assert bar._bar is None


def test_a_step_that_fails_ends_too(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="kernel"), progress.Progress() as bar, bar.step("a"):
        raise ValueError("kernel")
    assert bar._bar is None
