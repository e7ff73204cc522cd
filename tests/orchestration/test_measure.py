"""The timing primitive: interleaving, rotation, donation, the profiler's records, and the wall clock in its place."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.mosaic.gpu import profiler

from jaxorch.orchestration import alone, measure
from jaxorch.orchestration.measure import Rotation, Timing, device_times, program_times


@pytest.fixture
def sets():
    return [(jnp.full((8,), float(i)),) for i in range(3)]


class Device:
    """Stands for the profiler's native half: records what the versions launch between its start and its end."""

    def __init__(self, *, fails=""):
        self.fails = fails
        self.records = None

    def launch(self, name, milliseconds):
        if self.records is not None:
            self.records.append((name, milliseconds))

    def _cupti_init(self):
        if self.fails:
            raise RuntimeError(self.fails)
        self.records = []

    def _cupti_get_timings(self, finalize):
        assert not finalize
        recorded, self.records = self.records, None
        return recorded


@pytest.fixture
def gpu(monkeypatch):
    def install(**options):
        device = Device(**options)
        monkeypatch.setattr(profiler, "mosaic_gpu_lib", types.SimpleNamespace(_mosaic_gpu_ext=device))
        monkeypatch.setattr(Rotation, "platform", lambda self: "gpu")
        return device

    return install


def test_the_clock_times_every_version(sets):
    fast, slow = device_times([jax.jit(lambda x: x + 1), lambda x: [jnp.sin(x) for _ in range(50)]], sets, repeats=9)
    assert fast.source == slow.source == "clock"
    assert fast.note == ""
    assert fast.kernels == ()
    assert fast.samples == 9
    assert 0 < fast.low_us <= fast.median_us <= fast.high_us
    assert fast.median_us < slow.median_us


def test_calls_are_interleaved_on_rotating_arguments(sets):
    calls = []
    versions = [lambda x, name=name: calls.append((name, int(x[0]))) for name in "ab"]
    device_times(versions, sets, repeats=2)
    assert calls == [("a", 0), ("b", 1), ("a", 2), ("b", 0), ("a", 1), ("b", 2)]


def test_kernel_records_become_samples(gpu, sets):
    device = gpu()
    # every version is warmed up once, and each timed call follows one of its own that does not count
    durations = iter([1.0, 9.0, 5.0, 0.003, 5.0, 0.004, 5.0, 0.001, 5.0, 0.008, 5.0, 0.002, 5.0, 0.006])

    def one(x):
        device.launch("one", next(durations))
        return x

    def two(x):
        device.launch("first", 0.001)
        device.launch("second", next(durations))
        return x

    first, second = device_times([one, two], sets, repeats=3)
    assert first.source == "cupti"
    assert (first.median_us, first.kernels) == (2.0, (("one", 2.0),))
    assert (first.low_us, first.high_us) == (1.5, 2.5)
    assert second.median_us == 7.0
    assert second.kernels == (("first", 1.0), ("second", 6.0))


@pytest.mark.parametrize("broken", ["another subscriber is active", "no kernels"])
def test_without_the_profiler_the_clock_says_why(gpu, sets, broken):
    gpu(fails="" if broken == "no kernels" else broken)
    [timing] = device_times([lambda x: x], sets, repeats=2)
    assert timing.source == "clock"
    assert "no CUPTI times" in timing.note
    assert ("without any kernel" if broken == "no kernels" else broken) in timing.note


def test_a_failing_version_raises(gpu, sets):
    gpu()

    def fails(x):
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        device_times([fails], sets)


def test_donated_arguments_are_handed_on():
    update = jax.jit(lambda c, u: (u * 2, c + u), donate_argnums=(0,))
    sets = [(jnp.zeros((4, 4)), jnp.ones((4,))) for _ in range(2)]
    timings = device_times([update, update], sets, donated=(0,), repeats=3)
    assert all(timing.samples == 3 for timing in timings)


def test_a_donated_argument_without_an_output_is_refused():
    rotation = Rotation([(jnp.zeros((4,)),)], donated=(0,))
    with pytest.raises(ValueError, match=r"donated argument 0 .* matches no output"):
        rotation.call(lambda x: x.sum())


def test_no_argument_sets_are_refused():
    with pytest.raises(ValueError, match="argument_sets is empty"):
        device_times([lambda: None], [])


def test_functions_of_nothing():
    assert device_times([lambda: jnp.ones(2)], [()], repeats=1)[0].samples == 1


def test_timing_works_while_jax_traces(sets):
    found = []

    @jax.jit
    def traced(y):
        found.extend(device_times([jax.jit(lambda x: x * 2)], sets, repeats=2))
        return y + 1

    assert traced(jnp.ones(()).block_until_ready()) == 2
    assert found[0].samples == 2


@pytest.mark.gpu
def test_device_time_of_a_copy():
    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.float32)
    versions = [jax.jit(lambda x: x + 1), jax.jit(lambda x: jnp.cumsum(x, 1) @ x)]
    small, large = device_times(versions, [(x,)], repeats=10)
    assert small.source == "cupti", small.note
    assert len(small.kernels) == 1
    assert small.median_us == pytest.approx(sum(us for _, us in small.kernels), rel=0.05)
    # 512 MB at between 0.5 and 20 TB/s.
    assert 25 < small.median_us < 1000
    assert len(large.kernels) > 1
    assert large.median_us > small.median_us
    assert alone._THREADS.acquire(blocking=False)
    alone._THREADS.release()


class _Clock:
    """Stands in for the module `time`: it goes on when somebody sleeps, and a little whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1e-7
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = _Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


class _Device:
    """Serves calls one after the other, each for a millisecond, and answers `late` seconds after the last."""

    def __init__(self, clock, late=0.0):
        self.clock, self.free, self.late = clock, 0.0, late

    def call(self, x):
        self.free = max(self.clock.perf_counter(), self.free) + 1e-3
        return _Later(self.clock, self.free + self.late)


class _Later:
    def __init__(self, clock, ready):
        self.clock, self.ready = clock, ready

    def block_until_ready(self):
        self.clock.sleep(max(self.ready - self.clock.perf_counter(), 0))


def test_programs_are_timed_by_the_queue_where_kernels_are_not_all(monkeypatch, clock):
    """CUPTI says 1 µs for all; one lets the device work for a millisecond, one keeps the host busy for as long."""
    kernels = tuple(Timing(1.0, 1.0, 1.0, 3, (("k", 1.0),), "cupti") for _ in range(2))
    monkeypatch.setattr(measure, "_times", lambda *_: kernels)
    sets = [(jnp.ones(4),)]
    busy, slow = (lambda x: clock.sleep(1e-3) or x), _Device(clock).call
    assert program_times([busy, busy], sets) == kernels
    first, second = program_times([busy, slow], sets, repeats=12)
    assert (first.source, second.source, second.kernels) == ("queue", "queue", kernels[1].kernels)
    assert second.median_us == pytest.approx(1000, rel=0.01)


def test_what_any_queue_takes_to_start_and_end_is_not_a_programs_time(monkeypatch, clock):
    kernels = (Timing(950.0, 950.0, 950.0, 3, (("k", 950.0),), "cupti"),)
    monkeypatch.setattr(measure, "_times", lambda *_: kernels)
    assert program_times([_Device(clock, late=5e-3).call], [(jnp.ones(4),)], repeats=20) == kernels
