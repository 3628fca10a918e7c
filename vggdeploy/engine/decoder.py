"""The process that `vggdeploy.engine.isolation` starts: images in, pixels out, each by a child that ends with its image.

This process touches no byte of an image; it forks, and hands on what its child said. The child is confined before it looks at
the image, so what a picture may do to a decoder ends with that picture.
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
from typing import IO, NoReturn

import msgspec
from PIL import Image

from vggdeploy.errors import InputError, printable
from vggdeploy.preprocess import FORMATS, prepare
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.confined import check_confinable, confine

LENGTH = struct.Struct("=Q")  # bytes of the message that follows
_WAIT = 4.0  # times the processor time, by the clock: a busy machine gives a decoder only a part of a core
_CHUNK = 2**20
_SAID = 2**16  # bytes of a refusal, beside pixels


class Request(msgspec.Struct, frozen=True):
    """One encoded image, and what is to become of it."""

    spec: PreprocessSpec
    data: bytes


class Reply(msgspec.Struct, frozen=True):
    """``uint8 [crop, crop, channels]`` as bytes; or none, and why."""

    pixels: bytes = b""
    cause: str = ""
    hint: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What a child said, a `Reply` if it was what it should be; its return code (`subprocess`); whether it was late."""

    said: bytes
    code: int
    late: bool


class Limits(msgspec.Struct, frozen=True):
    """Of one image: pixels, seconds of processor time, and bytes of memory beside the program's own."""

    max_pixels: int
    seconds: int
    memory: int


def send_message(stream: IO[bytes], data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes:
    """The next message; b"" at the end of the stream."""
    head = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def main() -> None:
    limits = msgspec.json.decode(sys.argv[1], type=Limits)
    _import_everything()
    while data := read_message(sys.stdin.buffer):
        request = msgspec.msgpack.decode(data, type=Request)
        send_message(sys.stdout.buffer, msgspec.msgpack.encode(_decoded(request, limits)))


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


def _decoded(request: Request, limits: Limits) -> Outcome:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        _decode(request, limits, writing)
    os.close(writing)
    try:
        size = request.spec.crop**2 * request.spec.channels
        said, late = _said(reading, size + _SAID, time.monotonic() + _WAIT * limits.seconds)
    finally:
        os.close(reading)
        os.kill(
            child, signal.SIGKILL
        )  # of one that has ended nothing becomes; one that hangs or says too much ends here
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(said, code, late or code == -signal.SIGXCPU)


def _said(reading: int, limit: int, end: float) -> tuple[bytes, bool]:
    """What comes from a child before ``end``, up to ``limit`` bytes; and whether it was still at it then."""
    said = bytearray()
    while len(said) <= limit:
        if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            return b"", True
        if not (part := os.read(reading, _CHUNK)):
            return bytes(said), False
        said += part
    return b"", False


def _decode(request: Request, limits: Limits, writing: int) -> NoReturn:
    """In the child. It writes its reply, and ends."""
    try:
        os.close(0)
        os.close(1)
        confine(memory=limits.memory, seconds=limits.seconds)
        try:
            reply = Reply(prepare(request.data, request.spec, max_pixels=limits.max_pixels).tobytes())
        except InputError as error:
            reply = Reply(cause=error.cause, hint=error.hint)
        left = memoryview(msgspec.msgpack.encode(reply))
        while left:
            left = left[os.write(writing, left) :]
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
