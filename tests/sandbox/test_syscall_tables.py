"""Numbers of system calls and constants in the source, against the kernel's headers (package linux-libc-dev)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from functools import cache
from pathlib import Path

import pytest
from refused_calls import REFUSED

from gtpo.sandbox import _worker
from gtpo.sandbox._child import kernel, landlock, namespaces, seccomp, syscalls, threads

TABLES = (
    syscalls.ALLOWED,
    syscalls.METADATA,
    syscalls.ATTRIBUTES,
    syscalls.WRITES,
    syscalls.CHECKED,
    REFUSED,
)

INCLUDE = Path("/usr/include")
X86_HEADERS = ("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h")
ARM_HEADERS = ("asm-generic/unistd.h",)
COLUMNS = {"x86_64": (0, X86_HEADERS, "arch_prctl"), "aarch64": (1, ARM_HEADERS, "fcntl")}
FEWEST = {"x86_64": 130, "aarch64": 100}

Rows = list[tuple[str, tuple[int | None, int | None]]]
NEW_HARMLESS = ("close_range", "faccessat2", "epoll_pwait2", "futex_waitv")
LANDLOCK_CALLS = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")


def ours() -> Rows:
    """Name and numbers of every system call in the source."""
    rows = [row for table in TABLES for row in table.items()]
    rows += [(name, numbers) for name, (numbers, _) in syscalls.OPENING.items()]
    rows += [("seccomp", (threads._SECCOMP["x86_64"], threads._SECCOMP["aarch64"]))]
    rows += [("pivot_root", (namespaces._PIVOT_ROOT["x86_64"], namespaces._PIVOT_ROOT["aarch64"]))]
    shared = {
        "openat2": syscalls.OPENAT2,
        "mount_setattr": namespaces._MOUNT_SETATTR,
        **dict(zip(NEW_HARMLESS, syscalls.NEW_ALLOWED, strict=True)),
        **dict(zip(LANDLOCK_CALLS, (landlock._CREATE, landlock._ADD_RULE, landlock._RESTRICT), strict=True)),
    }
    return rows + [(name, (number, number)) for name, number in shared.items()]


@cache
def text_of(header: str) -> str:
    """A header without comments; "" if it is not there."""
    path = INCLUDE / header
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return re.sub(r"/\*.*?\*/|\\\n", " ", text, flags=re.DOTALL)


@cache
def definitions(*headers: str) -> dict[str, str]:
    """Name and text of every macro without arguments; the first one of a name counts, the one for 64 bits."""
    found: dict[str, str] = {}
    for header in headers:
        for name, text in re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(\S.*)$", text_of(header), re.MULTILINE):
            found.setdefault(name, text)
    return found


def number(expression: str, defined: dict[str, str]) -> int:
    """Value of an expression of C; KeyError if it needs a macro that is not defined."""

    def spelled(match: re.Match[str]) -> str:
        word = match[0].rstrip("uUlL")
        if not word[:1].isdigit():
            return str(number(defined[match[0]], defined))
        return str(int(word, 8 if word.isdigit() and word.startswith("0") else 0))

    return int(eval(re.sub(r"\w+", spelled, expression), {"__builtins__": {}}))


@cache
def system_calls(machine: str) -> dict[str, int]:
    """Name and number of every system call of the machine's header; skips where there is none."""
    _, headers, mark = COLUMNS[machine]
    for header in headers:
        defined, found = definitions(header), {}
        for name in defined:
            if name.startswith("__NR_"):
                with contextlib.suppress(KeyError):
                    found[name[5:]] = number(name, defined)
        if mark in found:
            return found
    pytest.skip(f"no header with the system calls of {machine}: {' or '.join(headers)} in {INCLUDE}")


def differences(rows: Rows, column: int, header: dict[str, int]) -> tuple[list[str], list[str]]:
    """What disagrees with the header, and the names that it is too old to know."""
    wrong, unknown, newest = [], [], max(header.values())
    for name, numbers in rows:
        mine, theirs = numbers[column], header.get(name)
        if theirs is None and mine is not None and mine > newest:
            unknown.append(name)
        elif mine != theirs:
            wrong.append(f"{name}: {mine} here, {theirs} in the header")
    return wrong, unknown


@pytest.mark.parametrize("machine", COLUMNS)
def test_numbers_are_the_headers(machine):
    column, rows = COLUMNS[machine][0], ours()
    wrong, unknown = differences(rows, column, system_calls(machine))
    assert wrong == []
    compared = {name for name, numbers in rows if numbers[column] is not None} - set(unknown)
    assert len(compared) >= FEWEST[machine], f"the header is too old: {unknown}"


