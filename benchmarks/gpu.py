"""`python -m benchmarks.gpu [arguments of benchmarks]`: the GPU tests, then the benchmarks, in one command.

The tests run in a process of their own, under a time limit and without a skip where no GPU is found. Their result is
printed and does not keep the benchmarks from running.
"""

import os
import subprocess
import sys

from benchmarks.__main__ import main

TEST_SECONDS = 240


def run_tests() -> int:
    """Run `pytest -m gpu`. Returns its exit status; 124 where it did not end in time."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q"]
    try:
        return subprocess.run(
            command, check=False, timeout=TEST_SECONDS, env=os.environ | {"JAXORCH_REQUIRE_GPU": "1"}
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


if __name__ == "__main__":
    tests = run_tests()
    benchmarks = main(sys.argv[1:])
    print(f"pytest -m gpu: exit status {tests}")
    sys.exit(tests or benchmarks)
