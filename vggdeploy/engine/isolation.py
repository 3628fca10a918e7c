"""Images from anybody, decoded in processes that can do nothing else: see `vggdeploy.system.confined`."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from queue import SimpleQueue

import msgspec
import numpy as np
from numpy.typing import NDArray

from vggdeploy.engine.decoder import ANSWERED, ASKED, UNCONFINED, Limits, Reply, Request
from vggdeploy.errors import IncompatibleError, InputError, VggdeployError
from vggdeploy.preprocess import MAX_METADATA
from vggdeploy.spec import PreprocessSpec
from vggdeploy.system.confined import check_confinable

SECONDS = 5  # of processor time, for one image
# Bytes that decoding one pixel takes at most, with its copies: 16-bit RGBA, its 8-bit form, the image that is composed.
_PIXEL = 24
_MODULE = "vggdeploy.engine.decoder"
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG")  # of the environment: no secret
_SAID = 2**16  # bytes of a reply beside its pixels
_FIX = "replace the file, or scale it down"
_NO_START = "the decoder does not start", "see the memory and the number of processes that are left"


class IsolatedDecoders:
    """So many images at a time, each in a process of its own. Threads may call `prepare`; one that finds none idle waits.

    Raises:
        IncompatibleError: this system cannot confine a process.
        VggdeployError: a decoder does not start.
    """

    def __init__(self, count: int, *, max_pixels: int, seconds: int = SECONDS) -> None:
        check_confinable()
        limits = Limits(max_pixels, seconds, _PIXEL * max_pixels + 2 * MAX_METADATA)
        self._all = [_Decoder(limits) for _ in range(count)]
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        try:
            for decoder in self._all:
                decoder.wait()
                self._idle.put(decoder)
        except VggdeployError:
            self.close()
            raise

    def prepare(self, data: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """As `vggdeploy.preprocess.prepare`, of the bytes of an image file.

        Raises:
            InputError: also of an image that takes too long, or that ended its decoder.
            VggdeployError: no decoder could be started.
        """
        decoder = self._idle.get()
        try:
            return decoder.prepare(data, spec)
        finally:
            self._idle.put(decoder)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that wait for images."""
        return tuple(decoder.process.pid for decoder in self._all)

    def close(self) -> None:
        """End the processes. A second call does nothing."""
        for decoder in self._all:
            decoder.stop()


class _Decoder:
    """A process that forks for each image. One that was killed from outside is replaced."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.process = self._started()
        self._ready = False

    def wait(self) -> None:
        """Until it has confined a process, and can take images.

        Raises:
            IncompatibleError: the kernel does not confine one; VggdeployError: it does not start.
        """
        if self._ready:
            return
        assert self.process.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        if len(self.process.stdout.read(ANSWERED.size)) == ANSWERED.size:
            self._ready = True
        elif self.process.wait() == UNCONFINED:
            raise IncompatibleError(
                "the kernel, or the rules of this container, let no process confine itself (seccomp)",
                "allow the system call seccomp(2), or decode in the server's own process: leave isolation out",
            )
        else:
            raise VggdeployError(*_NO_START)

    def prepare(self, data: bytes, spec: PreprocessSpec) -> NDArray[np.uint8]:
        size = spec.crop * spec.crop * spec.channels
        code, late, said = self._asked(msgspec.msgpack.encode(Request(spec, data)), size + _SAID)
        try:
            reply = msgspec.msgpack.decode(said, type=Reply)
        except msgspec.MsgspecError:
            raise InputError(f"the image given {self._end_of(code, late=late)}", _FIX) from None
        if reply.cause:
            raise InputError(reply.cause, reply.hint)
        if len(reply.pixels) != size:
            raise InputError("the image given made its decoder answer with other pixels than were asked for", _FIX)
        return np.frombuffer(reply.pixels, np.uint8).reshape(spec.crop, spec.crop, spec.channels)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()  # closes the pipes and waits

    def _asked(self, request: bytes, most: int) -> tuple[int, bool, bytes]:
        """How the child ended, whether it was late, and what it said."""
        for _ in range(2):
            if self.process.poll() is not None:
                self.stop()
                self.process, self._ready = self._started(), False
            self.wait()
            assert self.process.stdin is not None  # noqa: S101  # for the type checker: they are pipes
            assert self.process.stdout is not None  # noqa: S101
            try:
                self.process.stdin.write(ASKED.pack(len(request), most) + request)
                self.process.stdin.flush()
                code, late, count = ANSWERED.unpack(self.process.stdout.read(ANSWERED.size))
                return code, late, self.process.stdout.read(count)
            except (OSError, struct.error):
                self.process.kill()  # somebody has killed it already, or it could not start
                self.process.wait()
        raise VggdeployError(*_NO_START)

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, msgspec.json.encode(self._limits).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a library prints of a damaged file is nobody's to read
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def _end_of(self, code: int, *, late: bool) -> str:
        """What an image did to its decoder, as the end of a sentence."""
        if late:
            return f"takes more than {self._limits.seconds} s to decode"
        return f"made its decoder end ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"
