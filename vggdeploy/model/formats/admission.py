"""What stands between a model file and the library that opens it: bytes that are not our network's go no further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vggdeploy.bundle import Bundle, Manifest, Variant
from vggdeploy.model.formats.chain import chain_of
from vggdeploy.model.formats.exported import check_exported
from vggdeploy.model.formats.graph import check_onnx
from vggdeploy.model.formats.torchscript import check_torchscript
from vggdeploy.system.sealed import SealedFile

CHECKED = {
    "torchscript": check_torchscript,
    "torch-export": check_exported,
    "aoti": check_exported,
    "onnx": check_onnx,
    "openvino": check_onnx,
}


def admit(manifest: Manifest, variant: Variant, file: SealedFile) -> None:
    """Pass a variant's file if it is what vggdeploy writes of the manifest's network. Engines are their library's affair.

    Raises:
        ForeignModelError: it is anything else; what was found is named.
    """
    check = CHECKED.get(variant.format)
    if check is not None:
        chain = chain_of(manifest.spec, manifest.input, manifest.outputs, variant.path)
        check(memoryview(file.map()), chain, variant.path)


@contextmanager
def admitted(bundle: Bundle, variant: Variant) -> Iterator[SealedFile]:
    """A variant's file, read once, hashed and passed, for the length of a ``with`` block.

    Raises:
        IntegrityError: its hash is not the manifest's. ForeignModelError: see `admit`.
    """
    with bundle.main_file(variant).open() as file:
        admit(bundle.manifest, variant, file)
        yield file


def check_variant(bundle: Bundle, variant: Variant) -> None:
    """Raise as `admitted`, before others read the bytes of this hash."""
    if variant.format in CHECKED:
        with admitted(bundle, variant):
            return
