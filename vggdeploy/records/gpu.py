"""What is measured of an engine on a GPU, as frozen records."""

from __future__ import annotations

from vggdeploy.records import SCHEMA_VERSION, Machine, Record
from vggdeploy.types import Precision


class GpuSamples(Record, frozen=True, kw_only=True):
    """What was seen in ``seconds``. A field is None where this GPU or driver does not tell; ``missing`` says why nothing
    is there. ``joules`` is the difference of the GPU's energy counter, else mean power × time.
    ``power_limited``: the clock was lowered to keep the power limit, which is a steady state; ``throttled`` has the reasons
    that are none. ``others_use`` is the share of the time in which kernels of other processes ran, 0 to 1."""

    samples: int = 0
    seconds: float = 0.0
    missing: str = ""
    sm_clock_mhz_min: int | None = None
    sm_clock_mhz_max: int | None = None
    memory_clock_mhz_max: int | None = None
    temperature_c_max: int | None = None
    power_watts_mean: float | None = None
    power_watts_max: float | None = None
    joules: float | None = None
    joules_from: str = ""
    power_limited: bool = False
    throttled: tuple[str, ...] = ()
    other_processes: int | None = None
    others_use: float | None = None
    memory_used_bytes_max: int | None = None
    memory_total_bytes: int | None = None


class Roof(Record, frozen=True, kw_only=True):
    """The best product that was measured: ``tera_ops`` counts a multiply-add as two, 2·side³ a product."""

    precision: Precision
    side: int
    products: int
    tera_ops: float


class GpuTimes(Record, frozen=True, kw_only=True):
    """One batch size, one stream. Medians in ms.

    By CUDA events: ``h2d_ms``, ``compute_ms``, ``d2h_ms`` (put into the stream one by one) and ``device_ms`` (all of it,
    as a session does it: by its CUDA graph, where there is one). By the host's clock: ``host_ms`` with the transfers and
    the copies to and from pinned memory, ``host_compute_ms`` without any.
    ``graph``: "session" (captured by us), "library" (captured inside it), "" (none); ``graph_refused`` says why.
    ``tera_ops`` and ``roof_share``: of ``compute_ms``, a multiply-add counted as two.
    """

    batch: int
    graph: str
    graph_refused: str = ""
    calls: int
    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    device_ms: float
    host_ms: float
    host_compute_ms: float
    tera_ops: float
    roof_share: float | None = None


class TrtexecTimes(Record, frozen=True, kw_only=True):
    """What NVIDIA's ``trtexec`` measured of the same engine file at one batch size, on one stream: medians in ms, named as
    those of `GpuTimes`. ``device_ms`` is its "Latency", ``compute_ms`` its "GPU Compute Time"; it has a CUDA graph, and copies
    are not overlapped. ``images_per_second`` is its throughput times the batch. ``version`` is its TensorRT, ``command`` the
    line that measures it again, and ``warnings`` are its own. ``missing`` says why a row has no times."""

    batch: int
    h2d_ms: float | None = None
    compute_ms: float | None = None
    d2h_ms: float | None = None
    device_ms: float | None = None
    images_per_second: float | None = None
    version: str = ""
    command: str = ""
    warnings: tuple[str, ...] = ()
    missing: str = ""


class GpuLoad(Record, frozen=True, kw_only=True):
    """``streams`` threads at work at the same time, each on its own stream, with transfers; and what NVML saw.

    ``valid`` is False with ``reasons`` when the GPU was slowed down, or was not ours alone.
    """

    batch: int
    streams: int
    graph: bool
    images: int
    seconds: float
    images_per_second: float
    joules_per_image: float | None
    valid: bool
    reasons: tuple[str, ...] = ()
    seen: GpuSamples


class GpuReport(Record, frozen=True, kw_only=True):
    """One engine on one GPU. Bytes are the fall of the GPU's free memory: of the engine with its first context, and of
    each further one; other processes may have a share in it. ``trtexec`` is there where that tool was."""

    schema_version: int = SCHEMA_VERSION
    bundle: str
    created: str
    machine: Machine
    variant: str
    backend: str
    sha256: str
    device: str
    gpu: str
    capability: str
    driver: str
    macs: int
    roof: Roof | None
    roof_missing: str = ""
    engine_bytes: int
    context_bytes: int | None
    times: tuple[GpuTimes, ...]
    loads: tuple[GpuLoad, ...]
    trtexec: tuple[TrtexecTimes, ...] = ()
