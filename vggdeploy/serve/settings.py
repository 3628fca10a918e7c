"""What a server is started with, as one record: the command line makes it, worker processes read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vggdeploy.errors import UsageError
from vggdeploy.records import Record

MIB = 2**20
TOKEN_VARIABLE = "VGGDEPLOY_TOKEN"  # noqa: S105  # the name of a variable
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_TOKEN = 16  # characters: what is shorter can be guessed


class Settings(Record, frozen=True, kw_only=True):
    """``timeout`` and ``drain`` are seconds, ``max_body`` and ``body_budget`` bytes.

    ``body_budget`` bounds what all request bodies together may take; ``connections`` how many are open at a time.
    """

    bundle: str
    backend: str = "auto"
    variant: str | None = None
    device: str | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    max_batch: int | None = None
    max_delay_ms: float = 2.0
    queue: int = 256
    timeout: float = 30.0
    drain: float = 1.0
    max_body: int = 16 * MIB
    body_budget: int = 512 * MIB
    max_pixels: int = 25_000_000
    isolate: bool = False
    connections: int = 1000
    token_file: str | None = None
    trusted_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            f"--port is {self.port}": 0 <= self.port <= 65_535,
            f"--workers is {self.workers}": 1 <= self.workers <= 256,
            f"--queue is {self.queue}": self.queue >= 1,
            f"--timeout is {self.timeout} s": 0 < self.timeout <= 3600,
            f"--drain is {self.drain} s": 0 <= self.drain <= 3600,
            f"--max-body is {self.max_body} bytes": self.max_body >= 1024,
            f"--max-pixels is {self.max_pixels}": self.max_pixels >= 1,
        }
        for what, holds in checks.items():
            if not holds:
                raise UsageError(f"{what}, which a server cannot work with", "see the limits: vggdeploy serve --help")

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK

    def token(self) -> bytes | None:
        """The bearer token, from the file or from the environment; None where neither is given.

        Raises:
            UsageError: a file that cannot be read or that other users can read, a token that is too short.
        """
        if self.token_file is None:
            text = os.environ.get(TOKEN_VARIABLE)
            if text is None:
                return None
            where = f"${TOKEN_VARIABLE}"
        else:
            where = self.token_file
            text = _read_token(Path(self.token_file))
        token = text.strip().encode()
        if len(token) < MIN_TOKEN or not token.isascii() or b" " in token:
            raise UsageError(
                f"{where} holds no token of at least {MIN_TOKEN} ASCII characters without spaces",
                "make one: openssl rand -hex 32",
            )
        return token


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"the token file {path} cannot be read: {reason}", "check its path and permissions") from error
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        raise UsageError(f"every user can read the token file {path}", f"chmod 600 {path}")
    return text
