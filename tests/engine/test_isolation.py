"""Images of strangers are decoded to the same pixels by a process that can do nothing else, whatever becomes of it."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.processes import alive
from fuzz.mutations import changed_bytes
from PIL import Image

import vggdeploy
from vggdeploy.engine import isolation
from vggdeploy.engine.async_engine import AsyncEngine, AsyncLimits
from vggdeploy.engine.isolation import IsolatedDecoders
from vggdeploy.errors import IncompatibleError, InputError
from vggdeploy.parity.pixels import IMAGES
from vggdeploy.preprocess import SUFFIXES, prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system import confined

SPEC = PreprocessSpec(resize=24, crop=16)
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def decoders() -> Iterator[IsolatedDecoders]:
    made = IsolatedDecoders(2, max_pixels=10**6)
    yield made
    made.close()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoders]:
    """Of which somebody's code has taken hold."""
    monkeypatch.setattr(isolation, "_MODULE", "fakes.decoder")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    made = IsolatedDecoders(1, max_pixels=10**4, seconds=1)
    yield made
    made.close()


@pytest.mark.parametrize("path", sorted(p for p in IMAGES.iterdir() if p.suffix in SUFFIXES), ids=lambda p: p.name)
def test_the_pixels_are_those_of_this_process(path: Path, decoders: IsolatedDecoders) -> None:
    data = path.read_bytes()
    np.testing.assert_array_equal(decoders.prepare(data, SPEC), prepare(data, SPEC))


