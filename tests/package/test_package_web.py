"""The web package: what goes in, what is refused, and that the runtime is npm's own bytes and no others."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from package.web_modules import SITE, needs_node

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import ForeignModelError, IncompatibleError, IntegrityError, UsageError
from vggdeploy.package import web_runtime
from vggdeploy.package.base import MARKER, Order
from vggdeploy.package.web import integrity, package_web
from vggdeploy.package.web_runtime import RUNTIMES, runtime_files
from vggdeploy.spec import PreprocessSpec
from vggdeploy.types import BatchRange, Precision, TensorSpec

if TYPE_CHECKING:
    import onnx

_NAMES = [name for runtime in RUNTIMES for name in (runtime.script, runtime.binary)]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive as npm's, of a few bytes; nothing here runs it."""
    file = tmp_path / "runtime.tgz"
    with tarfile.open(file, "w:gz") as made:
        for name in (*_NAMES, "ort.all.js"):
            data = name.encode()
            about = tarfile.TarInfo(f"package/dist/{name}")
            about.size = len(data)
            made.addfile(about, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    monkeypatch.setattr(web_runtime, "SHA512", digest)
    return file


def test_every_file_is_named_with_its_hash_and_the_page_names_that_list(
    bundle_dir: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "site"
    options = ["--target", "web", "-o", str(root), "--runtime", str(archive), "--name", "Digits & more"]
    assert run(["package", str(bundle_dir), *options]) == 0
    assert "python -m http.server" in capsys.readouterr().err
    site = json.loads((root / "site.json").read_text())
    manifest = Bundle.open(bundle_dir).manifest
    listed = {record["path"] for record in site["files"]}
    there = {p.relative_to(root).as_posix() for home in ("bundle", "runtime") for p in (root / home).rglob("*.*")}
    assert listed == there
    for record in site["files"]:
        data = (root / record["path"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (record["sha256"], record["size"])
    variant = manifest.variant("onnx-fp32")
    assert site["model"] == f"bundle/{variant.path}"
    assert next(r["sha256"] for r in site["files"] if r["path"] == site["model"]) == manifest.sha256(variant.path)
    assert (site["name"], site["labels"], site["digest"]) == ("Digits & more", list(manifest.labels), manifest.digest)
    index = (root / "index.html").read_text()
    assert f'content="{hashlib.sha256((root / "site.json").read_bytes()).hexdigest()}"' in index
    assert "<title>Digits &amp; more: what is in this picture?</title>" in index
    assert not re.search(r"@[a-z.]+@", index)


def test_every_script_and_style_is_named_with_its_hash_and_the_policy_names_no_stranger(
    bundle_dir: Path, archive: Path, tmp_path: Path
) -> None:
    root = tmp_path / "site"
    package_web(Order(bundle=Bundle.open(bundle_dir), output=root, runtime=archive))
    index = (root / "index.html").read_text()
    inline = re.search(r'<script type="importmap">(.*?)</script>', index)
    assert inline is not None
    modules = json.loads(inline[1])["integrity"]
    assert modules == {f"./{p.relative_to(root).as_posix()}": integrity(p) for p in root.rglob("*.js")}
    for name in ("page.js", "page.css"):
        assert f'"{name}" integrity="{integrity(root / name)}"' in index
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', index)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy[1]
    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", policy[1])
    assert policy[1].startswith("default-src 'none'")
    assert policy[1] in (root / "_headers").read_text()
    strangers = re.compile(r"(?:src|href|from|import|fetch)\W{1,3}https?://")
    assert [
        p.name for p in root.rglob("*") if p.suffix in (".js", ".css", ".html") and strangers.search(p.read_text())
    ] == []


def test_a_site_is_replaced_only_by_force_and_only_a_package_is(
    bundle_dir: Path, archive: Path, tmp_path: Path
) -> None:
    order = ["package", str(bundle_dir), "--target", "web", "-o", str(tmp_path / "site"), "--runtime", str(archive)]
    assert run(order) == 0
    assert run(order) == 2
    assert run([*order, "--force"]) == 0
    (tmp_path / "site" / MARKER).unlink()
    assert run([*order, "--force"]) == 2


def test_another_archive_is_refused_and_leaves_nothing(bundle_dir: Path, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="its SHA-512 is another"):
        package_web(Order(bundle=Bundle.open(bundle_dir), output=tmp_path / "site", runtime=archive))
    with pytest.raises(UsageError, match="cannot be read"):
        runtime_files(tmp_path / "none.tgz")
    assert not (tmp_path / "site").exists()


def test_without_the_runtime_it_says_how_to_get_it(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(IncompatibleError) as refused:
        package_web(Order(bundle=Bundle.open(bundle_dir), output=tmp_path / "site"))
    assert "is not in the user's cache" in refused.value.cause
    assert "--prepare" in refused.value.hint
    assert not (tmp_path / "site").exists()


def test_what_npm_fetches_has_to_be_the_known_bytes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An npm whose registry gives something else; then one that gives what is known."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    good, served = archive.read_bytes(), tmp_path / "served.tgz"
    tools = tmp_path / "bin"
    tools.mkdir()
    npm = tools / "npm"
    npm.write_text(f'#!/bin/sh\ncp {served} "$5/{web_runtime.ARCHIVE}"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    served.write_bytes(good[:-1] + b"x")
    with pytest.raises(IntegrityError):
        web_runtime.prepare_runtime()
    with pytest.raises(IncompatibleError):
        runtime_files()
    served.write_bytes(good)
    web_runtime.prepare_runtime()
    assert runtime_files() == {name: name.encode() for name in _NAMES}


@pytest.mark.parametrize("setting", [["--max-batch", "4"], ["--serve"]])
def test_what_means_nothing_here_is_refused(bundle_dir: Path, tmp_path: Path, setting: list[str]) -> None:
    assert run(["package", str(bundle_dir), "--target", "web", "-o", str(tmp_path / "s"), *setting]) == 2
    assert run(["package", str(bundle_dir), "--target", "slim", "-o", str(tmp_path / "s"), "--prepare"]) == 2


def test_bundles_that_a_page_cannot_feed_or_run_are_refused(bundle_dir: Path, archive: Path, tmp_path: Path) -> None:
    whole = Bundle.open(bundle_dir)
    manifest = whole.manifest
    fp32 = manifest.variant("onnx-fp32")

    def refused(match: str, variants: tuple[str, ...] = (), **changed: Any) -> None:
        bundle = Bundle(whole.root, msgspec.structs.replace(manifest, **changed))
        with pytest.raises(UsageError, match=match):
            package_web(Order(bundle=bundle, output=tmp_path / "s", variants=variants, runtime=archive))

    refused("takes normalised float32", input=TensorSpec("image", "float32", ("N", 1, 32, 32)))
    refused("no class scores, only fc7", outputs=(TensorSpec("fc7", "float32", ("N", 128)),))
    refused("does not take torchscript-fp32", variants=("torchscript-fp32",))
    for change, told in (
        ({"precision": Precision.BF16}, "does not compute in bf16"),
        ({"batch": BatchRange(2, 4, 8)}, "takes batches from 2 on"),
    ):
        variant = msgspec.structs.replace(fp32, **change)
        with pytest.raises((UsageError, ForeignModelError), match=told):
            package_web(
                Order(
                    bundle=Bundle(whole.root, manifest.with_variants(variant)), output=tmp_path / "s", runtime=archive
                )
            )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "plant",
    [
        # Issue 26734 of ONNX Runtime: with strides and padding of this kind, WebGPU computes something else.
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
    ],
)
def test_graphs_of_which_webgpu_is_known_to_be_wrong_are_not_packaged(
    own_bundle: Path, archive: Path, tmp_path: Path, plant: dict[str, object]
) -> None:
    from onnx import helper

    def change(node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name not in {*plant, "pads"}]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in plant.items())])

    _rewrite(own_bundle, change)
    with pytest.raises(ForeignModelError):
        package_web(Order(bundle=Bundle.open(own_bundle), output=tmp_path / "s", runtime=archive))
    assert not (tmp_path / "s").exists()


def _rewrite(root: Path, change: Callable[[onnx.NodeProto], None]) -> None:
    import onnx

    bundle = Bundle.open(root)
    path = bundle.manifest.variant("onnx-fp32").path
    model = onnx.load(bundle.path(path))
    change(next(node for node in model.graph.node if node.op_type == "Conv"))
    with update_bundle(bundle) as draft:
        draft.write(path, model.SerializeToString())


def test_no_first_convolution_reads_more_than_three_channels(bundle: Bundle) -> None:
    """Issue 29651 of ONNX Runtime: there WebGPU computes something else. A manifest cannot say such a thing."""
    recipe = msgspec.to_builtins(bundle.manifest.preprocess)
    for mode, channels in (("L", 1), ("RGB", 3)):
        assert PreprocessSpec(mode=mode, mean=(0.5,) * channels, std=(0.5,) * channels).channels == channels
    with pytest.raises(UsageError, match="mode"):
        PreprocessSpec(**{**recipe, "mode": "RGBA"})


@needs_node
def test_the_types_name_what_the_module_gives() -> None:
    """`load`, `classify`, `embed` and the error, and nothing else."""
    about = (SITE / "vggdeploy.d.ts").read_text()
    typed = set(re.findall(r"export (?:function|class) (\w+)", about))
    code = f"import({json.dumps((SITE / 'vggdeploy.js').as_uri())}).then((m) => console.log(Object.keys(m).join(' ')))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == typed == {"load", "classify", "embed", "VggdeployError"}


def test_no_file_of_the_site_is_long() -> None:
    assert {p.name: n for p in SITE.rglob("*.*") if (n := len(p.read_text().splitlines())) > 400} == {}
