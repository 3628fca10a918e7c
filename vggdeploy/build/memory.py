"""The GPU memory that a session of an engine takes in all, predicted for each of its profiles before anything is taken.

A lower bound: kernels, captured graphs and the driver take some more.
"""

from __future__ import annotations

from math import prod

from vggdeploy.bundle import Manifest, Variant
from vggdeploy.model.layers import layers_of
from vggdeploy.records import Record
from vggdeploy.runtime import GpuOptions
from vggdeploy.runtime.gpu.memory import lane_scratch, tensor_bytes
from vggdeploy.spec import ModelSpec
from vggdeploy.types import Precision

_VALUE_BYTES = {Precision.FP16: 2, Precision.BF16: 2, Precision.INT8: 1, Precision.FP8: 1}  # of an activation; others 4
_STREAMED = "weight_streaming"  # as `BuildRecord.options` has it


class ProfileMemory(Record, frozen=True, kw_only=True):
    """Bytes of GPU memory of a session whose ``contexts`` have all had batches of up to ``batch`` images.

    ``total`` is ``weights`` and, for each context, ``activations`` (what it computes in, the smaller profiles' blocks included)
    and ``buffers`` (inputs and outputs of the engine's largest batch). ``asked``: the engine itself said what it computes in;
    else that is the network's largest layer, its input and its output. ``streamed``: the weights may stay in the host's
    memory, all but one layer of them, and are not in the total.
    """

    batch: int
    contexts: int
    weights: int
    activations: int
    buffers: int
    total: int
    asked: bool
    streamed: bool = False


def session_memory(
    manifest: Manifest, variant: Variant, contexts: int = GpuOptions().contexts
) -> tuple[ProfileMemory, ...]:
    """For each profile of an engine, ascending; nothing for other variants."""
    if variant.build is None:
        return ()
    weights = sum(variant.proof.weight_bytes.values()) if variant.proof else 0
    streamed = _STREAMED in variant.build.options
    buffers = tensor_bytes((manifest.input, *manifest.outputs), variant.batch.max)
    asked = len(variant.build.scratch) == len(variant.profiles)
    image = activation_bytes(manifest.spec, variant.precision)
    blocks = variant.build.scratch if asked else tuple(image * profile.max for profile in variant.profiles)
    found = []
    for number, profile in enumerate(variant.profiles, start=1):
        activations = lane_scratch(blocks[:number])
        found.append(
            ProfileMemory(
                batch=profile.max,
                contexts=contexts,
                weights=weights,
                activations=activations,
                buffers=buffers,
                total=(0 if streamed else weights) + contexts * (activations + buffers),
                asked=asked,
                streamed=streamed,
            )
        )
    return tuple(found)


def activation_bytes(spec: ModelSpec, precision: Precision) -> int:
    """Of one image, the largest sum of what a layer reads and what it writes: both exist while it is computed.

    Layers between convolutions are computed in their place, or with the convolution before them.
    """
    before = spec.in_channels * spec.image_size**2
    largest = 0
    for layer in layers_of(spec):
        if layer.kind in ("relu", "batch_norm", "dropout"):
            continue
        after = prod(layer.shape)
        largest = max(largest, before + after)
        before = after
    return largest * _VALUE_BYTES.get(precision, 4)
