"""Writing files atomically, and fingerprints of the contents of files and folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from gtpo._text import well_formed

_CHUNK_BYTES = 1 << 22
_PARTIAL = ".partial"
_SETTLED_NS = 2_000_000_000
"""A file written in this time may be written again without its time stamp showing it."""
_hashes: dict[tuple[object, ...], str] = {}


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of text in UTF-8; lone surrogates are replaced."""
    write_bytes(path, well_formed(text).encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that no reader sees half of it; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def sweep_partial(folder: str | Path) -> None:
    """Delete partial files that killed processes left here. No other process may be writing."""
    for path in Path(folder).glob(f".*{_PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def partial_folder(path: str | Path) -> Path:
    """Where a folder is written before `replace_folder` moves it into place; a kill may have left one there."""
    path = Path(path)
    return path.with_name(f".{path.name}{_PARTIAL}")


def replace_folder(path: str | Path, written: str | Path) -> None:
    """Move a folder into place, replacing one that is already there."""
    path = Path(path)
    former = path.with_name(f".{path.name}.former{_PARTIAL}")
    shutil.rmtree(former, ignore_errors=True)
    if path.exists():
        path.rename(former)
    Path(written).rename(path)
    shutil.rmtree(former, ignore_errors=True)


def fingerprint(path: str | Path) -> str | None:
    """A fingerprint of the contents of a file or folder, independent of its path and modification time.

    For a folder, such as a model's, the names and contents of the files directly in it count, except README.md. A file
    is read once per process, unless its inode, size or times change.

    Returns:
        16 hexadecimal digits; None if there is no such file or folder, as for the name of a model on the Hub.
    """
    if not path:
        return None
    if os.path.isfile(path):  # unlike Path.is_file, False for what is too long to be a path
        return content_hash(Path(path))[:16]
    if not os.path.isdir(path):
        return None
    files = sorted(file for file in Path(path).iterdir() if file.is_file() and file.name != "README.md")
    return hashlib.sha256(json.dumps([[file.name, content_hash(file)] for file in files]).encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, read once per process unless its inode, size or times change.

    Raises:
        OSError: the file can't be read.
    """
    stat = path.stat()
    key = (path.absolute(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if (known := _hashes.get(key)) is not None:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
        _hashes[key] = digest.hexdigest()
    return digest.hexdigest()
