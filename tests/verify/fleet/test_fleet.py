"""What becomes of answers, crashes and lies of a child; on this machine, since none of it depends on the processor."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from attacks.planting import rewrite_onnx
from verify.fleet.conftest import Here, add_variant, wrong_alone

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.records import FleetTarget, ParityRecord, ParityReport, from_json, to_json
from vggdeploy.system import machine
from vggdeploy.types import BatchRange, Precision, Verdict
from vggdeploy.verify.fleet import child
from vggdeploy.verify.fleet.fleet import FleetOptions, batches_of, prove_fleet
from vggdeploy.verify.fleet.target import Prefix, Target, last_line, run_tool
from vggdeploy.verify.fleet.targets import TARGETS, find_targets

_CHILD = """
import sys, os, signal, time
from vggdeploy.verify.fleet import child
{before}
child.main(sys.argv[1])
"""


def proven(root: Path, *names: str, script: str = "", seconds: float = 60) -> dict[str, ParityRecord]:
    """The records of these variants (default: all) on this machine."""
    bundle = Bundle.open(root)
    variants = [bundle.manifest.variant(name) for name in names] or list(bundle.manifest.candidates())
    target = Here("here", "this machine", script=script and _CHILD.format(before=script))
    (found,) = prove_fleet(bundle, variants, FleetOptions((target,), seconds))
    return {record.variant: record for record in found.variants}


def test_right_answers_pass_and_wrong_ones_fail(fleet_dir: Path) -> None:
    found = proven(fleet_dir)
    assert {name: record.verdict for name, record in found.items()} == {
        "onnx-fp32": Verdict.PASS,
        "onnx-fp16": Verdict.PASS,
        "altered": Verdict.FAIL,
        "overflowing": Verdict.FAIL,
    }
    assert found["onnx-fp32"].data == "golden pair (4 images), in batches of 1 and 4"
    assert found["overflowing"].reasons == ("it gave a NaN or infinity in 'logits'",)
    assert found["onnx-fp32"].tools["onnxruntime"]


def test_a_foreign_graph_fails_and_no_target_gets_it(own_fleet_dir: Path) -> None:
    add_variant(own_fleet_dir, "onnx-fp32", "alone")
    rewrite_onnx(own_fleet_dir, "alone", wrong_alone)
    found = proven(own_fleet_dir, "alone", "onnx-fp32", script="child.open_session = None")
    assert found["alone"].verdict is Verdict.FAIL
    assert "it holds" in found["alone"].reasons[0]
    assert (
        found["onnx-fp32"].verdict is Verdict.UNPROVEN
    )  # the child was started for this one, and had nothing to open it


@pytest.mark.usefixtures("any_graph")
def test_a_graph_that_is_wrong_at_batch_1_alone_fails(own_fleet_dir: Path) -> None:
    add_variant(own_fleet_dir, "onnx-fp32", "alone")
    rewrite_onnx(own_fleet_dir, "alone", wrong_alone)
    passing = "from vggdeploy.model.formats import admission; admission.CHECKED.clear()"
    record = proven(own_fleet_dir, "alone", script=passing)["alone"]
    assert record.verdict is Verdict.FAIL
    assert record.data.endswith("in batches of 1")


def test_a_crash_is_unproven_by_its_name_and_the_others_are_proven_all_the_same(fleet_dir: Path) -> None:
    crash = """
run = child.run_variant
def run_variant(bundle, job, index, *rest):
    if job.variants[index] == "onnx-fp16":
        os.kill(os.getpid(), signal.SIGILL)
    run(bundle, job, index, *rest)
child.run_variant = run_variant
"""
    found = proven(fleet_dir, script=crash)
    assert found["onnx-fp16"].verdict is Verdict.UNPROVEN
    assert found["onnx-fp16"].reasons == ("the process was ended by SIGILL",)
    assert [found[n].verdict for n in ("onnx-fp32", "altered")] == [Verdict.PASS, Verdict.FAIL]


def test_a_child_that_cannot_start_is_started_once(fleet_dir: Path, tmp_path: Path) -> None:
    mark = tmp_path / "starts"
    found = proven(fleet_dir, script=f"open({str(mark)!r}, 'a').write('x'); sys.exit('no such library')")
    assert {record.reasons for record in found.values()} == {("the process ended with code 1: no such library",)}
    assert {record.verdict for record in found.values()} == {Verdict.UNPROVEN}
    assert mark.read_text() == "x"


def test_what_takes_too_long_is_unproven_unless_it_is_wrong_already(fleet_dir: Path) -> None:
    slow = """
send = child.Client.send
def slowly(self, path, data=b""):
    send(self, path, data)
    if path.startswith("answer"):
        time.sleep(60)
