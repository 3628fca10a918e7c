"""What is measured beside each other: variants of one bundle, or of several that take the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import UsageError
from vggdeploy.types import Device


@dataclass(frozen=True)
class Entry:
    """One variant to measure. ``name`` is what its rows are called: ``variant``, or ``bundle:variant`` of several.
    ``threads`` are its own, where they are not those of the measurement."""

    bundle: Bundle
    variant: Variant
    device: Device
    name: str
    threads: int | None = None

    @property
    def sha256(self) -> str:
        return self.bundle.sha256(self.variant.path)


def bundle_names(bundles: Sequence[Bundle]) -> list[str]:
    """A short name for each bundle: its directory's, with as many of those above it as tell it from the others.

    Raises:
        UsageError: the same bundle twice.
    """
    paths = [bundle.root.resolve().parts for bundle in bundles]
    if len(set(paths)) < len(paths):
        raise UsageError(
            "the same bundle is given twice", "give each bundle once; its variants are chosen by --variant"
        )
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("distinct paths differ somewhere")


def check_same_input(bundles: Sequence[Bundle]) -> None:
    """All bundles have to take the same arrays, prepared the same way: else they would not do the same work.

    Raises:
        UsageError: two of them do not.
    """
    first = bundles[0]
    for other in bundles[1:]:
        ours, theirs = first.manifest.input, other.manifest.input
        if (ours.dtype, ours.item_shape) != (theirs.dtype, theirs.item_shape):
            raise UsageError(
                f"{first.root} takes {ours}, {other.root} takes {theirs}", "measure bundles of one input side by side"
            )
        wanted, found = first.manifest.preprocess, other.manifest.preprocess
        # Of a uint8 graph mean and std are part of the work that is measured; of a float32 graph they make its input.
        fields = ("mode", "resize", "crop", "interpolation", *(() if ours.dtype == "uint8" else ("mean", "std")))
        if any(getattr(wanted, name) != getattr(found, name) for name in fields):
            raise UsageError(
                f"{first.root} and {other.root} prepare their images differently",
                "measure them one by one: vggdeploy bench BUNDLE",
            )
