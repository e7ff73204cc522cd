"""Generated source: the same bytes in any process, readable, and good machine code for every measured case."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases import CASES
from benchmarks.suites import SPINE_BARS
from jaxorch.codegen.source import Source, different, generate
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Graph, Scatter
from jaxorch.kernels.configs import Config, configurations
from jaxorch.kernels.kernel import Kernel, aliases
from jaxorch.options import Options
from jaxorch.orchestration.devices import DEVICES
from jaxorch.orchestration.header import header_of
from jaxorch.orchestration.plan import arguments
from jaxorch.passes.derive.fill import fill_by_pieces
from jaxorch.pipeline import optimized_graph
from jaxorch.runtime.launch import check
from tests.codegen.drive import kernels_of, program, whole_kernel

pytest.importorskip("triton")
S = jax.ShapeDtypeStruct
DEVICE = {90: DEVICES["h200"], 80: DEVICES["a100"]}


@functools.cache
def case(name: str) -> tuple[Graph, tuple[Kernel, ...], list[list[str]]]:
    """The graph of a measured case and the kernels that compute it: one where that is legal."""
    f, specs, _ = CASES[name]()
    trace = flatten(jax.make_jaxpr(f)(*specs))
    graph = optimized_graph(trace, Options())
    single = whole_kernel(graph)
    kernels = (single,) if isinstance(single, Kernel) else tuple(kernels_of(graph))
    return graph, kernels, [header_of(trace, graph, k) for k in kernels]


def compiled(graph: Graph, kernel: Kernel, config: Config, arch: int, **generated):
    device = DEVICE[arch]
    source = generate(graph, kernel, config, arch=arch, **generated)
    return check(source, *arguments(graph, kernel), arch=arch, shared_limit=device.shared_per_block)


@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SPINE_BARS)
def test_default_configurations_compile_without_spills(name, arch):
    graph, kernels, _ = case(name)
    assert kernels
    for kernel in kernels:
        found = compiled(graph, kernel, configurations(graph, kernel)[0], arch)
        assert found.spill_bytes == 0
        assert found.registers <= 255


@pytest.mark.slow
@pytest.mark.parametrize("name", SPINE_BARS)
def test_all_configurations_compile(name):
    """A tuner tries them: none may fail for shared memory, and few may spill."""
    graph, kernels, _ = case(name)
    for kernel in kernels:
        spills = [compiled(graph, kernel, c, 90).spill_bytes > 0 for c in configurations(graph, kernel)[:12]]
        assert sum(spills) <= len(spills) // 2


# Kernels whose loads and stores are 16 bytes wide; those of the others are decided by their views.
VECTORS = {
    "groupnorm_silu": ("ld", "st"),
    "layernorm_shift_window": ("ld", "st"),
    "rope_half_heads": ("ld", "st"),
    "softmax_bias_mask": ("ld", "st"),
    "rmsnorm_residual": ("ld", "st"),
    "concat_of_elementwise": ("ld", "st"),
    "rope_interleaved_heads": ("ld", "st"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_contiguous_kernels_move_vectors(name):
    graph, (kernel,), _ = case(name)
    ptx = compiled(graph, kernel, configurations(graph, kernel)[0], 90).ptx
    for what in VECTORS[name]:
        assert re.search(rf"{what}\.global(\.\w+)*\.v[48]", ptx), f"no wide {what} in {name}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_elementwise_kernels_move_vectors(dtype):
    x = np.zeros((64, 1024), jnp.dtype(dtype))
    made = program(lambda x: x * 2 + 1, x)
    kernel = whole_kernel(made.graph)
    ptx = compiled(made.graph, kernel, configurations(made.graph, kernel)[0], 90).ptx
    assert "ld.global.v" in ptx
    assert "st.global.v" in ptx


def test_rows_written_into_a_joined_array_move_vectors():
    a, b = np.zeros((6, 1024), np.float32), np.zeros((5, 1024), np.float32)
    made = program(lambda a, b: jnp.concatenate([jax.nn.softmax(a), jax.nn.softmax(b)]), a, b, variant=fill_by_pieces)
    writing = [k for k in kernels_of(made.graph) if aliases(made.graph, k) and k.schedule == "rows"]
    assert {k.outputs[0].value.node for k in writing} == {
        n for n, m in enumerate(made.graph.nodes) if isinstance(m, Scatter)
    }
    for kernel in writing:
        found = compiled(made.graph, kernel, configurations(made.graph, kernel)[0], 90)
        assert found.spill_bytes == 0
        for what in ("ld", "st"):
            assert re.search(rf"{what}\.global(\.\w+)*\.v4", found.ptx)


def test_products_written_into_a_joined_array_compile():
    x, w, v = (np.zeros(shape, jnp.bfloat16) for shape in ((64, 128), (128, 64), (128, 96)))
    made = program(lambda x, w, v: jnp.concatenate([jnp.tanh(x @ w), x @ v], -1), x, w, v, variant=fill_by_pieces)
    writing = [k for k in kernels_of(made.graph) if aliases(made.graph, k) and k.schedule == "gemm"]
    assert len(writing) == 2
    for kernel in writing:
        assert compiled(made.graph, kernel, configurations(made.graph, kernel)[0], 90).spill_bytes == 0


def test_relaxed_functions_are_one_instruction_each():
    """A thread has 8 elements here; PTX's own handling of denormals would triple their instructions."""
    graph, (kernel,), _ = case("groupnorm_silu")
    ptx = compiled(graph, kernel, Config(0, 1, 4096, 16), 90).ptx
    assert [ptx.count(name) for name in ("ex2.approx.ftz.f32", "rcp.approx.ftz.f32")] == [8, 8]
    graph, (kernel,), _ = case("softmax_bias_mask")
    ptx = compiled(graph, kernel, Config(0, 1, 1024, 4), 90).ptx
    assert [ptx.count(name) for name in ("ex2.approx.ftz.f32", "rcp.approx.f32", "div.")] == [8, 1, 0]


