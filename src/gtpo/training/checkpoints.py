"""Checkpoints that are used only if they are whole.

A checkpoint is sealed by `manifest.json`, which is written last and lists every file with its size and hash. A
checkpoint without a manifest is unfinished, as after a kill; one whose files differ from it is damaged. Both are
skipped with a message.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gtpo._files import content_hash, write_text
from gtpo.errors import ConfigError, RecordError

MANIFEST = "manifest.json"
DAMAGED = "damaged-"
_NAME = re.compile(r"checkpoint-([0-9]+)")
_THREADS = 4
_PARTS: Mapping[str, Sequence[str]] = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "random generator": ("rng_state*",),
    "state of the trainer": ("trainer_state.json",),
}
"""What a run needs to resume exactly, by the names that transformers, FSDP and DeepSpeed use."""
_KEPT_ROLLING = 2
_FULL_BYTES = 1 << 20
_WRITE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOENT, errno.EACCES}
_WRITE_WORDS = ("PytorchStreamWriter", "inline_container", "basic_ios", "os error")
"""Parts of the messages of torch, safetensors and tokenizers about a failed write that is not an OSError."""


def step_of(checkpoint: str | Path) -> int:
    """The step of a checkpoint, by its name."""
    match = _NAME.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint} is not a checkpoint")
    return int(match[1])


def seal(checkpoint: str | Path, *, rolling: bool = False) -> None:
    """Write the manifest, once everything else is on disk.

    Args:
        checkpoint: the folder.
        rolling: whether it was saved because of time or a signal; later checkpoints replace such a checkpoint.

    Raises:
        OSError: a file could not be written to disk.
    """
    folder = Path(checkpoint)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(pool.map(lambda file: (str(file.relative_to(folder)), _synced(file)), _files(folder)))
    for place in {folder, *(file.parent for file in _files(folder))}:
        _sync(place)
    write_text(folder / MANIFEST, json.dumps({"rolling": rolling, "files": found}, indent=1) + "\n")
    _sync(folder / MANIFEST)
    _sync(folder)


def unseal(checkpoint: str | Path) -> None:
    """Remove the manifest, before anything in the folder is changed."""
    (Path(checkpoint) / MANIFEST).unlink(missing_ok=True)


def flaw_of(checkpoint: str | Path) -> str | None:
    """Why a checkpoint can't be resumed from; None if it is whole."""
    folder = Path(checkpoint)
    try:
        files = _manifest(folder)["files"]
        entries = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it is unfinished ({MANIFEST} is missing)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} can't be read ({error})"
    for name, (size, _) in entries.items():
        try:
            there = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if there != size:
            return f"{name} has {there:,} bytes instead of {size:,}"
    for part, patterns in _PARTS.items():
        if not any(fnmatch(piece, pattern) for name in entries for piece in name.split("/") for pattern in patterns):
            return f"it has no {part} (was it saved with save_only_model?)"
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            hashes = pool.map(lambda name: content_hash(folder / name), entries)
            changed = [name for name, found in zip(entries, hashes, strict=True) if found != entries[name][1]]
    except OSError as error:
        return f"it can't be read ({error.strerror})"
    return f"{changed[0]} has changed since it was written" if changed else None


def sealed_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints with a manifest, the newest last; their files are not checked."""
    return [path for path in _checkpoints(folder) if (path / MANIFEST).is_file()]


def newest_whole(folder: str | Path, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint that is whole; `say` is told what is wrong with newer ones."""
    for path in reversed(_checkpoints(folder)):
        flaw = flaw_of(path)
        if flaw is None:
            return path
        if say:
            say(f"{path} is skipped: {flaw}")
    return None


def last_checkpoint(folder: str | Path, say: Callable[[str], None] | None = None) -> Path:
    """`newest_whole`; unfinished checkpoints after it are deleted, and damaged ones renamed.

    Raises:
        ConfigError: no checkpoint is whole.
    """
    newest = newest_whole(folder, say)
    if newest is None:
        raise no_checkpoint(folder)
    for path in _checkpoints(folder):
        if step_of(path) > step_of(newest):
            if (path / MANIFEST).exists():
                aside = path.with_name(DAMAGED + path.name)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            else:
                shutil.rmtree(path, ignore_errors=True)
    return newest


def no_checkpoint(folder: str | Path) -> ConfigError:
    """The error for a run that can't be resumed."""
    return ConfigError(
        f"--resume: no whole checkpoint in {folder}; --resume auto starts the run if there is none, and resumes from "
        "the newest one otherwise"
    )


def rotate(folder: str | Path, limit: int | None, best: str | None = None) -> None:
    """Delete checkpoints that newer ones replace; only sealed ones count, and nothing else is touched.

    Args:
        folder: the folder of the checkpoints.
        limit: how many to keep in all; None or 0: all, except that only the newest two rolling ones are kept.
        best: a checkpoint that is always kept.
    """
    found = sealed_checkpoints(folder)
    rolling = [path for path in found if _is_rolling(path) and path not in found[-_KEPT_ROLLING:]]
    surplus = set(rolling) | set(found[:-limit] if limit and limit > 0 else [])
    for path in surplus:
        if best is None or path.name != Path(best).name:
            unseal(path)
            shutil.rmtree(path, ignore_errors=True)


def is_write_failure(error: BaseException) -> bool:
    """Whether an error means that the disk is full or can't be written, whichever library raised it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and not isinstance(seen, RecordError) and seen.errno in _WRITE_ERRNOS:
            return True
        if any(word in str(seen) for word in _WRITE_WORDS):
            return True
        seen = seen.__cause__
    return False


def write_failure(path: Path, error: BaseException, more: str) -> RecordError:
    """The error for a failed write: one line of the library's message, and `more`, which says how to continue."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[0][:200]
    with contextlib.suppress(OSError):
        if shutil.disk_usage(path.parent).free < _FULL_BYTES:  # torch says "unexpected pos 64 vs 0"
            said = f"the disk is full ({said})"
    return RecordError(f"{path}: can't be written: {said}. Free disk space or fix the permissions, then {more}")


def _checkpoints(folder: str | Path) -> list[Path]:
    try:
        found = [path for path in Path(folder).iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=step_of)


def _manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return document


def _is_rolling(folder: Path) -> bool:
    try:
        return bool(_manifest(folder)["rolling"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST)


def _synced(file: Path) -> dict[str, Any]:
    _sync(file)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
