"""A model repository for NVIDIA's Triton Inference Server, from one variant, or from TensorRT engines for several GPUs.

No ensemble is needed: decoding apart, the preprocessing is in the graph. The fields are those of Triton's
``model_config.proto``; https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Union

from vggdeploy.bundle import Manifest, Variant
from vggdeploy.errors import UsageError, one_line
from vggdeploy.package.base import Made, Order, chosen_variants, copy_variant, finish, package_directory
from vggdeploy.runtime.preflight import release
from vggdeploy.types import TensorSpec

# Of a variant's format: Triton's platform, the file's suffix, and the kind of its instances.
PLATFORMS = {
    "onnx": ("onnxruntime_onnx", "onnx", "KIND_AUTO"),
    "torchscript": ("pytorch_libtorch", "pt", "KIND_AUTO"),
    "tensorrt": ("tensorrt_plan", "plan", "KIND_GPU"),
}
DEFAULT_MAX_BATCH = 32  # the dynamic batcher fills it under load: the 256 that an ONNX export allows may not fit a GPU
QUEUE_DELAY_US = 1000
IMAGE = "nvcr.io/nvidia/tritonserver"
# The server's release → the TensorRT in its image (``-py3``), as far as NVIDIA's release notes say it: those of the release
# branches of github.com/triton-inference-server/server, docs/introduction/release_notes.md, read on 2026-11-30. Those from
# 25.02 on only point at https://docs.nvidia.com/deeplearning/frameworks/support-matrix/.
SERVERS = {"24.08": "10.3.0.26", "24.10": "10.5.0.18", "24.12": "10.7.0.23", "25.01": "10.8.0.43"}
_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SCORES = ("logits", "probabilities")


def package_triton(order: Order) -> Made:
    """Write a model repository with one model: ``NAME/config.pbtxt``, labels, and version 1.

    Several variants have to be TensorRT engines, each for other GPUs; Triton takes the one that fits its GPU.

    Raises:
        UsageError: a name that cannot name a model, a batch that the variant does not take, variants that do not go together.
    """
    variants = chosen_variants(order, tuple(PLATFORMS), "Triton")
    manifest = order.bundle.manifest
    name = order.name or manifest.name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a model of Triton", "give letters, digits, '_', '-' and '.': --name vgg"
        )
    if order.instances is not None and order.instances < 1:
        raise UsageError(f"the number of instances cannot be {order.instances}", "give at least 1")
    files = _files(variants)
    config = model_config(
        manifest, files, name=name, max_batch=_max_batch(order, variants), instances=order.instances or 1
    )
    notes = server_notes(variants[0])
    with package_directory(order) as root:
        model = root / name
        for file, variant in files.items():
            copy_variant(order.bundle, variant, model / "1" / file)
        if manifest.labels:
            (model / "labels.txt").write_text(
                "".join(f"{one_line(label)}\n" for label in manifest.labels), encoding="utf-8"
            )
        comments = "".join(f"# {note}\n" for note in notes)
        (model / "config.pbtxt").write_text(comments + to_text(config), encoding="ascii")
        package = finish(root, order, "triton", variants)
    return Made(package, next=(_start(order, variants[0]),), notes=notes)


def servers_for(version: str) -> list[str]:
    """Releases of the server that load an engine of that TensorRT: those with the same release of it. Newest first."""
    return sorted((tag for tag, has in SERVERS.items() if release(has) == release(version)), reverse=True)


def server_notes(variant: Variant) -> tuple[str, ...]:
    """Which server runs an engine, in ASCII; nothing about other variants, which every server runs."""
    if variant.build is None:
        return ()
    built = ".".join(map(str, release(variant.build.version)))
    tags = servers_for(variant.build.version)
    if tags:
        images = ", ".join(f"{IMAGE}:{tag}-py3 (it has {SERVERS[tag]})" for tag in tags)
        return (f"the engine loads only in TensorRT {built}: {images}",)
    return (
        f"the engine loads only in TensorRT {built}, and no server that we know has it: see {_MATRIX}",
        "a server's release XX.YY has the TensorRT of nvcr.io/nvidia/tensorrt:XX.YY-py3: build the engine in that image",
    )


def _start(order: Order, variant: Variant) -> str:
    tags = servers_for(variant.build.version) if variant.build else []
    if not tags:
        return f"tritonserver --model-repository={order.output}"
    mount = f"-v {shlex.quote(str(order.output.resolve()))}:/models:ro"
    return (
        f"docker run --rm --gpus all -p 8000:8000 {mount} {IMAGE}:{tags[0]}-py3 tritonserver --model-repository=/models"
    )


def model_config(
    manifest: Manifest, files: dict[str, Variant], *, name: str, max_batch: int, instances: int = 1
) -> Message:
    """The fields of ``config.pbtxt``, in the order of the documentation.

    ``max_batch`` images make the largest batch; dims are then those of one sample.
    """
    variant = next(iter(files.values()))
    platform, _, kind = PLATFORMS[variant.format]
    inputs = [("input", _tensor(manifest.input, _input_name(manifest, variant)))]
    outputs = [
        ("output", _tensor(spec, _output_name(spec, index, variant), labelled=bool(manifest.labels)))
        for index, spec in enumerate(manifest.outputs)
    ]
    config: Message = [("name", name), ("platform", platform), ("max_batch_size", max_batch), *inputs, *outputs]
    # Without a list an instance would stay on the first profile; of those that are named Triton takes the one that fits.
    several = range(len(variant.profiles)) if len(variant.profiles) > 1 else ()
    profiles: Message = [("profile", str(index)) for index in several]
    config.append(("instance_group", [("count", instances), ("kind", Word(kind)), *profiles]))
    config.append(("default_model_filename", next(iter(files))))
    if variant.format == "tensorrt":
        config += map_field("cc_model_filenames", [(c, file) for file, v in files.items() for c in capabilities(v)])
    if max_batch > 1:
        # A preferred size is sent at once, so it pays only where a batch of that size is the fast one.
        tuned = [profile.opt for profile in variant.profiles] if variant.format == "tensorrt" else []
        preferred = [size for size in tuned if 1 < size <= max_batch]
        batching: Message = [("preferred_batch_size", size) for size in preferred]
        config.append(("dynamic_batching", [*batching, ("max_queue_delay_microseconds", QUEUE_DELAY_US)]))
    config += [("model_warmup", _warmup(manifest, variant, size)) for size in sizes_to_warm(variant, max_batch)]
    return config


def sizes_to_warm(variant: Variant, max_batch: int) -> list[int]:
    """1, the powers of two below the largest batch, the one the variant is optimised for, and the largest."""
    powers = [2**n for n in range(max_batch.bit_length())]
    return sorted({size for size in (*powers, variant.batch.opt, max_batch) if size <= max_batch})


def capabilities(variant: Variant) -> list[str]:
    """The compute capabilities of an engine as Triton writes them, ``8.9``; none of one that is for all from Ampere."""
    build = variant.build
    if build is None or build.options.get("hardware_compatible") == "ampere+":
        return []
    numbers = [target.removeprefix("sm") for target in build.targets]
    return [f"{number[:-1]}.{number[-1]}" for number in numbers]


def _files(variants: Sequence[Variant]) -> dict[str, Variant]:
    """File name in version 1 → variant. One file is called ``model``; of several each has its GPUs in its name."""
    suffix = PLATFORMS[variants[0].format][1]
    if len(variants) == 1:
        return {f"model.{suffix}": variants[0]}
    if any(v.format != "tensorrt" for v in variants):
        raise UsageError(
            "only TensorRT engines go together in one model of Triton", "name one variant, and package twice"
        )
    first = variants[0]
    if any((v.precision, v.profiles) != (first.precision, first.profiles) for v in variants):
        raise UsageError("engines of one model need the same precision and the same profiles", "name those that agree")
    if len({release(v.build.version) for v in variants if v.build}) > 1:
        raise UsageError(
            "engines of one model need the same release of TensorRT, since a server has one", "name those that agree"
        )
    files: dict[str, str] = {}
    for variant in variants:
        for capability in capabilities(variant):
            if capability in files:
                raise UsageError(
                    f"{files[capability]} and {variant.name} are both for compute capability {capability}",
                    "name one of them",
                )
            files[capability] = variant.name
    names = {f"model.{'-'.join(v.build.targets) if v.build else v.name}.{suffix}": v for v in variants}
    if len(names) != len(variants):
        raise UsageError("two engines are for the same GPUs", "name one of them")
    return names


def _max_batch(order: Order, variants: Sequence[Variant]) -> int:
    batch = variants[0].batch
    if batch.min > 1:
        raise UsageError(
            f"{variants[0].name} takes batches from {batch.min}, and Triton sends single images too",
            f"build it again with --batch 1:{batch.opt}:{batch.max}",
        )
    if order.max_batch is None:
        return min(DEFAULT_MAX_BATCH, batch.max)
    if not 1 <= order.max_batch <= batch.max:
        raise UsageError(f"--max-batch is {order.max_batch}", f"{variants[0].name} takes 1 to {batch.max}")
    return order.max_batch


def _input_name(manifest: Manifest, variant: Variant) -> str:
    return "INPUT__0" if variant.format == "torchscript" else manifest.input.name


def _output_name(spec: TensorSpec, index: int, variant: Variant) -> str:
    """Triton's LibTorch backend knows outputs by their place alone."""
    return f"OUTPUT__{index}" if variant.format == "torchscript" else spec.name