child.Client.send = slowly
"""
    found = proven(fleet_dir, "onnx-fp32", "altered", script=slow, seconds=4)
    assert found["onnx-fp32"].verdict is Verdict.UNPROVEN
    assert found["onnx-fp32"].reasons == ("it did not answer within 4 s (--timeout)",)
    assert found["altered"].verdict is Verdict.FAIL
    assert found["altered"].data == "golden pair (1 image), in batches of 1"


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ("if path.startswith('answer/0/1'): return", "not every image was answered"),
        ("if path.startswith('answer'): return", "not every image was answered"),
        ("data = data[:-4] if path.startswith('answer') else data", "'logits' of 1 image has 36 bytes, not 40"),
        ("path = path.replace('answer/0', 'answer/9')", "tuple index out of range"),
    ],
)
def test_answers_that_are_not_all_there_never_pass(fleet_dir: Path, lie: str, told: str) -> None:
    script = f"""
send = child.Client.send
def lying(self, path, data=b""):
    {lie}
    send(self, path, data)
child.Client.send = lying
"""
    record = proven(fleet_dir, "onnx-fp32", script=script)["onnx-fp32"]
    assert record.verdict is Verdict.UNPROVEN
    assert told in record.reasons[0]


def test_a_bundle_that_is_changed_meanwhile_is_not_run(own_fleet_dir: Path) -> None:
    bundle = Bundle.open(own_fleet_dir)
    add_variant(own_fleet_dir, "altered", "another")  # the manifest has another digest now
    target = Here("here", "this machine")
    (found,) = prove_fleet(bundle, [bundle.manifest.variant("onnx-fp32")], FleetOptions((target,)))
    assert found.variants[0].verdict is Verdict.UNPROVEN
    assert "was changed while it was proven" in found.variants[0].reasons[0]


def test_what_failed_or_was_not_decided_there_is_the_verdict_of_a_report() -> None:
    def report(*verdicts: Verdict) -> ParityReport:
        records = [ParityRecord(variant="v", backend="b", device="d", verdict=verdict) for verdict in verdicts]
        target = FleetTarget(target="haswell", title="", variants=tuple(records))
        here = ParityRecord(variant="v", backend="b", device="cpu", verdict=Verdict.PASS)
        return ParityReport(bundle="b", created="now", variants=(here,), fleet=(target,))

    assert report(Verdict.PASS, Verdict.UNPROVEN).verdict is Verdict.PASS
    assert report(Verdict.PASS, Verdict.FAIL).verdict is Verdict.FAIL
    assert report(Verdict.PASS, Verdict.INCONCLUSIVE).verdict is Verdict.INCONCLUSIVE
    assert from_json(to_json(report(Verdict.FAIL)), ParityReport, what="it") == report(Verdict.FAIL)


@pytest.mark.parametrize(
    ("isa", "saturates"), [(("X86_V2", "X86_V3"), True), (("X86_V3", "X86_V4", "AVX512_ICL"), False), (("AVX2",), True)]
)
def test_a_child_sets_sessions_up_for_its_own_processor(
    isa: tuple[str, ...], saturates: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """qemu-user hands through /proc/cpuinfo of a machine that may have VNNI."""
    monkeypatch.setattr(machine, "CPUINFO", machine.CPUINFO)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in machine.ISA_VARIABLES:  # the emulated child has none of these
        monkeypatch.delenv(name, raising=False)
    machine.machine.cache_clear()
    child.describe_processor(isa, tmp_path / "cache" / "cpuinfo")
    assert machine.int8_saturates() is saturates
    machine.machine.cache_clear()


def test_batches_are_the_smallest_and_all_at_once() -> None:
    def variant(batch: BatchRange) -> Variant:
        return Variant(name="v", format="onnx", precision=Precision.FP32, path="p", batch=batch)

    assert batches_of(variant(BatchRange(1, 2, 3)), 4) == {1: [(0, 1), (1, 2), (2, 3), (3, 4)], 3: [(0, 3), (3, 4)]}
    assert batches_of(variant(BatchRange(2, 2, 8)), 5) == {2: [(0, 2), (2, 4)], 5: [(0, 5)]}
    assert batches_of(variant(BatchRange(8, 8, 8)), 4) == {4: [], 8: []}


def test_nothing_is_installed_unasked_and_every_target_says_how_to_get_it(
    fleet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    code = run(["verify", str(fleet_dir), "--variant", "onnx-fp32", "--data", "golden", "--fleet", "--json"])
    report = from_json(capsys.readouterr().out.encode(), ParityReport, what="the report")
    assert code == 0
    assert [target.target for target in report.fleet] == [target.name for target in TARGETS]
    for target in report.fleet:
        (record,) = target.variants
        assert record.verdict is Verdict.UNPROVEN
        assert "apt-get install" in record.reasons[0]
    assert not (tmp_path / "fleet").exists()


@pytest.mark.parametrize("name", ["cortex-a72", "node-wasm", "chromium-webgpu"])
def test_what_has_to_be_fetched_is_not_there_before_prepare(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    (target,) = find_targets([name])
    missing = target.missing()
    assert missing is not None
    assert "--prepare" in missing.fix


def test_the_matrix_is_drawn_with_its_reasons(
    fleet_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = Here("here", "this machine")
    monkeypatch.setattr("vggdeploy.verify.fleet.targets.TARGETS", (target,))
    options = ["--data", "golden", "--variant", "onnx-fp32", "--variant", "altered", "--fleet"]
    assert run(["verify", str(fleet_dir), *options]) == 3
    told = capsys.readouterr().out
    (line,) = (line for line in told.splitlines() if line.startswith("here"))
    assert "✔ pass" in line
    assert "✘ fail" in line
    assert "altered on here: logits: relative L2" in told
    assert run(["verify", str(fleet_dir), *options, "--json"]) == 3
    (tmp_path / "r.json").write_text(capsys.readouterr().out)
    assert run(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.md")]) == 0
    page = (tmp_path / "r.md").read_text()
    assert "## On other machines" in page
    assert "| here | ✔ pass" in page
    assert run(["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.csv")]) == 0
    assert ",fleet,altered,onnxruntime,here," in (tmp_path / "r.csv").read_text()


@pytest.mark.parametrize(
    ("options", "told", "fix"),
    [
        (["--fleet", "--target", "haswel"], "the target 'haswel' is unknown", "did you mean 'haswell'?"),
        (["--target", "haswell"], "--target belongs to --fleet", "add --fleet"),
        (["--prepare"], "--prepare belongs to --fleet", "add --fleet"),
        (["--timeout", "9"], "--timeout belongs to --fleet", "add --fleet"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    fleet_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str, fix: str
) -> None:
    assert run(["verify", str(fleet_dir), *options]) == 2
    cause, hint = capsys.readouterr().err.strip().splitlines()
    assert told in cause
    assert fix in hint


def test_a_fleet_without_variants_is_a_usage_error(fleet_dir: Path) -> None:
    with pytest.raises(UsageError, match="no variant to prove"):
        prove_fleet(Bundle.open(fleet_dir), [], FleetOptions(TARGETS))


def test_an_engine_is_refused_where_there_is_no_gpu(fleet_dir: Path) -> None:
    variant = Variant(name="v", format="tensorrt", precision=Precision.FP16, path="p", batch=BatchRange())

    def reason(target: Target) -> str:
        return target.refuses(variant)

    assert all(map(reason, TARGETS))


def test_a_prefix_is_filled_once_and_another_users_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path))
    prefix, filled = Prefix({"of": "a test"}), []
    for _ in range(2):
        prefix.fill(filled.append, lambda: None)
    assert len(filled) == 1
    path = prefix.path()
    assert path is not None
    path.chmod(0o777)
    assert prefix.path() is None


def test_a_prefix_that_could_not_be_filled_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path))

    def fail(draft: Path) -> None:
        (draft / "half").touch()
        run_tool([sys.executable, "-c", "raise SystemExit('no route')"], to="fetch it", fix="x")

    with pytest.raises(IncompatibleError, match="could not fetch it: no route"):
        Prefix({}).fill(fail, lambda: None)
    assert Prefix({}).path() is None


def test_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(IncompatibleError, match="npmm is needed to fetch it") as caught:
        run_tool(["npmm"], to="fetch it", fix="install it: apt-get install npm")
    assert "apt-get" in caught.value.hint


def test_what_qemu_cannot_emulate_is_not_the_reason() -> None:
    said = b"Illegal instruction\n\nqemu-x86_64: warning: TCG doesn't support requested feature: CPUID.07H:EBX.rtm\n"
    assert last_line(said) == "Illegal instruction"


@pytest.mark.parametrize("name", ["haswell", "cortex-a72"])
def test_kernels_that_were_chosen_for_this_processor_are_not_asked_of_another(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPENBLAS_CORETYPE=Haswell ends NumPy with an illegal instruction on an older processor."""
    from vggdeploy.verify.fleet import emulated
    from vggdeploy.verify.fleet.targets import find_targets

    (target,) = find_targets([name])
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/python3.11").touch()
    monkeypatch.setattr(emulated, "_prefix", lambda: SimpleNamespace(path=lambda: tmp_path))
    chosen = {"OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx512", "NPY_ENABLE_CPU_FEATURES": "AVX512F"}
    for variable, value in {**chosen, "KEPT": "yes"}.items():
        monkeypatch.setenv(variable, value)
    _, environment = target.command("address", tmp_path)
    assert not chosen.keys() & environment.keys()
    assert environment["KEPT"] == "yes"
