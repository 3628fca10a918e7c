"""The process that `vggdeploy.engine.isolation` starts: images in, pixels out, each by a child that ends with its image.

This process forks for each image, and hands on what its child said. The child is confined before it looks at the image, so
what a picture may do to a decoder ends with that picture. Neither the image nor its pixels are left in this process's
memory, of which the next child gets a copy.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import struct
import sys
import time
from typing import NoReturn

import msgspec
from PIL import Image

from vggdeploy.errors import InputError, printable
from vggdeploy.preprocess import FORMATS, prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.confined import check_confinable, confine

ASKED = struct.Struct("=QQ")  # bytes of the request that follows, and of its reply at most
# How the child ended, whether it was late, and the bytes that follow: a `Reply`, or anything.
ANSWERED = struct.Struct("=i?Q")
UNCONFINED = 3  # the exit code where the kernel confines no process of ours
_WAIT = 4.0  # times the processor time, by the clock: a busy machine gives a decoder only a part of a core


class Request(msgspec.Struct, frozen=True):
    """One encoded image, and what is to become of it."""

    spec: PreprocessSpec
    data: bytes


class Reply(msgspec.Struct, frozen=True):
    """``uint8 [crop, crop, channels]`` as bytes; or none, and why."""

    pixels: bytes = b""
    cause: str = ""
    hint: str = ""


class Limits(msgspec.Struct, frozen=True):
    """Of one image: pixels, seconds of processor time, and bytes of memory beside the program's own."""

    max_pixels: int
    seconds: int
    memory: int


def main() -> None:
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    _import_everything()
    if not _confines(limits):
        sys.exit(UNCONFINED)
    _write(1, ANSWERED.pack(0, False, 0))  # ready
    head = bytearray(ASKED.size)
    while _filled(0, head):
        length, most = ASKED.unpack(head)
        request, said = bytearray(length), bytearray(most + 1)
        if not _filled(0, request):
            return
        _answer(request, said, limits)
        for held in (request, said):
            held[:] = bytes(len(held))


def _answer(request: bytearray, said: bytearray, limits: Limits) -> None:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        _decode(request, limits, writing)
    os.close(writing)
    try:
        count, late = _heard(reading, said, time.monotonic() + _WAIT * limits.seconds)
    finally:
        os.close(reading)
        # One that has ended already takes no notice; one that hangs or says too much ends here.
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0 if late or count == len(said) else count
    _write(1, ANSWERED.pack(code, late or code == -signal.SIGXCPU, count))
    _write(1, memoryview(said)[:count])


def _heard(reading: int, said: bytearray, end: float) -> tuple[int, bool]:
    """How many bytes came from a child before ``end``; and whether it was still at it then."""
    count = 0
    while count < len(said):
        if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            return count, True
        if not (part := os.readv(reading, [memoryview(said)[count:]])):
            break
        count += part
    return count, False


def _filled(file: int, room: bytearray) -> bool:
    """Whether there was as much as there is room for; else it is the end of the file."""
    left = memoryview(room)
    while left and (count := os.readv(file, [left])):
        left = left[count:]
    return not left


def _write(file: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _import_everything() -> None:
    """Decode a picture of each format, and refuse one: what is imported when it is first needed no child could open."""
    Image.init()
    for name in FORMATS:
        picture = io.BytesIO()
        Image.new("L", (8, 8)).save(picture, name)
        prepare(picture.getvalue(), PreprocessSpec(resize=8, crop=8))
    printable("\x1b")
    check_confinable()
    gc.collect()
    gc.freeze()  # a child that collects would touch, and so copy, every page


def _confines(limits: Limits) -> bool:
    """Whether the kernel does what `confine` asks: one that was built without seccomp, or a container's rules, may not."""
    if not (child := os.fork()):
        try:
            confine(memory=limits.memory, seconds=limits.seconds)
        except OSError:
            os._exit(UNCONFINED)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _decode(data: bytearray, limits: Limits, writing: int) -> NoReturn:
    """In the child. It writes its reply, and ends."""
    try:
        os.close(0)
        os.close(1)
        confine(memory=limits.memory, seconds=limits.seconds)
        request = msgspec.msgpack.decode(data, type=Request)
        try:
            reply = Reply(prepare(request.data, request.spec, max_pixels=limits.max_pixels).tobytes())
        except InputError as error:
            reply = Reply(cause=error.cause, hint=error.hint)
        _write(writing, msgspec.msgpack.encode(reply))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
