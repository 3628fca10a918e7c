"""A bundle opens only when every file is the one that its manifest names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vggdeploy.bundle import MANIFEST_NAME, Bundle
from vggdeploy.errors import BundleError, IntegrityError, UsageError

OUTPUTS, ONNX, ENGINE = (
    "golden/outputs/logits.npy",
    "variants/onnx-fp32/model.onnx",
    "variants/tensorrt-rtx-fp16/model.engine",
)
FILES = [
    "checkpoint/checkpoint.json",
    "checkpoint/model.safetensors",
    "golden/files/a.png",
    "golden/inputs/image.npy",
    "golden/normalised.npy",
    OUTPUTS,
    "golden/prepared.png",
    ONNX,
    ENGINE,
]


def refused(root: Path, kind: type[BundleError] = IntegrityError) -> str:
    """Open what must not open, within a second; returns the cause: one line, with a remedy."""
    start = time.monotonic()
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    assert time.monotonic() - start < 5
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.cause


def test_a_good_bundle_opens(root: Path) -> None:
    bundle = Bundle.open(root)
    assert [record.path for record in bundle.manifest.files] == FILES
    assert bundle.sha256("checkpoint") == bundle.manifest.files[1].sha256
    assert bundle.sha256("variants/onnx-fp32/model.onnx") == {r.path: r.sha256 for r in bundle.manifest.files}[ONNX]
    assert bundle.sha256("variants/onnx") == ""
    assert bundle.size(bundle.manifest.variant("torch-fp32")) == 5002


def test_a_bundle_opens_through_a_link_to_its_directory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(root)
    assert Bundle.open(tmp_path / "current").manifest.name == "example"


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_every_single_flipped_byte_is_found(root: Path, name: str) -> None:
    good = (root / name).read_bytes()
    for at in range(0, len(good), max(1, len(good) // 40)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        (root / name).write_bytes(bad)
        with pytest.raises(BundleError):
            Bundle.open(root)
    (root / name).write_bytes(good)
    Bundle.open(root)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    assert refused(root) == f"{root / name} is missing"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""], ids=["cut", "longer", "empty"]
)
def test_another_size_is_named(root: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(change(data))
    assert f"{name} has {len(change(data))} bytes; the manifest says {len(data)}" in refused(root)


@pytest.mark.parametrize("name", FILES)
def test_other_bytes_of_the_same_size_are_named(root: Path, name: str) -> None:
    (root / name).write_bytes(b"x" * (root / name).stat().st_size)
    assert f"{name} was altered" in refused(root)


def test_a_pipe_instead_of_a_file_does_not_hang(root: Path) -> None:
    (root / ONNX).unlink()
    os.mkfifo(root / ONNX)
    assert "not a regular file" in refused(root)


def test_a_socket_instead_of_a_file_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ONNX).unlink()
    monkeypatch.chdir((root / ONNX).parent)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(Path(ONNX).name)
    refused(root)


def test_a_device_instead_of_a_file_does_not_read_for_ever(root: Path) -> None:
    (root / ONNX).unlink()
    try:
        os.mknod(root / ONNX, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("making a device needs root")
    assert "not a regular file" in refused(root)


def test_a_directory_instead_of_a_file_is_refused(root: Path) -> None:
    (root / ONNX).unlink()
    (root / ONNX).mkdir()
    assert "Is a directory" in refused(root)


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_instead_of_a_file_is_refused_even_to_the_same_bytes(root: Path, tmp_path: Path, inside: bool) -> None:
    other = (root if inside else tmp_path) / "copy"
    shutil.move(root / ONNX, other)
    (root / ONNX).symlink_to(other)
    assert "symbolic link" in refused(root)


def test_a_linked_directory_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "variants", tmp_path / "variants")
    (root / "variants").symlink_to(tmp_path / "variants")
    assert "symbolic link" in refused(root)


def test_a_loop_of_links_is_refused(root: Path) -> None:
    (root / ONNX).unlink()
    (root / ONNX).symlink_to(root / ONNX)
    refused(root)


def test_an_unlisted_file_is_no_part_of_the_bundle(root: Path) -> None:
    (root / "notes.txt").write_bytes(b"mine")
    Bundle.open(root)


# What stands at the path


def test_nothing_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "none", BundleError) == f"{tmp_path / 'none'} does not exist"


@pytest.mark.parametrize("path", ["none\0", "x" * 300, "d/" * 3000, "\ud800"], ids=["nul", "long", "deep", "surrogate"])
def test_what_cannot_be_a_path(tmp_path: Path, path: str) -> None:
    refused(tmp_path / path, BundleError)


def test_a_directory_without_manifest(tmp_path: Path) -> None:
    assert "is not a bundle (no manifest.json)" in refused(tmp_path, BundleError)


def test_a_checkpoint_in_the_place_of_a_bundle_gets_the_command_that_makes_one(own_bundle: Path) -> None:
    checkpoint = own_bundle / "checkpoint"
    with pytest.raises(BundleError, match="is a checkpoint, and not a bundle yet") as caught:
        Bundle.open(checkpoint)
    assert f"vggdeploy export {checkpoint} -o BUNDLE" in caught.value.hint


@pytest.mark.parametrize("name", ["model.engine", "model.plan", "model.trt"])
def test_an_engine_without_its_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"ftrt")
    assert "nothing vouches for its bytes" in refused(tmp_path / name, BundleError)


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "is not a bundle" in refused(tmp_path / "model.onnx", BundleError)


def test_a_loop_of_links_instead_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refused(tmp_path / "loop", BundleError)


def test_a_manifest_that_is_a_pipe_does_not_hang(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()
    os.mkfifo(root / MANIFEST_NAME)
    assert "not a regular file" in refused(root, BundleError)


def test_a_manifest_that_is_a_directory(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()
    (root / MANIFEST_NAME).mkdir()
    assert "Is a directory" in refused(root, BundleError)


def test_a_manifest_without_end_is_not_read(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()
    (root / MANIFEST_NAME).symlink_to("/dev/zero")
    assert "not a regular file" in refused(root, BundleError)


def test_a_manifest_of_gigabytes_is_not_read(root: Path) -> None:
    os.truncate(root / MANIFEST_NAME, 2**33)  # sparse: it takes no disk
    assert "has more than 67,108,864 bytes" in refused(root, BundleError)


def test_a_linked_manifest_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.move(root / MANIFEST_NAME, tmp_path / MANIFEST_NAME)
    (root / MANIFEST_NAME).symlink_to(tmp_path / MANIFEST_NAME)
    assert "symbolic link" in refused(root)


@pytest.mark.parametrize(
    ("locked", "kind"),
    [("", "BundleError"), ("checkpoint", "BundleError"), (ONNX, "BundleError"), (MANIFEST_NAME, "BundleError")],
)
def test_without_permission_it_says_so(root: Path, locked: str, kind: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    # Root may read everything: only another user can see this error.
    script = f"""
