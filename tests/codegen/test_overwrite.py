"""Which operands a kernel may overwrite: those it reads only where it is about to store, in the same lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.codegen.launches import launches
from jaxorch.codegen.overwrite import overwritable
from jaxorch.codegen.source import generate
from jaxorch.kernels import configs
from jaxorch.kernels.configs import Config, configurations
from tests.codegen.drive import agree, counted, limits, numpied, program, random_array, scheduled, whole_kernel
from tests.codegen.test_source import compiled
from tests.codegen.test_stores import attend, normal, online, stored_by

F32 = np.float32


def zeros(*shape, dtype=F32):
    return np.zeros(shape, dtype)


def allowed(f, *arrays, schedule=None, config=None):
    """(operand, output) pairs of the whole function as one kernel, in its first configuration."""
    made = program(f, *arrays)
    kernel = whole_kernel(made.graph)
    assert not isinstance(kernel, str), kernel
    assert schedule in (None, kernel.schedule)
    position = [made.graph.nodes[v.node].position for v in kernel.inputs]
    pairs = overwritable(made.graph, kernel, config or configurations(made.graph, kernel)[0])
    return {(position[k], o) for k, o in pairs}


X = zeros(32, 64)


@pytest.mark.parametrize(
    ("f", "arrays", "expected"),
    [
        (lambda x, y: jnp.tanh(x) * y + x, (X, X), {(0, 0), (1, 0)}),
        (lambda x: jnp.exp(x).reshape(64, 32), (X,), {(0, 0)}),
        (lambda x: (jnp.exp(x), jnp.sin(x)), (X,), {(0, 0), (0, 1)}),
        (lambda x: jnp.stack([x[..., 1] * 2, x[..., 0]], -1), (zeros(32, 64, 2),), {(0, 0)}),
    ],
    ids=["points", "another shape", "two outputs", "unrolled pairs, swapped"],
)
def test_what_is_read_where_it_is_stored_may_be_overwritten(f, arrays, expected):
    assert allowed(f, *arrays, schedule="pointwise") == expected


@pytest.mark.parametrize(
    ("f", "arrays"),
    [
        (lambda x: jnp.roll(x, 1, 0), (X,)),
        (lambda x: x + jnp.roll(x, 1, 1), (X,)),
        (lambda x: x.T + 1, (zeros(64, 64),)),
        (lambda x: x + x.T, (zeros(64, 64),)),
        (lambda x: x[::-1] * 2, (X,)),
        (lambda x, i: x[i] * 2, (X, np.arange(32, dtype=np.int32))),
        (lambda x: jnp.broadcast_to(x, (32, 64)) * 2, (zeros(64),)),
        (lambda x: x.astype(jnp.int32), (X,)),
        (lambda x: x.astype(jnp.bfloat16), (X,)),
        (lambda x, y: x + y.T, (zeros(512, 3), zeros(3, 512))),
        (lambda x: jnp.exp(x), (zeros(8, 8),)),
    ],
    ids=[
        "another place",
        "a neighbour too",
        "transposed",
        "transposed too",
        "backwards",
        "looked up",
        "broadcast",
        "another type",
        "another width",
        "unrolled threes",
        "fewer elements than threads",
    ],
)
def test_what_else_is_read_may_not(f, arrays):
    assert allowed(f, *arrays) == set()


def test_what_is_read_after_a_store_may_not_be_overwritten_by_it():
    """The second output reads x again, in one half: where it comes second, the first must not have written there."""

    def f(x, y):
        return x * 2, jnp.concatenate([x[:, :10], y[:, 10:]], 1)

    made = program(f, X, X)
    kernel = whole_kernel(made.graph)
    source = generate(made.graph, kernel, configurations(made.graph, kernel)[0], arch=90).text
    assert source.index("tl.store(out0") < source.rindex("tl.load(in0")
    assert allowed(f, X, X) == {(0, 1), (1, 1)}


def test_rows():
    assert allowed(jax.nn.softmax, X, schedule="rows") == {(0, 0)}
    assert allowed(lambda x, y: jax.nn.softmax(x, -1) + jnp.roll(y, 1, 0), X, X, schedule="rows") == {(0, 0)}
    assert allowed(lambda x: jax.nn.softmax(jnp.roll(x, 1, 0), -1) * x, X, schedule="rows") == set()
    # a value a row is one that every thread of the row has
    per_row = allowed(lambda x, y: (x.sum(-1) + y, x * 2), X, zeros(32), schedule="rows")
    assert per_row == {(0, 1)}


def test_long_rows_in_loops():
    """The loop before the stores reads the row too: it has ended when the first of its places is stored."""
    wide = zeros(4, 1024)
    with limits(row=512):
        assert allowed(lambda x: x - jnp.exp(x).max(-1, keepdims=True), wide, schedule="rows-looped") == {(0, 0)}
        behind = allowed(lambda x: jnp.flip(x, -1) - x.max(-1, keepdims=True), wide, schedule="rows-looped")
    assert behind == set()


def test_rows_whose_columns_are_spread_over_programs():
    """Each program takes the short reduction anew: another may have stored its part by then."""

    def f(x):
        return x - x[:, :256].max(-1, keepdims=True)

    with limits(row=512):
        assert allowed(f, zeros(2, 8192), schedule="rows-blocked") == set()
        assert allowed(lambda x, y: y - x.max(-1, keepdims=True), zeros(2, 256), zeros(2, 8192)) == {(1, 0)}


W = zeros(64, 64)


def test_products():
    def f(x, w, y):
        return x @ w + y

    assert allowed(f, X, W, X, schedule="gemm") == {(2, 0)}
    assert allowed(lambda x, w: x @ w + x, W, W, schedule="gemm") == set()


@pytest.mark.parametrize(("elements", "allowed"), [(0, {(0, 0), (1, 0)}), (64, set())])
def test_the_second_launch_may_overwrite_what_the_first_has_read(monkeypatch, elements, allowed):
    """In one launch, where the last program of a tile stores what others read from, nothing may be overwritten."""
    monkeypatch.setattr(configs, "_JOINED", elements)
    made, kernel = scheduled("gemm", lambda x, w: x @ w + x, zeros(64, 64), W)
    config = Config(0, 64, 64, 4, 1, 16, splits=2)
    position = [made.graph.nodes[v.node].position for v in kernel.inputs]
    assert {(position[k], o) for k, o in overwritable(made.graph, kernel, config)} == allowed


def test_attention_keeps_its_queries():
    def f(q, k, v):
        return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k), -1) @ v

    assert allowed(f, *(zeros(2, 64, 16) for _ in range(3)), schedule="online") == set()


OVER = {
    "pointwise": (lambda x, y: (jnp.tanh(x) * y, x - y), (X, X), None),
    "pairs": (lambda x: jnp.stack([x[..., 1] * 2, x[..., 0]], -1), (zeros(32, 64, 2),), None),
    "rows": (lambda x, g: jax.nn.standardize(x, -1) * g + x, (X, zeros(64)), None),
    "gemm": (lambda x, w, y: jnp.tanh(x @ w) + y, (X, W, X), None),
    "split": (lambda x, w: x @ w + x, (W, W), Config(0, 64, 64, 2, 1, 16, splits=2)),
}


@pytest.mark.parametrize("name", OVER)
def test_kernels_that_overwrite_give_the_same_and_store_once(name):
    f, arrays, config = OVER[name]
    rng = np.random.default_rng(0)
    made = program(f, *(random_array(rng, a.shape, a.dtype) for a in arrays))
    kernel = whole_kernel(made.graph)
    config = config or configurations(made.graph, kernel)[0]
    inputs = [made.values[v] for v in kernel.inputs]
    want = numpied(made.graph, kernel, inputs)
    pairs = overwritable(made.graph, kernel, config)
    assert pairs
    for k, o in pairs:
        for value, (out, _) in counted(made.graph, kernel, config, inputs, over={k: o}).items():
            agree(out.reshape(want[value].shape), want[value], 2e-6)
        source = generate(made.graph, kernel, config, over={k: o}, arch=90)
        last = source.combine or source
        assert (k, o) in last.aliases
        assert f"out{o}," not in last.text.split("def jaxorch_")[1].split("):")[0] + ","
        assert compiled(made.graph, kernel, config, 90, over={k: o}).spill_bytes == 0


@pytest.mark.parametrize(("grid", "allowed"), [(3, set()), (1, {(0, 0)})])
def test_what_points_of_the_grid_share_is_not_overwritten_by_the_one_that_stores_it(grid, allowed):
    def f(x, w, c):
        x = x * 2
        return x, c[:, None, None] * (x @ w)

    rng = np.random.default_rng(0)
    arrays = normal(rng, 32, 64), normal(rng, 64, 24), normal(rng, grid)
    made, kernel = stored_by(f, *arrays, schedule="gemm", early=1)
    position = [made.graph.nodes[v.node].position for v in kernel.inputs]
    pairs = overwritable(made.graph, kernel, Config(0, 32, 32, 1, 1, 64))
    assert {(position[k], o) for k, o in pairs} == allowed


@pytest.mark.parametrize("elements", [0, 64])
def test_results_of_two_launches_take_memory_of_their_own(monkeypatch, elements):
    """What the first of them stores from an operand is no result of the second."""

    def f(q, k, v):
        q = q * 0.5
        return attend(q, k, v), q

    monkeypatch.setattr(configs, "_JOINED", elements)
    rng = np.random.default_rng(0)
    arrays = normal(rng, 2, 2, 3, 11, 16), normal(rng, 2, 2, 50, 16), normal(rng, 2, 2, 50, 32)
    made, kernel = stored_by(f, *arrays, schedule="online", early=1)
    inputs = [made.values[v] for v in kernel.inputs]
    want = numpied(made.graph, kernel, inputs)
    kinds = set()
    for config in online(kernel):
        kind, pairs = launches(kernel, config)[-1], overwritable(made.graph, kernel, config)
        kinds.add(kind)
        assert not pairs or kind == "whole"
        for k, o in pairs:
            for value, (out, _) in counted(made.graph, kernel, config, inputs, over={k: o}).items():
                agree(out.reshape(want[value].shape), want[value], 5e-2)
    assert kinds == {"whole", "joined" if elements else "combine"}
