"""A store's records as one file, to ship with an application or to keep between runs of CI.

Input: a store.  Output: a zip file of its records, the same bytes for the same records; or what such a file holds, put
into a store.  Invariant: what is taken from a file was whole and of this format; nothing that a store has is replaced.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

from jaxorch.errors import StoreError
from jaxorch.runtime.store import Store

__all__ = ["pack", "unpack"]

_MOST_BYTES = 1 << 28
"""Of one record, unpacked."""


def pack(store: Store, file: Path, kinds: Collection[str] = ()) -> int:
    """Writes all sound records, or those of some kinds, to `file`; returns how many.

    Raises:
        StoreError: the file cannot be written.
    """
    records = [(kind, key) for kind, key in store.names() if not kinds or kind in kinds]
    count = 0
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            for kind, key in records:
                content = store.encoded(kind, key)
                if content is not None:
                    # a time of its own would make two exports of the same records differ
                    bundle.writestr(zipfile.ZipInfo(f"{kind}/{key}.json"), content, zipfile.ZIP_DEFLATED)
                    count += 1
    except OSError as err:
        raise StoreError(f"{file} cannot be written: {err}.") from err
    return count


def unpack(store: Store, file: Path) -> tuple[int, int]:
    """Puts the records of `file` into the store; returns how many were new, and how many were refused.

    Raises:
        StoreError: the file cannot be read, or is none that `pack` wrote.
    """
    new = refused = 0
    try:
        with zipfile.ZipFile(file) as bundle:
            for entry in bundle.infolist():
                kind, _, name = entry.filename.partition("/")
                content = bundle.read(entry) if entry.file_size <= _MOST_BYTES else b""
                try:
                    new += store.take(kind, name.removesuffix(".json"), content)
                except (StoreError, ValueError):
                    refused += 1
    except (OSError, zipfile.BadZipFile, EOFError) as err:
        raise StoreError(
            f"{file} cannot be read: {err}; expected a file that `python -m jaxorch export` wrote."
        ) from err
    return new, refused
