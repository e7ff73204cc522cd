"""In which order programs walk: an axis of reuse fastest where an operand would leave the cache, else as the domain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxorch.frontend.trace import flatten
from jaxorch.kernels import order
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.frame import Frame
from jaxorch.kernels.kernel import Kernel
from jaxorch.options import Options
from jaxorch.orchestration.cost import config_time
from jaxorch.orchestration.devices import DEVICES
from jaxorch.pipeline import optimized_graph
from tests.codegen.drive import agree, interpreted, limits, numpied, program, random_array, whole_kernel
from tests.codegen.test_body import check_numpy, programs, relaxed

F32, BF16 = jnp.float32, jnp.bfloat16
M = 1 << 20


@pytest.fixture
def small_cache(monkeypatch):
    """Few rows stay in the cache between two uses, and a few columns fill a program."""
    monkeypatch.setattr(order, "KEPT_BYTES", 300)
    monkeypatch.setattr(order, "_RUN_BYTES", 1)
    monkeypatch.setattr(order, "_PROGRAM_COLUMNS", 4)


def kernel_of(f, *specs, dtype=BF16):
    specs = [jax.ShapeDtypeStruct(s, dtype) for s in specs]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*specs)), Options())
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    return graph, kernel


def softmax_with_bias(x, bias):
    return jax.nn.softmax((x + bias).astype(F32), -1).astype(x.dtype)


BIASED = ((8, 16, 1024, 1024), (16, 1024, 1024))
BIAS_BYTES = 2 * 16 * M


def test_a_large_shared_operand_stays_in_the_cache():
    _, kernel = kernel_of(softmax_with_bias, *BIASED)
    merged = (8, 16, 1024, 1024)
    natural = Frame(merged, (), (0, 1, 2), (3,), again=7 * BIAS_BYTES)
    assert kernel.frames == (Frame(merged, (1, 2), (0,), (3,)), natural)


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, 16, 1024, 1024), (1024, 1024)),  # a bias of 2 MB stays beside what is read between two of its uses: 6 MB
        ((8, 1024, 1024), (1024,)),
        ((2, 4, 256, 1024), (4, 256, 1024)),  # all of it fits
        ((16, 1024, 1024), (16, 1024, 1024)),  # nothing is used again
    ],
)
def test_else_the_order_is_the_domains(shapes):
    _, kernel = kernel_of(softmax_with_bias, *shapes)
    (frame,) = kernel.frames
    assert frame.rows == tuple(range(len(shapes[0]) - 1))
    assert frame.again == 0


def test_an_operand_between_two_axes_of_reuse():
    """The bias varies along the second axis of three: the first one is what makes it leave the cache."""
    _, kernel = kernel_of(lambda x, b: softmax_with_bias(x, b[:, None]), (8, 4096, 2, 1024), (4096, 1024))
    assert kernel.frames[-1].again == 7 * 8 * M
    assert kernel.frames[0].again == 0
    assert (kernel.frames[0].grid, kernel.frames[0].rows) == ((1,), (0, 2))


def test_the_estimate_counts_what_is_read_again():
    graph, kernel = kernel_of(softmax_with_bias, *BIASED)
    first = {c.frame: c for c in reversed(configurations(graph, kernel))}
    h100 = DEVICES["h100"]
    kept, again = (config_time(graph, kernel, first[frame], h100) for frame in (0, 1))
    assert again - kept == pytest.approx(7 * BIAS_BYTES / h100.memory_bandwidth * 1e6, rel=1e-3)


def test_without_reductions_the_grid_walks():
    _, kernel = kernel_of(lambda x, b: x * b, *BIASED)
    assert kernel.frames[0] == Frame((8, 16, 1024, 1024), (1, 2, 0), (), (3,))
    assert kernel.frames[-1].again == 7 * BIAS_BYTES


def test_short_runs_are_read_beside_their_neighbours():
    """Parts of groups of 16 channels: programs side by side read neighbouring channels, not far-off positions."""

    def partial_sums(x):
        return x.reshape(8, 16, 256, 32, 16).astype(F32).sum((2, 4)).swapaxes(1, 2)

    _, kernel = kernel_of(partial_sums, (8, 64, 64, 512))
    assert kernel.frames[0].rows == (0, 2, 1)
    assert kernel.frames[1].rows == (0, 1, 2)


PROGRAMS = {
    "softmax": (lambda x, b: jax.nn.softmax(x + b, -1), (3, 4, 5, 6), (4, 5, 6)),
    "row values too": (lambda x, b: (jax.nn.softmax(x + b, -1), (x + b).max(-1)), (3, 4, 5, 6), (4, 5, 6)),
    "row values alone": (lambda x, b: (x * b).sum(-1), (3, 4, 5, 6), (4, 5, 6)),
    "between": (lambda x, b: (x * b[:, None]).sum(-1), (3, 4, 5, 6), (4, 6)),
    "moments": (lambda x, b: ((x + b).mean(-1), (x + b).var(-1)), (3, 8, 9), (8, 9)),
    "elementwise": (lambda x, b: jnp.tanh(x) * b, (3, 4, 5, 6), (4, 5, 6)),
    "pairs": (lambda x, b: jnp.stack([x * b, x + b], -1), (3, 8, 6), (8, 6)),
    "padded": (lambda x, b: jnp.pad(x * b, ((0, 0), (1, 2), (0, 3))), (3, 8, 6), (8, 6)),
}


@pytest.mark.parametrize("row", [None, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_order_computes_the_same(name, row, small_cache):
    f, *shapes = PROGRAMS[name]
    rng = np.random.default_rng(0)
    with limits(row=row) if row else limits():
        made = program(f, *(random_array(rng, s, np.float32) for s in shapes))
        kernel = whole_kernel(made.graph)
        assert isinstance(kernel, Kernel), kernel
        assert len(kernel.frames) > 1
        for number, frame in enumerate(kernel.frames):
            blocks = [(1, 32), (2, 32)] if kernel.schedule == "rows" else [(1, 4)]
            found = [numpied(made.graph, kernel, made.inputs(kernel), number)]
            for rows, columns in blocks:
                config = Config(number, min(rows, frame.sizes[1]), columns, 1)
                found.append(interpreted(made.graph, kernel, config, made.inputs(kernel)))
            for results in found:
                for value, got in results.items():
                    agree(got, made.values[value], 1e-5)


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(programs(), st.integers(0, 99))
def test_drawn_programs_in_every_order_equal_lax(drawn, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "KEPT_BYTES", 16)
        patch.setattr(order, "_RUN_BYTES", seed % 2 * 64)
        patch.setattr(order, "_PROGRAM_COLUMNS", 2)
        patch.setattr(order, "_WORTH", -1.0)
        check_numpy(drawn, seed)
