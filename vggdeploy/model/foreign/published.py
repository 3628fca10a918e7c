"""torchvision's published VGGs: by name, fetched once, checked by hash, with their preprocessing and labels.

Nothing is copied from torchvision: addresses, hashes, sizes and class names come from the installed package.
"""

from __future__ import annotations

import http.client
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch.hub
from torchvision.models import get_model_weights

from vggdeploy.errors import CheckpointError, DataError, UsageError, first_line, unknown_name
from vggdeploy.model.foreign.files import StateFile, read_state_file
from vggdeploy.spec import CUSTOM, ModelSpec, PreprocessSpec, architecture_names, split_arch
from vggdeploy.system.files import sha256_of

SCHEME = "torchvision:"
TIMEOUT = 30.0  # seconds without a byte; torch.hub's own download would wait for ever


@dataclass(frozen=True)
class Published:
    """One set of weights. ``weights`` is torchvision's own enum member."""

    source: str
    arch: str
    weights: Any

    @property
    def file_name(self) -> str:
        return Path(urlparse(self.weights.url).path).name

    @property
    def sha256_prefix(self) -> str:
        """The first digits of the file's SHA-256, which torchvision writes into its name."""
        found = re.search(r"-([0-9a-f]{8,64})\.", self.file_name)
        return found[1] if found else ""

    @property
    def cached(self) -> Path:
        """Where torch keeps the file once it was fetched."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file_name

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names; empty for weights that do not classify."""
        return tuple(self.weights.meta["categories"] or ())

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.named(self.arch, classes=len(self.labels) or 1000)

    def preprocess(self, image_size: int) -> PreprocessSpec:
        """What the weights were trained with; for another size than theirs, resized in the same proportion."""
        given = self.weights.transforms()
        (crop,), (resize,) = given.crop_size, given.resize_size
        return PreprocessSpec(
            resize=round(resize * image_size / crop),
            crop=image_size,
            interpolation=given.interpolation.value,
            mean=tuple(given.mean),
            std=tuple(given.std),
        )


def published(source: str, *, arch: str | None) -> Published:
    """``torchvision:vgg16``, ``torchvision:IMAGENET1K_V1`` (of ``arch``) or ``torchvision:VGG16_Weights.IMAGENET1K_V1``.

    Raises:
        UsageError: no such name, or one that does not say which network.
    """
    name = source[len(SCHEME) :]
    family, dot, member = name.partition("_Weights.")
    if dot:
        arch, name = family, member
    elif name.lower() in ("", "default") or name.upper().startswith("IMAGENET"):
        name = name or "DEFAULT"
        if arch is None or arch == CUSTOM:
            raise UsageError(f"'{source}' does not say which network", f"give a name that does, such as {SCHEME}vgg16")
    else:
        arch, name = name, "DEFAULT"
    base, batch_norm = split_arch(arch or "")
    arch = f"{base}{'_bn' * batch_norm}"
    members = get_model_weights(arch)
    if name.upper() not in members.__members__:
        raise unknown_name(f"torchvision weights of {arch}", name, members.__members__)
    return Published(source, arch, members[name.upper()])


def is_published(source: str) -> bool:
    """Whether a source is one of torchvision's names, and no path.

    Raises:
        UsageError: the name of an architecture without the scheme, which no file bears.
    """
    if source.lower().startswith(SCHEME):
        return True
    if not Path(source).exists() and source.lower() in architecture_names():
        raise UsageError(f"{source} does not exist", f"torchvision's weights are called {SCHEME}{source.lower()}")
    return False


def fetch(wanted: Published) -> StateFile:
    """The published state dict, from torch's cache or downloaded into it.

    Raises:
        DataError: it cannot be downloaded, or is not what torchvision published.
    """
    file = wanted.cached
    if not file.exists():
        _download(wanted)
    # torchvision checks the hash of a download, and never again: a cached file may be damaged, or somebody else's.
    if not sha256_of(file).startswith(wanted.sha256_prefix):
        raise DataError(
            f"{file} is not what torchvision published: its SHA-256 does not begin with {wanted.sha256_prefix}",
            "remove it and try again",
        )
    return read_state_file(file, where=wanted.source)


def _download(wanted: Published) -> None:
    try:
        with _timeout(TIMEOUT), redirect_stdout(sys.stderr):  # torch.hub prints; stdout belongs to --json
            wanted.weights.get_state_dict(check_hash=True, progress=sys.stderr.isatty(), weights_only=True)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"{wanted.source} cannot be downloaded from {wanted.weights.url}: {first_line(error)}",
            f"download {wanted.file_name} elsewhere, then put it into {wanted.cached.parent}, or give the file itself: "
            f"vggdeploy export {SCHEME}{wanted.arch} --weights FILE -o BUNDLE",
        ) from error


def check_hash(file: StateFile, wanted: Published) -> str:
    """A file that was given for published weights: "" if it is them, else a sentence that says it is not.

    Raises:
        CheckpointError: it bears the published name and has other bytes.
    """
    if file.sha256.startswith(wanted.sha256_prefix):
        return ""
    if Path(file.where).name == wanted.file_name:
        raise CheckpointError(
            f"{file.where} is damaged: its SHA-256 begins with {file.sha256[:8]}, not {wanted.sha256_prefix}",
            "download it again",
        )
    return f"not the file that torchvision published ({wanted.file_name}): its SHA-256 begins with {file.sha256[:8]}"


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
