"""The checkpoint of what is exported: one that exists, or one written around weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from vggdeploy.bundle import MANIFEST_NAME
from vggdeploy.bundle.checkpoint import Checkpoint
from vggdeploy.errors import CheckpointError, DataError, UsageError, counted, nearby
from vggdeploy.model.foreign.facts import POOLED, SOURCES, InitReport
from vggdeploy.spec import ModelSpec, PreprocessSpec, parse_blocks
from vggdeploy.system.files import check_replaceable, read_regular, scratch_directory
from vggdeploy.system.machine import release_memory
from vggdeploy.system.optional import require
from vggdeploy.verify.prove import tool_versions

if TYPE_CHECKING:  # these import torch
    from vggdeploy.model.foreign.files import StateFile
    from vggdeploy.model.foreign.layouts import Foreign
    from vggdeploy.model.foreign.published import Published

_MAX_LABELS = 16 * 2**20  # bytes
_IMAGENET = PreprocessSpec()
IMAGENET = "imagenet"  # in place of a file of labels


@dataclass(frozen=True)
class SourceOptions:
    """What a user says about weights that do not say it themselves. All of it is optional.

    ``weights`` is the file to take for a torchvision name; ``labels`` a text file with a label on each line, a JSON list,
    or ``imagenet`` for the 1,000 that come with torchvision; ``mean`` and ``std`` are per channel or one number for all, in
    units of 0–1; ``resize`` is the shorter side before the crop. ``head`` is what follows each linear layer, as
    ``relu,relu,none`` (`vggdeploy.model.foreign.head.parse_head`).
    """

    weights: Path | None = None
    arch: str | None = None
    blocks: str | None = None
    image_size: int | None = None
    head: str | None = None
    labels: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    interpolation: str | None = None

    def given(self) -> list[str]:
        """The names of what was given, as options."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]


def import_weights(
    source: str, target: Path, about: SourceOptions | None = None, *, overwrite: bool = False
) -> InitReport:
    """Write the checkpoint of weights from elsewhere.

    Args:
        source: ``torchvision:NAME``, or a ``.pth``, ``.pt`` or ``.safetensors`` in a known layout.
        target: the checkpoint's directory, written in one step.
        about: what the weights do not say.
        overwrite: replace a checkpoint that stands at ``target``.

    Torchvision's weights bring their preprocessing and the 1,000 labels. Other RGB weights are taken to want ImageNet's
    preprocessing, and the report says so; grey ones need ``mean`` and ``std``.

    Raises:
        UsageError: options that contradict each other or the source.
        CheckpointError: the weights cannot be read, or make no VGG.
        DataError: the labels do not fit, or torchvision's file cannot be downloaded.
    """
    for module in ("torch", "torchvision", "safetensors"):
        require(module, to="read weights from elsewhere", extra="train")
    from vggdeploy.model.foreign.convert import convert
    from vggdeploy.model.foreign.head import parse_head, settled
    from vggdeploy.model.foreign.infer import spec_from_state
    from vggdeploy.model.foreign.initial import report
    from vggdeploy.model.foreign.layouts import recognise
    from vggdeploy.model.foreign.published import is_published, published
    from vggdeploy.model.weights import new_with_state, save_checkpoint

    about = about or SourceOptions()
    wanted = published(source, arch=about.arch) if is_published(source) else None
    _check_options(source, about, wanted)
    file, notes = _read(source, about, wanted)
    foreign = settled(recognise(file), parse_head(about.head) if about.head is not None else None)
    spec = spec_from_state(
        foreign,
        arch=wanted.arch if wanted else about.arch,
        blocks=parse_blocks(about.blocks) if about.blocks else None,
        image_size=about.image_size,
    )
    labels = _labels(spec, about, wanted, file.where)
    preprocess, assumed = _preprocess(spec, about, wanted, file.where)
    converted = convert(foreign, spec)
    model = new_with_state(spec, converted.state, where=file.where)
    told = report(source, foreign.layout, file, converted, preprocess if wanted else None)
    notes += [*_unnamed(spec, labels), *_of_size(foreign, spec, about), *assumed]
    told = msgspec.structs.replace(told, notes=(*told.notes, *notes))
    checkpoint = Checkpoint(
        spec=spec,
        preprocess=preprocess,
        labels=labels,
        training={"weights": msgspec.to_builtins(told)},
        tools=tool_versions(),
    )
    save_checkpoint(target, model, checkpoint, overwrite=overwrite)
    del model, converted, foreign, file
    release_memory()  # the exporter comes next, and takes a whole model itself
    return told


