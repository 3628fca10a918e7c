"""Two thousand damaged engines and manifests: every one is refused before the library sees a byte, and none crashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import vggdeploy
from vggdeploy.build.engines import build_into
from vggdeploy.build.request import BuildPlan
from vggdeploy.bundle import MANIFEST_NAME, Bundle, update_bundle
from vggdeploy.errors import BundleError, IntegrityError
from vggdeploy.runtime import preflight, sessions
from vggdeploy.runtime.base import Availability, Source
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.runtime.tensorrt import rtx as backend

SEED = 20261124
COUNT = 1000  # of each kind
CHECKED = (
    *range(4),
    *range(8, 12),
    *range(16, 24),
    *range(24, 27),
    *range(28, 36),
)  # header bytes that have one right value


@pytest.fixture
def seen(monkeypatch, library) -> list[Path]:
    """Engine files that reached a session, on a machine whose GPU fits the engine."""
    files: list[Path] = []

    class Session:
        def __init__(self, source: Source) -> None:
            self.inputs, self.outputs, self._source = source.inputs, source.outputs, source

        def __enter__(self) -> None:
            with self._source.open() as file:
                files.append(file.path)
                raise AssertionError("the library would have seen it")

    version = library.__version__
    monkeypatch.setattr(backend, "SESSION", Session)
    monkeypatch.setattr(backend, "probe", lambda device: Availability(True, "cuda:0", version=version))
    host = preflight.Host(version, Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", "13.0"))
    monkeypatch.setattr(sessions.preflight, "host_of", lambda variant, device: host)
    return files


@pytest.fixture
def root(bundle) -> Path:
    return build_into(bundle, BuildPlan(engine="rtx", targets=["ada"])).bundle.root


NAME = "tensorrt-rtx-fp16-sm89"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Another file: bits flipped, bytes replaced, cut, grown, blocks zeroed, moved or doubled."""
    found = bytearray(data)
    at, size = chance.randrange(len(data)), chance.randrange(1, 4096)
    match chance.randrange(8):
        case 0:
            found[at] ^= 1 << chance.randrange(8)
        case 1:
            at = chance.randrange(64)
            found[at] = (found[at] + chance.randrange(1, 256)) % 256
        case 2:
            del found[at:]
        case 3:
            found += chance.randbytes(size)
        case 4:
            found[at : at + size] = bytes(len(found[at : at + size]))
        case 5:
            del found[at : at + size]
        case 6:
            found[at:at] = found[at : at + size]
        case 7:
            found = bytearray(chance.randbytes(chance.choice((0, 1, 35, 36, 4096))))
    return bytes(found)


def test_a_thousand_mutated_engines(root, seen):
    path = root / "variants" / NAME / "model.engine"
    good, chance = path.read_bytes(), random.Random(SEED)
    for _ in range(COUNT):
        data = mutated(good, chance)
        if data == good:  # a block of zeros that was zero before
            continue
        path.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            vggdeploy.load(root, variant=NAME)
        assert "\n" not in str(caught.value)
    assert not seen
    path.write_bytes(good)
    with pytest.raises(AssertionError, match="would have seen it"):  # the tripwire works
        vggdeploy.load(root, variant=NAME)


def test_a_thousand_mutated_manifests(root, seen):
    path = root / MANIFEST_NAME
    good, chance = path.read_bytes(), random.Random(SEED + 1)
    for _ in range(COUNT):
        data = mutated(good, chance)
        if data == good:
            continue
        path.write_bytes(data)
        with pytest.raises(BundleError) as caught:
            vggdeploy.load(root, variant=NAME)
        assert "\n" not in str(caught.value)
    assert not seen


def test_an_engine_whose_header_is_wrong_is_refused_though_every_hash_fits(root, seen):
    """As a damaged build, or an attacker, would leave it: the manifest names the hash of the bad file."""
    chance = random.Random(SEED + 2)
    good = (root / "variants" / NAME / "model.engine").read_bytes()
    for at in CHECKED:
        data = bytearray(good)
        data[at] ^= 1 << chance.randrange(8)
        with update_bundle(Bundle.open(root, only=())) as draft:
            draft.write(f"variants/{NAME}/model.engine", bytes(data))
        with pytest.raises(IntegrityError):
            vggdeploy.load(root, variant=NAME)
    assert not seen
