"""A decoder of which somebody's code takes hold: started in place of `vggdeploy.engine.decoder`, confined as that one is.

Of the harms below it does the one that the image's bytes name.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.engine import decoder
from vggdeploy.errors import InputError

_REAL, _CONFINE = decoder.prepare, decoder.confine
_kept: list[bytes] = []
_maps: list[str] = []
MASK = 0xFF


def confine(**limits: int) -> None:
    """What code that took hold would find out by trial: where its memory is."""
    _maps[:] = Path("/proc/self/maps").read_text().splitlines()
    _CONFINE(**limits)


def find(masked: bytes) -> int:
    """How often the bytes that were masked stand in this process's memory; they themselves never do because of this search."""
    count = 0
    for line in _maps:
        place, rights = line.split()[:2]
        if rights.startswith("rw") and not any(name in line for name in ("[stack", "[vvar")):
            start, end = (int(x, 16) for x in place.split("-"))
            count += (np.frombuffer(ctypes.string_at(start, end - start), np.uint8) ^ MASK).tobytes().count(masked)
    return count


def prepare(data: bytes, spec: Any, **options: Any) -> Any:  # noqa: PLR0912  # a case for each harm
    match data:
        case b"computes without end":
            while True:
                pass
        case b"waits without end":
            threading.Event().wait()
        case b"crashes":
            ctypes.string_at(0)
        case b"ends":
            os._exit(3)
        case b"too few pixels":
            return np.zeros(3, np.uint8)
        case b"too many pixels":
            return np.zeros(2**22, np.uint8)
        case b"no message":
            for number in range(2, 20):
                try:
                    os.write(number, b"\xc1 nothing that msgpack knows")
                except OSError:
                    continue
            os._exit(0)
        case b"tells":
            raise InputError(f"\x1b[2J{sorted(os.environ)}")
        case b"stays":
            _kept.append(data)
            raise InputError(f"seen: {len(_kept)}")
        case _ if data.startswith(b"remembers "):
            raise InputError(f"found {find(data.removeprefix(b'remembers '))} times")
        case _ if data.startswith(b"good"):
            return np.full((spec.crop, spec.crop, spec.channels), data[-1], np.uint8)
    return _REAL(data, spec, **options)


if __name__ == "__main__":
    decoder.prepare, decoder.confine = prepare, confine
    decoder._WAIT = 2.0
    decoder.main()