def _of_size(foreign: Foreign, spec: ModelSpec, about: SourceOptions) -> tuple[str, ...]:
    """What was taken as the size of images."""
    side = foreign.facts.side
    if about.image_size is not None or side == POOLED:
        return ()
    if side is None or spec.head_pool != "none" or side * spec.stride != spec.image_size:
        return (f"weights do not tell the size of images here: taken {spec.image_size} px (other: --image-size)",)
    return (
        f"its first linear layer takes a map of {side} × {side}, as images of {spec.image_size} px make it "
        f"(if the map of larger ones is averaged: --image-size {_IMAGENET.crop} --head avg,{foreign.head})",
    )


def _check_options(source: str, about: SourceOptions, wanted: Published | None) -> None:
    if wanted is None:
        if not Path(source).exists():
            raise CheckpointError(f"{source} does not exist", f"{nearby(source)}{SOURCES}")
        if about.weights is not None:
            raise UsageError(
                f"--weights belongs to a torchvision name, and {source} is a path",
                f"name the network: vggdeploy export torchvision:vgg16 --weights {about.weights} -o BUNDLE",
            )
        return
    if about.blocks:
        raise UsageError(f"--blocks was given, and {source} has blocks of its own", "leave --blocks out")
    if about.arch and ModelSpec.named(about.arch).arch != wanted.arch:
        raise UsageError(
            f"{source} is a {wanted.arch}, not a {about.arch}", f"give --arch {wanted.arch}, or leave it out"
        )
    if not wanted.labels:
        raise UsageError(
            f"{source} holds no classifier that works, only features", f"start training from it: --init {source}"
        )


def _read(source: str, about: SourceOptions, wanted: Published | None) -> tuple[StateFile, list[str]]:
    """The weights, and what has to be said about where they come from."""
    from vggdeploy.model.foreign.files import read_state_file
    from vggdeploy.model.foreign.published import check_hash, fetch

    if wanted is None:
        return read_state_file(source), []
    if about.weights is None:
        return fetch(wanted), []
    file = read_state_file(about.weights)
    note = check_hash(file, wanted)
    return file, [note] if note else []


def _labels(spec: ModelSpec, about: SourceOptions, wanted: Published | None, where: str) -> tuple[str, ...]:
    if about.labels is not None:
        labels = read_labels(about.labels) if str(about.labels) != IMAGENET else _imagenet()
        if len(labels) != spec.classes:
            raise DataError(
                f"{about.labels} has {counted(len(labels), 'label')}, and {where} has {spec.classes} classes",
                "give one label for each",
            )
        return labels
    if wanted is None:
        return ()
    if len(wanted.labels) != spec.classes:
        raise CheckpointError(
            f"{where} has {spec.classes} classes, and {wanted.source} has {len(wanted.labels)}",
            f"export it by itself: vggdeploy export {where} --arch {wanted.arch} --labels FILE -o BUNDLE",
        )
    return wanted.labels


def _imagenet() -> tuple[str, ...]:
    from vggdeploy.model.foreign.published import published

    return published("torchvision:vgg16", arch=None).labels


def _unnamed(spec: ModelSpec, labels: tuple[str, ...]) -> tuple[str, ...]:
    """What is said of classes without names."""
    if labels or not spec.classes:
        return ()
    known = f"; --labels {IMAGENET}, if they are ImageNet's in their usual order" if spec.classes == 1000 else ""
    return (f"its {spec.classes:,} classes have no names: answers are numbers (name them: --labels FILE{known})",)


