"""Compilation in worker processes: results as here, and what becomes of compilers that fail, crash or hang."""

import os
import queue
import time

import pytest

from jaxorch.errors import CompileError
from jaxorch.runtime import workers
from jaxorch.runtime.compile import Compiled, compile_for
from jaxorch.runtime.workers import Workers, compile_all

pytest.importorskip("triton")

SOURCE = """import triton
import triton.language as tl


@triton.jit
def double(in0, out0):
    lane = tl.arange(0, 128)
    tl.store(out0 + lane, tl.load(in0 + lane) * FACTOR)
"""


def request(factor="2", **named):
    types = {"in0": "*fp32", "out0": "*fp32"}
    return (SOURCE.replace("FACTOR", factor), "double", types, {}), {"arch": 90, "num_warps": 4} | named


class Does:
    """Unpickled in the worker, it calls a function there."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_answers_are_those_of_this_process_in_order():
    factors = ("2", "3", "nonsense", "5")
    found = compile_all([request(f) for f in factors])
    for factor, answer in zip(factors, found, strict=True):
        if factor == "nonsense":
            assert isinstance(answer, CompileError)
            assert "nonsense is not defined" in str(answer)
            continue
        args, named = request(factor)
        here = compile_for(*args, **named)
        assert isinstance(answer, Compiled)
        assert (answer.ptx, answer.registers, answer.shared_bytes) == (here.ptx, here.registers, here.shared_bytes)


def test_no_kernels_no_workers():
    assert compile_all([]) == []


def test_a_crash_takes_one_kernel_with_it():
    crashed, compiled = compile_all([request(arch=Does(os._exit, 3)), request()])
    assert isinstance(crashed, CompileError)
    assert "crashed (exit status" in str(crashed)
    assert isinstance(compiled, Compiled)
    assert isinstance(compile_all([request()])[0], Compiled)


def test_a_compiler_that_hangs_is_ended():
    compile_all([request()])  # a worker that has started
    began = time.monotonic()
    (found,) = compile_all([request(arch=Does(time.sleep, 600))], seconds=1)
    assert isinstance(found, CompileError)
    assert "not compiled within 1 s" in str(found)
    assert time.monotonic() - began < 60


def test_workers_are_used_again(monkeypatch):
    compile_all([request()])
    monkeypatch.setattr(workers, "_started", lambda: pytest.fail("another worker was started"))
    assert isinstance(compile_all([request("7")])[0], Compiled)


def test_workers_are_started_ahead_once_each(monkeypatch):
    started = []
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(workers, "_idle", queue.SimpleQueue())
    monkeypatch.setattr(workers, "_ending", [])
    monkeypatch.setattr(workers, "_started", lambda: started.append(object()) or workers._ending.append(started[-1]))
    workers.start()
    assert len(started) == workers._idle.qsize() == 3
    workers.start()
    assert len(started) == 3


def test_kernels_are_begun_before_they_are_asked_for_and_not_after_the_end(monkeypatch):
    monkeypatch.setattr(workers.os, "cpu_count", lambda: 1)
    with Workers() as begun:
        first, *others = begun.begin([request(str(k)) for k in range(20, 25)])
        assert isinstance(first.result(), Compiled)
    assert sum(answer.cancelled() for answer in others) >= len(others) - 1


def test_a_worker_comes_after_the_process_that_waits_for_it(tmp_path):
    told = tmp_path / "nice"
    text = f"__import__('pathlib').Path({str(told)!r}).write_text(str(__import__('os').nice(0)))"
    compile_all([request(arch=Does(eval, text))])
    assert int(told.read_text()) > os.nice(0)
