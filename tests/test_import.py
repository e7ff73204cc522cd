"""Importing jaxorch is cheap and changes nothing."""

import subprocess
import sys

import pytest

import jaxorch

PROBE = """
import sys
import jaxorch
from jax._src import xla_bridge
heavy = ["triton", "jax_triton", "pulp", "highspy", "flax", "torch", "matplotlib"]
print("loaded:", *[name for name in heavy if name in sys.modules])
print("backends:", xla_bridge.backends_are_initialized())
"""


@pytest.fixture(scope="module")
def probe() -> str:
    return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_compiler_or_solver(probe: str) -> None:
    assert probe.splitlines()[0] == "loaded:"


def test_import_initialises_no_backend(probe: str) -> None:
    assert probe.splitlines()[1] == "backends: False"


def test_import_prints_nothing(probe: str) -> None:
    assert len(probe.splitlines()) == 2


def test_public_names_exist() -> None:
    missing = [name for name in jaxorch.__all__ if name not in vars(jaxorch)]
    assert not missing
    assert {"optimize", "explain", "Options", "JaxorchError", "JaxorchWarning"} <= set(jaxorch.__all__)


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert jaxorch.__version__ == version("jaxorch")