import os, sys
from vggdeploy.bundle import Bundle
os.setgid(65534); os.setuid(65534)
try:
    Bundle.open({str(root)!r})
except Exception as error:
    print(type(error).__name__, error, sep="|")
"""
    for directory in root.parents:
        if directory.stat().st_mode & 0o5 != 0o5 and directory.is_relative_to("/tmp"):  # noqa: S108  # pytest's own
            directory.chmod(0o755)
    (root / locked).chmod(0)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    name, message = done.stdout.split("|", 1)
    assert (name, "Permission denied — check its permissions" in message) == (kind, True)


# Only some variants


def test_only_the_asked_variants_are_read(root: Path) -> None:
    (root / ENGINE).write_bytes(b"broken")
    bundle = Bundle.open(root, only=["onnx-fp32"])
    assert bundle.path("variants/onnx-fp32/model.onnx").is_file()


def test_only_still_checks_the_asked_variant_and_the_golden_pair(root: Path) -> None:
    for name in (OUTPUTS, ONNX):
        good = (root / name).read_bytes()
        (root / name).write_bytes(b"broken")
        with pytest.raises(IntegrityError, match=name):
            Bundle.open(root, only=["onnx-fp32"])
        (root / name).write_bytes(good)


def test_a_skipped_file_is_checked_before_its_path_is_handed_out(root: Path) -> None:
    (root / FILES[1]).write_bytes(b"broken")
    bundle = Bundle.open(root, only=["onnx-fp32"])
    for path in ("checkpoint", "checkpoint/model.safetensors"):
        with pytest.raises(IntegrityError, match=r"model\.safetensors"):
            bundle.path(path)
    assert bundle.path("checkpoint/checkpoint.json").is_file()


def test_only_an_unknown_variant_offers_the_closest(root: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'onnx-fp32'"):
        Bundle.open(root, only=["onnx-fp23"])


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "", "a/../../b", "checkpoint/../../x", "a\\b", "C:x"])
def test_the_path_of_a_file_never_leaves_the_bundle(root: Path, path: str) -> None:
    with pytest.raises(IntegrityError):
        Bundle.open(root).path(path)
