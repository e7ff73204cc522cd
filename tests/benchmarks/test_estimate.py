"""Estimates without a device: what the table says of a case whose plan is known."""

import pytest

from benchmarks import estimate
from tests.aot import tools


@pytest.fixture(scope="module")
def h200(tmp_path_factory):
    return tools(tmp_path_factory.mktemp("cuda"))


def test_a_compiled_case(h200):
    row = dict(zip(estimate.COMPILED, estimate.compiled(h200, "groupnorm_silu"), strict=True))
    assert (row["case"], row["kernels"], row["with XLA"], row["failures"]) == ("groupnorm_silu", "1", "0", "0")
    assert float(row["MB"]) == 0
    assert float(row["MB of XLA"]) > 0
    assert float(row["µs of XLA"]) > 2 * float(row["µs"])


def test_a_case_that_xla_keeps_takes_what_it_takes_alone(h200):
    row = dict(zip(estimate.COMPILED, estimate.compiled(h200, "gemm_8192"), strict=True))
    assert (row["kernels"], row["with XLA"]) == ("0", "1")
    assert row["µs"] == row["µs of XLA"]
    assert row["MB"] == row["MB of XLA"]
