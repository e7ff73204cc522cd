"""Device tables: what was measured is in them, the rest is in proportion, a wrong name is answered with the names."""

import dataclasses

import pytest

from jaxorch.errors import OptionError
from jaxorch.orchestration.devices import DEVICES, Device, device
from jaxorch.target import DEFAULT_DEVICE, GENERIC_DEVICE, device_table


def test_measured_rates_of_the_h200():
    table = device("h200")
    assert table.memory_bandwidth == 4.3e12
    assert table.flops["bfloat16"] == pytest.approx(790e12)
    assert table.flops["float32"] == pytest.approx(371e12)
    assert (table.launch_s, table.xla_launch_s) == (1.74e-6, 1.24e-6)


def test_other_memories_are_scaled_as_the_measured_one():
    assert device("h100").memory_bandwidth == pytest.approx(3.35e12 * 4.3 / 4.8)
    assert device("a100").memory_bandwidth == pytest.approx(2.039e12 * 4.3 / 4.8)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_tables_are_plausible(name):
    table = device(name)
    assert table.name == name
    assert table.memory_bandwidth < table.l2_bandwidth < 2e13
    assert 2**20 < table.l2_bytes < 2**27
    assert 48 * 1024 < table.shared_per_block <= 227 * 1024
    assert table.vector_flops < table.flops["float32"] < table.flops["bfloat16"] < 1e15
    assert table.xla_launch_s < table.launch_s < 1e-5


def test_a_dtype_without_matrix_unit_runs_on_the_vector_units():
    a100 = device("a100")
    assert a100.matmul_flops("bfloat16") == a100.flops["bfloat16"]
    assert a100.matmul_flops("float8_e4m3fn") == a100.vector_flops


def test_tables_are_constant_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        device("h200").sms = 1
    with pytest.raises(TypeError):
        device("h200").flops["bfloat16"] = 1.0
    assert len(set(DEVICES.values())) == len(DEVICES)
    assert isinstance(device("generic"), Device)


def test_every_name_a_target_may_carry_has_a_table():
    kinds = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L4"]
    for name in (DEFAULT_DEVICE, GENERIC_DEVICE, *(device_table(kind) for kind in kinds)):
        assert device(name).name == name


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"no device table 'h300'.*a100, generic, h100, h200"):
        device("h300")
