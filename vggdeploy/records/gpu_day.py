"""What a GPU day writes: the readings of each step, in the order in which they were taken."""

from __future__ import annotations

from enum import StrEnum

from vggdeploy.records import SCHEMA_VERSION, Machine, Record
from vggdeploy.records.gpu import GpuSamples


class StepOutcome(StrEnum):
    """``cut``: its time ended first, and what it had read until then is here. ``not here``: the machine lacks something."""

    DONE = "done"
    CUT = "cut"
    FAILED = "failed"
    NOT_HERE = "not here"


class Fact(Record, frozen=True, kw_only=True, tag=True):
    """Something that the GPU, its driver or a library says of itself."""

    name: str
    value: str


class CopyRate(Record, frozen=True, kw_only=True, tag=True):
    """One copy between the host and the GPU. ``gigabytes_per_second`` counts 10⁹ bytes, from the median of the calls."""

    to_gpu: bool
    pinned: bool
    bytes: int
    gigabytes_per_second: float


class OperationRate(Record, frozen=True, kw_only=True, tag=True):
    """A convolution or matrix product alone, by CUDA events. ``tera_ops`` counts a multiply-add as two."""

    operation: str
    by: str
    precision: str
    shape: str
    milliseconds: float
    tera_ops: float


class NetworkRate(Record, frozen=True, kw_only=True, tag=True):
    """A whole VGG in one setting.

    ``milliseconds``: the median of single calls, each waited for. ``images_per_second``: of calls put in one after
    another. ``copies``: whether both include the way to the GPU and back. ``relative_l2``: ‖answers − reference‖ ∕
    ‖reference‖ over ``images`` images, ``flips``: how many of them get another top class; the reference is FP64.
    """

    network: str
    by: str
    precision: str
    batch: int
    copies: bool
    calls: int
    milliseconds: float
    images_per_second: float
    tera_ops: float
    relative_l2: float
    flips: int
    images: int


class Check(Record, frozen=True, kw_only=True, tag=True):
    """Something that was tried: what was seen, or why it failed or could not be tried."""

    what: str
    outcome: str
    detail: str = ""
    reason: str = ""


Reading = Fact | CopyRate | OperationRate | NetworkRate | Check


class StepResult(Record, frozen=True, kw_only=True):
    """One step. ``gpu`` is what NVML saw during it, None where the step did not end by itself."""

    name: str
    outcome: StepOutcome
    seconds: float
    reason: str = ""
    fix: str = ""
    gpu: GpuSamples | None = None
    readings: tuple[Reading, ...] = ()


class GpuDay(Record, frozen=True, kw_only=True):
    """What ``vggdeploy doctor --gpu-day`` writes. ``gpu`` is the GPU's own identity, which a resumed day must share."""

    schema_version: int = SCHEMA_VERSION
    created: str
    command: str
    machine: Machine
    gpu: str
    packages: dict[str, str]
    steps: tuple[StepResult, ...] = ()
