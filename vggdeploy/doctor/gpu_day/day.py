"""Run the steps of a GPU day, each in its own process, and keep what they read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from vggdeploy.doctor.doctor import diagnose
from vggdeploy.doctor.gpu_day.plan import Step, plan
from vggdeploy.errors import BundleError, UsageError, first_line
from vggdeploy.records import from_json, to_json
from vggdeploy.records.gpu import GpuSamples
from vggdeploy.records.gpu_day import GpuDay, Reading, StepOutcome, StepResult
from vggdeploy.runtime.gpu import cuda
from vggdeploy.system.files import atomic_write, check_writable, read_regular
from vggdeploy.types import Device, OnProgress, silent

_CHILD = "vggdeploy.doctor.gpu_day.child"
_LARGEST = 64 * 2**20
_SETTLED = frozenset({StepOutcome.DONE, StepOutcome.NOT_HERE})
Run = Callable[[Step, float], StepResult]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The last line of a step's process."""

    outcome: StepOutcome
    reason: str = ""
    fix: str = ""
    gpu: GpuSamples | None = None


_LINE = msgspec.json.Decoder(Reading | Ended)


def gpu_day(output: Path, *, minutes: float, command: str, on_progress: OnProgress = silent) -> GpuDay:
    """Take every step that ``output`` does not have yet, and write the file after each.

    Args:
        output: a JSON file; one that is there is gone on with.
        minutes: that all steps together may take. A step that finds none left is not taken.
        command: the line that was typed, for the record.

    Raises:
        IncompatibleError: no GPU, or its driver does not answer.
        UsageError: ``output`` is of another GPU or other packages, or is no GPU day.
    """
    check_writable(output)
    day = _begin(output, command)
    return take(day, output, plan(), run_step, until=time.monotonic() + 60 * minutes, on_progress=on_progress)


def take(
    day: GpuDay, output: Path, steps: tuple[Step, ...], run: Run, *, until: float, on_progress: OnProgress = silent
) -> GpuDay:
    """Add the result of every step that is not settled; ``run`` is given the seconds that it may take."""
    for number, step in enumerate(steps):
        found = {result.name: result for result in day.steps}
        if step.name in found and found[step.name].outcome in _SETTLED:
            continue
        left = until - time.monotonic()
        if left < 1:
            break
        on_progress(number / len(steps), step.name)
        found[step.name] = run(step, min(step.seconds, left))
        kept = tuple(found[s.name] for s in steps if s.name in found)
        day = msgspec.structs.replace(day, steps=kept)
        atomic_write(output, to_json(day))
    return day


def _begin(output: Path, command: str) -> GpuDay:
    gpu = cuda.find_gpu(Device("cuda"))
    diagnosis = diagnose()
    new = GpuDay(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=diagnosis.machine,
        gpu=f"{gpu.name}, {cuda.uuid_of(Device('cuda'))}",
        packages=diagnosis.packages,
    )
    if not output.exists():
        return new
    try:
        old = from_json(read_regular(output, limit=_LARGEST), GpuDay, what=str(output))
    except (BundleError, OSError) as error:
        raise UsageError(f"{output} is not a GPU day: {first_line(error)}", "give another name: -o FILE") from error
    for what, before, now in (("GPU", old.gpu, new.gpu), ("packages", old.packages, new.packages)):
        if before != now:
            raise UsageError(f"{output} was begun with other {what}: {before}", "give another name: -o FILE")
    return old


def run_step(step: Step, seconds: float) -> StepResult:
    """One step in a process of its own, which is killed after ``seconds``."""
    start = time.monotonic()
    args = [sys.executable, "-m", _CHILD, step.module, step.function, step.argument]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as lines:
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=lines, stderr=said, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        lines.seek(0)
        said.seek(0)
        readings, ended = _read(lines.read())
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    if ended is None:
        cut = code is None
        ended = Ended(
            StepOutcome.CUT if cut else StepOutcome.FAILED,
            f"it was stopped after {seconds:.0f} s" if cut else f"the process ended with {code}: {last[:300]}",
        )
    return StepResult(
        name=step.name,
        outcome=ended.outcome,
        seconds=time.monotonic() - start,
        reason=ended.reason,
        fix=ended.fix,
        gpu=ended.gpu,
        readings=tuple(readings),
    )


def _read(data: bytes) -> tuple[list[Reading], Ended | None]:
    """What a process wrote until its end, or until it was killed in the middle of a line."""
    readings: list[Reading] = []
    for line in data.splitlines():
        try:
            found = _LINE.decode(line)
        except msgspec.DecodeError:  # a line that a library printed, or half a line
            continue
        if isinstance(found, Ended):
            return readings, found
        readings.append(found)
    return readings, None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started (a compiler's workers)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
