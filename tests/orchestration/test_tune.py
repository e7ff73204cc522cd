"""The tuner with fakes for compiler, launch and clock: what fails is recorded, the fastest is chosen and remembered."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.codegen.source import generate
from jaxorch.errors import CompileError, LaunchError
from jaxorch.ir.graph import Array, Input
from jaxorch.ir.value import Value
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration import programs
from jaxorch.orchestration import tune as module
from jaxorch.orchestration.devices import DEVICES
from jaxorch.orchestration.draws import random_arguments
from jaxorch.orchestration.measure import Timing
from jaxorch.orchestration.positions import largest_places
from jaxorch.orchestration.programs import Compilers
from jaxorch.orchestration.tune import begin, least_parts, tune, within_reach
from jaxorch.runtime.compile import Compiled
from jaxorch.runtime.launch import Answers
from jaxorch.runtime.store import Store
from tests.codegen.drive import program, whole_kernel

H200 = DEVICES["h200"]


@pytest.fixture(scope="module")
def made():
    graph = program(lambda x: jnp.tanh(x) + 1, np.zeros((64, 128), np.float32)).graph
    return graph, whole_kernel(graph)


class Machine:
    """Compiles, launches and times configurations as told; remembers what it was asked."""

    def __init__(self, monkeypatch, microseconds=lambda config: 10.0):
        self.microseconds = microseconds
        self.compiled, self.launched, self.forgotten, self.timed = [], [], [], 0
        self.spills = lambda config: 0
        self.gives = lambda config: 0.0
        self.compile_fails = self.launch_fails = lambda config: False
        monkeypatch.setattr(module, "check", self.check)
        monkeypatch.setattr(module, "check_soon", self.check_soon)
        monkeypatch.setattr(module, "forget", self.forget)
        monkeypatch.setattr(programs, "call", self.call)
        monkeypatch.setattr(module, "device_times", self.device_times)
        monkeypatch.setattr(module, "config_time", lambda *asked: 5.0)  # all within reach

    def check(self, source, inputs, outputs, *, arch, shared_limit, store=None):
        if source.config not in self.compiled:  # Triton has it from then on
            self.compiled.append(source.config)
        assert (arch, shared_limit) == (H200.arch, H200.shared_per_block)
        if self.compile_fails(source.config):
            raise CompileError(f"{source.name}: too much shared memory")
        return Compiled("", 32, self.spills(source.config), 0, 0.0)

    def check_soon(self, sources, inputs, outputs, *, workers, **limits):
        found = []
        for source in sources:
            try:
                found.append(self.check(source, inputs, outputs, **limits))
            except CompileError as error:
                found.append(error)
        return Answers([], lambda: found)

    def forget(self, sources, inputs, outputs, *, arch):
        self.forgotten += [s.config for s in sources]

    def call(self, source, operands, outputs, *, tickets=None):
        self.launched.append(source.config)
        if self.launch_fails(source.config):
            raise LaunchError("illegal address")
        return [jnp.full(a.shape, self.gives(source.config), a.dtype) for a in outputs]

    def device_times(self, versions, sets, *, donated, repeats):
        self.timed += 1
        running = [c for c in self.launched if not self.launch_fails(c)][-len(versions) :]
        return [Timing(self.microseconds(c), 0, 0, repeats, (), "clock") for c in running]


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def tuned(made, store, effort="default", live=True, device=H200):
    return tune(*made, device, effort=effort, live=live, store=store, header=["a header"])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_without_a_device_the_first_that_compiles_is_taken(made, machine, store):
    found = tuned(made, store, live=False)
    configs = configurations(*made)
    assert found.source.config == configs[0]
    assert found.measured is None
    assert found.failures == ()
    assert machine.compiled == [configs[0]]
    assert not machine.launched
    assert found.source.text.startswith("# a header\n")


@pytest.mark.parametrize("effort", ["fast", "default", "max"])
def test_without_a_device_a_failure_moves_on(made, machine, store, effort):
    configs = configurations(*made)
    machine.compile_fails = lambda config: config in configs[:2]
    found = tuned(made, store, effort=effort, live=False)
    assert found.source.config == configs[2]
    assert len(found.failures) == 2
    assert all("shared memory" in f for f in found.failures)


def test_the_fastest_is_chosen(made, machine, store):
    wanted = configurations(*made)[3]
    machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
    found = tuned(made, store)
    assert (found.source.config, found.measured) == (wanted, 5.0)


def test_what_was_begun_is_waited_for_and_the_others_are_forgotten(made, machine, store):
    named = {"effort": "default", "store": store, "header": ["a header"]}
    with Compilers() as compilers:
        underway = begin(*made, H200, workers=None, compilers=compilers, **named)
        assert not machine.launched
        assert not underway.is_compiled
        underway.usable()
        assert machine.launched == machine.compiled
        assert len(underway.programs) == len(machine.compiled)
        assert underway.is_compiled
        compiled = list(machine.compiled)
        assert compiled == list(configurations(*made)[: len(compiled)])
        wanted = compiled[3]
        machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
        assert tune(*made, H200, live=True, underway=underway, **named).source.config == wanted
        assert machine.compiled == compiled
        assert machine.forgotten == [c for c in compiled if c != wanted]
    again = begin(*made, H200, workers=None, compilers=None, **named)
    assert [source.config for source in again.sources] == [wanted]


def estimated(monkeypatch, made, far):
    """Estimates of a µs of work beside what every kernel takes, and `far` times that for the odd configurations."""
    configs = configurations(*made)
    aside = module.beside_work(made[1], H200)
    times = {c: aside + (far if k % 2 else 1.0) for k, c in enumerate(configs)}
    monkeypatch.setattr(module, "config_time", lambda graph, kernel, config, device: times[config])
    return configs[0::2], configs[1::2]


@pytest.mark.parametrize(("effort", "reach"), [("default", 3.0), ("max", 5.5)])
def test_what_is_estimated_far_above_the_least_is_not_compiled(made, machine, store, monkeypatch, effort, reach):
    near, far = estimated(monkeypatch, made, reach + 0.1)
    tuned(made, store, effort=effort)
    assert machine.compiled == list(near)
    estimated(monkeypatch, made, reach - 0.1)
    assert within_reach(*made, near + far, H200, effort) == near + far


def test_doubtful_configurations_are_tried_with_all_effort_or_alone(made, machine, store, monkeypatch):
    configs = configurations(*made)[:6]
    monkeypatch.setattr(module, "doubtful", lambda graph, kernel, config: config in configs[:4])
    assert within_reach(*made, configs, H200, "default") == configs[4:]
    assert within_reach(*made, configs, H200, "max") == configs
    assert within_reach(*made, configs[:4], H200, "default") == configs[:4]
    machine.compile_fails = lambda config: config not in configs[:4]
    assert tuned(made, store).source.config in configs[:4]


def test_what_is_out_of_reach_is_tried_where_nothing_else_compiles(made, machine, store, monkeypatch):
    near, far = estimated(monkeypatch, made, 10.0)
    machine.compile_fails = lambda config: config in near
    machine.microseconds = lambda config: 5.0 if config == far[1] else 10.0
    found = tuned(made, store)
    assert found.source.config == far[1]
    assert machine.compiled == [*near, *far]
    assert len(found.failures) == len(near)


def test_what_another_process_has_timed_meanwhile_is_taken(made, machine, store, monkeypatch):
    near, far = estimated(monkeypatch, made, 10.0)
    machine.compile_fails = lambda config: config in near

    def raced(*args, beyond=False, **named):
        if beyond:
            store.put("config", keys[0], {"config": module._record(far[1]), "measured": 4.0})
        found = begin(*args, beyond=beyond, **named)
        keys.append(found and found.key)
        return found

    keys = []
    monkeypatch.setattr(module, "begin", raced)
    found = tuned(made, store)
    assert (found.source.config, found.measured) == (far[1], 4.0)
    assert keys[1:] == keys[:1]
    assert not machine.timed


def test_what_a_worker_could_not_compile_is_not_compiled_here(made, machine, store, monkeypatch):
    first, second = configurations(*made)[:2]
    named = {"effort": "fast", "store": store, "header": ["a header"]}
    machine.compile_fails = lambda config: config == first
    underway = module.begin_first(*made, H200, workers=None, **named)
    assert not underway.usable()
    asked = []
    monkeypatch.setattr(
        module, "check", lambda source, *args, **more: asked.append(source.config) or Compiled("", 0, 0, 0, 0.0)
    )
    found = tune(*made, H200, live=False, underway=underway, **named)
    assert asked == [second] == [found.source.config]
    assert len(found.failures) == 1


def test_what_was_timed_is_compiled_ahead_where_the_store_has_only_its_time(made, machine, store, monkeypatch):
    wanted = configurations(*made)[2]
    machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
    tuned(made, store)
    named = {"effort": "default", "store": store, "header": ["a header"], "workers": None}
    for begun in (begin(*made, H200, compilers=None, **named), module.begin_first(*made, H200, **named)):
        assert [source.config for source, _ in begun.usable()] == [wanted]
        found = tune(*made, H200, effort="default", live=True, store=store, header=["a header"], underway=begun)
        assert (found.source.config, found.measured) == (wanted, 5.0)
    assert machine.timed == 1
    monkeypatch.setattr(module, "is_kept", lambda source, *types, **named: source.config == wanted)
    assert begin(*made, H200, compilers=None, **named) is module.begin_first(*made, H200, **named) is None


def test_what_was_timed_is_timed_again_if_its_record_goes_meanwhile(made, machine, store):
    tuned(made, store)
    named = {"effort": "default", "store": store, "header": ["a header"]}
    begun = begin(*made, H200, workers=None, compilers=None, **named)
    elsewhere = Store(store.folder.parent / "empty")
    assert tune(*made, H200, live=True, underway=begun, **(named | {"store": elsewhere})).measured == 10.0
    assert machine.timed == 2


def test_a_record_of_what_is_out_of_reach_now_is_used(made, machine, store, monkeypatch):
    wanted = configurations(*made)[3]
    machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
    tuned(made, store)
    estimated(monkeypatch, made, 10.0)
    assert tuned(made, store).source.config == wanted
    assert machine.timed == 1


def test_estimates_tell_which_blocks_are_hopeless():
    """A product of few tiles in blocks that leave most processors idle, and those that do not."""
    graph = program(lambda x, w: x @ w, np.zeros((256, 512), jnp.bfloat16), np.zeros((512, 256), jnp.bfloat16)).graph
    kernel = whole_kernel(graph)
    configs = configurations(graph, kernel)
    near = within_reach(graph, kernel, configs, H200, "default")
    assert configs[0] in near
    assert 0 < len(near) < len(within_reach(graph, kernel, configs, H200, "max")) <= len(configs)
    assert max(c.block_rows * c.block_columns for c in near) < max(c.block_rows * c.block_columns for c in configs)


def test_equally_fast_ones_go_by_order(made, machine, store):
    assert tuned(made, store).source.config == configurations(*made)[0]


def test_a_configuration_that_does_not_compile_is_recorded_and_not_launched(made, machine, store):
    bad = configurations(*made)[0]
    machine.compile_fails = lambda config: config == bad
    found = tuned(made, store)
    assert bad not in machine.launched
    assert found.source.config != bad
    assert any("shared memory" in f for f in found.failures)


def test_a_configuration_that_does_not_launch_is_recorded_and_not_timed(made, machine, store):
    bad = configurations(*made)[1]
    machine.launch_fails = lambda config: config == bad
    machine.microseconds = lambda config: 1.0 if config == bad else 10.0
    found = tuned(made, store)
    assert found.source.config == configurations(*made)[0]
    assert any("illegal address" in f and str(bad) in f for f in found.failures)


def test_spilling_configurations_are_left_out_where_others_do_not(made, machine, store):
    machine.spills = lambda config: 0 if config == configurations(*made)[2] else 2 * module.FEW_SPILLS
    assert tuned(made, store).source.config == configurations(*made)[2]
    machine.spills = lambda config: 8
    assert tuned(made, Store(store.folder / "other")).compiled.spill_bytes == 8


def test_a_few_spills_are_for_the_clock_to_judge(made, machine, store):
    spilling = configurations(*made)[1]
    machine.spills = lambda config: module.FEW_SPILLS if config == spilling else 0
    machine.microseconds = lambda config: 1.0 if config == spilling else 10.0
    assert tuned(made, store).source.config == spilling


def test_nothing_compiles(made, machine, store):
    machine.compile_fails = lambda config: True
    for live in (True, False):
        with pytest.raises(CompileError, match=r"no configuration compiles: .*shared memory"):
            tuned(made, store, live=live)


def test_nothing_launches(made, machine, store):
    machine.launch_fails = lambda config: True
    with pytest.raises(CompileError, match=r"no configuration launches: .*illegal address"):
        tuned(made, store)


def test_a_choice_is_remembered(made, machine, store):
    wanted = configurations(*made)[3]
    machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
    first = tuned(made, store)
    machine.compiled.clear()
    again = tuned(made, Store(store.folder))
    assert machine.timed == 1
    assert machine.compiled == [wanted]  # what is launched is always checked
    assert (again.source, again.measured) == (first.source, 5.0)


def test_a_choice_holds_for_its_device_and_kernel(made, machine, store, monkeypatch):
    tuned(made, store)
    graph = program(lambda x: jnp.tanh(x) + 2, np.zeros((64, 128), np.float32)).graph
    tuned((graph, whole_kernel(graph)), store)
    assert machine.timed == 2
    other = DEVICES["h100"]
    tuned(made, store, device=other)
    assert machine.timed == 3


def test_what_was_not_timed_is_timed_when_a_device_is_there(made, machine, store):
    tuned(made, store, live=False)
    assert tuned(made, store).measured == 10.0
    assert machine.timed == 1


def test_a_timed_choice_serves_where_no_device_is(made, machine, store):
    wanted = configurations(*made)[2]
    machine.microseconds = lambda config: 5.0 if config == wanted else 10.0
    tuned(made, store)
    found = tuned(made, store, live=False)
    assert (found.source.config, found.measured) == (wanted, 5.0)


def test_a_record_of_a_configuration_that_is_gone_is_not_used(made, machine, store):
    tuned(made, store)
    (path,) = (store.folder / "config").glob("*/*.json")
    store.put("config", path.stem, {"config": [0, 1, 3, 5, 7], "measured": 1.0})
    assert tuned(made, store).measured == 10.0
    assert machine.timed == 2


@pytest.mark.parametrize(("effort", "most"), [("fast", 1), ("default", 10), ("max", 32)])
def test_effort_bounds_the_tries(made, machine, store, effort, most):
    tuned(made, store, effort=effort)
    assert len(machine.compiled) == min(most, len(configurations(*made)))


def test_random_arguments_rotate_past_the_cache():
    arrays = [Array((256, 1024), np.dtype(np.float32)), Array((1024,), np.dtype(np.int32)), Array((3,), np.dtype(bool))]
    sets = random_arguments(arrays, l2_bytes=4 << 20)
    size = sum(a.nbytes for a in arrays)
    assert len(sets) * size > 2 * (4 << 20)
    for arguments in sets:
        assert [(x.shape, x.dtype) for x in arguments] == [(a.shape, a.dtype) for a in arrays]
    first, second = (np.asarray(s[0]) for s in sets[:2])
    assert not np.array_equal(first, second)
    assert 0.9 < first.std() < 1.1
    assert set(np.unique(sets[0][1])) <= {0, 1}


def test_places_are_where_a_program_looks():
    def f(x, i, pos, n):
        return x[i] + jax.lax.dynamic_index_in_dim(x, pos, 0, False), jnp.where(jnp.arange(50) < n, x[:, 0], 0)

    x, i, scalar = np.zeros((50, 4), np.float32), np.zeros(3, np.int32), np.int32(0)
    graph = program(f, x, i, scalar, scalar).graph
    inputs = [Value(k) for k, n in enumerate(graph.nodes) if isinstance(n, Input)]
    places = largest_places(graph, inputs)
    assert places == (1, 49, 49, 50)
    arrays = [graph.array(v) for v in inputs]
    for arguments in random_arguments(arrays, 1 << 20, places):
        assert int(arguments[1].max()) <= 49
        assert 24 <= int(arguments[2]) <= 49
        assert 25 <= int(arguments[3]) <= 50
    assert {int(a) for arguments in random_arguments(arrays, 1 << 20) for a in arguments[1]} <= {0, 1}


def test_lengths_of_groups_are_such_that_most_rows_are_in_one():
    x, w, sizes = np.zeros((1000, 4), np.float32), np.zeros((10, 4, 4), np.float32), np.zeros(10, np.int32)
    graph = program(jax.lax.ragged_dot, x, w, sizes).graph
    inputs = [Value(k) for k, n in enumerate(graph.nodes) if isinstance(n, Input)]
    places = largest_places(graph, inputs)
    assert places == (1, 1, 200)
    drawn = random_arguments([graph.array(v) for v in inputs], 1 << 16, places)
    assert 800 < np.mean([arguments[2].sum() for arguments in drawn]) < 1200


def test_random_arguments_are_bounded():
    assert len(random_arguments([Array((4,), np.dtype(np.float32))], 60 << 20)) <= 16
    assert random_arguments([], 1 << 20)


def test_a_configuration_that_gives_other_results_is_recorded_and_not_chosen(made, machine, store):
    """The fastest one, as a compiler's mistake may well be."""
    wrong = configurations(*made)[3]
    machine.gives = lambda config: 1.0 if config == wrong else 2.0
    machine.microseconds = lambda config: 1.0 if config == wrong else 10.0
    found = tuned(made, store)
    assert found.source.config != wrong
    assert any("other results" in failure and str(wrong) in failure for failure in found.failures)


