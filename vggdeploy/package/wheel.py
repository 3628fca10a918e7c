"""This very vggdeploy as a wheel, from its installed files: what runs in a container is what proved the bundle here.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

from vggdeploy.errors import IncompatibleError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same code is the same wheel, whenever it is packed
_WHEEL = "Wheel-Version: 1.0\nGenerator: vggdeploy\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(directory: Path) -> Path:
    """Write the wheel; returns its path.

    Raises:
        IncompatibleError: vggdeploy is not installed, only found on the path: then nothing says what it needs.
    """
    try:
        installed = importlib.metadata.distribution("vggdeploy")
    except importlib.metadata.PackageNotFoundError:
        raise IncompatibleError("vggdeploy is not installed here", "install it: pip install .") from None
    about = f"vggdeploy-{installed.version}.dist-info"
    home = Path(__file__).parents[1]
    files = {
        f"vggdeploy/{path.relative_to(home).as_posix()}": path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("METADATA", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"):
        text = installed.read_text(name)
        if text is not None:
            files[f"{about}/{name}"] = text.encode()
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    target = directory / f"vggdeploy-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
