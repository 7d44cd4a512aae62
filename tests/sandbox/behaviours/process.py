"""Processes: none is made, none is signalled or traced, and the kernel's wider surface is shut."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, NR, SYSTEM_CALL, X86, denied, described, each_denied, ends
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "process"
TRY_CALLS = ATTEMPTS + SYSTEM_CALL

# Unlike in most programs here a failure is a number that is returned, not an exception.
OTHER_ABI = """\
import mmap
attempt('x32', system_call, 0x40000000 | 41, 2, 1, 0)
# push rbx; mov eax, 359 (socket of i386); mov ebx, 2; mov ecx, 1; xor edx, edx; int 0x80; pop rbx; ret
code = bytes.fromhex('53 b867010000 bb02000000 b901000000 31d2 cd80 5b c3')
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
result = ctypes.CFUNCTYPE(ctypes.c_int)(start)()
print('i386', 'DONE' if result >= 0 else errno.errorcode.get(-result, result), flush=True)
"""


def no_shell(results: Sequence[Outcome], facts: Facts) -> str:
    """`os.system` said that it failed, or raised."""
    (outcome,) = results
    if "DONE" in outcome.stdout or outcome.stdout == "0\n":
        return f"the deed was done: {described(outcome)}"
    return ends("ok", "error")(results, facts)


def no_other_door(results: Sequence[Outcome], facts: Facts) -> str:
    """Refused, or ended by a signal where the kernel has no such interface at all."""
    (outcome,) = results
    if outcome.status == "crashed" and "DONE" not in outcome.stdout:
        return ""
    return each_denied()(results, facts)


def no_pool(results: Sequence[Outcome], facts: Facts) -> str:
    """A clear error instead of a result or a hang."""
    (outcome,) = results
    failed = outcome.status == "error" and outcome.error_type and "DONE" not in outcome.stdout
    return "" if failed else f"it should have raised: {described(outcome)}"


BEHAVIOURS = (
    Behaviour(
        name="subprocess",
        area=AREA,
        code="import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="os system",
        area=AREA,
        code="import os\nprint(os.system('echo DONE'))",
        holds=no_shell,
    ),
    Behaviour(
        name="exec replace",
        area=AREA,
        code="import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(\"DONE\")'])",
        holds=denied(),
    ),
    Behaviour(
        name="daemonise double fork",
        area=AREA,
        code="""\
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(30)
    os._exit(0)
os.wait()
print('DONE')
""",
        holds=denied(),
    ),
    Behaviour(
        name="leave process group",
        area=AREA,
        code="import os\nos.setpgid(0, os.getpgid(os.getppid()))\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="kill parent",
        area=AREA,
        code=ATTEMPTS + "attempt('parent', os.kill, os.getppid(), 9)\nattempt('trainer', os.kill, TRAINER_PID, 9)",
        holds=each_denied("ESRCH"),
        harmless=False,
    ),
    Behaviour(
        name="kill everyone",
        area=AREA,
        # Signal 0 asks whether a signal would be sent: where this is not denied, nobody has to die for it.
        code=ATTEMPTS + "attempt('all', os.kill, -1, 0)\nattempt('own group', os.kill, 0, 0)",
        holds=each_denied("ESRCH"),
        harmless=False,
    ),
    Behaviour(
        name="kill victim",
        area=AREA,
        code=TRY_CALLS
        + f"""\
import signal
attempt('kill', os.kill, VICTIM_PID, 9)
attempt('pidfd', lambda: signal.pidfd_send_signal(os.pidfd_open(VICTIM_PID), 9))
attempt('tgkill', system_call, {NR["tgkill"]}, VICTIM_PID, VICTIM_PID, 9)
""",
        holds=each_denied("ESRCH"),
    ),
    Behaviour(
        name="stop parent queue",
        area=AREA,
        code=TRY_CALLS
        + f"""\
import signal
# si_signo, si_errno, si_code = SI_QUEUE
info = signal.SIGSTOP.to_bytes(4, 'little') + bytes(4) + b'\\xff' * 4 + bytes(116)
for name, pid in (('parent', os.getppid()), ('trainer', TRAINER_PID)):
    attempt(name, system_call, {NR["rt_sigqueueinfo"]}, pid, int(signal.SIGSTOP), ctypes.c_char_p(info))
""",
        holds=each_denied("ESRCH"),
        harmless=False,
    ),
    Behaviour(
        name="ptrace parent",
        area=AREA,
        # PTRACE_SEIZE attaches without stopping anyone.
        code=TRY_CALLS
        + f"""\
for name, pid in (('parent', os.getppid()), ('trainer', TRAINER_PID), ('victim', VICTIM_PID)):
    attempt(name, system_call, {NR["ptrace"]}, 0x4206, pid, 0, 0)
""",
        holds=each_denied("ESRCH"),
    ),
    Behaviour(
        name="new namespaces",
        area=AREA,
        code=TRY_CALLS
        + f"""\
kinds = dict(user=0x10000000, mount=0x20000, pid=0x20000000, net=0x40000000, ipc=0x8000000, uts=0x4000000)
def cloned():
    if system_call({NR["clone"]}, 0x10000000 | 17, 0, 0, 0, 0) == 0:
        os._exit(0)
    os.wait()
attempt('user by clone', cloned)
for name, flag in kinds.items():
    attempt(name, system_call, {NR["unshare"]}, flag)
""",
        holds=each_denied(),
    ),
    Behaviour(
        name="exotic syscalls",
        area=AREA,
        code=TRY_CALLS
        + f"""\
def read_other():
    there = (ctypes.c_size_t * 2)(SECRET_ADDRESS, 16)
    buffer = ctypes.create_string_buffer(16)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 16)
    system_call({NR["process_vm_readv"]}, TRAINER_PID, here, 1, there, 1, 0)
def mount():
    os.mkdir('hill')
    system_call({NR["mount"]}, b'none', b'hill', b'tmpfs', 0, None)
    system_call({NR["umount2"]}, b'hill', 2)
event = (ctypes.c_uint32 * 32)(1, 128)
attempt('io_uring', system_call, {NR["io_uring_setup"]}, 1, ctypes.create_string_buffer(120))
attempt('bpf', system_call, {NR["bpf"]}, 0, (ctypes.c_uint32 * 32)(2, 4, 4, 1), 128)
attempt('keyctl', system_call, {NR["keyctl"]}, 0, -3, 1)
attempt('perf', system_call, {NR["perf_event_open"]}, event, 0, -1, -1, 0)
attempt('userfaultfd', system_call, {NR["userfaultfd"]}, 1)
attempt('seccomp', system_call, {NR["seccomp"]}, 2, 0, ctypes.byref(ctypes.c_uint32(0x7fff0000)))
attempt('process_vm_readv', read_other)
attempt('mount', mount)
""",
        holds=each_denied("ESRCH"),
    ),
    Behaviour(
        name="x32 abi",
        area=AREA,
        code=TRY_CALLS + (OTHER_ABI if X86 else "print('this processor has no other', 'ENOSYS')"),
        holds=no_other_door,
    ),
    Behaviour(
        name="multiprocessing pool",
        area=AREA,
        code="import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    print('DONE', pool.map(abs, [-1]))",
        holds=no_pool,
    ),
)
