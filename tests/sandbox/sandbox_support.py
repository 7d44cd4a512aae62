"""Looks at the processes and descriptors of this machine, through /proc."""

from __future__ import annotations

import os
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Process numbers of the living or unreaped children of `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def open_files() -> set[str]:
    """What this process's descriptors point to, numbered where it matters."""
    names = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            names.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return names
