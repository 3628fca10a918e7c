"""A bundle changes as a whole or not at all, and never under the hands of those who read the old one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from forgery import example_manifest

from vggdeploy.bundle import MANIFEST_NAME, Bundle, Variant, create_bundle, update_bundle
from vggdeploy.bundle.store import Draft
from vggdeploy.errors import BundleError, IntegrityError, UsageError
from vggdeploy.types import BatchRange, Precision

KILLER = Path(__file__).parents[1] / "attacks" / "kill_at_every_line.py"
ONNX = "variants/onnx-fp32/model.onnx"


def manifest_of(draft: Draft) -> Any:
    assert draft.manifest is not None
    return draft.manifest


def add_variant(draft: Draft, name: str = "onnx-int8") -> None:
    path = f"variants/{name}/model.onnx"
    draft.write(path, b"int8")
    batch = BatchRange(1, 2, 4)
    added = Variant(name=name, format="onnx", precision=Precision.INT8, path=path, batch=batch)
    draft.manifest = manifest_of(draft).with_variants(added)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_variant_is_added(root: Path) -> None:
    with update_bundle(Bundle.open(root)) as draft:
        add_variant(draft)
    bundle = Bundle.open(root)
    assert [v.name for v in bundle.manifest.variants][-1] == "onnx-int8"
    assert bundle.path("variants/onnx-int8/model.onnx").read_bytes() == b"int8"


def test_the_bundle_gets_another_digest_with_every_change(root: Path) -> None:
    before = Bundle.open(root).manifest.digest
    with update_bundle(Bundle.open(root)) as draft:
        draft.manifest = msgspec.structs.replace(manifest_of(draft), dataset="mnist")
    assert Bundle.open(root).manifest.digest != before


def test_an_update_that_changes_nothing_keeps_the_digest(root: Path) -> None:
    before = Bundle.open(root).manifest.digest
    with update_bundle(Bundle.open(root)):
        pass
    assert Bundle.open(root).manifest.digest == before


def test_files_that_stay_are_links_not_copies(root: Path) -> None:
    before = (root / ONNX).stat().st_ino
    with update_bundle(Bundle.open(root)) as draft:
        add_variant(draft)
    assert (root / ONNX).stat().st_ino == before


def test_replacing_a_variant_leaves_the_old_bytes_to_those_who_have_them_open(root: Path) -> None:
    old = (root / ONNX).read_bytes()
    with (root / ONNX).open("rb") as reader:
        with update_bundle(Bundle.open(root)) as draft:
            draft.write(ONNX, b"new")
        assert reader.read() == old
    assert Bundle.open(root).path(ONNX).read_bytes() == b"new"


def test_a_file_written_past_the_draft_is_hashed_again(root: Path) -> None:
    with update_bundle(Bundle.open(root)) as draft:
        path = draft.root / ONNX
        path.unlink()
        path.write_bytes(b"x" * 3000)  # the same size
    assert Bundle.open(root).path(ONNX).read_bytes() == b"x" * 3000


def test_a_draft_that_is_finished_twice_hashes_what_changed_between(tmp_path: Path, original: Path) -> None:
    with create_bundle(tmp_path / "bundle") as draft:
        shutil.copytree(original, draft.root, dirs_exist_ok=True)
        draft.manifest = example_manifest()
        first = draft.finish()
        assert first.manifest.digest == Bundle.open(draft.root).manifest.digest
        draft.write(ONNX, b"y" * 3000)
        (draft.root / "notes.txt").write_bytes(b"")
        draft.finish()
        (draft.root / "notes.txt").unlink()
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.path(ONNX).read_bytes() == b"y" * 3000
    assert "notes.txt" not in [f.path for f in bundle.manifest.files]


def test_a_file_takes_the_place_of_a_directory(root: Path) -> None:
    with update_bundle(Bundle.open(root)) as draft:
        draft.write("variants/onnx-fp32", b"a file now")
        variants = [
            msgspec.structs.replace(v, path="variants/onnx-fp32") if v.name == "onnx-fp32" else v
            for v in manifest_of(draft).variants
        ]
        draft.manifest = msgspec.structs.replace(manifest_of(draft), variants=tuple(variants))
    assert Bundle.open(root).path("variants/onnx-fp32").read_bytes() == b"a file now"


# What fails leaves the old bundle


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_in_the_block_leaves_the_old_bundle(root: Path, error: type[BaseException]) -> None:
    before = contents(root)
    with pytest.raises(error), update_bundle(Bundle.open(root)) as draft:
        draft.write(ONNX, b"half")
        add_variant(draft)
        raise error
    assert contents(root) == before
    assert [p.name for p in root.parent.iterdir()] == ["bundle"]


def test_a_manifest_that_could_not_be_opened_again_is_not_written(root: Path) -> None:
    before = contents(root)
    nan = msgspec.structs.replace(manifest_of_variant(root, "onnx-fp32"), measured=())
    parity = nan.parity
    assert parity is not None
    broken = msgspec.structs.replace(parity, reference_accuracy=None, outputs=(
        msgspec.structs.replace(parity.outputs[0], relative_l2=float("nan")),
    ))  # fmt: skip
    with pytest.raises(BundleError, match="nan cannot be written"), update_bundle(Bundle.open(root)) as draft:
        draft.manifest = manifest_of(draft).with_variants(msgspec.structs.replace(nan, parity=broken))
    assert contents(root) == before


def manifest_of_variant(root: Path, name: str) -> Variant:
    return Bundle.open(root).manifest.variant(name)


def test_a_variant_without_its_file_is_not_written(root: Path) -> None:
    before = contents(root)
    with pytest.raises(IntegrityError, match="no hash for"), update_bundle(Bundle.open(root)) as draft:
        (draft.root / ONNX).unlink()
    assert contents(root) == before


def test_a_link_in_a_draft_is_refused(root: Path) -> None:
    with pytest.raises(IntegrityError, match="symbolic link"), update_bundle(Bundle.open(root)) as draft:
        (draft.root / "secret").symlink_to("/etc/passwd")


def test_a_draft_without_a_manifest_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a manifest"), create_bundle(tmp_path / "bundle") as draft:
        draft.write("a", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_a_draft_writes_nothing_outside(root: Path, path: str) -> None:
    with pytest.raises(IntegrityError), update_bundle(Bundle.open(root)) as draft:
        draft.write(path, b"x")
    assert [p.name for p in root.parent.iterdir()] == ["bundle"]


def test_an_existing_bundle_needs_to_be_given_up(root: Path) -> None:
    with pytest.raises(UsageError, match="already exists"), create_bundle(root):
        raise AssertionError("refused before the work, not after it")


# Two at once


def test_a_change_by_another_command_is_not_lost(root: Path) -> None:
    mine, theirs = Bundle.open(root), Bundle.open(root)
    with pytest.raises(BundleError, match="changed by another command"), update_bundle(mine) as draft:
        add_variant(draft, "onnx-int8")
        with update_bundle(theirs) as other:
            add_variant(other, "openvino-int8")
    assert [v.name for v in Bundle.open(root).manifest.variants][-1] == "openvino-int8"


def test_a_bundle_opened_before_a_change_cannot_undo_it(root: Path) -> None:
    stale = Bundle.open(root)
    with update_bundle(Bundle.open(root)) as draft:
        add_variant(draft)
    with pytest.raises(BundleError, match="was changed since it was opened"), update_bundle(stale):
        raise AssertionError("refused before the work, not after it")


def test_a_bundle_that_is_gone_is_not_made_again(root: Path) -> None:
    bundle = Bundle.open(root)
    shutil.rmtree(root)
    with pytest.raises(BundleError, match="does not exist"), update_bundle(bundle):
        raise AssertionError("refused before the work, not after it")


# Killed


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: a thousand fsyncs cost nothing there."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108  # mkdtemp below makes our own directory
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def killed(original: Path, memory: Path, step: int) -> dict[str, Any]:
    shutil.copytree(original, memory / "source")
    done = subprocess.run(
        [sys.executable, str(KILLER), "update", str(memory), str(step)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found["left"]) == {"old", "new"}
    assert set(found["after"]) == {"new"}
    assert found["strays"] == {}
    return found


def test_an_update_killed_anywhere_leaves_the_old_or_the_new(original: Path, memory: Path) -> None:
    assert killed(original, memory, 23)["kills"] > 20


@pytest.mark.slow
def test_an_update_killed_at_every_single_line_leaves_the_old_or_the_new(original: Path, memory: Path) -> None:
    assert killed(original, memory, 1)["kills"] > 500


def test_arrays_are_saved_without_pickle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Draft(tmp_path, known={}).save_arrays("golden", {"x": np.array([object()])})
    assert not (tmp_path / MANIFEST_NAME).exists()
