"""Compiled models are kept for the next start, and nothing that was damaged or belongs to others is run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacks.foreign_cache import ATTACKS

from vggdeploy.runtime import get_backend
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.base import Source
from vggdeploy.types import Device

pytest.importorskip("openvino")
from vggdeploy.errors import IntegrityError
from vggdeploy.runtime import openvino
from vggdeploy.system.sealed import HashedFile


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, that keeps models however fast they compiled."""
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino, "WORTHWHILE_SECONDS", 0)
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.onnx_bytes(tiny.weights()))
    return tiny.source(Device("cpu"), file=HashedFile.of(path))


def other_bytes(source: Source) -> Source:
    path = source.file.path.with_name("other.onnx")
    path.write_bytes(tiny.onnx_bytes(tiny.weights(seed=1)))
    return replace(source, file=HashedFile.of(path))


def logits(source: Source) -> np.ndarray:
    with get_backend("openvino").load().SESSION(source) as session:
        return np.asarray(session.run({"image": tiny.images(3)})["logits"])


def test_the_second_start_reads_what_the_first_one_compiled(source: Source, home: Path) -> None:
    first = logits(source)
    (kept,) = home.glob("*.model")
    assert kept.stat().st_mode & 0o077 == 0
    source.file.path.unlink()  # it is not needed any more
    np.testing.assert_array_equal(logits(source), first)


def test_other_bytes_and_other_settings_are_other_models(source: Source, home: Path) -> None:
    logits(source)
    logits(other_bytes(source))
    logits(replace(source, threads=1))
    logits(replace(source, hint="throughput"))
    assert len(list(home.glob("*.model"))) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_model_is_compiled_anew(source: Source, home: Path, damage: str) -> None:
    first = logits(source)
    (kept,) = home.glob("*.model")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[damage])
    np.testing.assert_array_equal(logits(source), first)
    source.file.path.unlink()
    np.testing.assert_array_equal(logits(source), first)  # and kept again


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_model_that_others_may_write_is_not_read(source: Source, home: Path, attack: str, what: str) -> None:
    first = logits(source)
    (kept,) = home.glob("*.model")
    ATTACKS[attack](home if what == "directory" else kept)
    source.file.path.unlink()
    with pytest.raises(IntegrityError):  # it would be compiled anew
        logits(source)
    source.file.path.write_bytes(tiny.onnx_bytes(tiny.weights()))
    np.testing.assert_array_equal(logits(source), first)


def test_a_cache_that_cannot_be_written_costs_nothing(source: Source, home: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_bytes(b"a file is in the way")
    np.testing.assert_allclose(logits(source), tiny.reference(tiny.images(3), tiny.weights()), atol=1e-5)


def test_what_was_not_used_for_longest_goes(source: Source, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(source)
    (old,) = home.glob("*.model")
    os.utime(old, (1, 1))
    monkeypatch.setattr(openvino, "LIMIT_BYTES", int(1.5 * old.stat().st_size))
    logits(other_bytes(source))
    assert not old.exists()
    assert len(list(home.glob("*.model"))) == 1


def test_what_compiles_at_once_is_not_kept(source: Source, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "WORTHWHILE_SECONDS", 3600)
    logits(source)
    assert not home.exists()