@pytest.mark.parametrize("machine", COLUMNS)
def test_a_wrong_number_is_found(machine):
    column, rows, header = COLUMNS[machine][0], ours(), system_calls(machine)
    for i, (name, numbers) in enumerate(rows):
        changes = {None} if numbers[column] is None else {numbers[column] + 1, numbers[1 - column], None}
        for change in changes - {numbers[column]}:
            spoiled = (change, change)
            wrong, _ = differences([*rows[:i], (name, spoiled), *rows[i + 1 :]], column, header)
            assert [text.partition(":")[0] for text in wrong] == [name]
    assert differences([("no_such_call", (7, 7))], column, header)[0] != []
    assert differences([("no_such_call", (9999, 9999))], column, header) == ([], ["no_such_call"])


def test_a_number_means_one_call():
    for column, _, _ in COLUMNS.values():
        numbers = [row[column] for table in TABLES for row in table.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_numbers_are_shared_from_the_first_one_on():
    x86, arm = system_calls("x86_64"), system_calls("aarch64")
    first, both = 424, x86.keys() & arm.keys()
    assert min(n for n in x86.values() if n > 402) == first
    assert {name for name in both if x86[name] >= first} == {name for name in both if arm[name] >= first}
    assert all(x86[name] == arm[name] for name in both if x86[name] >= first)
    assert sum(x86[name] >= first for name in both) >= 20


def test_what_is_newer_than_the_tables_is_refused_as_a_whole():
    for (machine, (column, _, _)), first in zip(COLUMNS.items(), syscalls.FIRST_NEW, strict=True):
        # 403 to 423 belong to 32-bit processors
        older = {name: number for name, number in system_calls(machine).items() if number < 403}
        assert max(number for name, number in older.items() if name not in ("uretprobe", "uprobe")) == first - 1
        assert all(nr is None or not first <= nr < 424 for nr in (numbers[column] for _, numbers in ours()))


def test_both_names_of_aarch64_have_the_same_numbers():
    for table in (seccomp._ARCHES, namespaces._PIVOT_ROOT, threads._SECCOMP):
        assert table["arm64"] == table["aarch64"]


def any_of(prefix: str, names: str) -> str:
    return " | ".join(prefix + name for name in names.split())


HEADERS = [
    "linux/audit.h", "linux/elf-em.h", "linux/seccomp.h", "linux/bpf_common.h", "linux/landlock.h", "linux/prctl.h",
    "linux/sched.h", "linux/mount.h", "linux/fcntl.h", "linux/capability.h", "asm-generic/fcntl.h",
    "asm-generic/ioctls.h", "asm-generic/mman-common.h", "asm-generic/signal.h",
]  # fmt: skip
FS = "LANDLOCK_ACCESS_FS_"
NAMESPACES = any_of("CLONE_NEW", "PID NET IPC UTS NS")
IOCTL_HARMLESS = ("TCGETS", "TIOCGWINSZ", "FIONBIO", "FIONREAD", "FIONCLEX", "FIOCLEX")
FCNTL_HARMLESS = (
    "F_DUPFD", "F_GETFD", "F_SETFD", "F_GETFL", "F_SETFL", "F_SETLK", "F_SETLKW", "F_DUPFD_CLOEXEC", "F_GETPIPE_SZ",
    "F_GET_SEALS",
)  # fmt: skip
PR_HARMLESS = (
    "PR_GET_DUMPABLE", "PR_SET_NAME", "PR_GET_NAME", "PR_GET_SECCOMP", "PR_CAPBSET_READ", "PR_GET_NO_NEW_PRIVS",
    "PR_SET_VMA",
)  # fmt: skip
CONSTANTS = {
    "AUDIT_ARCH_X86_64": seccomp._ARCHES["x86_64"][0],
    "AUDIT_ARCH_AARCH64": seccomp._ARCHES["aarch64"][0],
    "SECCOMP_RET_ALLOW": seccomp._ALLOW,
    "SECCOMP_RET_ERRNO": seccomp._ERRNO,
    "SECCOMP_MODE_FILTER": seccomp._SECCOMP_MODE_FILTER,
    "BPF_LD | BPF_W | BPF_ABS": seccomp._LOAD,
    "BPF_JMP | BPF_JA": seccomp._JA,
    "BPF_JMP | BPF_JEQ | BPF_K": seccomp._JEQ,
    "BPF_JMP | BPF_JGE | BPF_K": seccomp._JGE,
    "BPF_JMP | BPF_JSET | BPF_K": seccomp._JSET,
    "BPF_ALU | BPF_AND | BPF_K": seccomp._AND,
    "BPF_RET | BPF_K": seccomp._RET,
    "CLONE_THREAD": seccomp._CLONE_THREAD,
    f"{NAMESPACES} | CLONE_NEWCGROUP | CLONE_NEWUSER": seccomp._CLONE_NAMESPACES,
    NAMESPACES: namespaces._NEW_REST,
    "CLONE_NEWUSER": namespaces._NEW_USER,
    **dict(zip(FCNTL_HARMLESS, seccomp._FCNTL_HARMLESS, strict=True)),
    "SIGCONT": seccomp._SIGCONT,
    "SECCOMP_RET_USER_NOTIF": seccomp._ASK,
    "SECCOMP_SET_MODE_FILTER": threads._SET_MODE_FILTER,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": threads._NEW_LISTENER,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": threads._WAIT_KILLABLE,
    "SECCOMP_USER_NOTIF_FLAG_CONTINUE": threads._GO_ON,
    "CAP_SYS_ADMIN": kernel.CAP_SYS_ADMIN,
    "F_ADD_SEALS": _worker._ADD_SEALS,
    "F_SEAL_SEAL": _worker._SEAL_SEAL,
    "F_SEAL_SHRINK": _worker._SEAL_SHRINK,
    "F_SEAL_GROW": _worker._SEAL_GROW,
    "F_SEAL_WRITE": _worker._SEAL_WRITE,
    "O_ACCMODE | O_CREAT | O_TRUNC | __O_TMPFILE": seccomp._WRITE_FLAGS,
    **dict(zip(IOCTL_HARMLESS, seccomp._IOCTL_HARMLESS, strict=True)),
    **dict(zip(PR_HARMLESS, seccomp._PR_HARMLESS, strict=True)),
    **{name: value for name, value in vars(kernel).items() if name.startswith("PR_")},
    "MADV_COLLAPSE": kernel._MADV_COLLAPSE,
    "_LINUX_CAPABILITY_VERSION_3": 0x20080522,
    "MS_RDONLY": namespaces._READ_ONLY,
    "MS_NOSUID": namespaces._NO_SUID,
    "MS_NODEV": namespaces._NO_DEV,
    "MS_NOEXEC": namespaces._NO_EXEC,
    "MS_BIND": namespaces._BIND,
    "MS_REC": namespaces._RECURSIVE,
    "MS_PRIVATE": namespaces._PRIVATE,
    "MOUNT_ATTR_RDONLY": namespaces._READ_ONLY,
    "MOUNT_ATTR_NOSUID": namespaces._NO_SUID,
    "MOUNT_ATTR_NODEV": namespaces._NO_DEV,
    "AT_FDCWD": namespaces._AT_FDCWD,
    "AT_RECURSIVE": namespaces._AT_RECURSIVE,
    f"{FS}EXECUTE": landlock._EXECUTE,
    f"{FS}WRITE_FILE": landlock._WRITE_FILE,
    f"{FS}READ_FILE": landlock._READ_FILE,
    f"{FS}READ_DIR": landlock._READ_DIR,
    f"{FS}MAKE_CHAR": landlock._MAKE_CHAR,
    f"{FS}MAKE_SOCK": landlock._MAKE_SOCK,
    f"{FS}MAKE_FIFO": landlock._MAKE_FIFO,
    f"{FS}MAKE_BLOCK": landlock._MAKE_BLOCK,
    f"{FS}REFER": landlock._REFER,
    f"{FS}TRUNCATE": landlock._TRUNCATE,
    f"{FS}IOCTL_DEV": landlock._IOCTL_DEVICE,
    any_of(FS, "EXECUTE WRITE_FILE READ_FILE TRUNCATE IOCTL_DEV"): landlock._OF_FILES,
    any_of("LANDLOCK_ACCESS_NET_", "BIND_TCP CONNECT_TCP"): landlock._BIND_TCP_CONNECT_TCP,
    any_of("LANDLOCK_SCOPE_", "ABSTRACT_UNIX_SOCKET SIGNAL"): landlock._SCOPE_ABSTRACT_SOCKETS_SIGNALS,
}
# Names of Linux 5.19 and later, which a header may lack.
LATE = re.compile(
    r"MADV_COLLAPSE|SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV|"
    r"LANDLOCK_(ACCESS_FS_(REFER|TRUNCATE|IOCTL_DEV)|ACCESS_NET_\w+|SCOPE_\w+)"
)


def value_of(expression: str) -> int:
    """By the headers; skips where they are missing or too old."""
    if absent := [header for header in HEADERS if not text_of(header)]:
        pytest.skip(f"no {', '.join(absent)} in {INCLUDE}")
    defined = definitions(*HEADERS)
    if any(LATE.fullmatch(name) and name not in defined for name in re.findall(r"\w+", expression)):
        pytest.skip(f"the headers in {INCLUDE} are too old for {expression}")
    return number(expression, defined)


@pytest.mark.parametrize("expression", CONSTANTS)
def test_constant_is_the_headers(expression):
    assert CONSTANTS[expression] == value_of(expression)


def test_constants_of_the_c_library():
    assert (seccomp._AF_UNIX, seccomp._SOCK_STREAM) == (socket.AF_UNIX, socket.SOCK_STREAM)


@pytest.mark.parametrize(
    ("ours", "name", "fields"), [(threads._RECEIVE, "notif", "=QIIiIQ6Q"), (threads._SEND, "notif_resp", "=QqiI")]
)
def test_the_questions_about_threads_have_the_size_of_the_headers(ours, name, fields):
    found = re.search(rf"SECCOMP_IOWR\((\d), struct seccomp_{name}\)", text_of("linux/seccomp.h").replace("\n", " "))
    if found is None:
        pytest.skip(f"no linux/seccomp.h in {INCLUDE}")
    read_write, magic = 3, ord("!")
    assert ours == read_write << 30 | struct.calcsize(fields) << 16 | magic << 8 | int(found[1])
    assert struct.calcsize("=QIIiIQ6Q") == threads._SIZE


def test_x32_bit():
    path = INCLUDE / "x86_64-linux-gnu/asm/unistd.h"
    defined = definitions(str(path.relative_to(INCLUDE)))
    if "__X32_SYSCALL_BIT" not in defined:
        pytest.skip(f"no {path}")
    assert number("__X32_SYSCALL_BIT", defined) == seccomp._X32_BIT


def test_the_filter_reads_the_fields_of_the_headers():
    body = re.search(r"struct seccomp_data \{(.*?)\}", text_of("linux/seccomp.h"), re.DOTALL)
    if body is None:
        pytest.skip(f"no linux/seccomp.h in {INCLUDE}")
    offsets, end = {}, 0
    for kind, name, count in re.findall(r"(\w+) (\w+)(?:\[(\d+)\])?;", body[1]):
        offsets[name] = end
        end += {"int": 4, "__u32": 4, "__u64": 8}[kind] * int(count or 1)
    loads = [seccomp._op(seccomp._LOAD, offsets[name]) for name in ("arch", "nr")]
    positions = [seccomp.program().find(load) for load in loads]
    assert positions[0] == 0 < positions[1]
    for i in range(6):
        low, high = (seccomp._op(seccomp._LOAD, offsets["args"] + 8 * i + half) for half in (0, 4))
        assert (seccomp._argument(i), seccomp._argument(i, high=True)) == (low, high)
    assert end == offsets["args"] + 48


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_landlock_handles_every_right_of_its_version(monkeypatch, version):
    first = "EXECUTE WRITE_FILE READ_FILE READ_DIR REMOVE_DIR REMOVE_FILE MAKE_CHAR MAKE_DIR MAKE_REG MAKE_SOCK"
    since = {1: f"{first} MAKE_FIFO MAKE_BLOCK MAKE_SYM", 2: "REFER", 3: "TRUNCATE", 5: "IOCTL_DEV"}
    files = value_of(any_of(FS, " ".join(names for first, names in since.items() if first <= version)))
    net = value_of(any_of("LANDLOCK_ACCESS_NET_", "BIND_TCP CONNECT_TCP")) if version >= 4 else 0
    scope = value_of(any_of("LANDLOCK_SCOPE_", "ABSTRACT_UNIX_SOCKET SIGNAL")) if version >= 6 else 0
    calls = []
    monkeypatch.setattr(landlock, "abi", lambda: version)
    monkeypatch.setattr(kernel, "syscall", lambda *call: calls.append(call) or os.open(os.devnull, os.O_RDONLY))
    assert landlock.ruleset([], []).version == version
    (_, handled, size, flags), *_ = calls
    assert handled[:size] == struct.pack("=QQQ", files, net, scope)[: (8, 16, 24)[(version >= 4) + (version >= 6)]]
    assert flags == 0
