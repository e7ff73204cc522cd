"""Options are checked where they are made, and errors say what is valid."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxorch import errors
from jaxorch.errors import JaxorchError, JaxorchWarning, OptionError
from jaxorch.options import Options, cache_dir, disabled
from jaxorch.target import DEFAULT_DEVICE, Target, detect, device_table


def test_defaults() -> None:
    assert dataclasses.asdict(Options()) == {
        "backend": "auto",
        "fallback": "xla",
        "effort": "default",
        "device": None,
        "export": "xla",
        "cache_dir": None,
        "verbose": False,
        "memory_limit": None,
        "memory_weight": 0.0,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("backend", value) for value in ("auto", "xla", "interpret", "triton")],
        *[("fallback", value) for value in ("xla", "error")],
        *[("effort", value) for value in ("fast", "default", "max")],
        *[("export", value) for value in ("xla", "kernels")],
        ("device", "h200"),
        ("cache_dir", "/somewhere"),
        ("verbose", True),
        ("memory_limit", 0),
        ("memory_weight", 2),
    ],
)
def test_valid_values(field: str, value: Any) -> None:
    assert getattr(Options(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("backend", "cuda", "'auto', 'xla', 'interpret', 'triton'"),
        ("backend", None, "'auto', 'xla', 'interpret', 'triton'"),
        ("fallback", "warn", "'xla', 'error'"),
        ("effort", 3, "'fast', 'default', 'max'"),
        ("export", ["xla"], "'xla', 'kernels'"),
        ("device", "", "None or a non-empty string"),
        ("device", 5, "None or a non-empty string"),
        ("cache_dir", Path("/somewhere"), "None or a non-empty string"),
        ("verbose", "yes", "True or False"),
        ("verbose", 1, "True or False"),
        ("memory_limit", -1, "None or a number of bytes, 0 or more"),
        ("memory_limit", True, "None or a number of bytes, 0 or more"),
        ("memory_limit", 1e9, "None or a number of bytes, 0 or more"),
        ("memory_weight", float("inf"), "a number of microseconds a megabyte, 0 or more"),
        ("memory_weight", None, "a number of microseconds a megabyte, 0 or more"),
    ],
)
def test_an_invalid_value_is_named_with_the_valid_ones(field: str, value: Any, valid: str) -> None:
    with pytest.raises(OptionError) as raised:
        Options(**{field: value})
    assert all(part in str(raised.value) for part in (field, repr(value), valid))


def test_an_unknown_option_is_named_with_the_valid_ones() -> None:
    with pytest.raises(OptionError, match=r"no option 'backnd'; the options are backend, fallback, .*verbose"):
        Options(backnd="triton")  # pyright: ignore[reportCallIssue]
    with pytest.raises(OptionError, match="only 9 options"):
        Options("auto", "xla", "fast", None, "xla", None, False, None, 0.0, "more")  # pyright: ignore[reportCallIssue]


def test_options_are_frozen_and_compare_by_value() -> None:
    options = Options(backend="triton")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.backend = "xla"  # pyright: ignore[reportAttributeAccessIssue]
    assert {options: 1}[Options(backend="triton")] == 1
    assert options != Options()


def test_options_may_be_copied_replaced_and_pickled() -> None:
    options = Options(device="h100", verbose=True)
    assert copy.copy(options) == copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options
    assert dataclasses.replace(options, effort="max") == Options(device="h100", verbose=True, effort="max")
    with pytest.raises(OptionError, match="effort"):
        dataclasses.replace(options, effort="min")


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("true", True), ("0", False), ("", False), (None, False)])
def test_disable_variable(text: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAXORCH_DISABLE", raising=False)
    if text is not None:
        monkeypatch.setenv("JAXORCH_DISABLE", text)
    assert disabled() is expected


def test_disable_variable_that_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXORCH_DISABLE", "maybe")
    with pytest.raises(OptionError, match="JAXORCH_DISABLE='maybe'"):
        disabled()


def test_cache_dir_is_the_variable_then_the_option_then_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXORCH_CACHE_DIR", "/from/variable")
    assert cache_dir(Options(cache_dir="/from/option")) == Path("/from/variable")
    monkeypatch.delenv("JAXORCH_CACHE_DIR")
    assert cache_dir(Options(cache_dir="/from/option")) == Path("/from/option")
    assert cache_dir(Options()).name == "jaxorch"
    assert cache_dir(Options(cache_dir="~/plans")) == Path.home() / "plans"


def test_every_error_is_a_jaxorch_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__ for kind in kinds if not issubclass(kind, JaxorchError)} == {"JaxorchWarning"}
    assert len(kinds) == 10
    assert issubclass(OptionError, ValueError)
    assert issubclass(JaxorchWarning, UserWarning)


# What is planned for


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GH200 480GB", "generic"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "generic"),
        ("NVIDIA GeForce RTX 4090", "generic"),
    ],
)
def test_device_table_of_a_gpu(kind: str, table: str) -> None:
    assert device_table(kind) == table


class Gpu:
    device_kind = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The local GPUs, as JAX would name them."""
    found: list[Gpu] = []

    def local_devices(*, backend: str) -> list[Gpu]:
        if not found:
            raise RuntimeError(f"Unknown backend {backend}")
        return found

    monkeypatch.setattr(jax, "local_devices", local_devices)
    return found


def test_target_without_a_gpu(gpus: list[Gpu]) -> None:
    assert gpus == []
    assert detect("cuda", Options()) == Target("cuda", DEFAULT_DEVICE, live=False)
    assert detect("cuda", Options(device="a100")) == Target("cuda", "a100", live=False)
    assert detect("cpu", Options()) == Target("cpu", DEFAULT_DEVICE, live=False)


def test_target_with_a_gpu(gpus: list[Gpu]) -> None:
    gpus.append(Gpu())
    assert detect("cuda", Options()) == Target("cuda", "h100", live=True)
    assert detect("cuda", Options(device="h100")) == Target("cuda", "h100", live=True)
    assert detect("cuda", Options(device="h200")) == Target("cuda", "h200", live=False)
    assert not detect("cpu", Options()).live
