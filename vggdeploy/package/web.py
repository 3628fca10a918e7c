"""A static site that classifies pictures in the visitor's browser, after it has proven the model on the visitor's device."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from vggdeploy._version import __version__
from vggdeploy.bundle import Bundle, Variant
from vggdeploy.bundle.arrays import array_bytes
from vggdeploy.engine.predictions import need_scores
from vggdeploy.errors import UsageError, one_line
from vggdeploy.package.base import Made, Order, chosen_variant, copy_checked, copy_variant, finish, package_directory
from vggdeploy.package.cpp import tall_first
from vggdeploy.package.web_runtime import PACKAGE, RUNTIMES, VERSION, prepare_runtime, runtime_files
from vggdeploy.parity.anchor import JPEG_LEVELS
from vggdeploy.parity.compare import SAME
from vggdeploy.parity.criteria import RECORD_FACTOR, Criteria, criteria_of
from vggdeploy.parity.stress import stress_images
from vggdeploy.system.files import sha256_of
from vggdeploy.types import ImageSource, Precision

DEFAULT = "onnx-fp32"  # both backends compute FP32, and no browser lacks an instruction for it
_RUNS = (Precision.FP32, Precision.FP16, Precision.INT8)
_LARGE = 20_000_000  # bytes of a model for which a visitor waits
_STRESS = "bundle/golden/stress-images/image.npy"
_HEADERS = {
    # With these two a page may use threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
}


def package_web(order: Order) -> Made:
    """Write the site: page and module, ONNX Runtime Web, the model, its golden pair, and the hash of every file.

    Raises:
        UsageError: a bundle without class scores or whose graph does not take pixels; a precision that browsers do not run.
        IncompatibleError: ONNX Runtime Web is not in the user's cache.
        IntegrityError: it, or a file of the bundle, has other bytes.
    """
    variant = _variant(order)
    if order.prepare:
        prepare_runtime()
    runtime = runtime_files(order.runtime)
    with package_directory(order) as root:
        with as_file(files("vggdeploy.package") / "web_site") as sources:
            _copy_sources(sources, root)
        (root / "runtime").mkdir()
        for name, data in runtime.items():
            (root / "runtime" / name).write_bytes(data)
        _copy_bundle(order.bundle, variant, root)
        site = json.dumps(_site(order, variant, root), indent=1, ensure_ascii=False).encode()
        (root / "site.json").write_bytes(site)
        _write_page(root, order, variant, hashlib.sha256(site).hexdigest())
        package = finish(root, order, "web", [variant])
    size = (order.bundle.size(variant)) / 1e6
    notes = [
        f"{variant.name} has {size:.0f} MB, which each visitor loads: a smaller variant or network suits a page better"
    ]
    return Made(
        package,
        next=(
            f"python -m http.server --bind 127.0.0.1 --directory {order.output} 8080  # and open http://127.0.0.1:8080",
        ),
        notes=tuple(notes) if size * 1e6 > _LARGE else (),
    )


def _variant(order: Order) -> Variant:
    manifest = order.bundle.manifest
    need_scores(manifest)
    if manifest.input.dtype != "uint8":
        raise UsageError(
            "this bundle's graph takes normalised float32, and the page gives it pixels",
            "export it again with --input uint8",
        )
    names = [variant.name for variant in manifest.variants]
    chosen = order.with_variant(DEFAULT) if not order.variants and DEFAULT in names else order
    variant = chosen_variant(chosen, ("onnx",), "the web page")
    if variant.precision not in _RUNS:
        raise UsageError(
            f"ONNX Runtime Web does not compute in {variant.precision}, as {variant.name} does",
            f"name a variant in {', '.join(_RUNS)}",
        )
    if variant.batch.min > 1:
        raise UsageError(
            f"{variant.name} takes batches from {variant.batch.min} on, and a page has one", "export it again"
        )
    return variant


def _copy_sources(sources: Path, root: Path) -> None:
    for source in sorted(sources.rglob("*")):
        if source.suffix in (".js", ".ts", ".css") and source.is_file():
            target = root / source.relative_to(sources)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())


def _copy_bundle(bundle: Bundle, variant: Variant, root: Path) -> None:
    golden = bundle.manifest.golden
    copy_variant(bundle, variant, root / _inside(variant.path))
    for relative in (*golden.pair, *golden.files, *filter(None, (golden.prepared,))):
        copy_checked(bundle, relative, root / _inside(relative))
    if golden.stress:
        (root / _STRESS).parent.mkdir(parents=True, exist_ok=True)
        (root / _STRESS).write_bytes(array_bytes(stress_images(bundle.manifest.preprocess, _stress_count(bundle))))


def _inside(relative: str) -> str:
    return f"bundle/{relative}"


def _stress_count(bundle: Bundle) -> int:
    return max((len(rows) for rows in bundle.stress().values()), default=0)


def _name(order: Order) -> str:
    return one_line(order.name or order.bundle.manifest.name)


def _site(order: Order, variant: Variant, root: Path) -> dict[str, Any]:
    """``site.json``: what the module needs of the manifest, the limits, and every file's hash."""
    bundle, manifest = order.bundle, order.bundle.manifest
    golden, spec = manifest.golden, manifest.preprocess
    criteria = criteria_of(bundle, variant)
    inputs, _ = bundle.golden()
    loaded = sorted(path for home in ("bundle", "runtime") for path in (root / home).rglob("*") if path.is_file())
    return {
        "schema_version": 1,
        "name": _name(order),
        "digest": manifest.digest,
        "variant": variant.name,
        "vggdeploy": __version__,
        "labels": list(manifest.labels),
        "input": {"name": manifest.input.name, "shape": list(manifest.input.item_shape)},
        "outputs": [{"name": o.name, "shape": list(o.item_shape)} for o in manifest.outputs],
        "preprocess": {
            "channels": spec.channels, "resize": spec.resize, "crop": spec.crop, "interpolation": spec.interpolation,
            "tall_first": tall_first(),
        },
        "model": _inside(variant.path),
        "runtime": {r.name: {"script": f"runtime/{r.script}", "binary": f"runtime/{r.binary}"} for r in RUNTIMES},
        "golden": {
            "count": len(inputs[manifest.input.name]),
            "images": _inside(golden.inputs[manifest.input.name]),
            "outputs": {name: _inside(path) for name, path in golden.outputs.items()},
            "limits": limits(criteria, ImageSource.GOLDEN),
        },
        "stress": {
            "count": _stress_count(bundle),
            "images": _STRESS,
            "outputs": {name: _inside(path) for name, path in golden.stress.items()},
            "limits": limits(criteria, ImageSource.STRESS),
        },
        "preparing": {
            "files": [_inside(path) for path in golden.files],
            "prepared": _inside(golden.prepared) if golden.prepared else "",
            "jpeg_levels": JPEG_LEVELS,
        },
        "files": [
            {"path": path.relative_to(root).as_posix(), "sha256": sha256_of(path), "size": path.stat().st_size}
            for path in loaded
        ],
    }  # fmt: skip