def read_labels(path: Path) -> tuple[str, ...]:
    """One label on each line, or a JSON list of them. Lines are stripped; empty ones may only stand at the end.

    Raises:
        DataError: it cannot be read, or is neither.
    """
    try:
        text = read_regular(path, limit=_MAX_LABELS).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return msgspec.json.decode(text, type=tuple[str, ...])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give a text file, a label on each line") from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise DataError(f"{path} is not a list of labels: {error}", "give UTF-8 text, a label on each line") from error
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if "" in labels:
        raise DataError(f"{path} has no label on line {labels.index('') + 1}", "give a label on each line")
    return labels


def _preprocess(
    spec: ModelSpec, about: SourceOptions, wanted: Published | None, where: str
) -> tuple[PreprocessSpec, tuple[str, ...]]:
    """What happens to an image, and a note where it had to be assumed."""
    grey = spec.in_channels == 1
    if wanted is None and grey and (about.mean is None or about.std is None):
        raise UsageError(
            f"{where} takes grey images and does not say how they were normalised",
            "give --mean and --std, in units of 0–1: --mean 0.5 --std 0.5; --mean 0 --std 1 if by ToTensor alone",
        )
    size = spec.image_size
    base = wanted.preprocess(size) if wanted else msgspec.structs.replace(
        _IMAGENET, crop=size, resize=round(_IMAGENET.resize * size / _IMAGENET.crop)
    )  # fmt: skip
    chosen = PreprocessSpec(
        mode="L" if grey else "RGB",
        resize=base.resize if about.resize is None else about.resize,
        crop=size,
        interpolation=about.interpolation or base.interpolation,
        mean=_for_all(about.mean, base.mean, spec.in_channels),
        std=_for_all(about.std, base.std, spec.in_channels),
    )
    notes = _doubts(chosen)
    if wanted or not (about.mean is None or about.std is None or about.resize is None):
        return chosen, notes
    text = (
        f"preprocessing is not in the file; taken: shorter side to {chosen.resize} px, centre {size} × {size}, "
        f"mean {chosen.mean}, std {chosen.std} (other: --resize, --mean, --std; "
        "trained with ToTensor alone: --mean 0 --std 1)"
    )
    return chosen, (*notes, text)


def _for_all(given: tuple[float, ...] | None, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if given is None:
        return default
    return given * channels if len(given) == 1 else given


def _doubts(spec: PreprocessSpec) -> tuple[str, ...]:
    """What looks like a slip and may be meant."""
    if np.allclose(spec.mean, _IMAGENET.mean[::-1], atol=0.003):
        return (
            f"mean {spec.mean} is ImageNet's in the order B, G, R, as Caffe has it, and this graph takes R, G, B: "
            "swap the input channels of the first convolution and the order of --mean",
        )
    # Numbers from 0 to 1 with mean m deviate by √(m(1 − m)) at most. A mean of 0, or a std of 1, takes off or divides nothing.
    measured = [(m, s) for m, s in zip(spec.mean, spec.std, strict=True) if m > 0 and s < 1]
    if any(s > (m * (1 - m)) ** 0.5 + 0.01 for m, s in measured):
        return (f"no images have the mean {spec.mean} and the std {spec.std}: make sure that the two are not swapped",)
    return ()


@contextmanager
def checkpoint_of(
    source: str, output: Path, about: SourceOptions, *, overwrite: bool = False
) -> Iterator[tuple[Path, InitReport | None]]:
    """The checkpoint directory of any source, for as long as the block lasts, and what is to be said about its weights.

    A checkpoint is used as it is. Other weights are imported into a scratch directory beside ``output``.

    Raises:
        UsageError: ``output`` may not be replaced; or options about the weights of a checkpoint, which has its own record.
    """
    check_replaceable(output, marker=MANIFEST_NAME, overwrite=overwrite)  # before half a gigabyte is fetched
    if Path(source).is_dir():
        if about.given():
            raise UsageError(
                f"{', '.join(about.given())} cannot change a checkpoint: {source} has its own record",
                "leave it out, or give the file of weights in it",
            )
        yield Path(source), None
        return
    with scratch_directory(output) as scratch:
        report = import_weights(source, scratch / "checkpoint", about)
        yield scratch / "checkpoint", report