def _tensor(spec: TensorSpec, name: str, *, labelled: bool = False) -> Message:
    fields: Message = [("name", name), ("data_type", Word(_TYPES[spec.dtype]))]
    fields += [("dims", size) for size in spec.item_shape]
    if labelled and spec.name in _SCORES:
        fields.append(("label_filename", "labels.txt"))
    return fields


def _warmup(manifest: Manifest, variant: Variant, batch: int) -> Message:
    tensor = manifest.input
    value: Message = [("data_type", Word(_TYPES[tensor.dtype]))]
    value += [("dims", size) for size in tensor.item_shape]
    value.append(("zero_data", True))
    return [
        ("name", f"batch-{batch}"),
        ("batch_size", batch),
        *map_field("inputs", [(_input_name(manifest, variant), value)]),
    ]


class Word(str):
    """A bare word: the name of an enumeration's value."""

    __slots__ = ()


Message = list[tuple[str, "Value"]]
Value = Union[str, int, bool, "Message"]


def to_text(message: Message) -> str:
    """``[("name", "vgg"), ("input", [("dims", 3)])]`` as text. A repeated field is a name that comes several times."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def map_field(name: str, entries: Iterable[tuple[str, Value]]) -> Message:
    """A map as the text format has it: one message of key and value an entry."""
    return [(name, [("key", key), ("value", value)]) for key, value in entries]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message:
        if isinstance(value, list):
            yield f"{indent}{name} {{"
            yield from _lines(value, f"{indent}  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return '"' + "".join(map(_byte, value.encode())) + '"'


def _byte(code: int) -> str:
    """A byte of a string: quotes and backslashes escaped, what is not printable ASCII in octal."""
    character = chr(code)
    if character in '"\\':
        return f"\\{character}"
    return character if 32 <= code < 127 else f"\\{code:03o}"
