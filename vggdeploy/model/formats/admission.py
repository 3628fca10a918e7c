"""What stands between a model file and the library that opens it: bytes that are not our network's go no further."""

from __future__ import annotations

import mmap
from pathlib import Path

from vggdeploy.bundle import Manifest, Variant
from vggdeploy.errors import BundleError
from vggdeploy.model.formats.chain import chain_of
from vggdeploy.model.formats.torchscript import check_torchscript
from vggdeploy.system.files import open_regular

CHECKED = ("torchscript",)


def admit(manifest: Manifest, variant: Variant, data: memoryview) -> None:
    """Pass a variant's file if it is what vggdeploy writes of the manifest's network. Engines are their library's affair.

    Raises:
        BundleError: it is anything else; what was found is named.
    """
    if variant.format == "torchscript":
        chain = chain_of(manifest.spec, manifest.input, manifest.outputs, variant.path)
        check_torchscript(data, chain, variant.path)


def check_file(manifest: Manifest, variant: Variant, path: Path) -> None:
    """As `admit`, of a file that is mapped only if its format is looked at."""
    if variant.format in CHECKED:
        admit(manifest, variant, mapped(path))


def mapped(path: Path) -> memoryview:
    """A file's bytes, of which only those are read that are looked at.

    Raises:
        BundleError: it is empty. OSError: it cannot be opened, or is no regular file.
    """
    with open_regular(path) as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise BundleError(f"{path.name} is empty", "export it again") from None
