"""glibc's heaps: one a core where a server asked for it, whatever number of threads it starts."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vggdeploy.system.machine import usable_cores

# Forty threads at the same time, each with memory of its own; then glibc says how many heaps it has.
THREADS = """
import ctypes, sys, threading
from vggdeploy.system.machine import limit_arenas
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if {limited}:
    limit_arenas()
all_there = threading.Barrier(40)
def work():
    libc.malloc(1000)
    all_there.wait()
threads = [threading.Thread(target=work) for _ in range(40)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("limited", [False, True])
def test_a_server_has_no_more_heaps_than_cores(limited: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(limited=limited)], capture_output=True, text=True, check=True, timeout=60
    )
    heaps = len(re.findall(r"<heap nr=", done.stdout))
    most = max(2, usable_cores())
    assert heaps <= most if limited else heaps > most, done.stdout[:500]
