"""Files of a store: what comes out is what went in, and nothing damaged is taken."""

import subprocess
import sys
import zipfile

import pytest

from jaxorch.cli import main
from jaxorch.errors import StoreError
from jaxorch.runtime.bundle import pack, unpack
from jaxorch.runtime.store import Store

RECORDS = {("plan", "a1"): {"x": 1.5}, ("config", "b2"): {"y": [1, 2]}, ("kernel", "a3"): {"ptx": "…"}}


@pytest.fixture(autouse=True)
def own_folder(monkeypatch):
    monkeypatch.delenv("JAXORCH_CACHE_DIR", raising=False)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    for (kind, key), record in RECORDS.items():
        store.put(kind, key, record)
    return store


def held(store):
    return {name: store.get(*name) for name in store.names()}


def test_all_records_go_from_one_store_to_another(store, tmp_path):
    assert pack(store, tmp_path / "all.zip") == 3
    other = Store(tmp_path / "other")
    assert unpack(other, tmp_path / "all.zip") == (3, 0)
    assert held(other) == RECORDS
    assert unpack(other, tmp_path / "all.zip") == (0, 0)


def test_the_same_records_make_the_same_file(store, tmp_path):
    pack(store, tmp_path / "1.zip")
    unpack(other := Store(tmp_path / "other"), tmp_path / "1.zip")
    pack(other, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_some_kinds_alone(store, tmp_path):
    assert pack(store, tmp_path / "some.zip", ["config", "kernel"]) == 2
    unpack(other := Store(tmp_path / "other"), tmp_path / "some.zip")
    assert sorted(kind for kind, _ in other.names()) == ["config", "kernel"]


def test_what_a_store_has_stays(store, tmp_path):
    pack(store, tmp_path / "all.zip")
    store.put("plan", "a1", {"x": 2})
    assert unpack(store, tmp_path / "all.zip") == (0, 0)
    assert store.get("plan", "a1") == {"x": 2}


def test_records_of_a_store_that_cannot_be_written_are_packed_too(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot write"):
        store.put("plan", "a1", {"x": 1})
    assert pack(store, tmp_path / "all.zip") == 1


def test_damaged_and_foreign_records_are_refused(store, tmp_path):
    pack(store, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        content = good.read("plan/a1.json")
        bad.writestr("plan/a1.json", content.replace(b"1.5", b"2.5"))
        bad.writestr("plan/b1.json", content)  # another key's
        bad.writestr("../escaped.json", content)
        bad.writestr("plan/../../escaped.json", content)
        bad.writestr("readme.txt", b"hello")
        bad.writestr("config/b2.json", good.read("config/b2.json"))
    other = Store(tmp_path / "other")
    assert unpack(other, tmp_path / "bad.zip") == (1, 5)
    assert other.names() == [("config", "b2")]
    assert not list(tmp_path.rglob("escaped*"))


def test_a_damaged_record_is_not_packed(store, tmp_path):
    (path,) = (tmp_path / "store").glob("plan/*/a1.json")
    path.write_text("{}")
    assert pack(store, tmp_path / "all.zip") == 2


def test_files_that_are_no_bundles_are_named(store, tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreError, match="text cannot be read"):
        unpack(store, tmp_path / "text")
    with pytest.raises(StoreError, match="absent cannot be read"):
        unpack(store, tmp_path / "absent")
    with pytest.raises(StoreError, match="cannot be written"):
        pack(store, tmp_path / "no folder" / "all.zip")


def test_the_command_line(store, tmp_path, capsys):
    first, second = (["--cache-dir", str(tmp_path / name)] for name in ("store", "second"))
    file = str(tmp_path / "all.zip")
    assert main([*first, "export", file]) == 0
    assert "3 records" in capsys.readouterr().out
    assert main([*second, "import", file]) == 0
    assert "3 new records" in capsys.readouterr().out
    assert main([*second, "store"]) == 0
    assert "plan: 1" in capsys.readouterr().out
    assert main([*second, "import", str(tmp_path / "absent")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert held(Store(tmp_path / "second")) == RECORDS


def test_it_is_a_module_and_imports_no_triton():
    code = "import runpy, sys; sys.argv = ['jaxorch', '--help']\ntry: runpy.run_module('jaxorch', run_name='__main__')"
    code += "\nexcept SystemExit as end: assert end.code == 0\nassert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout
