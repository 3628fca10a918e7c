"""NVIDIA's own benchmark on the same engine: ``trtexec``, with the flags that make it measure what our rows measure.

Options and output are those of ``samples/common/sampleOptions.cpp`` and ``sampleReporting.cpp`` in NVIDIA's TensorRT 10.3 to
11.1. Our rows copy in, compute and copy out on one stream, one after the other, replayed as a CUDA graph. So does it with
transfers, ``--exposeDMA`` (else the copies of one batch run under the computation of another) and a graph. TensorRT 11
turned transfers off by default, and graph and spin-wait on; 10 has it the other way round, and other names for it.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import IncompatibleError, VggdeployError, one_line
from vggdeploy.records.gpu import TrtexecTimes
from vggdeploy.runtime.preflight import release
from vggdeploy.types import Device

TOOL = "trtexec"
WARM_UP_MS = 1000  # its own 200 ms begin at idle clocks
_SPARE_SECONDS = 300  # for its start, for reading the engine, and for a last slow batch
_FLAGS = {10: ("--useCudaGraph", "--useSpinWait"), 11: ("--includeDataTransfers",)}  # by TensorRT's major version
_VERSION = re.compile(r"\[TensorRT v(\d{5,6})\]")
_LINE = re.compile(r"\[I\] (Throughput|Latency|H2D Latency|GPU Compute Time|D2H Latency): (.*)")
_QUERIES = re.compile(r"([\d.e+-]+) qps")
_MEDIAN = re.compile(r"median = ([\d.e+-]+) ms")
_WARNING = re.compile(r"\[W\] \* (.*)")
_ERROR = re.compile(r"\[E\] (.*)")


def find_trtexec(variant: Variant, *, asked: bool) -> str | None:
    """Where the tool is; None where it is not, or cannot run such an engine.

    Raises:
        IncompatibleError: the same, where it was asked for.
    """
    if variant.format != "tensorrt":
        if asked:
            raise IncompatibleError(
                f"{TOOL} runs engines of TensorRT, and {variant.name} is one of {variant.format}",
                "leave --trtexec out, or build one: vggdeploy build BUNDLE --engine tensorrt",
            )
        return None
    tool = shutil.which(TOOL)
    if tool is None and asked:
        raise IncompatibleError(
            f"{TOOL} is not on PATH",
            "NVIDIA's packages and containers have it (pip's do not): add its directory to PATH",
        )
    return tool


def command_of(
    tool: str, engine: Path, bundle: Bundle, variant: Variant, batch: int, device: Device, seconds: float
) -> tuple[str, ...]:
    """The line that measures an engine at one batch size."""
    major = release(variant.build.version)[0] if variant.build else max(_FLAGS)
    shape = "x".join(map(str, (batch, *bundle.manifest.input.item_shape)))
    return (
        tool,
        f"--loadEngine={engine}",
        f"--shapes={bundle.manifest.input.name}:{shape}",
        f"--useProfile={next(i for i, p in enumerate(variant.profiles) if p.min <= batch <= p.max)}",
        f"--device={device.index}",
        f"--duration={max(1, math.ceil(seconds))}",
        f"--warmUp={WARM_UP_MS}",
        "--infStreams=1",
        "--exposeDMA",
        *_FLAGS.get(major, _FLAGS[max(_FLAGS)]),
    )


def trtexec_rows(
    tool: str, bundle: Bundle, variant: Variant, batches: Sequence[int], *, device: Device, seconds: float
) -> tuple[TrtexecTimes, ...]:
    """A row for each batch size. One that fails has its reason instead of times: what we measured ourselves is not lost."""
    rows = []
    for batch in batches:
        try:
            rows.append(run_trtexec(tool, bundle, variant, batch, device=device, seconds=seconds))
        except VggdeployError as error:
            rows.append(TrtexecTimes(batch=batch, missing=error.cause))
    return tuple(rows)


def run_trtexec(
    tool: str, bundle: Bundle, variant: Variant, batch: int, *, device: Device, seconds: float
) -> TrtexecTimes:
    """Measure the engine's bytes, which are hashed before the tool sees them.

    Args:
        seconds: measuring time; the tool takes whole ones.

    Raises:
        IntegrityError: the file is not the manifest's.
        VggdeployError: the tool failed, did not end, is of another release, or said something that cannot be read.
    """
    file = bundle.main_file(variant)
    # The row names the bundle's file, so that the line can be typed again; the tool gets a sealed copy of the same bytes.
    command = command_of(tool, file.path, bundle, variant, batch, device, seconds)
    with file.open() as sealed:
        started = command_of(tool, sealed.path, bundle, variant, batch, device, seconds)
        output = _output(started, sealed.fd, seconds, by_hand=f"run it by hand: {shlex.join(command)}")
    return read_output(output, variant, batch, shlex.join(command))


def _output(command: Sequence[str], fd: int, seconds: float, *, by_hand: str) -> str:
    try:
        done = subprocess.run(
            command, pass_fds=(fd,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=seconds + _SPARE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise VggdeployError(f"{TOOL} did not end in {seconds + _SPARE_SECONDS:.0f} s", by_hand) from None
    except OSError as error:
        raise VggdeployError(f"{TOOL} cannot be started: {error.strerror}", f"see: {command[0]}") from error
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        said = _ERROR.search(text)
        why = one_line(said[1]) if said else f"exit code {done.returncode}"
        raise VggdeployError(f"{TOOL} failed: {why}", by_hand)
    return text


def read_output(text: str, variant: Variant, batch: int, command: str) -> TrtexecTimes:
    """Its performance summary as a row.

    Raises:
        VggdeployError: there is none, or the tool is not of the release that built the engine.
    """
    found = dict(_LINE.findall(text))
    try:
        queries = _number(_QUERIES, found["Throughput"])
        latency, h2d, compute, d2h = (
            _number(_MEDIAN, found[name]) for name in ("Latency", "H2D Latency", "GPU Compute Time", "D2H Latency")
        )
        version = _version(text)
    except (KeyError, ValueError, TypeError) as error:
        raise VggdeployError(f"{TOOL} gave no performance summary that can be read", "run it by hand") from error
    if variant.build is not None and release(variant.build.version) != release(version):
        raise VggdeployError(
            f"{TOOL} is of TensorRT {version}, and the engine of {variant.build.version}",
            f"put the {TOOL} of that release first on PATH",
        )
    return TrtexecTimes(
        batch=batch,
        h2d_ms=h2d,
        compute_ms=compute,
        d2h_ms=d2h,
        device_ms=latency,
        images_per_second=queries * batch,
        version=version,
        command=command,
        warnings=tuple(one_line(warning) for warning in _WARNING.findall(text)),
    )


def _number(pattern: re.Pattern[str], text: str) -> float:
    match = pattern.search(text)
    number = float(match[1]) if match else math.nan
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


def _version(text: str) -> str:
    """``[TensorRT v101303]`` → ``10.13.3``."""
    match = _VERSION.search(text)
    if match is None:
        raise ValueError(text)
    number = int(match[1])
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