def test_loops_with_stages_load_ahead():
    graph, (kernel,), _ = case("groupnorm_silu")
    one, three = (compiled(graph, kernel, Config(0, 1, 4096, 8, stages), 90) for stages in (1, 3))
    assert "cp.async" not in one.ptx
    assert "cp.async" in three.ptx
    assert three.shared_bytes > one.shared_bytes


# Text


def sources() -> list[Source]:
    """The default source of every kernel of every spine case."""
    found = []
    for name in SPINE_BARS:
        graph, kernels, headers = case(name)
        for kernel, header in zip(kernels, headers, strict=True):
            found.append(generate(graph, kernel, configurations(graph, kernel)[0], header=header, arch=90))
    return found


PRINTER = """
import hashlib
from tests.codegen.test_source import sources
for source in sources():
    print(source.name, source.digest, hashlib.sha256(source.text.encode()).hexdigest())
"""


def printed(seed: int) -> str:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PRINTER], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_any_process_generates_the_same_bytes():
    first = printed(0)
    assert len(first.splitlines()) >= len(SPINE_BARS)
    assert printed(12345) == first


def test_sources_are_readable_modules():
    for source in sources():
        tree = ast.parse(source.text)
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        assert functions[-1] == source.name
        assert re.fullmatch(r"jaxorch_(pointwise|rows|rows_looped)_[0-9a-f]{8}", source.name)
        assert max(map(len, source.text.splitlines())) < 400
        assert source.text.endswith("\n")
        assert not re.search(r"0x[0-9a-f]{6,}", source.text)  # no object's address


def test_headers_say_what_and_where_from():
    graph, (kernel,), (header,) = case("groupnorm_silu")
    source = generate(graph, kernel, configurations(graph, kernel)[0], header=header, arch=90)
    comments = [line for line in source.text.splitlines() if line.startswith("# ")]
    assert comments[0] == "# schedule: rows" or comments[0] == "# schedule: rows-looped"
    assert any(re.match(r"# reduce_\w+  cases\.py:\d+", line) for line in comments)
    assert len(comments) == len(header)


