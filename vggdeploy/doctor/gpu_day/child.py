"""One step of a GPU day: ``python -m … MODULE FUNCTION [ARGUMENT]`` writes each reading as a line of JSON."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import msgspec

from vggdeploy.bench.gpu.nvml import GpuWatch
from vggdeploy.doctor.gpu_day.day import Ended
from vggdeploy.errors import IncompatibleError, VggdeployError, first_line
from vggdeploy.records.gpu_day import StepOutcome
from vggdeploy.system.ending import end_with_parent
from vggdeploy.types import Device


def main(module: str, function: str, argument: str = "") -> None:
    end_with_parent(signal.SIGKILL)
    # Libraries print, too: what is a reading goes to a descriptor of its own.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def write(line: object) -> None:
        out.write(msgspec.json.encode(line) + b"\n")

    outcome, reason, fix = StepOutcome.DONE, "", ""
    with GpuWatch(Device("cuda"), seconds=0.1) as watch:
        try:
            step = getattr(importlib.import_module(f"vggdeploy.doctor.gpu_day.{module}"), function)
            for reading in step(argument) if argument else step():
                write(reading)
        except IncompatibleError as error:
            outcome, reason, fix = StepOutcome.NOT_HERE, error.cause, error.hint
        except ModuleNotFoundError as error:
            outcome, reason = StepOutcome.NOT_HERE, f"the Python package '{error.name}' is not installed"
        except VggdeployError as error:
            outcome, reason, fix = StepOutcome.FAILED, error.cause, error.hint
        except Exception as error:  # whatever a library throws is what this is here to find
            outcome, reason = StepOutcome.FAILED, f"{type(error).__name__}: {first_line(error)}"
    write(Ended(outcome, reason, fix, watch.result()))


if __name__ == "__main__":
    main(*sys.argv[1:])
