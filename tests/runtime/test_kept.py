"""Kernels that are kept: read instead of compiled, and handed to jax-triton as they were compiled."""

import json

import pytest

from jaxorch.errors import CompileError
from jaxorch.runtime import kept as module
from jaxorch.runtime.kept import KIND, compiled
from jaxorch.runtime.store import Store
from tests.runtime.test_workers import request

pytest.importorskip("triton")


def asked(factor="2", **named):
    return request(factor, num_stages=1, **named)


def refuse(*args, **named):
    raise CompileError("asked to compile")


def described(made):
    return made.ptx, made.ttir, made.entry, made.registers, made.spill_bytes, made.shared_bytes, made.scratch


def test_another_process_reads_what_one_compiled(tmp_path, monkeypatch):
    first = compiled(asked(), Store(tmp_path))
    assert first.entry == "double"
    assert ".entry double" in first.ptx
    assert "tt.store" in first.ttir
    monkeypatch.setattr(module, "compile_for", refuse)
    again = compiled(asked(), Store(tmp_path))
    assert described(again) == described(first)


@pytest.mark.parametrize("other", [asked("3"), asked(arch=80), asked(num_warps=8)])
def test_what_differs_is_another_kernel(tmp_path, monkeypatch, other):
    compiled(asked(), Store(tmp_path))
    monkeypatch.setattr(module, "compile_for", refuse)
    with pytest.raises(CompileError, match="asked to compile"):
        compiled(other, Store(tmp_path))


def test_a_kernel_that_does_not_compile_is_not_kept(tmp_path):
    with pytest.raises(CompileError, match="nonsense is not defined"):
        compiled(asked("nonsense"), Store(tmp_path))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("damage", [{"scratch": 7}, {"ptx": None}, {"registers": "many"}, None])
def test_a_record_of_another_form_is_compiled_anew(tmp_path, damage):
    store = Store(tmp_path)
    first = compiled(asked(), store)
    (path,) = tmp_path.glob(f"{KIND}/*/*.json")
    record = json.loads(json.loads(path.read_text())["record"])
    if damage is None:
        del record["ttir"]
    store.put(KIND, path.stem, record | (damage or {}))
    assert described(compiled(asked(), Store(tmp_path))) == described(first)