def test_the_first_guess_may_be_the_one_that_is_wrong(made, machine, store):
    first = configurations(*made)[0]
    machine.gives = lambda config: 1.0 if config == first else 2.0
    assert tuned(made, store).source.config != first


def test_of_times_that_are_alike_the_least_parts_win():
    """Splits of 1, 2 and 8 of a product of few rows: two per cent more of the time are noise, three are not."""
    graph = program(lambda x, w: x @ w, np.zeros((16, 4096), jnp.bfloat16), np.zeros((4096, 256), jnp.bfloat16)).graph
    kernel = whole_kernel(graph)
    plain = configurations(graph, kernel)[0]
    sources = [generate(graph, kernel, replace(plain, splits=splits), arch=90) for splits in (8, 2, 1)]
    assert least_parts(sources, [10.0, 10.1, 10.3]) == 1
    assert least_parts(sources, [10.0, 10.3, 10.3]) == 0
    assert least_parts(sources, [10.0, 10.1, 10.2]) == 2
    assert least_parts([sources[2]] * 2, [10.1, 10.0]) == 1


@pytest.mark.parametrize("margin", [1.5, 2.5])
def test_a_kernel_is_tuned_to_the_least_parts_within_the_noise(machine, store, margin):
    graph = program(lambda x, w: x @ w, np.zeros((16, 4096), jnp.bfloat16), np.zeros((4096, 256), jnp.bfloat16)).graph
    kernel = whole_kernel(graph)
    tried = [c.splits for c in configurations(graph, kernel)[: module.TRIES["default"]]]
    assert len(set(tried)) > 1
    machine.microseconds = lambda config: 100.0 if config.splits == max(tried) else 100.0 + margin
    found = tuned((graph, kernel), store)
    assert found.source.config.splits == (min(tried) if margin < 2 else max(tried))
