"""The test session's environment: set before JAX is imported, the same on a laptop, in CI and beside a GPU."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

GPU_DRIVER = Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()
REQUIRE_GPU = os.environ.get("JAXORCH_REQUIRE_GPU", "") not in ("", "0")
HOST_DEVICES = "--xla_force_host_platform_device_count"


def _set_environment() -> str:
    """JAX reads these when it is first imported, so this runs when pytest loads this file."""
    if not GPU_DRIVER:
        # Without it JAX tries the CUDA plugin, which is installed for lowering, and logs that it cannot start.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if HOST_DEVICES not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {HOST_DEVICES}=4".strip()  # for shard_map on the CPU
    os.environ["JAXORCH_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxorch-tests-")
    return os.environ["JAXORCH_CACHE_DIR"]


CACHE_DIR = _set_environment()
_tests = itertools.count()

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE_DIR, ignore_errors=True)


@pytest.fixture
def kernels_win(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a kernel can do is done by kernels, however small; no program is remembered from before, or afterwards."""
    from jaxorch import primitive
    from jaxorch.ir.graph import Opaque
    from jaxorch.orchestration import choice

    left_time = choice.left_time

    def slow(graph: Any, left: Any, device: Any) -> float:
        time = left_time(graph, left, device)
        return time + 1e6 * (time > 0 and not any(isinstance(graph.nodes[n], Opaque) for n in left.nodes))

    monkeypatch.setattr(choice, "left_time", slow)
    primitive.clear()
    yield
    primitive.clear()


def _cuda_missing() -> str | None:
    """Why no CUDA device can be used, or None where one can."""
    if not GPU_DRIVER:
        return "no NVIDIA driver on this machine"
    import jax

    try:
        return None if jax.devices("cuda") else "JAX sees no CUDA device"
    except RuntimeError as err:
        return f"JAX cannot use CUDA: {err}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A store of its own for each test: costs and compilers are replaced in some, and plans are remembered.
    os.environ["JAXORCH_CACHE_DIR"] = f"{CACHE_DIR}/{next(_tests)}"
    if item.get_closest_marker("gpu") is None:
        return
    reason = _cuda_missing()
    if reason is None:
        return
    if REQUIRE_GPU:
        pytest.fail(f"JAXORCH_REQUIRE_GPU=1, but {reason}")
    pytest.skip(f"needs a CUDA device: {reason}")
