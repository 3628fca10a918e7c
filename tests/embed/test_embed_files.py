"""``vggdeploy embed``: any number of files into one, in constant memory; bad ones are told of, and nothing is half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggdeploy
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.embed import vectors
from vggdeploy.embed.embed import EmbedOptions, embed_files
from vggdeploy.engine.engine import Engine
from vggdeploy.preprocess import find_images
from vggdeploy.runtime.sessions import in_order
from vggdeploy.system.files import FileDraft
from vggdeploy.system.optional import installed
from vggdeploy.types import OnProgress

MANY = 1100  # more than a row group of 16 × 16 × 16 maps
KINDS = ["npy", pytest.param("parquet", marks=pytest.mark.skipif(not installed("pyarrow"), reason="pyarrow"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_test: ImageSet) -> Path:
    """21 digits in two directories, and a file that is no image."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "inner").mkdir()
    for number, image in enumerate(digits_test.images[:21]):
        Image.fromarray(image[..., 0]).save(root / ("inner" if number % 3 else ".") / f"{number:02d}.png")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def many(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of so many images that are one file."""
    root = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        os.link(folder / "00.png", root / f"{number}.png")
    return root


def read(file: Path) -> tuple[list[str], np.ndarray, dict]:
    """Paths, vectors, and what is said about them."""
    if file.suffix == ".npy":
        about = json.loads(vectors.paths_file(file).read_bytes())
        return about.pop("paths"), np.load(file, allow_pickle=False), about
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    about = json.loads(table.schema.metadata[b"vggdeploy"])
    rows = np.stack(table["vector"].to_numpy()) if table.num_rows else np.empty((0, *about["shape"]))
    return table["path"].to_pylist(), rows, about


def left(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_what_the_engine_gives_for_its_path(
    engine: Engine, features_dir: Path, folder: Path, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / f"vectors.{kind}"
    assert run(["embed", str(features_dir), str(folder), "-o", str(target), "--normalise", "--batch", "4"]) == 0
    paths, found, about = read(target)
    assert paths == [str(p) for p in find_images([folder])]
    np.testing.assert_allclose(found, engine.embed(paths, normalise=True), rtol=1e-4, atol=1e-6)
    assert found.dtype == np.float32
    assert (about["output"], about["normalised"], about["shape"], about["pool"]) == ("fc7", True, [128], None)
    assert about["bundle_digest"] == engine.bundle.manifest.digest
    assert left(tmp_path) == sorted([target.name] + (["vectors.paths.json"] if kind == "npy" else []))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", ["avg", "max", "none"])
def test_feature_maps_are_pooled_or_kept(engine: Engine, folder: Path, tmp_path: Path, kind: str, pool: str) -> None:
    target = tmp_path / f"v.{kind}"
    report = embed_files(engine, [folder], target, EmbedOptions(output="relu2_1", pool=pool))
    paths, found, about = read(target)
    expected = engine.embed(paths, output="relu2_1", pool=pool)
    if kind == "parquet":  # a Parquet list is flat; the shape stands in the metadata
        found = found.reshape(-1, *about["shape"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert report.shape == expected.shape[1:]
    assert report.pool == pool


@pytest.mark.parametrize("kind", KINDS)
def test_bad_images_are_told_of_and_skipped(
    features_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "00.png").write_bytes(b"")
    (images / "05x.png").write_bytes((folder / "03.png").read_bytes()[:60])
    (images / "99.jpg").write_text("not an image")
    target = tmp_path / f"out.{kind}"
    assert run(["embed", str(features_dir), str(images), "-o", str(target), "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    paths, found, _ = read(target)
    assert (report["images"], report["skipped"]) == (20, 3) == (len(paths), 3)
    assert [Path(s["image"]).name for s in report["skipped_images"]] == ["00.png", "05x.png", "99.jpg"]
    told = [line for line in shown.err.splitlines() if line.startswith("error: skipped:")]
    assert [name in line for name, line in zip(("00.png", "05x.png", "99.jpg"), told, strict=True)] == [True] * 3
    assert not {"00.png", "05x.png", "99.jpg"} & {Path(p).name for p in paths}
    assert len(found) == 20


def test_strict_ends_at_the_first_bad_image_and_writes_nothing(
    features_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    args = [
        "embed",
        str(features_dir),
        str(folder),
        str(tmp_path / "bad.png"),
        "-o",
        str(tmp_path / "v.npy"),
        "--strict",
    ]
    assert run(args) == 1
    cause, hint = capsys.readouterr().err.strip().splitlines()
    assert "bad.png is not an image" in cause
    assert hint
    assert left(tmp_path) == ["bad.png"]


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda d: [d / "none.png"], 1, "none.png does not exist"),
        (lambda d: [d / "empty"], 1, "empty holds no images"),
        (lambda d: [d / "bad.png"], 1, "none of 1 image can be used"),
    ],
    ids=["missing", "empty folder", "only bad ones"],
)
def test_nothing_to_embed_is_an_error_and_writes_nothing(
    features_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make, code: int, told: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("x")
    sources = [str(p) for p in make(tmp_path)]
    assert run(["embed", str(features_dir), *sources, "-o", str(tmp_path / "v.npy")]) == code
    assert told in capsys.readouterr().err
    assert left(tmp_path) == ["bad.png", "empty"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "-o vectors.parquet"),
        (["--output", "v.npy"], "-o v.npy"),
        (["-o", "v.csv"], "neither .parquet nor .npy"),
        (["-o", "v.npy", "--output", "fc6"], "output 'fc6' is unknown"),
        (["-o", "v.npy", "--pool", "max"], "nothing to pool"),
        (["-o", "v.npy", "--output", "relu2_1", "--pool", "mean"], "the pool 'mean' is unknown"),
        (["-o", "v.npy", "--batch", "0"], "outside 1…256"),
        (["-o", "v.npy", "--batch", "257"], "outside 1…256"),
        (["-o", "."], "neither"),
    ],
)
def test_a_slip_is_exit_2_before_any_work(
    features_dir: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["embed", str(features_dir), str(folder), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert told in " ".join(lines)
    assert left(tmp_path) == []


def test_a_file_is_replaced_only_when_asked(
    features_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "v.npy"
    target.write_bytes(b"years of work")
    assert run(["embed", str(features_dir), str(folder), "-o", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_bytes() == b"years of work"
    assert run(["embed", str(features_dir), str(folder), "-o", str(target), "--force"]) == 0
    assert len(read(target)[1]) == 21


def test_parquet_without_pyarrow_names_the_extra(
    features_dir: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(["embed", str(features_dir), str(folder), "-o", str(tmp_path / "v.parquet")]) == 5
    assert "vggdeploy[parquet]" in capsys.readouterr().err
    assert left(tmp_path) == []
    assert run(["embed", str(features_dir), str(folder), "-o", str(tmp_path / "v.npy")]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_any_name_of_a_file_survives(engine: Engine, folder: Path, tmp_path: Path, kind: str) -> None:
    names = ["a\nb.png", 'quote".png', "größe.png", os.fsdecode(b"\xff.png")]
    for name in names:
        shutil.copy(folder / "00.png", tmp_path / name)
    target = tmp_path / f"v.{kind}"
    embed_files(engine, [tmp_path / name for name in names], target)
    paths, _, _ = read(target)
    assert [Path(p).name for p in paths] == [*names[:3], "\\udcff.png"]


def test_a_directory_that_goes_away_meanwhile_is_one_skipped_image(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "images")

    def remove(path: Path) -> OnProgress:
        return lambda share, phase: None if share else shutil.rmtree(path)

    report = embed_files(
        engine, [tmp_path / "images"], tmp_path / "v.npy", on_progress=remove(tmp_path / "images/inner")
    )
    assert (report.images, report.skipped) == (7, 0)
    with pytest.raises(vggdeploy.InputError, match="none of 1 image can"):
        embed_files(engine, [tmp_path / "images"], tmp_path / "w.npy", on_progress=remove(tmp_path / "images"))


def test_progress_ends_at_the_total(engine: Engine, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images/bad.png").write_text("x")
    told: list[tuple[float | None, str]] = []
    embed_files(
        engine,
        [tmp_path / "images"],
        tmp_path / "v.npy",
        EmbedOptions(batch=5),
        on_progress=lambda share, phase: told.append((share, phase)),
    )
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, "embedding 22 images"), (1, "embedding 22 images"))


def test_results_come_in_order_and_only_so_many_are_made_ahead() -> None:
    started: list[int] = []

    def slow_first(number: int) -> int:
        started.append(number)
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    ahead = []
    for number, result in in_order(slow_first, range(40), ahead=6):
        assert result.result() == number * number
        ahead.append(max(started) - number)
    assert len(ahead) == 40
    assert max(ahead) <= 6


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_images(features_dir: Path, many: Path, tmp_path: Path, kind: str) -> None:
    """RSS of a process of its own: 4,400 more images with 72 MB of vectors may not cost a third of that."""
    script = (
        "import sys, vggdeploy; from pathlib import Path\n"
        "from vggdeploy.bench.interference import peak_rss\n"
        "from vggdeploy.embed.embed import EmbedOptions, embed_files\n"
        "bundle, images, times, target = sys.argv[1:]\n"
        "with vggdeploy.load(bundle, variant='onnx-fp32', threads=1) as engine:\n"
        "    sources = [Path(images)] * int(times)\n"
        "    embed_files(engine, sources, Path(target), EmbedOptions(output='relu2_1', pool='none', batch=32))\n"
        "assert 'torch' not in sys.modules\n"
        "print(peak_rss())"
    )
    peaks = []
    for times in (2, 6):  # with one row group no buffers are held for the next
        target = tmp_path / f"{times}.{kind}"
        command = [sys.executable, "-c", script, features_dir, many, str(times), target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert target.stat().st_size > times * MANY * 16 * 16 * 16 * 4
        peaks.append(int(done.stdout) / 2**20)
    assert peaks[1] - peaks[0] < 24, peaks


def test_a_full_disk_is_one_line_and_leaves_the_old_file(features_dir: Path, folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write in the same place."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    targets = [tmp_path / f"v.{kind}" for kind in ("npy", "parquet")]
    for target in targets:
        target.write_bytes(b"old")
    script = (
        "import sys; from vggdeploy.cli.app import run\n"
        "args = ['embed', '--quiet', *sys.argv[1:3], '--output', 'relu2_1', '--pool', 'none', '--force', '-o']\n"
        "print([run([*args, target]) for target in sys.argv[3:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, features_dir, folder, *targets],
        capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.stdout.strip() == ("[1, 1]" if installed("pyarrow") else "[1, 5]"), done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["error", "fix"] * 2, done.stderr
    assert [target.read_bytes() for target in targets] == [b"old"] * 2
    assert left(tmp_path) == ["v.npy", "v.parquet"]


@pytest.mark.parametrize(("signal_number", "kind"), [(signal.SIGKILL, "npy"), (signal.SIGINT, "parquet")])
def test_an_interrupted_run_leaves_the_old_file_whole(
    features_dir: Path, folder: Path, many: Path, tmp_path: Path, kind: str, signal_number: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    target = out / f"v.{kind}"
    target.write_bytes(b"old")
    command = [sys.executable, "-m", "vggdeploy", "embed", features_dir, *[many] * 20, "-o", target, "--force"]
    options = ["--output", "relu2_1", "--pool", "none", "--threads", "1"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and not any(p.stat().st_size > 2**20 for p in out.glob(".*.tmp-*")):
            time.sleep(0.02)
        process.send_signal(signal_number)
        assert process.stderr is not None
        told = process.stderr.read()
    assert target.read_bytes() == b"old"
    assert "Traceback" not in told
    if signal_number == signal.SIGINT:
        assert process.returncode == 130, told
        assert "interrupted" in told
        assert left(out) == [target.name]
        return
    assert len(left(out)) == 3  # two drafts, which the next run cleans up
    assert run(["embed", str(features_dir), str(folder), "-o", str(target), "--force"]) == 0
    assert left(out) == [target.name, "v.paths.json"]
    assert len(read(target)[0]) == 21


def test_new_vectors_never_stand_beside_old_paths(
    engine: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "v.npy"
    embed_files(engine, [folder / "00.png"], target)
    real, placed = FileDraft.place, []

    def die_before_the_second(draft: FileDraft) -> None:
        if placed:
            raise KeyboardInterrupt
        placed.append(draft)
        real(draft)

    monkeypatch.setattr(FileDraft, "place", die_before_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed_files(engine, [folder], target, EmbedOptions(overwrite=True))
    assert len(np.load(target)) == 21
    assert left(tmp_path) == ["v.npy"]


def test_only_so_many_skipped_images_are_listed_and_all_are_counted(
    engine: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.embed.embed.LISTED", 2)
    bad = [tmp_path / f"{number}.png" for number in range(5)]
    for path in bad:
        path.touch()
    report = embed_files(engine, [*bad, folder], tmp_path / "v.npy")
    assert (report.skipped, len(report.skipped_images), report.images) == (5, 2, 21)


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_stays_and_its_file_is_replaced(engine: Engine, folder: Path, tmp_path: Path, kind: str) -> None:
    real, link = tmp_path / f"real.{kind}", tmp_path / f"link.{kind}"
    real.write_bytes(b"old")
    link.symlink_to(real)
    embed_files(engine, [folder], link, EmbedOptions(overwrite=True))
    assert link.is_symlink()
    assert len(read(link)[1]) == 21
