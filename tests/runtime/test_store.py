"""Records come back as they were put, or not at all."""

import concurrent.futures
import json
import multiprocessing
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from jaxorch.errors import JaxorchWarning, StoreError
from jaxorch.runtime.store import Store

KEY = "0123456789abcdef"
RECORD = {"kernels": [1, 2.5, "three"], "nested": {"none": None, "true": True}}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def path_of(folder: Path, kind: str = "plan", key: str = KEY) -> Path:
    (found,) = folder.glob(f"{kind}/*/{key}.json")
    return found


def test_whether_there_is_a_record_is_told_without_reading_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has("plan", "a")
    store.put("plan", "a", {"x": 1})
    assert store.has("plan", "a")
    assert not store.has("config", "a")
    (file,) = tmp_path.glob("plan/*/a.json")
    file.write_text("damaged")
    assert store.has("plan", "a")
    assert store.get("plan", "a") is None
    assert not store.has("plan", "a")
    blocked = tmp_path / "file"
    blocked.touch()
    kept = Store(blocked)
    with pytest.warns(JaxorchWarning):
        kept.put("plan", "a", {"x": 1})
    assert kept.has("plan", "a")
    with pytest.raises(StoreError):
        kept.has("plan", "../a")


def test_absent(tmp_path: Path) -> None:
    store = Store(tmp_path / "not yet there")
    assert store.get("plan", KEY) is None
    assert store.problems == ()
    assert not (tmp_path / "not yet there").exists()


def test_a_record_is_read_by_another_store(tmp_path: Path) -> None:
    Store(tmp_path).put("plan", KEY, RECORD)
    assert Store(tmp_path).get("plan", KEY) == RECORD
    assert Store(tmp_path).get("timing", KEY) is None


@settings(max_examples=40)
@given(record=st.dictionaries(st.text(), values, max_size=4))
def test_json_values_come_back(record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    Store(folder).put("any", KEY, record)
    assert Store(folder).get("any", KEY) == record


def test_a_record_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("plan", KEY, RECORD)
    store.put("plan", KEY, {"new": 1})
    assert store.get("plan", KEY) == {"new": 1}


def test_infinite_costs_come_back(tmp_path: Path) -> None:
    Store(tmp_path).put("timing", KEY, {"cost": float("inf")})
    assert Store(tmp_path).get("timing", KEY) == {"cost": float("inf")}


def test_no_partial_files_are_left(tmp_path: Path) -> None:
    Store(tmp_path).put("plan", KEY, RECORD)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{KEY}.json"]


def damage(content: bytes) -> list[bytes]:
    changed = content.replace(b"three", b"threw")
    version = json.dumps(json.loads(content) | {"version": 0}).encode()
    no_record = json.dumps({"version": 1}).encode()
    return [b"", content[:-10], changed, version, no_record, b"[]", b"null", b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("case", range(9))
def test_what_cannot_be_trusted_is_deleted_and_noted(tmp_path: Path, case: int) -> None:
    store = Store(tmp_path)
    store.put("plan", KEY, RECORD)
    path = path_of(tmp_path)
    path.write_bytes(damage(path.read_bytes())[case])
    assert store.get("plan", KEY) is None
    assert not path.exists()
    (problem,) = store.problems
    assert str(path) in problem
    assert "ignored and deleted" in problem
    store.put("plan", KEY, RECORD)
    assert store.get("plan", KEY) == RECORD


def test_a_record_moved_to_another_key_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("plan", KEY, RECORD)
    path = path_of(tmp_path)
    path.rename(path.with_name("01abc.json"))
    assert store.get("plan", "01abc") is None
    assert "checksum" in store.problems[0]


@pytest.fixture(params=["file in the way", "read-only"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "file in the way":
        (tmp_path / "file").write_text("")
        return tmp_path / "file" / "cache"

    def refuse(**_: object) -> None:  # permissions would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    return tmp_path / "cache"


def test_an_unwritable_folder_warns_once_and_keeps_records_in_memory(unwritable: Path) -> None:
    store = Store(unwritable)
    with pytest.warns(JaxorchWarning, match="JAXORCH_CACHE_DIR") as caught:
        store.put("plan", KEY, RECORD)
        store.put("plan", "another", {"a": (1, 2)})
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get("plan", KEY) == RECORD
        assert store.get("plan", "another") == {"a": [1, 2]}
        assert store.get("plan", "unknown") is None
    assert sum("kept in memory" in problem for problem in store.problems) == 2


def test_a_full_disk_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.put("plan", KEY, RECORD)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(JaxorchWarning, match="No space left"):
        store.put("plan", KEY, {"new": 1})
    assert store.get("plan", KEY) == {"new": 1}
    assert Store(tmp_path).get("plan", KEY) == RECORD
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 129, "C:x"])
def test_names_that_are_not_plain_are_refused(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    for kind, key in ((name, KEY), ("plan", name)):
        with pytest.raises(StoreError, match="cannot name a record"):
            store.put(kind, key, {})
        with pytest.raises(StoreError, match="cannot name a record"):
            store.get(kind, key)


def test_a_record_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'plan' holds what JSON cannot express") as caught:
        Store(tmp_path).put("plan", KEY, {"a": {1, 2}})
    assert isinstance(caught.value.__cause__, TypeError)
    assert not list(tmp_path.iterdir())


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().folder.name == "jaxorch"


def write_many(folder: Path, writer: int, count: int) -> int:
    store = Store(folder)
    for number in range(count):
        store.put("plan", KEY, {"writer": writer, "number": number, "padding": "x" * 20_000})
        record = store.get("plan", KEY)
        assert record is not None
        assert len(record["padding"]) == 20_000
    return len(store.problems)


@pytest.mark.parametrize("pool", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_concurrent_writers_never_show_half_a_record(tmp_path: Path, pool: str) -> None:
    if pool == "threads":
        executor: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(4)
    else:
        # Not fork: the parent has JAX's threads.
        executor = concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    with executor:
        results = [executor.submit(write_many, tmp_path, writer, 20) for writer in range(2)]
        assert [result.result() for result in results] == [0, 0]
    assert Store(tmp_path).get("plan", KEY) is not None
