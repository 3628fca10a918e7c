"""What stands between a model file and the library that opens it: bytes that are not our network's go no further."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from vggdeploy.bundle import Bundle, Manifest, Variant
from vggdeploy.model.formats.chain import chain_of
from vggdeploy.model.formats.graph import check_onnx
from vggdeploy.model.formats.torchscript import check_torchscript
from vggdeploy.system.files import open_regular

CHECKED = {"torchscript": check_torchscript, "onnx": check_onnx, "openvino": check_onnx}


def admit(manifest: Manifest, variant: Variant, data: memoryview) -> None:
    """Pass a variant's file if it is what vggdeploy writes of the manifest's network. Engines are their library's affair.

    Raises:
        ForeignModelError: it is anything else; what was found is named.
    """
    check = CHECKED.get(variant.format)
    if check is not None:
        check(data, chain_of(manifest.spec, manifest.input, manifest.outputs, variant.path), variant.path)


def check_file(manifest: Manifest, variant: Variant, path: Path) -> None:
    """As `admit`, of a file that is mapped only if its format is looked at."""
    if variant.format in CHECKED:
        admit(manifest, variant, mapped(path))


def model_path(bundle: Bundle, variant: Variant) -> Path:
    """Where a variant's file lies, once it was admitted.

    Raises:
        IntegrityError: its hash is not the manifest's. ForeignModelError: see `admit`.
    """
    path = bundle.path(variant.path)
    check_file(bundle.manifest, variant, path)
    return path


def mapped(path: Path) -> memoryview:
    """A file's bytes, of which only those are read that are looked at.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
