"""What the filter denies, each with its control: the same code does the deed where the filter is off."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refused_calls import REFUSED

from gtpo.sandbox import Status
from gtpo.sandbox._child import seccomp, syscalls

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="no filter for this system")

X86 = platform.machine() == "x86_64"
SYSCALL = (
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def syscall(*args):\n"
    "    r = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))\n"
    "    if r < 0: e = ctypes.get_errno(); raise OSError(e, os.strerror(e))\n    return r\n"
)
NR = {name: row[0 if X86 else 1] for name, row in {**REFUSED, **syscalls.CHECKED}.items()}

DEEDS = {
    "tcp socket": "import socket\nsocket.socket()",
    "udp socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "ipv6 socket": "import socket\nsocket.socket(socket.AF_INET6)",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "netlink socket": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "datagram pair": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "socket below python": SYSCALL + f"syscall({NR['socket']}, 2, 1, 0)",
    "fork": "import os\nif os.fork() == 0: os._exit(0)",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "os.posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m\np = m.Process(target=print)\np.start()\np.join()",
    "exec": "import os, sys\nos.execv('/bin/true', ['true'])",
    "clone below python": SYSCALL + f"if syscall({NR['clone']}, 17, 0, 0, 0, 0) == 0: os._exit(0)",
    "memfd": "import os\nos.memfd_create('a')",
    "system v memory": SYSCALL + f"i = syscall({NR['shmget']}, 0, 4096, 0o1600)\nlibc.shmctl(i, 0, None)",
    "own limits raised": "from resource import *\nsetrlimit(RLIMIT_NOFILE, getrlimit(RLIMIT_NOFILE))",
    "death signal cleared": SYSCALL + f"syscall({NR['prctl']}, 1, 0, 0, 0, 0)",
    "dumpable again": SYSCALL + f"syscall({NR['prctl']}, 4, 1, 0, 0, 0)",
    "fifo": "import os\nos.mkfifo('f')",
    "owner of a descriptor": "import fcntl, os\nfcntl.fcntl(1, 8, os.getppid())",
    "scheduling": "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))",
    "priority of the parent": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 0)",
    "signal to the parent": "import os\nos.kill(os.getppid(), 0)",
    "signal to the group": "import os\nos.kill(0, 0)",
    "limits of the parent": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
    "user namespace check": SYSCALL + f"syscall({NR['unshare']}, 0)",
    "second filter": SYSCALL + f"syscall({NR['seccomp']}, 2, 0, ctypes.c_char_p(bytes([0, 0, 255, 127])))",
}  # fmt: skip


@pytest.mark.parametrize("name", DEEDS)
def test_denied(box, name):
    result = box.run_sync(DEEDS[name] + "\nprint('done')")
    assert result.status is Status.ERROR
    assert "done" not in result.stdout
    assert re.search(r"\b(PermissionError|Errno 1\b|not allowed|not permitted)", result.stderr), result.stderr


@pytest.mark.parametrize("name", [n for n in DEEDS if n not in ("exec", "owner of a descriptor")])
def test_control_not_denied_without_the_filter(unconfined, name):
    result = unconfined.run_sync(DEEDS[name] + "\nprint('done')")
    assert (result.status, result.stdout[-5:]) == (Status.OK, "done\n"), result.stderr


NEW_OR_FOREIGN = {
    "io_uring": (425, "OSError(38"),
    "pidfd_send_signal": (424, "OSError(38"),
    "clone3": (435, "OSError(38"),
    "memfd_secret": (447, "OSError(38"),
    "not invented yet": (999, "OSError(38"),
    "bpf": (NR["bpf"], "PermissionError(1"),
    "ptrace": (NR["ptrace"], "PermissionError(1"),
    "process_vm_readv": (NR["process_vm_readv"], "PermissionError(1"),
    "userfaultfd": (NR["userfaultfd"], "PermissionError(1"),
    "keyctl": (NR["keyctl"], "PermissionError(1"),
    "perf_event_open": (NR["perf_event_open"], "PermissionError(1"),
    "mount": (NR["mount"], "PermissionError(1"),
    "setns": (NR["setns"], "PermissionError(1"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEW_OR_FOREIGN)
def test_exotic_system_call(box, name):
    number, error = NEW_OR_FOREIGN[name]
    code = SYSCALL + f"try: syscall({number}, -1, -1, -1, -1, -1, -1)\nexcept OSError as e: print(repr(e))"
    assert box.run_sync(code).stdout.startswith(error)


@pytest.mark.skipif(not X86, reason="x32 belongs to x86-64")
def test_x32_calls_are_no_way_round(box, unconfined):
    code = SYSCALL + "try: syscall(0x40000000 | 39)\nexcept OSError as e: print(e.errno)"
    assert box.run_sync(code).stdout == "1\n"
    assert unconfined.run_sync(code).stdout != "1\n"


@pytest.mark.skipif(not X86, reason="int 0x80 belongs to x86-64")
def test_i386_calls_are_no_way_round(box):
    """`mov eax, 20; int 0x80; ret` is getpid by the 32-bit interface."""
    code = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nf()"
    )
    result = box.run_sync(code)
    assert result.stdout == "-1\n" or result.status is Status.CRASHED


def plain(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, **options)


def test_no_connection_to_a_local_listener(box):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {listener.getsockname()[1]})).send(b'a')"
        assert plain(code).returncode == 0
        listener.accept()[0].close()
        assert box.run_sync(code).error_type == "PermissionError"
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_no_connection_to_a_unix_socket(box, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        assert plain(code).returncode == 0
        assert box.run_sync(code).error_type == "PermissionError"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_it_starts_outlives_it(box, tmp_path):
    """The double fork that survives the killing of a plain subprocess does not even begin in the sandbox."""
    trace = tmp_path / "pid"
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open({str(trace)!r}, 'w').write(str(os.getpid()))\n        time.sleep(120)\n"
        "    os._exit(0)\n"
        "time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 10
    while not (trace.exists() and trace.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survivor = int(trace.read_text())
    assert alive(survivor)
    os.kill(survivor, signal.SIGKILL)
    trace.unlink()

    assert box.run_sync(code).error_type == "PermissionError"
    assert not trace.exists()


@pytest.mark.parametrize(
    "deed",
    [
        "import os\nos.kill({pid}, 9)",
        "import signal\nsignal.pidfd_send_signal(__import__('os').pidfd_open({pid}), 9)",
        SYSCALL
        + "info = ctypes.create_string_buffer(b'\\0' * 8 + b'\\xff' * 4, 128)\n"
        + f"syscall({NR['rt_sigqueueinfo']}, {{pid}}, 9, info)",
        SYSCALL + f"syscall({NR['tgkill']}, {{pid}}, {{pid}}, 9)",
        SYSCALL + f"syscall({NR['tkill']}, {{pid}}, 9)",
        "import resource, time\nresource.prlimit({pid}, resource.RLIMIT_CPU, (0, 0))\ntime.sleep(1)",
    ],
    ids=["kill", "pidfd", "rt_sigqueueinfo", "tgkill", "tkill", "prlimit"],
)  # fmt: skip
def test_another_process_of_the_user_survives(box, deed):
    def victim():
        return subprocess.Popen([sys.executable, "-c", "while True: pass"])

    with victim() as first, victim() as second:
        try:
            plain(deed.format(pid=first.pid))
            assert first.wait(10) < 0
            result = box.run_sync(deed.format(pid=second.pid))
            assert result.status is Status.ERROR
            time.sleep(0.05)
            assert second.poll() is None
        finally:
            for process in (first, second):
                process.kill()


def test_killing_everyone_is_denied(box):
    """No control: it would do what it says."""
    assert box.run_sync("import os\nos.kill(-1, 9)").error_type == "PermissionError"
    assert box.run_sync("import os\nos.killpg(0, 9)").error_type == "PermissionError"


def test_process_group_cannot_be_left(box, unconfined):
    code = "import os\nos.setpgid(0, os.getppid())"
    assert unconfined.run_sync(code).status is Status.OK
    assert box.run_sync(code).error_type == "PermissionError"


def test_environment_is_empty(box, monkeypatch):
    monkeypatch.setenv("GTPO_TEST_TOKEN", "secret")
    code = "import os\nsorted(os.environ)"
    assert "GTPO_TEST_TOKEN" in plain(f"{code}\nprint(sorted(os.environ))").stdout
    threads = ["MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    assert box.run_sync(code).stdout == f"{sorted(['HOME', 'LANG', 'PATH', 'TMPDIR', *threads])}\n"
    raw = "open('/proc/self/environ', 'rb').read().count(b'secret')"
    assert plain(f"print({raw})").stdout == "1\n"
    assert box.run_sync(raw).stdout in ("0\n", "")


def test_no_descriptor_of_the_trainer_or_the_server(box):
    code = (
        "import os\nfound = []\nfor fd in range(1000):\n    try: os.fstat(fd); found.append(fd)\n"
        "    except OSError: pass\nprint(found)"
    )
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        assert str(read) in plain(code, pass_fds=[read]).stdout
        assert box.run_sync(code).stdout == "[0, 1, 2]\n"
    finally:
        os.close(read)
        os.close(write)


def test_working_directory_is_private_and_inputs_are_not_on_the_path(box):
    where = box.run_sync("import os\nprint(os.getcwd(), os.listdir())").stdout.split()
    assert where[0] != os.getcwd()
    assert where[1] == "[]"
    assert not os.path.exists(where[0])
    assert box.run_sync("import gtpo.sandbox._child").status is Status.ERROR


def test_capabilities_of_root_are_gone(box):
    code = (
        "import ctypes\nwords = (ctypes.c_uint32 * 6)(*[1] * 6)\n"
        "ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), words)\nlist(words)"
    )
    assert box.run_sync(code).stdout == f"{[0] * 6}\n"


def test_file_size_is_bounded(box):
    code = "import os\nf = open('big', 'wb')\nos.truncate('big', {size})\nos.path.getsize('big')"
    assert box.run_sync(code.format(size=16 << 20)).stdout == f"{16 << 20}\n"
    assert box.run_sync(code.format(size=(16 << 20) + 1)).error_type == "OSError"


def test_no_core_file(box):
    assert box.run_sync("import resource\nresource.getrlimit(resource.RLIMIT_CORE)").stdout == "(0, 0)\n"


def test_server_memory_is_closed_to_the_child(box):
    code = "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')"
    assert box.run_sync(code).error_type in ("PermissionError", "FileNotFoundError")


@pytest.mark.parametrize("files", [{}, {"metadata": False}, {"metadata": False, "writes": False}])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_agrees_with_its_table_at_every_number(monkeypatch, machine, files):
    """The tree of numbers against a plain reading of the table, by a small interpreter of the filter."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = seccomp.program(**files)
    steps = [seccomp.struct.unpack("=HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    arch, column = seccomp._ARCHES[platform.machine()]

    def outcome(number: int, arguments=(0,) * 6, arch=arch) -> int:
        data = seccomp.struct.pack("=IIQ6Q", number, arch, 0, *arguments)
        at, word = 0, 0
        while True:
            code, yes, no, k = steps[at]
            at += 1
            if code == seccomp._RET:
                return k
            if code == seccomp._LOAD:
                word = int.from_bytes(data[k : k + 4], "little")
            elif code == seccomp._AND:
                word &= k
            elif code == seccomp._JA:
                at += k
            else:
                hit = {seccomp._JEQ: word == k, seccomp._JGE: word >= k, seccomp._JSET: bool(word & k)}[code]
                at += yes if hit else no

    metadata, writes = files.get("metadata", True), files.get("writes", True)
    tables = [syscalls.ALLOWED, *[syscalls.METADATA, syscalls.ATTRIBUTES] * metadata, *[syscalls.WRITES] * writes]
    allowed = {row[column] for table in tables for row in table.values()}
    unsupported = set() if metadata else {row[column] for row in syscalls.ATTRIBUTES.values()}
    checked = {row[column] for row in syscalls.CHECKED.values()}
    openings = {numbers[column]: position for numbers, position in syscalls.OPENING.values()}
    for number, position in openings.items():
        if number is not None:
            writing = [0] * position + [0o101]
            assert outcome(number, (*writing, *[0] * (6 - len(writing)))) == (
                seccomp._ALLOW if writes else seccomp._REFUSE
            )
    first_new = syscalls.FIRST_NEW[column]
    for number in set(range(first_new)) - checked:
        expected = seccomp._ALLOW if number in allowed else seccomp._REFUSE
        if number in unsupported:
            expected = seccomp._ERRNO | errno.ENOTSUP
        assert outcome(number) == expected, number
    for number in range(first_new, 600):
        harmless = number in syscalls.NEW_ALLOWED or (number == syscalls.OPENAT2 and writes)
        assert outcome(number) == (seccomp._ALLOW if harmless else seccomp._UNKNOWN), number
    for name, row in REFUSED.items():
        for arguments in ((0,) * 6, (1,) * 6, (2**64 - 1,) * 6):
            assert row[column] is None or outcome(row[column], arguments) == seccomp._REFUSE, name
    thread, namespace = 0x3D0F00, 0x10000000
    clone = syscalls.CHECKED["clone"][column]
    assert outcome(clone, (thread, 0, 0, 0, 0, 0)) == seccomp._ALLOW
    assert outcome(clone, (thread | namespace, 0, 0, 0, 0, 0)) == seccomp._REFUSE
    assert outcome(clone, (17, 0, 0, 0, 0, 0)) == seccomp._REFUSE
    prlimit = syscalls.CHECKED["prlimit64"][column]
    assert outcome(prlimit, (0, 7, 1 << 32, 0, 0, 0)) == seccomp._REFUSE
    assert outcome(prlimit, (0, 7, 0, 1, 0, 0)) == seccomp._ALLOW
    own = seccomp._PID_MARK
    for name, signal_at in (("kill", 1), ("tgkill", 2)):
        for number, verdict in ((signal.SIGTERM, seccomp._ALLOW), (signal.SIGCONT, seccomp._REFUSE)):
            arguments = [own, 7, 0, 0, 0, 0]
            arguments[signal_at] = number
            assert outcome(syscalls.CHECKED[name][column], arguments) == verdict
            assert outcome(syscalls.CHECKED[name][column], [own + 1, *arguments[1:]]) == seccomp._REFUSE
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep"):
        assert outcome(syscalls.CHECKED[name][column], (2, 0, 0, 0, 0, 0)) == seccomp._ALLOW
        assert outcome(syscalls.CHECKED[name][column], (2**32 + (~5 << 3 | 2), 0, 0, 0, 0, 0)) == seccomp._REFUSE
    for name in ("sched_getaffinity", "getpgid", "getsid"):
        verdicts = [outcome(syscalls.CHECKED[name][column], (pid, 0, 0, 0, 0, 0)) for pid in (0, own, own + 1)]
        assert verdicts == [seccomp._ALLOW, seccomp._ALLOW, seccomp._REFUSE]
    assert outcome(0, arch=0x40000003) == seccomp._REFUSE
