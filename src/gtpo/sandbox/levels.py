"""What a sandbox holds on the machine it runs on, from the strongest to the weakest level.

| level      | network, processes, signals | writes outside | reads outside | existence of files outside |
|------------|-----------------------------|----------------|---------------|----------------------------|
| namespaces | denied                      | denied         | denied        | hidden                     |
| landlock   | denied                      | denied         | denied        | visible to `stat`          |
| seccomp    | denied                      | denied         | possible      | visible                    |
| weak       | possible                    | possible       | possible      | visible                    |

With namespaces a program has a file system of its own in memory to write to; on the two levels below it can't write at
all, since nothing there bounds how much. "Visible to `stat`" are names, sizes, times and modes; extended attributes and
watches (inotify) are denied on every level but the weak one.
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
"""Name of each level, strongest first: what a program must have failed at for the level to hold."""

_WORDS = {
    "network": "the network",
    "processes": "new processes",
    "signals": "signals to others",
    "writes": "writing outside",
    "reads": "reading outside",
    "paths": "seeing what exists outside",
}


@dataclass(frozen=True)
class Level:
    """What a sandbox really holds here, as tested when it started.

    Args:
        name: of the strongest level that holds: namespaces, landlock, seccomp, weak, or remote.
        network_denied: no socket to anything outside the process.
        processes_denied: no new process and no other program.
        signals_denied: no signal to another process.
        filesystem_writes_confined: files outside the working directory can't be changed.
        filesystem_reads_confined: files outside can't be read, the Python installation excepted.
        paths_hidden: it can't even be seen which files exist outside.
        sentence: the same in words.
        landlock_abi: version of the kernel's Landlock in force, 0 if none is.
        notes: what could not be had here, and why.
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
    """The level of a sandbox whose programs failed at `refused` (names as in `REQUIREMENTS`)."""
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
