"""Kernels of convolutions derived as sums of shifted terms: their stores counted, and compiled at real size."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

import jaxorch
from jaxorch import Options
from jaxorch.frontend.derive import shifted
from jaxorch.frontend.derive.shifted import window_as_features
from jaxorch.frontend.trace import flatten
from jaxorch.ir.graph import Contract
from jaxorch.kernels.configs import configurations
from jaxorch.orchestration.candidates import enumerate_candidates
from jaxorch.orchestration.planner import as_traced
from tests.codegen.drive import agree, interpreted, numpied, program

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def last_layer(x, w, scale, bias):
    """As in networks that make images: a norm and an activation before, a bias and an activation behind."""
    y = jnp.pad(jax.nn.relu(x * scale), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    y = lax.conv_general_dilated(y, w, (1, 1), ((1, 0), (-1, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y + bias)


def derived(f, *arrays):
    trace = flatten(jax.make_jaxpr(f)(*arrays))
    other = window_as_features(trace)
    assert other is not trace
    return lambda *operands: as_traced(other, *operands)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_kernels_of_a_last_layer(axes, dtype, monkeypatch):
    """All that can be made, the terms' product among it, in a configuration each."""
    monkeypatch.setattr(shifted, "_worth_it", lambda shape: axes)
    rng = np.random.default_rng(0)
    shapes = [(1, 7, 9, 8), (3, 5, 8, 3), (8,), (3,)]
    arrays = [np.asarray(rng.standard_normal(s) / 4, dtype) for s in shapes]
    made = program(derived(last_layer, *arrays), *arrays)
    products = [n for n in made.graph.nodes if isinstance(n, Contract)]
    assert [n.array.dtype for n in products] == [F32]
    tolerance = 1e-2 if dtype == F32 else 2e-2  # operands rounded to TF32
    sums = 0
    for found in enumerate_candidates(made.graph).fused:
        kernel = found.kernel
        config = configurations(made.graph, kernel)[0]
        runs = (
            numpied(made.graph, kernel, made.inputs(kernel)),
            interpreted(made.graph, kernel, config, made.inputs(kernel)),
        )
        for value, got in (each for run in runs for each in run.items()):
            agree(got, made.values[value], tolerance)
        sums += kernel.schedule == "pointwise" and made.graph.outputs == tuple(o.value for o in kernel.outputs)
    assert sums


def candy(x, w, bias):
    y = jnp.pad(jax.nn.relu(x), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    return lax.conv_general_dilated(y, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def test_the_last_layer_of_a_network_is_a_product_and_a_sum_without_spills(kernels_win, tmp_path):
    """At 224 x 224: the image is read nine times, not 81, and 27 numbers a pixel are added, nine for each feature."""
    specs = [jax.ShapeDtypeStruct(s, F32) for s in ((1, 224, 224, 32), (9, 9, 32, 3), (3,))]
    options = Options(effort="fast", device="h200", cache_dir=str(tmp_path))
    report = jaxorch.explain(jaxorch.optimize(candy, options=options), *specs)
    assert not report.left
    first, last = report.kernels
    assert (first.schedule, last.schedule) == ("gemm", "pointwise")
    assert "conv_general_dilated" in first.primitives
    assert last.primitives == ("add",)
    assert first.spill_bytes == last.spill_bytes == 0
    terms = 27 * 232 * 224 * 4
    assert last.bytes_moved < 1.1 * (terms + 224 * 224 * 3 * 4)
    assert last.registers <= 64
