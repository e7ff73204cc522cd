"""Records on disk, keyed by content digests: plans, timings, compiled kernels.

A record is one JSON file with the version of this format and a checksum. It is written whole or not at all, so
processes may share a folder. What cannot be trusted is not used: a damaged or foreign file is deleted, noted in
`Store.problems`, and reads as absent. Where the folder cannot be written the store warns once and keeps records in
memory.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import platformdirs

from jaxorch.errors import JaxorchWarning, StoreError

VERSION = 1
"""Of the file format; a record of another version is foreign."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Store:
    """Reads and writes records under `folder`; None is the user's cache directory. Safe to share between threads."""

    def __init__(self, folder: Path | None = None):
        self.folder = platformdirs.user_cache_path("jaxorch", appauthor=False) if folder is None else folder
        self._memory: dict[tuple[str, str], str] = {}
        self._problems: list[str] = []
        self._warned = False
        self._lock = threading.Lock()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why records were not read or not written to disk, in order."""
        return tuple(self._problems)

    def get(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """The record of `key` among those of `kind`, or None. JSON's types: a tuple that was put comes back as a list.

        Raises:
            StoreError: `kind` or `key` is not a plain file name.
        """
        path = self._path(kind, key)
        with self._lock:
            kept = self._memory.get((kind, key))
        if kept is not None:
            return json.loads(kept)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            self._note(f"{path}: cannot be read: {err}")
            return None
        try:
            return _decode(content, kind, key)
        except (ValueError, RecursionError) as err:
            self._note(f"{path}: ignored and deleted: {err}")
            self._delete(path)
            return None

    def has(self, kind: str, key: str) -> bool:
        """Whether there is a record, sound or not: it is not read.

        Raises:
            StoreError: `kind` or `key` is not a plain file name.
        """
        path = self._path(kind, key)
        with self._lock:
            kept = (kind, key) in self._memory
        return kept or path.exists()

    def put(self, kind: str, key: str, record: Mapping[str, Any]) -> None:
        """Writes `record`, replacing an earlier one.

        Raises:
            StoreError: the record is not made of JSON's types, or `kind` or `key` is not a plain file name.
        """
        path = self._path(kind, key)
        try:
            text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError) as err:
            raise StoreError(f"A record of {kind!r} holds what JSON cannot express: {err}.") from err
        try:
            _write(path, _encode(text, kind, key))
        except OSError as err:
            self._keep_in_memory(kind, key, text, err)
        else:
            with self._lock:
                self._memory.pop((kind, key), None)

    def names(self) -> list[tuple[str, str]]:
        """Kind and key of every record, in order."""
        on_disk = ((path.parent.parent.name, path.stem) for path in self.folder.glob("*/*/*.json"))
        with self._lock:
            return sorted({*on_disk, *self._memory})

    def encoded(self, kind: str, key: str) -> bytes | None:
        """A record as its file holds it; None if it is not there or not sound."""
        record = self.get(kind, key)
        if record is None:
            return None
        return _encode(json.dumps(record, sort_keys=True, separators=(",", ":")), kind, key)

    def take(self, kind: str, key: str, content: bytes) -> bool:
        """Puts a record that `encoded` gave, unless there is one already; whether there was none.

        Raises:
            StoreError: `kind` or `key` is not a plain file name.
            ValueError: the content is damaged, or another record's.
        """
        self._path(kind, key)
        record = _decode(content, kind, key)
        if self.get(kind, key) is not None:
            return False
        self.put(kind, key, record)
        return True

    def _path(self, kind: str, key: str) -> Path:
        for name in (kind, key):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"{name!r} cannot name a record: expected letters, digits, '.', '_', '-', at most 128."
                )
        # Two levels, so that no folder grows to a hundred thousand files.
        return self.folder / kind / key[:2] / f"{key}.json"

    def _keep_in_memory(self, kind: str, key: str, text: str, err: OSError) -> None:
        with self._lock:
            self._memory[kind, key] = text
            first, self._warned = not self._warned, True
        self._note(f"{self.folder}: {kind}/{key} is kept in memory: {err}")
        if first:
            warnings.warn(
                f"jaxorch cannot write to {self.folder} ({err}); what it finds lasts for this process only. Set "
                "JAXORCH_CACHE_DIR or Options(cache_dir=...) to a folder that can be written.",
                JaxorchWarning,
                stacklevel=3,
            )

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            self._note(f"{path}: cannot be deleted: {err}")

    def _note(self, problem: str) -> None:
        with self._lock:
            self._problems.append(problem)


def _checksum(text: str, kind: str, key: str) -> str:
    return hashlib.sha256(f"{VERSION}\0{kind}\0{key}\0{text}".encode()).hexdigest()


def _encode(text: str, kind: str, key: str) -> bytes:
    # The record is a string inside: the checksum is of its very text, whatever a JSON reader does to floats.
    frame = {"version": VERSION, "checksum": _checksum(text, kind, key), "record": text}
    return json.dumps(frame).encode()


def _decode(content: bytes, kind: str, key: str) -> Mapping[str, Any]:
    frame: object = json.loads(content)
    if not isinstance(frame, dict):
        raise ValueError("not a record")
    fields = cast(dict[str, object], frame)
    if fields.get("version") != VERSION:
        raise ValueError(f"format version {fields.get('version')!r}, expected {VERSION}")
    text = fields.get("record")
    if not isinstance(text, str) or fields.get("checksum") != _checksum(text, kind, key):
        raise ValueError("the checksum does not match")
    return json.loads(text)


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:  # also on ctrl-C: no half-written file stays behind
        Path(name).unlink(missing_ok=True)
        raise