def test_the_header_changes_neither_name_nor_code():
    graph, (kernel,), (header,) = case("rmsnorm_residual")
    config = configurations(graph, kernel)[0]
    plain, told = generate(graph, kernel, config, arch=90), generate(graph, kernel, config, header=header, arch=90)
    assert plain.name == told.name
    assert told.text.endswith(plain.text)


def test_equal_kernels_have_equal_names_and_different_ones_do_not():
    def name_of(f, shape, k=0):
        made = program(f, np.zeros(shape, np.float32))
        kernel = whole_kernel(made.graph)
        return generate(made.graph, kernel, configurations(made.graph, kernel)[k], arch=90).name

    first = name_of(lambda x: jnp.exp(x) + 1, (64, 128))
    assert name_of(lambda z: jnp.exp(z) + 1, (64, 128)) == first
    assert name_of(lambda x: jnp.exp(x) + 2, (64, 128)) != first
    assert name_of(lambda x: jnp.exp(x) + 1, (64, 127)) != first
    assert name_of(lambda x: jnp.exp(x) + 1, (64, 128), k=1) != first


def test_interpreted_and_compiled_forms_differ_in_functions_alone():
    graph, (kernel,), _ = case("rmsnorm_residual")
    config = configurations(graph, kernel)[0]
    plain = generate(graph, kernel, config, arch=90).text.splitlines()
    interpreted = generate(graph, kernel, config, arch=None).text.splitlines()
    assert [line.split("=")[0] for line in plain if "tl.store" in line] == [
        line.split("=")[0] for line in interpreted if "tl.store" in line
    ]


def test_offsets_beyond_32_bits_are_64_bit():
    f, x = jax.jit(lambda x: x * 2), S((1 << 16, 1 << 15, 2), np.int8)
    graph = optimized_graph(flatten(jax.make_jaxpr(f)(x)), Options())
    kernel = whole_kernel(graph)
    text = generate(graph, kernel, configurations(graph, kernel)[0], arch=90).text
    assert "tl.int64" in text
    small = optimized_graph(flatten(jax.make_jaxpr(f)(S((1 << 15, 1 << 15), np.int8))), Options())
    kernel = whole_kernel(small)
    assert "tl.int64" not in generate(small, kernel, configurations(small, kernel)[0], arch=90).text


@pytest.mark.parametrize("keys", [64, 256])
def test_stages_that_make_no_difference_are_compiled_once(keys):
    """One step of 64 elements: as many stages as you like give the same code. Four steps: another for each number."""
    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4096, keys), (keys, 64))]
    graph = optimized_graph(flatten(jax.make_jaxpr(lambda a, b: jnp.tanh(a @ b))(*specs)), Options())
    kernel = whole_kernel(graph)
    sources = [generate(graph, kernel, Config(0, 64, 64, 4, stages, block_keys=64), arch=90) for stages in (3, 1, 4)]
    sources.append(generate(graph, kernel, Config(0, 64, 64, 8, 3, block_keys=64), arch=90))
    ptx = [compiled(graph, kernel, s.config, 90).ptx for s in sources]
    assert different(sources) == (sources if keys > 64 else [sources[0], sources[3]])
    assert (ptx[0] == ptx[1] == ptx[2]) == (keys == 64)
    assert ptx[0] != ptx[3]


def test_sums_in_two_launches_are_never_others_equals():
    specs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 4096), (4096, 4096))]
    graph = optimized_graph(flatten(jax.make_jaxpr(jnp.matmul)(*specs)), Options())
    kernel = whole_kernel(graph)
    sources = [generate(graph, kernel, Config(0, 64, 64, 4, n, block_keys=64, splits=64), arch=90) for n in (3, 4)]
    assert all(s.combine is not None for s in sources)
    assert different(sources) == sources
