"""Which server is asked, and how: what stands in its URL, and what it says of its model."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from vggdeploy.errors import IncompatibleError, UsageError, VggdeployError, one_line
from vggdeploy.system.files import read_regular

Array = NDArray[Any]
TOKEN_VARIABLE = "VGGDEPLOY_TOKEN"  # noqa: S105  # the name of a variable
PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}
DTYPES = {"UINT8": "uint8", "FP16": "float16", "FP32": "float32", "FP64": "float64"}
_ASKED = ("UINT8", "FP32")  # inputs
_MAX_TOKEN = 64 * 1024
_MAX_VALUES = 2**28  # of one input tensor


@dataclass(frozen=True)
class Target:
    """One model of a server. ``model`` is empty until the server was asked which it has."""

    scheme: str
    host: str
    port: int
    path: str = ""
    model: str = ""
    token: str = ""
    timeout: float = 30.0

    @property
    def grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    @property
    def tls(self) -> bool:
        return self.scheme in ("https", "grpcs")

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def on_this_machine(self) -> bool:
        """Whether its name says so: then server and client share the processor."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False


def parse_url(text: str) -> Target:
    """``http://HOST:PORT``, ``https://…``, ``grpc://…`` or ``grpcs://…``; a path before ``/v2`` is kept.

    Raises:
        UsageError: another scheme, no host, or a password in it.
    """
    example = "give http://HOST:PORT or grpc://HOST:PORT (https and grpcs for TLS)"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--url {text} is no address: {error}", example) from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise UsageError(f"--url {text} is no address of a server", example)
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or (parts.path.strip("/") and parts.scheme[:4] == "grpc")
    ):
        raise UsageError(f"--url has more than an address in it: {parts.scheme}://{parts.hostname}…", example)
    path = parts.path.rstrip("/").removesuffix("/v2")
    return Target(parts.scheme, parts.hostname, PORTS[parts.scheme] if port is None else port, path)


def token_from(file: Path | None) -> str:
    """The bearer token to send: of the file, else of ``$VGGDEPLOY_TOKEN``; empty for none.

    Raises:
        UsageError: a file that cannot be read, or holds no token.
    """
    if file is None:
        text = os.environ.get(TOKEN_VARIABLE, "")
    else:
        try:
            text = read_regular(file, limit=_MAX_TOKEN).decode("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read as a token", "give a file with one line of ASCII") from error
    token = text.strip()
    if (file is not None and not token) or not token.isprintable() or not token.isascii() or " " in token:
        raise UsageError(f"{file or f'${TOKEN_VARIABLE}'} holds no token", "one line of ASCII, without spaces")
    return token


@dataclass(frozen=True)
class Tensor:
    """An input or output as the server describes it; ``item`` is the shape of one sample."""

    name: str
    datatype: str
    item: tuple[int, ...]

    def __str__(self) -> str:
        return f"{one_line(self.name)}: {self.datatype}[N, {', '.join(map(str, self.item))}]"


@dataclass(frozen=True)
class ServedModel:
    """What a server says of one model. ``server`` is the server's own name and version; ``binary``: it takes bytes."""

    name: str
    server: str
    platform: str
    input: Tensor
    outputs: tuple[Tensor, ...]
    binary: bool


def described(answer: dict[str, Any], server: dict[str, Any]) -> ServedModel:
    """From the protocol's two answers of metadata.

    Raises:
        IncompatibleError: a model with several inputs, of a type that is not asked here, or of a shape that is not fixed.
        VggdeployError: no metadata of the protocol.
    """
    try:
        name = str(answer["name"])
        inputs = [_tensor(entry) for entry in answer["inputs"]]
        outputs = tuple(_tensor(entry) for entry in answer["outputs"])
        about = " ".join(one_line(str(server.get(key, "")))[:80] for key in ("name", "version"))
        binary = "binary_tensor_data" in server.get("extensions", [])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VggdeployError(
            "the server's metadata are not of the Open Inference Protocol v2", "give the URL of such a server"
        ) from error
    if len(inputs) != 1 or not outputs:
        raise IncompatibleError(f"{name[:80]} has {len(inputs)} inputs", "one input tensor is what is asked here")
    (given,) = inputs
    if given.datatype not in _ASKED or min(given.item, default=0) < 1 or np.prod(given.item, dtype=float) > _MAX_VALUES:
        raise IncompatibleError(
            f"{name[:80]} takes {given}",
            f"inputs of {' or '.join(_ASKED)} with a fixed shape behind the batch are asked",
        )
    return ServedModel(name, about.strip(), one_line(str(answer.get("platform", "")))[:80], given, outputs, binary)


def _tensor(entry: dict[str, Any]) -> Tensor:
    return Tensor(str(entry["name"]), str(entry["datatype"]), tuple(int(n) for n in entry["shape"][1:]))