def limits(criteria: Criteria, source: ImageSource) -> dict[str, Any]:
    """What `vggdeploy.parity.judge` judges images of a kind by, for the page, which judges alike."""
    thresholds = criteria.of(source)
    return {
        "relative_l2": thresholds.relative_l2,
        "cosine": thresholds.cosine,
        "allowed": criteria.allowed(source),
        "record_factor": RECORD_FACTOR,
        "repeat": thresholds.relative_l2 / SAME,
    }


def _write_page(root: Path, order: Order, variant: Variant, digest: str) -> None:
    """``index.html`` names the hash of ``site.json`` and of every script, and ``_headers`` what a host should send."""
    modules = sorted(path for path in root.rglob("*.js") if path.parent in (root, root / "lib"))
    importmap = json.dumps({"integrity": {f"./{p.relative_to(root).as_posix()}": integrity(p) for p in modules}})
    map_hash = base64.b64encode(hashlib.sha256(importmap.encode()).digest()).decode()
    policy = {
        "default-src": "'none'",
        # The runtime is compiled from bytes that were checked, which a browser knows as a blob.
        "script-src": f"'self' blob: 'wasm-unsafe-eval' 'sha256-{map_hash}'",
        "worker-src": "'self' blob:",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    text = "; ".join(f"{name} {value}" for name, value in policy.items())
    of = f"{_name(order)}, {variant.name}, bundle {order.bundle.manifest.digest[:12]}"
    about = f"{of}; {PACKAGE} {VERSION}; vggdeploy {__version__}"
    title = html.escape(f"{_name(order)}: what is in this picture?")
    fields = {
        "policy": text, "digest": digest, "importmap": importmap, "name": title,
        "about": html.escape(about), "page.css": integrity(root / "page.css"), "page.js": integrity(root / "page.js"),
    }  # fmt: skip
    page = (files("vggdeploy.package") / "web_site" / "index.html").read_text(encoding="utf-8")
    for name, value in fields.items():
        page = page.replace(f"@{name}@", value)
    (root / "index.html").write_text(page, encoding="utf-8")
    headers = _HEADERS | {"Content-Security-Policy": f"{text}; frame-ancestors 'self'"}
    lines = "".join(f"  {name}: {value}\n" for name, value in headers.items())
    (root / "_headers").write_text(f"/*\n{lines}", encoding="utf-8")


def integrity(path: Path) -> str:
    """The value of an ``integrity`` attribute."""
    return f"sha384-{base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()}"
