"""A row by NVIDIA's trtexec beside ours: the flags of each release, the engine's own bytes, and its output read.

The tool here is a script: it takes the options of ``sampleOptions.cpp`` of its release and no other, and prints what a real one
printed (github.com/NVIDIA/TensorRT issues 4036 and 4177).
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from fixtures.small import write_bundle

from vggdeploy.bench.gpu import trtexec
from vggdeploy.bench.gpu.trtexec import find_trtexec, read_output, run_trtexec
from vggdeploy.bundle import BuildRecord, Bundle, Variant, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, IntegrityError, VggdeployError
from vggdeploy.types import BatchRange, Device, Precision

ENGINE = b"ftrt the engine's own bytes"
SUMMARY = """\
[10/03/2024-10:47:59] [I] === Performance summary ===
[10/03/2024-10:47:59] [I] Throughput: 130.298 qps
[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [I] Enqueue Time: min = 2.72876 ms, max = 15.0201 ms, mean = 7.63062 ms, median = 7.86694 ms, percentile(90%) = 10.1792 ms, percentile(95%) = 11.7217 ms, percentile(99%) = 14.1848 ms
[10/03/2024-10:47:59] [I] H2D Latency: min = 0.0065918 ms, max = 0.0698242 ms, mean = 0.0122212 ms, median = 0.00814819 ms, percentile(90%) = 0.0253906 ms, percentile(95%) = 0.0270996 ms, percentile(99%) = 0.0515137 ms
[10/03/2024-10:47:59] [I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, mean = 7.58404 ms, median = 7.14139 ms, percentile(90%) = 10.2881 ms, percentile(95%) = 10.8175 ms, percentile(99%) = 12.9485 ms
[10/03/2024-10:47:59] [I] D2H Latency: min = 0.00390625 ms, max = 0.110596 ms, mean = 0.0100141 ms, median = 0.00439453 ms, percentile(90%) = 0.0254517 ms, percentile(95%) = 0.0319824 ms, percentile(99%) = 0.0994873 ms
[10/03/2024-10:47:59] [I] Total Host Walltime: 3.00082 s
[10/03/2024-10:47:59] [I] Total GPU Compute Time: 2.96536 s
[10/03/2024-10:47:59] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.
"""  # noqa: E501
HEADER = "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec"
TOOL = """\
#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
given = dict(part.partition("=")[::2] for part in sys.argv[1:])
print({header!r}, flush=True)
unknown = given.keys() - {known!r}
if unknown:
    print("[10/03/2024-10:47:58] [E] Unknown option: " + " ".join(sorted(unknown)), file=sys.stderr)
    sys.exit(1)
(here / "given.json").write_text(json.dumps(given))
(here / "engine").write_bytes(Path(given["--loadEngine"]).read_bytes())
print(Path(here / "says").read_text(), end="")
"""
COMMON = {
    "--loadEngine",
    "--shapes",
    "--device",
    "--duration",
    "--warmUp",
    "--infStreams",
    "--exposeDMA",
    "--useProfile",
}
OF_10 = {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"}
OF_11 = {"--includeDataTransfers", "--noCudaGraph", "--noSpinWait"}


def put_tool(home: Path, version: str = "101303", says: str = SUMMARY) -> Path:
    home.mkdir(exist_ok=True)
    tool = home / "trtexec"
    known = COMMON | (OF_11 if version.startswith("11") else OF_10)
    tool.write_text(TOOL.format(python=sys.executable, header=HEADER.format(version=version), known=known))
    tool.chmod(0o755)
    (home / "says").write_text(says)
    return tool


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH, without a tool in it yet."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.fixture
def bundle(tmp_path: Path, onnx_files: dict[Precision, Path]) -> Bundle:
    made = write_bundle(tmp_path / "a bundle", {Precision.FP16: onnx_files[Precision.FP16]})
    with update_bundle(made) as draft:
        draft.write("variants/e/model.engine", ENGINE)
        draft.manifest = made.manifest.with_variants(engine())
    return Bundle.open(made.root)


def engine(version: str = "10.13.3.9", kind: str = "tensorrt") -> Variant:
    record = BuildRecord(
        library=kind.replace("-", "_"), version=version, source="onnx-fp16", source_sha256="0" * 64,
        targets=("sm90",), options={}, seconds=1.0,
    )  # fmt: skip
    return Variant(
        name="e", format=kind, precision=Precision.FP16, path="variants/e/model.engine", batch=BatchRange(1, 4, 16),
        build=record,
    )  # fmt: skip


def measure(bundle: Bundle, tool: Path, variant: Variant, batch: int = 8, seconds: float = 1.5):
    return run_trtexec(str(tool), bundle, variant, batch, device=Device("cuda", 1), seconds=seconds)


@pytest.mark.parametrize(
    ("version", "release", "flags", "not_given"),
    [
        ("101303", "10.13.3.9", {"--useCudaGraph", "--useSpinWait"}, "--includeDataTransfers"),
        ("110100", "11.1.0.106", {"--includeDataTransfers"}, "--useCudaGraph"),
    ],
)
def test_each_release_gets_the_flags_that_make_it_measure_what_we_do(
    bundle, home: Path, version, release, flags, not_given
) -> None:
    row = measure(bundle, put_tool(home, version), engine(release))
    given = json.loads((home / "given.json").read_text())
    assert flags <= given.keys() and not_given not in given and "--noDataTransfers" not in given
    assert (given["--shapes"], given["--device"], given["--duration"]) == ("image:8x32x32x3", "1", "2")
    assert "--exposeDMA" in given and given["--infStreams"] == "1"
    assert given["--useProfile"] == "0"  # of one that covers all batches
    assert (row.batch, row.h2d_ms, row.compute_ms, row.d2h_ms) == (8, 0.00814819, 7.14139, 0.00439453)
    assert row.device_ms == 7.16092
    assert row.images_per_second == pytest.approx(8 * 130.298)
    assert row.version == ".".join(release.split(".")[:3])
    assert row.warnings and "bound by Enqueue Time" in row.warnings[0]


def test_the_tool_gets_the_hashed_bytes_and_the_row_a_line_that_can_be_typed(bundle: Bundle, home: Path) -> None:
    tool = put_tool(home)
    row = measure(bundle, tool, engine())
    assert (home / "engine").read_bytes() == ENGINE
    words = shlex.split(row.command)
    assert words[:2] == [str(tool), f"--loadEngine={bundle.root / 'variants/e/model.engine'}"]
    given = json.loads((home / "given.json").read_text())
    assert [word.partition("=")[0] for word in words[1:]] == list(given)
    assert given["--loadEngine"].startswith("/proc/self/fd/")
    (bundle.root / "variants/e/model.engine").write_bytes(ENGINE[:-1] + b"!")
    (home / "given.json").unlink()
    with pytest.raises(IntegrityError):
        measure(bundle, tool, engine())
    assert not (home / "given.json").exists()  # it never ran


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ("", "no performance summary"),
        (SUMMARY.replace("Throughput: 130.298 qps", "Throughput: nan qps"), "no performance summary"),
        (SUMMARY.replace("Throughput: 130.298 qps", "Throughput: -1 qps"), "no performance summary"),
        (SUMMARY.replace("median = 7.14139 ms", "median = 7,1 ms"), "no performance summary"),
        (SUMMARY.replace("median = 7.14139 ms", "median = 1e999 ms"), "no performance summary"),
        (SUMMARY.replace("GPU Compute Time: min", "Compute Time: min"), "no performance summary"),
    ],
)
def test_what_cannot_be_read_is_no_row(bundle: Bundle, home: Path, says: str, cause: str) -> None:
    with pytest.raises(VggdeployError, match=cause):
        measure(bundle, put_tool(home, says=says), engine())


def test_a_tool_of_another_release_is_no_peer(bundle: Bundle, home: Path) -> None:
    with pytest.raises(VggdeployError, match=r"is of TensorRT 10\.3\.0, and the engine of 10\.13\.3\.9"):
        measure(bundle, put_tool(home, "100300"), engine())
    with pytest.raises(VggdeployError, match="failed: Unknown option: --includeDataTransfers") as caught:
        measure(bundle, put_tool(home, "100300"), engine("11.1.0.1"))
    assert "variants/e/model.engine" in caught.value.hint  # a line that can be typed
    with pytest.raises(VggdeployError, match="no performance summary"):
        read_output(SUMMARY, engine(), 1, "trtexec")  # it does not even say its version


def test_a_batch_that_fails_has_its_reason_and_the_others_their_times(bundle: Bundle, home: Path, monkeypatch) -> None:
    tool = put_tool(home)
    real = trtexec.run_trtexec

    def run_one(tool, bundle, variant, batch, **how):
        if batch == 4:
            (home / "says").write_text("")
        return real(tool, bundle, variant, batch, **how)

    monkeypatch.setattr(trtexec, "run_trtexec", run_one)
    rows = trtexec.trtexec_rows(str(tool), bundle, engine(), (1, 4), device=Device("cuda"), seconds=1)
    assert [(row.batch, row.compute_ms, row.missing) for row in rows] == [
        (1, 7.14139, ""), (4, None, "trtexec gave no performance summary that can be read"),
    ]  # fmt: skip


def test_a_tool_that_hangs_is_ended(bundle: Bundle, home: Path, monkeypatch) -> None:
    home.mkdir()
    (home / "trtexec").write_text("#!/bin/sh\nwhile :; do :; done\n")
    (home / "trtexec").chmod(0o755)
    monkeypatch.setattr("vggdeploy.bench.gpu.trtexec._SPARE_SECONDS", 0)
    with pytest.raises(VggdeployError, match="did not end"):
        measure(bundle, home / "trtexec", engine(), seconds=0.2)


def test_without_the_tool_nothing_is_said_unless_it_was_asked_for(home: Path) -> None:
    assert find_trtexec(engine(), asked=False) is None
    with pytest.raises(IncompatibleError, match="not on PATH"):
        find_trtexec(engine(), asked=True)
    tool = put_tool(home)
    assert find_trtexec(engine(), asked=False) == find_trtexec(engine(), asked=True) == str(tool)
    rtx = engine("1.7.1", "tensorrt-rtx")  # the tool cannot load it
    assert find_trtexec(rtx, asked=False) is None
    with pytest.raises(IncompatibleError, match="one of tensorrt-rtx"):
        find_trtexec(rtx, asked=True)


def test_the_option_belongs_to_gpu_detail(bundle: Bundle, capsys) -> None:
    assert run(["bench", str(bundle.root), "--trtexec"]) == 2
    assert "--trtexec belongs to --gpu-detail" in capsys.readouterr().err
