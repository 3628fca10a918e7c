"""A library that computes for hours and gives Python no turn: OpenSSL, at 10¹¹ rounds of PBKDF2."""

from __future__ import annotations

import hashlib
from pathlib import Path


def endless(ready: Path | None = None) -> None:
    """Compute; ``ready`` is made right before."""
    if ready is not None:
        ready.touch()
    for _ in range(100):  # a call may have 2³¹ rounds
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
