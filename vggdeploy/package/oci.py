"""A directory that ``docker build`` turns into an image: a slim bundle, the base, and the one runtime that it needs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from vggdeploy._version import __version__
from vggdeploy.bundle import Variant
from vggdeploy.errors import one_line
from vggdeploy.optional import version
from vggdeploy.package.base import Made, Order, chosen_variant, finish, package_directory
from vggdeploy.package.slim import write_slim
from vggdeploy.package.wheel import write_wheel

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
        (root / "requirements.txt").write_text(requirements(names, wheel.name), encoding="utf-8")
        (root / "Dockerfile").write_text(dockerfile(order, variant, serve=serve), encoding="utf-8")
        (root / ".dockerignore").write_text("*\n!bundle\n!requirements.txt\n!*.whl\n", encoding="utf-8")
        package = finish(root, order, "oci", [variant])
    options = f"-p 127.0.0.1:{PORT}:{PORT} -e VGGDEPLOY_TOKEN=TOKEN" if serve else "-v $PWD:/images:ro"
    rest = "" if serve else f" predict {BUNDLE} /images/IMAGE"
    return Made(
        package, next=(f"docker build -t NAME {order.output}", f"docker run --rm --read-only {options} NAME{rest}")
    )


def requirements(names: tuple[str, ...], wheel: str) -> str:
    """The packages in the versions that are installed here, with which the bundle was proven, and the wheel."""
    found = [(name, version(name)) for name in names]
    return "".join(f"{name}=={number}\n" if number else f"{name}\n" for name, number in found) + f"./{wheel}\n"


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
