"""The command line as a user meets it: real processes, exit codes, one line of cause and one of remedy."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from vggdeploy.bundle import Bundle
from vggdeploy.bundle.checkpoint import read_checkpoint
from vggdeploy.cli.app import run
from vggdeploy.cli.export import name_of
from vggdeploy.cli.help_pages import START


def command(*args: object, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vggdeploy", *map(str, args)],
        capture_output=True, text=True, timeout=timeout, check=False, **options,
    )  # fmt: skip


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


def test_help_answers_without_any_heavy_import() -> None:
    code = (
        "import sys; from vggdeploy.cli.app import run; run(['--help']); "
        "heavy = {'torch', 'numpy', 'msgspec', 'onnxruntime', 'PIL', 'tensorrt_rtx', 'onnx'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "summary", "train", "export", "build", "verify", "bench", "predict", "inspect", "doctor"):
        assert verb in done.stdout


def test_without_a_verb_there_are_three_lines_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert len(lines) == 3
    assert [line.split("  ")[0] for line in lines] == [line for line, _ in START]
    assert max(map(len, lines)) <= 80
    assert "error" not in shown.err


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["sumary", "vgg16"], "did you mean: vggdeploy summary vgg16"),
        (["convert", "my.pth", "-o", "b"], "did you mean: vggdeploy export my.pth -o b"),
        (["zzzz"], "see vggdeploy --help"),
        (["summary", "vgg61"], "did you mean 'vgg1"),
        (["summary", "vgg12"], "did you mean 'vgg11'"),
        (["summary", "vgg16", "--widht", "2"], "did you mean --width"),
        (["export", "x", "-o", "y", "--fp16"], "--precision fp16"),
        (["build", "x", "--half"], "--precision fp16"),
        (["build", "x", "half=True"], "--precision fp16"),
        (["bench", "x", "--batch", "1,two"], "1,8,32"),
        (["summary", "vgg16", "--image-size", "33"], "multiple of 32"),
        (["summary", "vgg16", "--width", "nan"], "0.25"),
    ],
)
def test_a_slip_is_exit_2_with_the_right_word(capsys: pytest.CaptureFixture[str], args: list[str], answer: str) -> None:
    assert run(args) == 2
    lines = told(capsys)
    assert len(lines) == 2, lines
    assert answer in " ".join(lines)


def test_summary_json_is_one_document_with_the_published_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["summary", "vgg16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["parameters"], found["macs"]) == (1, 138_357_544, 15_470_264_320)


def test_predict_prints_labels_and_probabilities(
    bundle_dir: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(bundle_dir), str(digit_png)]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{digit_png}: {digit_png.stem} ")
    assert "%" in line


def test_predict_json_is_one_document(bundle_dir: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(bundle_dir), str(digit_png), "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    (answer,) = found["images"]
    assert [set(p) for p in answer["predictions"]] == [{"label", "index", "probability"}] * 2


def test_predict_answers_the_good_images_and_names_the_bad(
    bundle_dir: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(digit_png, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(digit_png.read_bytes()[:60])
    (tmp_path / "d.jpg").write_text("not an image")
    Image.open(digit_png).convert("RGB").save(tmp_path / "e.bmp")
    assert run(["predict", str(bundle_dir), str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert [Path(line.split(":")[0]).name for line in shown.out.strip().splitlines()] == ["a.png", "e.bmp"]
    errors = [line for line in shown.err.splitlines() if line.startswith("error:")]
    assert [name in line for name, line in zip(("b.png", "c.png", "d.jpg"), errors, strict=True)] == [True] * 3


def test_a_label_with_markup_stays_text(own_bundle: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import msgspec

    from vggdeploy.bundle import Bundle, update_bundle

    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=("[red]x[/]",) * 10)
    assert run(["predict", str(own_bundle), str(digit_png)]) == 0
    assert "[red]x[/]" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["inspect", "verify", "bench", "predict", "build"])
def test_what_is_not_a_bundle_is_one_clear_error(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [verb, str(tmp_path / "none"), *(["x.png"] if verb == "predict" else [])]
    (tmp_path / "x.png").touch()
    if verb == "predict":
        args[-1] = str(tmp_path / "x.png")
    assert run(args) == 1
    lines = told(capsys)
    assert len(lines) == 2
    assert "does not exist" in lines[0]
    assert "vggdeploy export" in lines[1]


def test_verify_prints_a_verdict_a_variant_and_json_validates(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(bundle_dir)]) == 0
    # Four variants, all but the reference on two sets of images; three have a bound on flips, by the data set; the manifest
    # beside the checkpoint and the data set; what the golden files became, and what the reference had right at export.
    assert capsys.readouterr().out.count("pass") == 7 + 3 + 4
    assert run(["verify", str(bundle_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 2
    assert found["command"] == f"vggdeploy verify {bundle_dir} --json"


def test_bench_json_has_machine_versions_and_hashes(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", str(bundle_dir), "--backend", "onnxruntime", "--backend", "torchscript", "--batch", "1,8"]
    assert run([*args, "--seconds", "0.05", "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["cpu"]
    assert found["tools"]["onnxruntime"]
    assert {r["batch"] for r in found["rows"]} == {1, 8}
    assert all(len(r["sha256"]) == 64 for r in found["rows"])
    assert all(len(r["round_medians_ms"]) == r["rounds"] for r in found["rows"])
    assert all(sorted(r["quantiles_ms"]) == r["quantiles_ms"] and len(r["quantiles_ms"]) == 101 for r in found["rows"])
    assert found["command"] == shlex.join(["vggdeploy", *args, "--seconds", "0.05", "--rounds", "3", "--json"])


def test_bench_on_a_missing_gpu_is_exit_5(bundle_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(bundle_dir), "--backend", "tensorrt"]) == 5
    lines = told(capsys)
    assert len(lines) == 2
    assert "tensorrt" in lines[0]
    assert "vggdeploy build" in lines[1]


def test_doctor_names_every_backend_and_a_fix_for_each_that_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = {(b["backend"], b["device"]): b for b in found["backends"]}
    assert states["onnxruntime", "cpu"]["runs"]
    assert states["torch", "cpu"]["runs"]
    assert ("tensorrt", "cuda") in states
    for state in states.values():
        assert state["runs"] or (state["reason"] and state["fix"])


def test_export_refuses_to_replace_without_force(
    checkpoint: Path, bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(checkpoint), "-o", str(bundle_dir)]) == 2
    assert "--force" in told(capsys)[1]


def test_export_into_somebody_elses_directory_is_refused_even_with_force(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert run(["export", str(checkpoint), "-o", str(tmp_path), "--force"]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert "holds other files" in told(capsys)[0]


def test_a_file_too_large_for_the_disk_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write in the same place."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = command("export", checkpoint, "-o", tmp_path / "out" / "bundle", preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith(("error:", "  fix:"))]
    assert len(lines) == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_of_a_copy_that_finds_no_room_the_copy_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def to_a_full_disk(*_: object, **__: object) -> None:  # as shutil names both files
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the source", None, "the copy")

    monkeypatch.setattr("vggdeploy.export.bundle.export_bundle", to_a_full_disk)
    assert run(["export", str(checkpoint), "-o", str(tmp_path / "b")]) == 1
    assert "error: the copy: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_export_leaves_the_old_bundle_whole(
    checkpoint: Path, own_bundle: Path, signal_number: int
) -> None:
    before = (own_bundle / "manifest.json").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-m", "vggdeploy", "export", checkpoint, "-o", own_bundle, "--force"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "exporting" in line:
                break
        time.sleep(0.3)
        process.send_signal(signal_number)
        rest = process.stderr.read()
        code = process.wait(60)
    assert (own_bundle / "manifest.json").read_bytes() == before
    assert run(["verify", str(own_bundle), "--variant", "onnx-fp32"]) == 0
    if signal_number == signal.SIGINT:
        assert code == 130
        assert "interrupted" in rest
        assert "Traceback" not in rest
        assert [p.name for p in own_bundle.parent.iterdir()] == ["bundle"]


def test_a_closed_pipe_is_no_traceback(bundle_dir: Path) -> None:
    shell = f"{sys.executable} -m vggdeploy summary vgg19 | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = command("inspect", tmp_path, "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_summary_knows_blocks_and_what_is_stored(
    checkpoint: Path, bundle_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["summary", "1x64,1x128,2x256,2x512,2x512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 132_863_336  # VGG-11's, of the published table
    for stored in (checkpoint, bundle_dir):
        assert run(["summary", str(stored), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["spec"]["arch"] == "vgg11_bn"
        assert run(["summary", str(stored), "--width", "2"]) == 2
        assert "--width would change it" in told(capsys)[0]


def test_a_variant_of_another_backend_is_refused(
    bundle_dir: Path, digit_png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", str(bundle_dir), str(digit_png), "--backend", "onnxruntime", "--variant", "torchscript-fp32"]
    assert run(args) == 2
    assert "run by torchscript, not by onnxruntime" in told(capsys)[0]


def test_predict_json_names_the_images_that_failed(
    bundle_dir: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zero.png").touch()
    assert run(["predict", str(bundle_dir), str(tmp_path / "zero.png"), str(digit_png), "--json"]) == 1
    bad, good = json.loads(capsys.readouterr().out)["images"]
    assert "empty" in bad["error"]
    assert bad["fix"]
    assert good["predictions"]


@pytest.mark.parametrize("slip", [["--outputs", "fc7,relu9_9"], ["--outputs", "logits,logits"], ["--samples", "0"]])
def test_export_finds_a_slip_before_it_copies_anything(
    checkpoint: Path, tmp_path: Path, slip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(checkpoint), "-o", str(tmp_path / "b"), *slip]) == 2
    assert len(told(capsys)) == 2


def test_sigterm_leaves_nothing_half_written(checkpoint: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vggdeploy", "export", checkpoint, "-o", tmp_path / "b"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "exporting" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_few_images_do_not_push_a_close_variant_behind_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    import vggdeploy

    assert run(["export", str(checkpoint), "-o", str(tmp_path / "b"), "--samples", "40"]) == 0
    with vggdeploy.load(tmp_path / "b") as engine:
        assert engine.variant.name == "onnx-fp32"


@pytest.mark.parametrize(
    ("directory", "dataset", "name"),
    [
        ("my-birds", "digits", "my-birds"),
        ("bundle", "digits", "vgg11_bn-digits"),
        ("out", "folder:photos/of birds", "vgg11_bn-of-birds"),
        ("bundle", "", "vgg11_bn"),
        (".", "digits", "here"),
    ],
)
def test_a_bundle_has_a_name_worth_showing(
    directory: str, dataset: str, name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = msgspec.structs.replace(read_checkpoint(checkpoint), dataset=dataset)
    assert name_of(Path(directory), found) == name


def test_export_calls_a_bundle_as_it_is_told(checkpoint: Path, tmp_path: Path) -> None:
    line = ["export", str(checkpoint), "--formats", "onnx-fp32", "--samples", "20"]
    for more, name in (([], "vgg11_bn-digits"), (["--name", "digits of mine"], "digits of mine")):
        assert run([*line, "-o", str(tmp_path / "bundle"), "--force", *more]) == 0
        assert Bundle.open(tmp_path / "bundle", only=()).manifest.name == name
