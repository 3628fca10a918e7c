"""A CMake project in C++ that classifies image files with one variant: LibTorch, ONNX Runtime or TensorRT."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

import PIL

from vggdeploy.bundle import Manifest, Variant
from vggdeploy.errors import UsageError, one_line
from vggdeploy.package.base import Made, Order, chosen_variant, copy_variant, finish, package_directory

# Of a variant's format: the source and CMake file of its runtime, and the model's suffix. In the order of preference.
RUNTIMES = {
    "torchscript": ("torchscript", "pt"),
    "onnx": ("onnxruntime", "onnx"),
    "tensorrt": ("tensorrt", "plan"),
}
_SCORES = ("probabilities", "logits")


def package_cpp(order: Order) -> Made:
    """Write the project: sources, and ``model/`` with the variant, its settings and labels.

    Raises:
        UsageError: a bundle without class scores, or whose graph wants numbers that are normalised outside.
    """
    variant = _variant(order)
    runtime, suffix = RUNTIMES[variant.format]
    settings = model_settings(order.bundle.manifest, f"model.{suffix}")
    with package_directory(order) as root:
        with as_file(files("vggdeploy.package") / "cpp_project") as sources:
            shutil.copytree(sources, root, dirs_exist_ok=True)
        model = root / "model"
        copy_variant(order.bundle, variant, model / f"model.{suffix}")
        (model / "model.txt").write_text(settings, encoding="utf-8")
        (model / "model.cmake").write_text(f"set(MODEL_RUNTIME {runtime})\n", encoding="utf-8")
        labels = "".join(f"{one_line(label)}\n" for label in order.bundle.manifest.labels)
        (model / "labels.txt").write_text(labels, encoding="utf-8")
        sums = f"{order.bundle.sha256(variant.path)}  model.{suffix}\n"
        (model / "SHA256SUMS").write_text(sums, encoding="utf-8")
        package = finish(root, order, "cpp", [variant])
    build = Path(order.output) / "build"
    return Made(
        package,
        next=(
            f"cmake -S {order.output} -B {build} {_ROOTS[runtime]}",
            f"cmake --build {build} && {build}/classify {order.output}/model IMAGE",
        ),
    )


_ROOTS = {
    "torchscript": "-DTORCH_ROOT=$(python -c 'import torch; print(torch.__path__[0])')",
    "onnxruntime": "-DONNXRUNTIME_ROOT=DIR",
    "tensorrt": "-DTENSORRT_ROOT=DIR",
}


def model_settings(manifest: Manifest, file: str) -> str:
    """``model.txt``: a setting on each line, its name and its value.

    Raises:
        UsageError: a graph that the C++ program cannot feed or whose answer it cannot name.
    """
    if manifest.input.dtype != "uint8":
        raise UsageError(
            "this bundle's graph takes normalised float32, and the C++ program gives it pixels",
            "export it again with --input uint8",
        )
    names = [spec.name for spec in manifest.outputs]
    scores = next((name for name in _SCORES if name in names), None)
    if scores is None:
        raise UsageError(
            f"this bundle has no class scores, only {', '.join(names)}", "export it again with --outputs logits,…"
        )
    preprocess = manifest.preprocess
    settings = {
        "file": file,
        "input": manifest.input.name,
        "output": scores,
        "output_index": names.index(scores),
        "classes": manifest.spec.classes,
        "channels": preprocess.channels,
        "resize": preprocess.resize,
        "crop": preprocess.crop,
        "interpolation": preprocess.interpolation,
        "tall_first": int(tall_first()),
    }
    return "".join(f"{name} {one_line(str(value))}\n" for name, value in settings.items())


def tall_first() -> bool:
    """Whether the Pillow that is installed resizes tall images vertically first.

    Pillow 13 began to (python-pillow/Pillow#9549). Each pass rounds to 8 bits, so the order shows in the last one.
    """
    return int(PIL.__version__.partition(".")[0]) >= 13


def _variant(order: Order) -> Variant:
    """The one that was named, else the first of the preferred runtime: LibTorch gives the reference's own bits."""
    if not order.variants:
        for kind in RUNTIMES:
            names = [v.name for v in order.bundle.manifest.variants if v.format == kind]
            if names:
                order = order.with_variant(names[0])
                break
    return chosen_variant(order, tuple(RUNTIMES), "the C++ project")
