"""Isolation levels of the sandbox, from the strongest to the weakest.

| level      | network, processes, signals | writes outside | reads outside | existence of files outside |
|------------|-----------------------------|----------------|---------------|----------------------------|
| namespaces | denied                      | denied         | denied        | hidden                     |
| landlock   | denied                      | denied         | denied        | visible to `stat`          |
| seccomp    | denied                      | denied         | possible      | visible                    |
| weak       | possible                    | possible       | possible      | visible                    |

With `namespaces` a program can write to its own file system in memory; on the two levels below it can't write at all,
since nothing there bounds how much. Names, sizes, times and modes are "visible to `stat`"; extended attributes and
watches (inotify) are denied on every level except `weak`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

REQUIREMENTS: dict[str, frozenset[str]] = {
    "namespaces": frozenset(("network", "processes", "signals", "writes", "reads", "paths")),
    "landlock": frozenset(("network", "processes", "signals", "writes", "reads")),
    "seccomp": frozenset(("network", "processes", "signals", "writes")),
    "weak": frozenset(),
}
"""Each level, strongest first, with the operations at which a program must have failed for the level to hold."""

_WORDS = {
    "network": "network access",
    "processes": "new processes",
    "signals": "signals to other processes",
    "writes": "writing files outside the sandbox",
    "reads": "reading files outside the sandbox",
    "paths": "seeing which files exist outside the sandbox",
}


@dataclass(frozen=True)
class Level:
    """The isolation of a sandbox on this machine, as tested when it started.

    Args:
        name: name of the strongest level that holds: namespaces, landlock, seccomp, weak, or remote.
        network_denied: programs can't open sockets to anything outside the process.
        processes_denied: programs can't start processes or execute other programs.
        signals_denied: programs can't send signals to other processes.
        filesystem_writes_confined: files outside the working directory can't be changed.
        filesystem_reads_confined: files outside can't be read, except the Python installation.
        paths_hidden: programs can't see which files exist outside.
        sentence: what is denied and what is possible, in words.
        landlock_abi: version of the kernel's Landlock in use, 0 if none.
        notes: protections that are not available on this machine, and why.
    """

    name: str
    network_denied: bool
    processes_denied: bool
    signals_denied: bool
    filesystem_writes_confined: bool
    filesystem_reads_confined: bool
    paths_hidden: bool
    sentence: str
    landlock_abi: int = 0
    notes: tuple[str, ...] = ()


def level_of(refused: Collection[str], landlock_abi: int = 0, notes: tuple[str, ...] = ()) -> Level:
    """Returns the level of a sandbox whose programs failed at `refused` (names as in `REQUIREMENTS`)."""
    name = next(name for name, wanted in REQUIREMENTS.items() if wanted <= set(refused))
    denied = [words for what, words in _WORDS.items() if what in refused]
    possible = [words for what, words in _WORDS.items() if what not in refused]
    sentence = f"Denied: {', '.join(denied) or 'nothing'}."
    if possible:
        sentence += f" Possible: {', '.join(possible)}."
    return Level(
        name,
        network_denied="network" in refused,
        processes_denied="processes" in refused,
        signals_denied="signals" in refused,
        filesystem_writes_confined="writes" in refused,
        filesystem_reads_confined="reads" in refused,
        paths_hidden="paths" in refused,
        sentence=sentence,
        landlock_abi=landlock_abi,
        notes=notes,
    )
