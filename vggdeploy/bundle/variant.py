"""One variant of a bundle as ``manifest.json`` has it: how it was made, what was read back of it, and what was proven."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vggdeploy.records import Distance, ParityRecord, Record
from vggdeploy.types import BatchRange, Precision, Verdict

REFERENCE = "torch-fp32"  # the checkpoint itself, run by PyTorch: what every variant is compared with
INT16, INT32 = 2**15 - 1, 2**31 - 1

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class PrecisionProof(Record, frozen=True, kw_only=True):
    """Read back from what was built: convolution and matrix-product layers by type, and bytes of weights by type.

    ``engine``: the same layers as the engine's own inspector names them; empty where no GPU was there to ask it.
    """

    layers: dict[str, int]
    weight_bytes: dict[str, int]
    engine: dict[str, int] = {}


class RebuildSpread(Record, frozen=True, kw_only=True):
    """How ``builds`` builds of one engine differ: how many hashes, their bytes and seconds, median latency where it can run."""

    builds: Annotated[int, msgspec.Meta(ge=1)]
    distinct: Annotated[int, msgspec.Meta(ge=1)]
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    p50_ms: tuple[float, ...] = ()


class SparseKernels(Record, frozen=True, kw_only=True):
    """What ``--sparse`` came to: the ``layers`` of the ONNX whose weights are 2:4, as they were read from its bytes, and how
    many layers (fused ones count once) the library's own log says it found ``eligible`` and ``chose`` a sparse kernel for,
    since it was faster. None where its log says nothing."""

    layers: tuple[str, ...]
    eligible: int | None = None
    chosen: int | None = None


class BuildRecord(Record, frozen=True, kw_only=True):
    """How an engine was built, and from which ONNX bytes.

    ``gpu`` and ``driver`` (the CUDA version that it supports) are those the library tuned the engine on; empty for an
    engine that was built for its ``targets`` without one. ``options`` hold the batch range and what was asked for beside
    the defaults. ``graph_batches`` are the batch sizes that a session captures as CUDA graphs. ``profiles`` are the ranges of
    batch sizes with kernels of their own, ascending; empty in bundles from before an engine could have several. ``scratch``
    has for each of them the bytes of GPU memory that a context computes in, as the engine says; empty where no GPU was there
    to ask it.
    """

    library: str
    version: str
    source: str
    source_sha256: str
    targets: tuple[str, ...]
    options: dict[str, str]
    seconds: float
    gpu: str = ""
    driver: str = ""
    graph_batches: tuple[int, ...] = ()
    profiles: tuple[BatchRange, ...] = ()
    scratch: tuple[int, ...] = ()
    rebuilds: RebuildSpread | None = None
    sparse: SparseKernels | None = None


class ProductBound(Record, frozen=True, kw_only=True):
    """What a convolution or matrix product in INT8 can come to, whatever the image, on CPUs without VNNI.

    ``pair`` is the largest magnitude of two neighbouring products, which such CPUs cut off at 32,767. ``saturating`` of
    the ``channels`` can exceed that; ``worst`` are at most eight of them, the worst first. ``accumulator`` is the largest
    magnitude of the whole sum, which has 32 bits. ``channels`` is 0 where a file does not show its weights.
    """

    layer: str
    channels: int
    saturating: int
    worst: tuple[int, ...] = ()
    pair: int
    accumulator: int


class SaturationRecord(Record, frozen=True, kw_only=True):
    """The bounds of every INT8 product of one file, which ``sha256`` names: see `vggdeploy.parity.saturation`."""

    sha256: Sha256
    products: tuple[ProductBound, ...]

    @property
    def excluded(self) -> bool:
        """Whether no image can saturate anything: neither a pair nor a whole sum."""
        return all(not p.saturating and p.accumulator <= INT32 for p in self.products)


class QuantisationRecord(Record, frozen=True, kw_only=True):
    """How an INT8 variant was made: what its ranges were measured on, and how.

    ``kept`` are the layers that stayed in FP32, as the network names them. ``activations`` is ``uint8`` (CPUs) or
    ``int8``, symmetric (TensorRT). ``saturation`` is None in bundles from before it was looked at.
    """

    library: str
    version: str
    method: str
    percentile: float | None = None
    data: str
    images: int
    activations: str
    kept: tuple[str, ...] = ()
    bias_corrected: bool = False
    saturation: SaturationRecord | None = None


class Measurement(Record, frozen=True, kw_only=True):
    """Latency of a variant on one machine: median milliseconds a batch."""

    machine: str
    backend: str
    batch: int
    threads: int
    p50_ms: float


class Variant(Record, frozen=True, kw_only=True):
    """One exported, optimised or built model. ``path`` is its main file (for the reference: its directory).

    ``distances`` are those that were measured when it was made, of each kind of images.
    """

    name: str
    format: str
    precision: Precision
    path: str
    batch: BatchRange
    proof: PrecisionProof | None = None
    build: BuildRecord | None = None
    quantisation: QuantisationRecord | None = None
    parity: ParityRecord | None = None
    distances: tuple[Distance, ...] = ()
    measured: tuple[Measurement, ...] = ()

    @property
    def profiles(self) -> tuple[BatchRange, ...]:
        """The ranges of batch sizes with kernels of their own, in the engine's order; of other variants the one range."""
        return (self.build.profiles if self.build else ()) or (self.batch,)

    @property
    def verdict(self) -> Verdict:
        if self.name == REFERENCE:
            return Verdict.PASS
        return self.parity.verdict if self.parity else Verdict.UNPROVEN

    def cannot_saturate(self, sha256: str = "") -> bool:
        """Whether it is recorded that no image can saturate this INT8 file, and of the bytes that ``sha256`` names."""
        found = self.quantisation.saturation if self.quantisation else None
        return found is not None and found.excluded and sha256 in ("", found.sha256)
