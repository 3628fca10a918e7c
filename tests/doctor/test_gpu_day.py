"""A GPU day without a GPU: steps in processes of their own, a day that was stopped, and what it comes to."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from vggdeploy.cli.app import run
from vggdeploy.doctor.gpu_day import day as days
from vggdeploy.doctor.gpu_day.plan import Step, plan
from vggdeploy.errors import UsageError
from vggdeploy.records import from_json, to_json
from vggdeploy.records.gpu_day import Check, GpuDay, NetworkRate, OperationRate, StepOutcome, StepResult
from vggdeploy.report.gpu_days import failures, lines
from vggdeploy.system.machine import machine

ROOT = Path(__file__).parents[2]
ONE, TWO = Step("one", "hardware", "one", 60), Step("two", "hardware", "two", 60)


def new_day(*steps: StepResult) -> GpuDay:
    return GpuDay(created="now", command="", machine=machine(), gpu="GPU, 1", packages={}, steps=steps)


def result(name: str, outcome: StepOutcome = StepOutcome.DONE, *readings: object) -> StepResult:
    return StepResult(name=name, outcome=outcome, seconds=1, readings=readings)  # type: ignore[arg-type]


def rate(precision: str, relative_l2: float, by: str = "PyTorch", speed: float = 100) -> NetworkRate:
    return NetworkRate(
        network="vgg16", by=by, precision=precision, batch=8, copies=False, calls=9, milliseconds=1,
        images_per_second=speed, tera_ops=50, relative_l2=relative_l2, flips=0, images=64,
    )  # fmt: skip


def take(day: GpuDay, output: Path, run: Callable[[Step, float], StepResult], seconds: float = 60) -> GpuDay:
    return days.take(day, output, (ONE, TWO), run, until=time.monotonic() + seconds)


@pytest.mark.parametrize("step", plan(), ids=lambda step: step.name)
def test_every_step_is_where_the_plan_says(step: Step) -> None:
    assert callable(getattr(importlib.import_module(f"vggdeploy.doctor.gpu_day.{step.module}"), step.function))


def test_the_file_is_there_after_each_step_and_a_day_goes_on_behind_it(tmp_path: Path) -> None:
    output, taken = tmp_path / "day.json", []

    def killed(step: Step, seconds: float) -> StepResult:
        taken.append(step.name)
        if len(taken) == 2:
            raise SystemExit(137)
        return result(step.name)

    with pytest.raises(SystemExit):
        take(new_day(), output, killed)
    kept = from_json(output.read_bytes(), GpuDay, what="day")
    assert [step.name for step in kept.steps] == ["one"]
    whole = take(kept, output, killed)
    assert taken == ["one", "two", "two"]
    assert from_json(output.read_bytes(), GpuDay, what="day") == whole


def test_what_failed_or_was_cut_is_taken_again_and_no_step_begins_without_time(tmp_path: Path) -> None:
    begun = new_day(result("one", StepOutcome.CUT), result("two", StepOutcome.FAILED))
    assert [s.outcome for s in take(begun, tmp_path / "a", lambda step, _: result(step.name)).steps] == ["done", "done"]
    settled = new_day(result("one"), result("two", StepOutcome.NOT_HERE))
    assert take(settled, tmp_path / "b", lambda step, _: pytest.fail("taken again")) == settled
    assert take(new_day(), tmp_path / "c", lambda step, _: pytest.fail("no time"), seconds=0.5).steps == ()


@pytest.fixture
def steps_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that end as steps on a GPU may, in a module that a child finds where it looks for steps."""
    code = """
        import os, signal, time
        from vggdeploy.doctor.gpu_day import __path__
        from vggdeploy.errors import IncompatibleError
        from vggdeploy.records.gpu_day import Check

        def one(kind):
            yield Check(what="before", outcome="passed")
            print("a library's own words")
            if kind == "hang": time.sleep(600)
            if kind == "kill": os.kill(os.getpid(), signal.SIGSEGV)
            if kind == "absent": raise IncompatibleError("no such library", "install it")
            if kind == "torch": import there_is_no_such_module
            if kind == "error": raise RuntimeError("CUDA error: an illegal memory access")
    """
    (tmp_path / "ours.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    runner = f"""
import sys
import vggdeploy.doctor.gpu_day
vggdeploy.doctor.gpu_day.__path__.append({str(tmp_path)!r})
from vggdeploy.doctor.gpu_day.child import main
main(*sys.argv[3:])
"""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/runner.py "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "runner.py").write_text(runner)
    monkeypatch.setattr(days, "sys", SimpleNamespace(executable=str(tmp_path / "python")))


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("fine", StepOutcome.DONE, ""),
        ("hang", StepOutcome.CUT, "it was stopped after 8 s"),
        ("kill", StepOutcome.FAILED, "the process ended with -11"),
        ("absent", StepOutcome.NOT_HERE, "no such library"),
        ("torch", StepOutcome.NOT_HERE, "'there_is_no_such_module' is not installed"),
        ("error", StepOutcome.FAILED, "RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_a_step_ends_alone_and_keeps_what_it_read(
    steps_of_ours: None, kind: str, outcome: StepOutcome, reason: str
) -> None:
    found = days.run_step(Step(kind, "ours", "one", 60, kind), 8)
    assert (found.outcome, reason in found.reason) == (outcome, True), found
    assert found.readings == (Check(what="before", outcome="passed"),)


def test_a_day_of_another_gpu_or_no_day_at_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days.cuda, "find_gpu", lambda device: SimpleNamespace(name="GPU"))
    monkeypatch.setattr(days.cuda, "uuid_of", lambda device: "2")
    monkeypatch.setattr(days, "diagnose", lambda: SimpleNamespace(machine=machine(), packages={}))
    output = tmp_path / "day.json"
    for data, cause in ((to_json(new_day()), "other GPU: GPU, 1"), (b"{}", "is not a GPU day"), (b"\xff", "is not")):
        output.write_bytes(data)
        with pytest.raises(UsageError, match=cause):
            days.gpu_day(output, minutes=1, command="")
        assert output.read_bytes() == data


def test_the_verdict_names_what_failed_and_a_precision_that_is_not_what_it_says() -> None:
    fine = new_day(result("vgg16", StepOutcome.DONE, rate("fp32", 2e-6), rate("fp16", 1e-3)))
    assert failures(fine) == [] and next(lines(fine)).startswith("✔ nothing failed; 2 settings")
    tf32, nan = rate("fp32", 3e-4), rate("fp16", float("nan"))
    check = Check(what="memory comes back", outcome="failed", detail="9 bytes")
    wrong = new_day(result("a", StepOutcome.FAILED), result("b", StepOutcome.DONE, tf32, nan, check))
    assert len(failures(wrong)) == 4 and next(lines(wrong)) == "✘ 4 failed"
    assert any("vgg16, fp32, batch 8, PyTorch is 3.0e-04 from FP64" in line for line in lines(wrong))


def test_speed_is_named_beside_the_roof_and_the_compiler_at_its_own_batch() -> None:
    roof = OperationRate(operation="convolution", by="", precision="fp16", shape="", milliseconds=1, tera_ops=100)
    large = msgspec.structs.replace(rate("fp16", 0, speed=300), batch=64)
    compiled = rate("fp16", 0, "torch.compile, default", speed=200)
    said = "\n".join(lines(new_day(result("a", StepOutcome.DONE, roof, rate("fp16", 0), large, compiled))))
    assert "300 images/s by PyTorch, batch 64, 50% of the FP16 convolution roof (100 TOP/s)" in said
    assert "at batch 8: 100 images/s by PyTorch, 0.50 × the 200 of torch.compile, default" in said


def test_without_a_gpu_the_command_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "day.json"
    assert run(["doctor", "--gpu-day", "-o", str(output)]) == 5
    assert "NVIDIA" in capsys.readouterr().err
    assert not output.exists()


def test_the_readme_says_what_the_newest_day_on_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    section = importlib.import_module("gpu_section")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert section.rewritten(readme) == readme
    changed = json.loads(section.RESULT.read_text())
    assert changed["gpu"].startswith("NVIDIA")


@pytest.mark.parametrize("line", ["--minutes 3", "-o day.json", "--gpu-day --self-test"])
def test_options_of_a_gpu_day_are_not_ignored_without_it(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *line.split()]) == 2
    assert "--gpu-day" in capsys.readouterr().err
