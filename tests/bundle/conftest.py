"""A small bundle with every kind of file, made once; each test gets its own copy."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forgery import CLASSES, SAMPLES, example_manifest, sealed

from vggdeploy.bundle import MANIFEST_NAME, create_bundle


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that every test copies: do not write to it."""
    root = tmp_path_factory.mktemp("original") / "bundle"
    random = np.random.default_rng(1)
    with create_bundle(root) as draft:
        onnx = random.bytes(3000)
        draft.manifest = example_manifest(onnx_sha256=hashlib.sha256(onnx).hexdigest())
        draft.write("checkpoint/checkpoint.json", b"{}")
        draft.write("checkpoint/model.safetensors", random.bytes(5000))
        draft.write("variants/onnx-fp32/model.onnx", onnx)
        draft.write("variants/tensorrt-rtx-fp16/model.engine", random.bytes(1000))
        draft.save_arrays("golden/inputs", {"image": random.integers(0, 256, (SAMPLES, 32, 32, 1), np.uint8)})
        draft.save_arrays("golden/outputs", {"logits": random.normal(size=(SAMPLES, CLASSES)).astype(np.float32)})
        for path in draft.manifest.golden.anchor:
            draft.write(path, random.bytes(300))
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def forge(root: Path) -> Callable[[Edit], Path]:
    """Change the manifest's JSON as an attacker would: with a digest that fits again."""

    def change(edit: Edit) -> Path:
        file = root / MANIFEST_NAME
        document = json.loads(file.read_bytes())
        edit(document)
        file.write_bytes(sealed(document))
        return root

    return change
