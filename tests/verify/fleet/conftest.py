"""A tiny bundle with right and wrong variants, and a target that is this very machine: for faults of children."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from attacks.planting import rewrite_weight
from fixtures.small import write_bundle
from onnx import helper, numpy_helper

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.types import Precision
from vggdeploy.verify.fleet.target import Missing, Target


@dataclass(frozen=True)
class Here(Target):
    """This Python, not emulated. ``script`` runs in place of the child, or before it where it says ``main``."""

    script: str = ""

    def missing(self) -> Missing | None:
        return None

    def command(self, address: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        args = (
            [sys.executable, "-c", self.script]
            if self.script
            else [sys.executable, "-m", "vggdeploy.verify.fleet.child"]
        )
        return [*args, address], {**os.environ, "VGGDEPLOY_CACHE": str(folder)}


def add_variant(root: Path, source: str, name: str) -> None:
    """A copy of an ONNX variant under another name."""
    bundle = Bundle.open(root)
    variant = bundle.manifest.variant(source)
    path = f"variants/{name}/model.onnx"
    with update_bundle(bundle) as draft:
        draft.write(path, bundle.path(variant.path).read_bytes())
        draft.manifest = bundle.manifest.with_variants(msgspec.structs.replace(variant, name=name, path=path))


def wrong_alone(model: onnx.ModelProto) -> None:
    """A graph that answers twice the class scores to a batch of 1."""
    graph = model.graph
    constants = {"one": np.array(1, np.int64), "twice": np.array(2, np.float32), "once": np.array(1, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "axis"))
    graph.node[-1].output[0] = "scores"
    graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Gather", ["shape", "axis"], ["batch"]),
            helper.make_node("Equal", ["batch", "one"], ["alone"]),
            helper.make_node("Where", ["alone", "twice", "once"], ["factor"]),
            helper.make_node("Mul", ["scores", "factor"], ["logits"]),
        ]
    )


@pytest.fixture(scope="session")
def fleet_dir(onnx_files: dict[Precision, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 and FP16; ``altered``, with a weight that another was put for, and ``overflowing``. Treat it as read-only."""
    root = tmp_path_factory.mktemp("fleet") / "bundle"
    write_bundle(root, {p: onnx_files[p] for p in (Precision.FP32, Precision.FP16)})
    for name, change in {"altered": lambda a: a * 1.05, "overflowing": lambda a: a * np.float32(np.inf)}.items():
        add_variant(root, "onnx-fp32", name)
        *_, weight = (t.name for t in onnx.load(onnx_files[Precision.FP32]).graph.initializer if len(t.dims) == 2)
        rewrite_weight(root, name, weight, change)
    return root


@pytest.fixture
def own_fleet_dir(fleet_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(fleet_dir, tmp_path / "fleet"))