def test_what_is_refused_here_is_refused_there_in_the_same_words(decoders: IsolatedDecoders) -> None:
    whole = (IMAGES / "rgb.png").read_bytes()
    for data in (b"no image", whole[: len(whole) // 2]):
        with pytest.raises(InputError) as here:
            prepare(data, SPEC)
        with pytest.raises(InputError) as there:
            decoders.prepare(data, SPEC)
        assert str(there.value) == str(here.value)


def test_whatever_is_done_to_a_picture_it_is_judged_as_here(decoders: IsolatedDecoders) -> None:
    good = [path.read_bytes() for path in sorted(IMAGES.iterdir()) if path.suffix in SUFFIXES]
    chance = random.Random(0)
    for _ in range(400):
        data = changed_bytes(chance.choice(good), chance)
        np.testing.assert_equal(
            judged(partial(decoders.prepare, data, SPEC)), judged(partial(prepare, data, SPEC, max_pixels=10**6))
        )


def judged(way: Callable[[], Any]) -> Any:
    try:
        return way()
    except InputError as error:
        return str(error)


def test_an_image_as_large_as_allowed_fits_into_the_memory(decoders: IsolatedDecoders) -> None:
    for name, mode in (
        ("PNG", "RGBA"),
        ("JPEG", "CMYK"),
        ("WEBP", "RGBA"),
        ("TIFF", "RGB"),
        ("PNG", "I;16"),
        ("GIF", "P"),
    ):
        data = io.BytesIO()
        Image.new(mode, (1000, 1000)).save(data, name)
        assert decoders.prepare(data.getvalue(), SPEC).shape == (16, 16, 3)


ESCAPES = {
    "a file": "open('/etc/hostname')",
    "a file by number": "import os; os.open('/proc/self/mem', os.O_RDWR)",
    "a socket": "import _socket; _socket.socket()",
    "a process": "import os; os.fork()",
    "a program": "import os; os.execv('/bin/true', ['true'])",
    "a thread": "import _thread; _thread.start_new_thread(print, ())",
    "executable memory": "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "a signal to another process": "import os; os.kill(os.getppid(), 0)",
    "a new name for a file": "import os; os.rename('/tmp/a', '/tmp/b')",
    "less confinement": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_confined_process_gets(name: str) -> None:
    preloaded = "import _socket, _thread, mmap, os, resource"
    code = (
        f"{preloaded}\nfrom vggdeploy.system.confined import confine\nconfine(memory=2**28, seconds=20)\n"
        f"try:\n    {ESCAPES[name]}\nexcept (OSError, RuntimeError, ValueError) as error:\n    os._exit(42)\nos._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 42, (name, done.stderr)


def test_every_thread_of_a_confined_process_is_confined() -> None:
    code = """
import os, threading
from vggdeploy.system.confined import confine
go, said = threading.Event(), []
def later():
    go.wait()
    try:
        open("/etc/hostname")
    except PermissionError:
        said.append(True)
thread = threading.Thread(target=later)
thread.start()
confine(memory=2**28, seconds=20)
go.set()
thread.join()
os._exit(42 if said else 1)
"""
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=False, timeout=60)
    assert done.returncode == 42


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("computes without end", "takes more than 1 s to decode"),
        ("waits without end", "takes more than 1 s to decode"),
        ("crashes", "made its decoder end (SIGSEGV)"),
        ("ends", "made its decoder end (exit 3)"),
        ("too few pixels", "answer with other pixels"),
        ("too many pixels", "made its decoder end (SIGKILL)"),
        ("no message", "made its decoder end (exit 0)"),
    ],
)
def test_a_decoder_that_is_taken_over_costs_one_image(harm: str, told: str, taken: IsolatedDecoders) -> None:
    with pytest.raises(InputError, match="the image given") as refused:
        taken.prepare(harm.encode(), SPEC)
    assert told in refused.value.cause
    assert taken.prepare(b"good", SPEC).shape == (16, 16, 3)


def test_nothing_of_an_image_is_there_for_the_next(taken: IsolatedDecoders) -> None:
    for _ in range(3):
        with pytest.raises(InputError, match="seen: 1"):
            taken.prepare(b"stays", SPEC)


def test_nothing_of_an_image_or_its_pixels_is_left_in_the_memory_of_the_next(taken: IsolatedDecoders) -> None:
    """Not its bytes and not its pixels: freed memory keeps what was in it."""
    secret = random.Random(0).randbytes(64)
    for picture, trace in ((b"good" + secret * 4000 + b"\x07", secret), (b"good" + secret + b"\xa7", b"\xa7" * 700)):
        taken.prepare(picture, SPEC)
        masked = bytes(byte ^ 0xFF for byte in trace)
        with pytest.raises(InputError, match="found 0 times"):
            taken.prepare(b"remembers " + masked, SPEC)


def test_one_that_is_killed_from_outside_is_replaced(decoders: IsolatedDecoders) -> None:
    data = (IMAGES / "rgb.png").read_bytes()
    for pid in decoders.pids:
        os.kill(pid, signal.SIGKILL)
    for _ in range(4):
        np.testing.assert_array_equal(decoders.prepare(data, SPEC), prepare(data, SPEC))


def test_it_knows_no_secret_of_the_server(taken: IsolatedDecoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGDEPLOY_TOKEN", "a secret of the server's")
    os.kill(taken.pids[0], signal.SIGKILL)  # the next one starts with that environment
    with pytest.raises(InputError, match="PATH") as told:
        taken.prepare(b"tells", SPEC)
    assert "TOKEN" not in str(told.value)
    assert "\x1b" not in repr(told.value.cause).replace("\\x1b", "")


def test_a_decoder_ends_with_its_server(tmp_path: Path) -> None:
    code = """
import os, signal
from vggdeploy.engine.isolation import IsolatedDecoders
made = IsolatedDecoders(1, max_pixels=1000)
print(*made.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    pid = int(done.stdout)
    for _ in range(200):
        if not alive(pid):
            return
        time.sleep(0.05)
    pytest.fail("it still runs 10 s later")


def test_an_engine_answers_the_same_with_it(bundle_dir: Path, digit_png: Path) -> None:
    async def classify(isolate: bool) -> list[list[vggdeploy.Prediction]]:
        limits = AsyncLimits(isolate=isolate, decode_threads=1)
        async with AsyncEngine(vggdeploy.load(bundle_dir, variant="onnx-fp32"), limits) as engine:
            return [
                await engine.classify(source)
                for source in (digit_png, digit_png.read_bytes(), np.zeros((8, 8), np.uint8))
            ]

    assert asyncio.run(classify(True)) == asyncio.run(classify(False))


def test_where_no_process_can_be_confined_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined.platform, "machine", lambda: "riscv64")
    with pytest.raises(IncompatibleError, match="riscv64"):
        IsolatedDecoders(1, max_pixels=1000)


def test_where_the_kernel_confines_none_it_is_refused_before_the_first_image() -> None:
    """As in a container whose rules refuse seccomp(2): the attack is a filter of our own that does."""
    code = """
import ctypes, struct
from vggdeploy.system import confined
number = confined._CALLS[confined.platform.machine()].seccomp
steps = [confined._step(confined._LOAD, confined._NUMBER), confined._step(confined._EQUAL, number, otherwise=1),
         confined._step(confined._RETURN, confined._REFUSE), confined._step(confined._RETURN, confined._ALLOW)]
code = ctypes.create_string_buffer(b"".join(steps))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(number, 1, 0, ctypes.byref(confined._Program(len(steps), ctypes.addressof(code)))) == 0
from vggdeploy.engine.isolation import IsolatedDecoders
from vggdeploy.errors import IncompatibleError
try:
    IsolatedDecoders(2, max_pixels=1000)
except IncompatibleError as error:
    print(error.cause)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "let no process confine itself" in done.stdout
