"""ONNX Runtime Web for a packaged page: one version of the npm package, of known bytes, and the files of it that a page needs.

npm's own archive is taken and nothing is installed. It comes from the user's cache, where ``--prepare`` puts it with npm (so
with npm's registry, proxy and mirror), or from a file that ``npm pack`` wrote elsewhere. Either way its SHA-512 has to be the
one that stands here, so neither a registry nor a mirror decides what a visitor runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from vggdeploy.errors import IncompatibleError, IntegrityError, UsageError
from vggdeploy.system.files import read_regular
from vggdeploy.verify.fleet.target import PREPARE, Prefix, run_tool

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # checked 2026-11
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's integrity
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
_MOST_BYTES = 2**28
_NPM = "install it (apt-get install npm), or name the archive that 'npm pack' wrote elsewhere: --runtime FILE"


@dataclass(frozen=True)
class WebRuntime:
    """The two files of one kind: a script, which brings its threads along, and its WebAssembly."""

    name: str
    script: str
    binary: str


# The second one suspends WebAssembly while the GPU works, as the browser itself can (JSPI). The one for browsers that cannot
# has 27 MB instead of 17; those browsers take the first.
RUNTIMES = (
    WebRuntime("wasm", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    WebRuntime("webgpu", "ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
)


def _prefix() -> Prefix:
    return Prefix({"npm pack": f"{PACKAGE}@{VERSION}", "sha512": SHA512})


def prepare_runtime() -> None:
    """Put the archive into the user's cache, unless it is there.

    Raises:
        IncompatibleError: npm is missing or fails, or the cache cannot be written.
        IntegrityError: npm got other bytes.
    """

    def fill(draft: Path) -> None:
        options = ("--ignore-scripts", "--pack-destination", draft)
        run_tool(["npm", "pack", f"{PACKAGE}@{VERSION}", *options], to=f"fetch {PACKAGE}", fix=_NPM)
        _checked(draft / ARCHIVE)

    _prefix().fill(fill, lambda: None)


def runtime_files(archive: Path | None = None) -> dict[str, bytes]:
    """Name → bytes of the files of `RUNTIMES`.

    Args:
        archive: what ``npm pack`` wrote. Default: that of the user's cache.

    Raises:
        IncompatibleError: none is in the cache.
        IntegrityError: the archive has other bytes. UsageError: it cannot be read.
    """
    if archive is None:
        home = _prefix().path()
        if home is None:
            raise IncompatibleError(
                f"{PACKAGE} {VERSION} is not in the user's cache", f"{PREPARE}, or give --runtime FILE"
            )
        archive = home / ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(_checked(archive))) as opened:
        return {name: _member(opened, name) for runtime in RUNTIMES for name in (runtime.script, runtime.binary)}


def _member(opened: tarfile.TarFile, name: str) -> bytes:
    file = opened.extractfile(f"package/dist/{name}")
    assert file is not None  # noqa: S101  # the archive's hash says what is in it
    return file.read()


def _checked(archive: Path) -> bytes:
    try:
        data = read_regular(archive, limit=_MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{archive} cannot be read: {error.strerror}", f"npm pack {PACKAGE}@{VERSION}") from None
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise IntegrityError(
            f"{archive} is not {PACKAGE} {VERSION} as npm has it: its SHA-512 is another",
            f"npm pack {PACKAGE}@{VERSION}",
        )
    return data
