"""One thread, and one process, at a time has the device to itself."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import jax
import pytest

from jaxorch.orchestration import alone as module
from jaxorch.orchestration.alone import alone, own_time

HOLDS = """
import sys, time
from pathlib import Path
from jaxorch.orchestration.alone import _locked
path = Path(sys.argv[1])
with _locked(path):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    path.with_suffix(".left").touch()
"""


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """As where there is a GPU, with the file in a folder of its own."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def holder(path, seconds):
    """A process that is in, once this returns."""
    command = [sys.executable, "-c", HOLDS, str(path), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_another_process_is_waited_for_on_a_clock_that_stands_still(on_gpu):
    before, start = own_time(), time.monotonic()
    with holder(module._path(), 1.0), alone():
        assert module._path().with_suffix(".left").exists()
        waited = time.monotonic() - start - (own_time() - before)
        assert 0 < waited < time.monotonic() - start
    assert own_time() - before < time.monotonic() - start


def test_one_that_is_killed_lets_the_next_in(on_gpu):
    with holder(module._path(), 600) as other:
        other.kill()
        with alone():
            assert other.wait(5) != 0


def test_threads_take_turns_and_one_may_nest(on_gpu):
    inside, most = [], []

    def run():
        with alone(), alone():
            inside.append(0)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 8


def test_what_is_raised_inside_unlocks(on_gpu):
    with pytest.raises(KeyboardInterrupt), alone():
        raise KeyboardInterrupt
    with holder(module._path(), 0) as other:
        assert other.wait(5) == 0


def test_the_file_is_of_the_first_device_that_is_seen(on_gpu, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    every = module._path()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert module._path() == every
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert module._path() != every
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8/../x/1")
    assert module._path().parent == on_gpu


def test_a_file_of_another_users_serves(on_gpu):
    module._path().touch(0o444)
    with module._path().open() as file, alone(), pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_forked_inside_does_not_keep_it(on_gpu):
    with alone():
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        (own,) = [d for d in descriptors if os.path.realpath(f"/proc/self/fd/{d}") == str(module._path())]
        held = os.dup(own)  # as a fork has it
    with module._path().open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)


@pytest.mark.parametrize("what", ["folder", "locks"])
def test_where_no_file_can_be_locked_the_device_is_had_all_the_same(on_gpu, monkeypatch, what):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "no locks")

    if what == "folder":
        monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(on_gpu / "missing"))
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    with alone():
        pass
    with pytest.raises(ZeroDivisionError), alone():
        raise ZeroDivisionError


def test_without_a_gpu_no_file_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    with alone():
        assert not os.listdir(tmp_path)
