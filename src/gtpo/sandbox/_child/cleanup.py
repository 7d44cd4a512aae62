"""Removes directories that untrusted code has filled."""

from __future__ import annotations

import contextlib
import os


def remove_empty(directory: str) -> bool:
    """Removes a directory if it is empty; returns whether it was."""
    with contextlib.suppress(OSError):
        os.rmdir(directory)
        return True
    return False


def holds_more(directory: str, files: int, size: int) -> bool:
    """Whether a tree has more files and directories, or more bytes, than allowed."""
    pending = [directory]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                files, size = files - 1, size - entry.stat(follow_symlinks=False).st_size
                if files < 0 or size < 0:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return False


def remove(directory: str) -> None:
    """Removes a directory tree of any depth, even if its owner removed his own permissions.

    Each deeper subdirectory is first moved to the top, so neither the length of a path nor the depth of
    the tree matters. Links are not followed. What can't be removed stays; no error is raised. No other process
    may work in the tree at the same time.
    """
    pending, moved, token = [directory], 0, os.urandom(8).hex()
    while pending:
        folder = pending.pop()
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
            with os.scandir(folder) as entries:
                found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for path, is_directory in found:
                if not is_directory:
                    os.unlink(path)
                elif folder == directory:
                    pending.append(path)
                else:
                    os.chmod(path, 0o700)
                    moved += 1
                    aside = os.path.join(directory, f"{token}{moved}")
                    os.rename(path, aside)
                    pending.append(aside)
        if folder != directory:
            remove_empty(folder)
    remove_empty(directory)
