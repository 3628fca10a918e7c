"""A decoder of which somebody's code takes hold: started in place of `vggdeploy.engine.decoder`, confined as that one is.

Of the harms below it does the one that the image's bytes name.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

import numpy as np

from vggdeploy.engine import decoder
from vggdeploy.errors import InputError

_REAL = decoder.prepare
_kept: list[bytes] = []


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
        case b"good":
            return np.zeros((spec.crop, spec.crop, spec.channels), np.uint8)
    return _REAL(data, spec, **options)


if __name__ == "__main__":
    decoder.prepare = prepare
    decoder._WAIT = 2.0
    decoder.main()
