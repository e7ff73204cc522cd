"""Kernels over arrays of 2^31 elements and more: every address is within its array, and the right one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxorch.codegen.source import generate
from jaxorch.kernels.configs import configurations
from jaxorch.kernels.kernel import Kernel
from jaxorch.options import Options
from jaxorch.pipeline import flatten, optimized_graph
from tests.codegen.drive import whole_kernel
from tests.codegen.huge import Huge, run_programs, value

I8, BF16 = jnp.int8, jnp.bfloat16
N, M, R = 47001, 1 << 30, 1 << 20
PICKED, BEGINS = np.array([3, 0, 2, 3]), np.array([5, 0, 1, 0])


def attention(q, k, v):
    s = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
    kept = jnp.arange(64)[:, None] >= jnp.arange(64)
    p = jax.nn.softmax(jnp.where(kept, s, -jnp.inf), -1)
    return jnp.einsum("bqk,bkd->bqd", p.astype(q.dtype), v)


def attended(i):
    """`attention` of equal queries, keys and values, at flat places."""
    found = []
    for place in i.tolist():
        matrix, row, column = place // 4096, place // 64 % 64, place % 64
        x = value(matrix * 4096 + np.arange(4096)).reshape(64, 64)[: row + 1]
        e = np.exp(x @ x[-1] - (x @ x[-1]).max())
        found.append(e @ x[:, column] / e.sum())
    return np.array(found)


def product(i):
    rows, columns = (
        value((i // 16 * 64)[:, None] + np.arange(64)),
        value((np.arange(64) * 16)[None] + (i % 16)[:, None]),
    )
    return (rows * columns).sum(1)


def row_sums(size, rows):
    return np.array([value(row * size + np.arange(size)).sum() for row in rows.tolist()])


PROGRAMS = {
    "transposed": (lambda x: x.T + 1, [((N, N), I8)], lambda i: value(i % N * N + i // N) + 1),
    "backwards": (lambda x: x[::-1, ::-1] + 1, [((N, N), I8)], lambda i: value(N * N - 1 - i) + 1),
    "rolled": (
        lambda x: jnp.roll(x, (5, 7), (0, 1)) + 1,
        [((N, N), I8)],
        lambda i: value((i // N - 5) % N * N + (i % N - 7) % N) + 1,
    ),
    "rolled along the first axis": (
        lambda x: jnp.roll(x, 5, 0) + 1,
        [((N, N), I8)],
        lambda i: value((i // N - 5) % N * N + i % N) + 1,
    ),
    "far rows in another order": (
        lambda x: jnp.concatenate([x[3], x[0], x[2], x[1]])[::2] + 1,
        [((4, M), I8)],
        lambda i: value(np.array([3, 0, 2, 1])[2 * i // M] * M + 2 * i % M) + 1,
    ),
    "sums of far places": (
        lambda x: jnp.stack([x[r, b : b + 4] for r, b in zip(PICKED, BEGINS, strict=True)]).astype(jnp.int32).sum(1),
        [((4, M), I8)],
        lambda i: np.array([value(PICKED[r] * M + BEGINS[r] + np.arange(4)).sum() for r in i.tolist()]),
    ),
    "sums of rows of two arrays": (
        lambda x, y: jnp.concatenate([x, y]).astype(jnp.int32).sum(1),
        [((R, 1100), I8), ((R + 1, 1100), I8)],
        lambda i: row_sums(1100, np.where(i < R, i, i - R)),
    ),
    "product": (lambda x, w: x @ w, [((1 << 25, 64), BF16), ((64, 16), BF16)], product),
    "attention": (attention, [((540_000, 64, 64), BF16)] * 3, attended),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_offsets_of_huge_arrays(name):
    f, shapes, expected = PROGRAMS[name]
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(*structs)), Options())
    kernel = whole_kernel(graph)
    assert isinstance(kernel, Kernel), kernel
    (output,) = (graph.array(o.value) for o in kernel.outputs)
    for config in configurations(graph, kernel)[:3]:
        source = generate(graph, kernel, config, arch=None)
        arrays = [*(Huge(graph.array(v)) for v in kernel.inputs), Huge(output)]
        programs = {0, source.grid // 2, source.grid // 3, source.grid - 1}
        run_programs(source, arrays, sorted(programs))
        places = np.array(sorted(arrays[-1].stored))
        got = np.array([arrays[-1].stored[place] for place in places.tolist()], np.float64)
        np.testing.assert_allclose(got, expected(places), rtol=2e-2, atol=2e-2)
        assert places[-1] >= output.size - 1
