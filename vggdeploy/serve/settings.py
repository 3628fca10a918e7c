"""What a server is started with, as one record: the command line makes it, worker processes read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vggdeploy.errors import UsageError
from vggdeploy.records import Record

MIB = 2**20
TOKEN_VARIABLE = "VGGDEPLOY_TOKEN"  # noqa: S105  # the name of a variable
SETTINGS_VARIABLE = "VGGDEPLOY_SERVE_SETTINGS"  # of other processes: the Settings as JSON
SHADOW_OWN = "shadow."  # how a setting of the shadow's own begins
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_TOKEN = 16  # characters: what is shorter can be guessed


class Settings(Record, frozen=True, kw_only=True):
    """``timeout`` and ``drain`` are seconds, ``max_body`` and ``body_budget`` bytes.

    ``otlp`` is the base URL of a collector.
    ``body_budget`` bounds what all request bodies together may take; ``connections`` how many are open at a time.
    ``bundle`` and ``also`` are bundles, ``NAME=PATH``, or directories of bundles; ``own`` is what single models have
    otherwise, as ``NAME.FIELD=VALUE``. ``memory`` (bytes) bounds what the open models of a process take together; every
    ``watch`` seconds new versions are looked for, 0: never. ``shadow`` is the bundle that is asked a share, ``sample``, of
    what callers ask; ``max_flips`` the share of changed classes with which it may take over, None for its manifest's.
    ``drift``: watch whether requests are others than the bundle's test images. On Ray ``min_workers`` to ``workers`` replicas
    run, as many as keep the time in the queue below ``queue_time_ms``.
    """

    bundle: str
    backend: str = "auto"
    variant: str | None = None
    device: str | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    min_workers: int = 1
    queue_time_ms: float = 100.0
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
    otlp: str | None = None
    also: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    memory: int | None = None
    watch: float = 0.0
    shadow: str | None = None
    sample: float = 0.05
    max_flips: float | None = None
    drift: bool = False
    grpc_port: int | None = None
    model_control: bool = False

    def __post_init__(self) -> None:
        checks = {
            f"--port is {self.port}": (0 <= self.port <= 65_535, "a port from 1 to 65535, or 0 for a free one"),
            f"--grpc-port is {self.grpc_port}": (
                self.grpc_port is None or 0 <= self.grpc_port <= 65_535,
                "a port from 1 to 65535, or 0 for a free one",
            ),
            f"--workers is {self.workers}": (1 <= self.workers <= 256, "1 to 256 processes"),
            f"--min-workers is {self.min_workers}": (
                1 <= self.min_workers <= self.workers,
                f"1 to --workers, which is {self.workers}",
            ),
            f"--queue-time is {self.queue_time_ms} ms": (
                1 <= self.queue_time_ms <= 60_000,
                "1 to 60000 milliseconds",
            ),
            f"--queue is {self.queue}": (self.queue >= 1, "at least 1 request"),
            f"--timeout is {self.timeout} s": (0 < self.timeout <= 3600, "more than 0 and at most 3600 seconds"),
            f"--drain is {self.drain} s": (0 <= self.drain <= 3600, "0 to 3600 seconds"),
            f"--max-body is {self.max_body} bytes": (self.max_body >= 1024, "at least 1024 bytes"),
            f"--max-pixels is {self.max_pixels}": (self.max_pixels >= 1, "at least 1 pixel"),
            f"--memory is {self.memory} bytes": (self.memory is None or self.memory >= MIB, "at least 1MiB"),
            f"--sample is {self.sample:g}": (0 < self.sample <= 1, "more than 0% and at most 100%"),
            f"--max-flips is {self.max_flips}": (
                self.max_flips is None or 0 < self.max_flips < 1,
                "more than 0 and less than 100 percent",
            ),
            f"--watch is {self.watch} s": (
                self.watch == 0 or 0.1 <= self.watch <= 86_400,
                "0 for never, or 0.1 to 86400 seconds",
            ),
        }
        for what, (holds, possible) in checks.items():
            if not holds:
                raise UsageError(f"{what}, which is out of range", f"give {possible}")
        if self.model_control and self.workers > 1:
            raise UsageError(
                "--model-control would reach one of --workers, which each have their own models",
                "serve with one worker",
            )
        if self.otlp is not None and not _is_base_url(self.otlp):
            raise UsageError(
                f"--otlp is {self.otlp[:80]!r}, and no URL of a collector", "give its OTLP/HTTP port: http://HOST:4318"
            )
        if self.shadow is None and any(text.startswith(SHADOW_OWN) for text in self.own):
            raise UsageError("a setting of the shadow is given, and no shadow", "add --shadow BUNDLE")
        if self.shadow is not None and self.workers > 1:
            raise UsageError("--shadow counts in one process, and --workers asks for more", "leave --workers out")
        if self.several:
            self.check_not_alone()

    def check_not_alone(self) -> None:
        """Whether what is asked for goes with more than one bundle.

        Raises:
            UsageError: it is of one bundle alone.
        """
        if self.drift:
            raise UsageError("--drift watches one bundle", "serve the others with a command of their own")
        if self.shadow is not None:
            raise UsageError("--shadow goes with one bundle", "serve the others with a command of their own")

    @property
    def several(self) -> bool:
        """Whether more than one bundle was named, or what only goes with that. A directory may hold several, too:
        `vggdeploy.serve.catalogue.places` knows."""
        return bool(self.also or self.memory or any(not text.startswith(SHADOW_OWN) for text in self.own))

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


def known_settings(bundle: str, given: Mapping[str, Any]) -> Settings:
    """Settings of a bundle.

    Raises:
        UsageError: a setting that there is not, or that is out of its range.
    """
    unknown = set(given) - set(Settings.__struct_fields__)
    if unknown:
        raise UsageError(f"{min(unknown)!r} is no setting of the server", "see vggdeploy.serve.settings.Settings")
    return Settings(bundle=bundle, **given)


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not parts.query + parts.fragment
        )
    except ValueError:  # a port that is no number, brackets that are not closed
        return False


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
