"""A process that parses what may come from anybody: it computes, reads and writes what is open already, and does nothing else.

The kernel holds it: seccomp(2) answers every other system call with "not permitted", so no file, no socket, no process and no
executable page can be had, whatever code a damaged picture makes a library run. Limits of memory and of processor time do the
rest (setrlimit(2)).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vggdeploy.errors import IncompatibleError

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # linux/seccomp.h: SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS: system calls of another architecture have other numbers
# linux/filter.h: load a word; jump if equal, if greater or equal, if a bit is set; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data; of an argument its lower word
_PROT_EXEC = 4
_X32 = 0x40000000  # from here on numbers are those of x86's other calling convention


class _Calls(NamedTuple):
    """A machine's AUDIT_ARCH (linux/audit.h), and the numbers of its system calls."""

    architecture: int
    allowed: tuple[int, ...]
    mapping: tuple[int, int]  # mmap and mprotect
    seccomp: int


# Allowed: read write close fstat lseek munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield mremap madvise getpid
# exit futex clock_gettime exit_group getrandom rseq.
_CALLS = {
    "x86_64": _Calls(
        0xC000003E,
        allowed=(0, 1, 3, 5, 8, 11, 12, 13, 14, 15, 24, 25, 28, 39, 60, 202, 228, 231, 318, 334),
        mapping=(9, 10),
        seccomp=317,
    ),
    "aarch64": _Calls(
        0xC00000B7,
        allowed=(63, 64, 57, 80, 62, 215, 214, 134, 135, 139, 124, 216, 233, 172, 93, 98, 113, 94, 278, 293),
        mapping=(222, 226),
        seccomp=277,
    ),
}


def check_confinable() -> None:
    """Whether a process can be confined here; what that takes is got ready.

    Raises:
        IncompatibleError: it cannot.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _CALLS:
        raise IncompatibleError(
            f"a decoder cannot be confined on {platform.system()} {platform.machine()}: it takes Linux on x86-64 or ARM64",
            "decode in the server's own process: leave isolation out",
        )
    _prepared()


def confine(*, memory: int, seconds: int) -> None:
    """For the rest of this process's life.

    Args:
        memory: bytes of address space beyond what it has now.
        seconds: of processor time in all; the kernel ends what takes more (SIGXCPU).

    Raises:
        OSError: the kernel refuses, for example one that was built without seccomp.
    """
    held = int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds + 1))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    libc, program = _prepared()
    number = _CALLS[platform.machine()].seccomp
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        failure = ctypes.get_errno()
        raise OSError(failure, f"the kernel has no seccomp for us: {os.strerror(failure)}")


class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


@functools.cache
def _prepared() -> tuple[ctypes.CDLL, _Program]:
    """The C library, and the filter as it takes it."""
    instructions = _filter()
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = _Program(len(instructions), ctypes.addressof(code))
    program.kept = code  # as long as it points there
    return ctypes.CDLL(None, use_errno=True), program


def _filter() -> list[bytes]:
    """Classic BPF (linux/seccomp.h): what is on the list goes through, pages that are mapped must not be executable."""
    calls = _CALLS[platform.machine()]
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, calls.architecture, then=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, otherwise=1),
        _step(_RETURN, _REFUSE),
    ]
    for number in calls.allowed:
        steps += [_step(_EQUAL, number, otherwise=1), _step(_RETURN, _ALLOW)]
    for number in calls.mapping:
        steps += [
            _step(_EQUAL, number, otherwise=4),
            _step(_LOAD, _THIRD_ARGUMENT),
            _step(_ANY_BIT, _PROT_EXEC, then=1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
        ]
    return [*steps, _step(_RETURN, _REFUSE)]


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; ``then`` and ``otherwise`` are how many the jump passes over."""
    return struct.pack("=HBBI", code, then, otherwise, value)
