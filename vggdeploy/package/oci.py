"""A directory that ``docker build`` turns into an image: a slim bundle, the base, and the one runtime that it needs."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from vggdeploy._version import __version__
from vggdeploy.bundle import Variant
from vggdeploy.errors import IncompatibleError, one_line
from vggdeploy.package.base import Made, Order, chosen_variant, finish, package_directory
from vggdeploy.package.slim import write_slim
from vggdeploy.system.optional import version

# The extras `base`, `cpu` and `serve`, as far as an image needs them.
BASE = ("numpy", "msgspec", "pillow", "typer")
RUNTIMES = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
SERVER = ("fastapi", "uvicorn", "prometheus-client", "python-multipart")

BUNDLE = "/app/bundle"
PORT = 8000
EVERYWHERE = "0.0.0.0"  # noqa: S104  # inside the container; what is published is up to `docker run`
_PROVE = f"import vggdeploy; vggdeploy.load('{BUNDLE}', verify='always').close()"
_READY = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{PORT}/v2/health/ready', timeout=3)"


def package_oci(order: Order) -> Made:
    """Write Dockerfile, .dockerignore, requirements.txt, the slim bundle, and this vggdeploy as a wheel.

    With ``order.serve`` the image runs ``vggdeploy serve``, else ``vggdeploy`` with what it is given.

    Raises:
        UsageError: a variant for a GPU: its libraries come from NVIDIA's own images.
        IncompatibleError: vggdeploy is not installed.
    """
    variant = chosen_variant(order, tuple(RUNTIMES), "the container")
    serve = bool(order.serve)
    with package_directory(order) as root:
        write_slim(replace(order, output=root / "bundle", overwrite=False), variant)
        wheel = write_wheel(root)
        names = (*BASE, *RUNTIMES[variant.format], *(SERVER if serve else ()))
        (root / "requirements.txt").write_text(f"{requirements(names)}./{wheel.name}\n", encoding="utf-8")
        (root / "Dockerfile").write_text(dockerfile(order, variant, serve=serve), encoding="utf-8")
        (root / ".dockerignore").write_text("*\n!bundle\n!requirements.txt\n!*.whl\n", encoding="utf-8")
        package = finish(root, order, "oci", [variant])
        _readable(root / "bundle")
    options = f"-p 127.0.0.1:{PORT}:{PORT} -e VGGDEPLOY_TOKEN=TOKEN" if serve else "-v $PWD:/images:ro"
    rest = "" if serve else f" predict {BUNDLE} /images/IMAGE"
    return Made(
        package, next=(f"docker build -t NAME {order.output}", f"docker run --rm --read-only {options} NAME{rest}")
    )


def _readable(bundle: Path) -> None:
    """Whatever the umask is: an image keeps the modes, and its user is another. The package's own directory keeps its mode."""
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def requirements(names: tuple[str, ...]) -> str:
    """The packages in the versions that are installed here, with which the bundle was proven, a line each."""
    versions = [(name, version(name)) for name in names]
    return "".join(f"{name}=={number}\n" if number else f"{name}\n" for name, number in versions)


def dockerfile(order: Order, variant: Variant, *, serve: bool) -> str:
    """The Dockerfile. What runs in the image cannot write to any of it."""
    manifest = order.bundle.manifest
    about = one_line(f"{manifest.name} ({manifest.digest[:12]}), {variant.name}, by vggdeploy {__version__}")
    command = ["serve", BUNDLE, "--host", EVERYWHERE, "--port", str(PORT)] if serve else ["verify", BUNDLE]
    lines = [
        f"# {about}",
        f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        "",
        "RUN useradd --system --uid 10001 --no-create-home vggdeploy",
        "WORKDIR /app",
        "COPY requirements.txt *.whl ./",
        "RUN pip install --no-cache-dir -r requirements.txt",
        "COPY bundle bundle",
        "",
        "# Proofs of engines, the only thing that is written; with a read-only root file system it is simply not kept.",
        "ENV VGGDEPLOY_CACHE=/tmp/vggdeploy PYTHONUNBUFFERED=1",
        "USER 10001",
        *([f"EXPOSE {PORT}"] if serve else []),
        f"HEALTHCHECK --interval={'10s' if serve else '5m'} --timeout={'5s' if serve else '60s'} --start-period=30s \\",
        f"    CMD {json.dumps(['python', '-c', _READY if serve else _PROVE])}",
        'ENTRYPOINT ["vggdeploy"]',
        f"CMD {json.dumps(command)}",
    ]
    return "\n".join(lines) + "\n"


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
