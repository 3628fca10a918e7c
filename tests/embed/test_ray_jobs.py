"""Jobs on a real Ray cluster: what one process answers, in files; whatever dies, each row is there once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.processes import called
from PIL import Image

from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.system.optional import installed

pq = pytest.importorskip("pyarrow.parquet")
pytestmark = [
    pytest.mark.late,
    pytest.mark.skipif(not installed("ray"), reason="pip install 'vggdeploy[ray]'"),
]
COUNT, BAD = 60, 2


@pytest.fixture(scope="module")
def images(digits_test: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits as PNG files in two directories, and two files that are no images."""
    root = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        path = root / f"{index % 2}" / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(digits_test.images[index, ..., 0]).save(path)
    (root / "0" / "aaa.png").write_bytes(b"not an image")
    (root / "1" / "zzz.jpg").write_bytes(b"")
    return root


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vggdeploy", *map(str, arguments)]


def job(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Run a command that prints JSON, in a process of its own: a cluster ends with its process."""
    done = subprocess.run(
        [*command(*arguments), "--json"], capture_output=True, text=True, check=False, timeout=240
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if code == 0 else {"told": done.stderr}
    return found


def rows(directory: Path) -> dict[str, Any]:
    """Path → row of every part file; a row that is there twice fails."""
    found: dict[str, Any] = {}
    for part in sorted(directory.glob("part-*.parquet")):
        for row in pq.read_table(part).to_pylist():
            assert row["path"] not in found
            found[row["path"]] = row
    return found


@pytest.fixture(scope="module")
def embedded(bundle_dir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("ray") / "out"
    return out, job("embed", bundle_dir, images, "-o", out, "--output", "logits", "--ray", "local", "--shard", 16)


def test_the_rows_are_those_of_one_process(
    bundle_dir: Path, images: Path, embedded: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    directory, report = embedded
    assert (report["images"], report["skipped"], report["shards"], report["found_done"]) == (COUNT, BAD, 4, 0)
    plain = tmp_path / "plain.parquet"
    assert run(["embed", str(bundle_dir), str(images), "-o", str(plain), "--output", "logits"]) == 0
    expected = {row["path"]: row["vector"] for row in pq.read_table(plain).to_pylist()}
    found = rows(directory)
    assert found.keys() == expected.keys()
    for path, vector in expected.items():
        np.testing.assert_allclose(found[path]["vector"], vector, rtol=1e-4, atol=1e-4)
    what_made_them = pq.read_schema(plain).metadata
    assert {"pool", "normalised"} <= json.loads(what_made_them[b"vggdeploy"]).keys()
    assert all(pq.read_schema(part).metadata == what_made_them for part in directory.glob("part-*.parquet"))
    causes = [e for f in directory.glob("*.errors.json") for e in json.loads(f.read_bytes())]
    assert sorted(Path(e["image"]).name for e in causes) == ["aaa.png", "zzz.jpg"]


def test_what_is_missing_is_done_and_nothing_else(
    bundle_dir: Path, images: Path, embedded: tuple[Path, dict[str, Any]]
) -> None:
    directory, _ = embedded
    before = {p.name: p.read_bytes() for p in directory.glob("part-*.parquet")}
    kept = directory / "part-000000.parquet"
    stamp = kept.stat().st_mtime_ns
    for name in ("part-000001.parquet", "part-000003.parquet"):
        (directory / name).unlink()
    report = job("embed", bundle_dir, images, "-o", directory, "--output", "logits", "--ray", "local", "--shard", 16)
    assert (report["images"], report["skipped"], report["found_done"]) == (COUNT, BAD, 2)
    assert {p.name: p.read_bytes() for p in directory.glob("part-*.parquet")} == before
    assert kept.stat().st_mtime_ns == stamp


def test_another_job_does_not_go_into_the_same_directory(
    bundle_dir: Path, images: Path, embedded: tuple[Path, dict[str, Any]]
) -> None:
    again = ("embed", bundle_dir, images, "-o", embedded[0], "--output", "logits", "--normalise", "--ray", "local")
    told = job(*again, "--shard", 16, code=2)["told"]
    assert "holds another job's results" in told
    told = job("predict", bundle_dir, images, "-o", embedded[0].parent, "--ray", "local", code=2)["told"]
    assert "holds no results of such a job" in told


def test_rows_of_parquet_files_are_classified(
    bundle_dir: Path, images: Path, digits_test: ImageSet, tmp_path: Path
) -> None:
    import pyarrow as pa

    def png(index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(digits_test.images[index, ..., 0]).save(buffer, "PNG")
        return buffer.getvalue()

    table = tmp_path / "rows.parquet"
    cells: list[Any] = [{"bytes": png(n), "path": f"digit-{n}.png"} for n in range(30)]
    cells[7] = {"bytes": b"broken", "path": None}
    pq.write_table(pa.table({"image": cells, "other": list(range(30))}), table, row_group_size=12)
    out = tmp_path / "out"
    report = job("predict", bundle_dir, table, "-o", out, "--ray", "local", "--top", 2)
    assert (report["images"], report["skipped"], report["shards"]) == (29, 1, 3)
    found = rows(out)
    right = sum(found[f"digit-{n}.png"]["labels"][0] == str(digits_test.labels[n]) for n in range(30) if n != 7)
    assert right >= 26
    assert all(len(row["labels"]) == len(row["probabilities"]) == 2 for row in found.values())
    (bad,) = json.loads((out / "part-000000.errors.json").read_bytes())
    assert bad["image"] == f"{table}#0.7"


def test_a_job_that_was_killed_goes_on(bundle_dir: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = command("embed", bundle_dir, images, "-o", out, "--output", "logits", "--ray", "local", "--shard", 2)
    process = subprocess.Popen([*asked, "--ray-workers", "1"], start_new_session=True)
    try:
        end = time.monotonic() + 120
        while len(list(out.glob("part-*.parquet"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    there = len(list(out.glob("part-*.parquet")))
    report = job(*asked[3:])
    assert report["found_done"] >= there
    assert len(rows(out)) == COUNT
    assert not [p for p in out.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]


def test_a_worker_that_dies_costs_no_row_and_no_line_of_the_json(
    bundle_dir: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = command(
        "embed", bundle_dir, images, "-o", out, "--output", "logits", "--ray", "local", "--shard", 1, "--json"
    )
    with (tmp_path / "stdout").open("wb") as stdout:
        process = subprocess.Popen(
            [*asked, "--ray-workers", "1"], stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True
        )
        killed = 0
        try:
            end = time.monotonic() + 180
            while process.poll() is None:
                assert time.monotonic() < end
                if not killed and list(out.glob("part-*.parquet")):
                    for killed in called(b"ray::MapWorker", process.pid)[:1]:
                        os.kill(killed, signal.SIGKILL)
                time.sleep(0.005)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
    assert killed, "the job was over before"
    assert process.returncode == 0
    assert json.loads((tmp_path / "stdout").read_text())["images"] == COUNT
    assert len(rows(out)) == COUNT


_KILL = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from vggdeploy.bundle import Bundle
from vggdeploy.embed.cluster import RayOptions, run_on_ray
from vggdeploy.embed.shards import Task

bundle, images, out = map(Path, sys.argv[1:4])
small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args=small)
nodes = [cluster.add_node(**small) for _ in range(2)]
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
task = Task(kind="embed", bundle=str(bundle), digest=Bundle.open(bundle).manifest.digest, output="logits")
found = []
options = RayOptions(address="auto", workers=3, size=1)
job = threading.Thread(target=lambda: found.append(run_on_ray(task, [images], out, options)))
job.start()
while len(list(out.glob("part-*.parquet"))) < 5:
    assert job.is_alive(), "the job ended early"
    time.sleep(0.01)
cluster.remove_node(nodes[0], allow_graceful=False)
killed_at = len(list(out.glob("part-*.parquet")))
job.join(200)
assert found, "the job failed"
told = (killed_at, found[0].images, found[0].skipped, found[0].nodes)
(out.parent / "found").write_text(" ".join(map(str, told)))
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_that_dies_costs_no_row(bundle_dir: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "kill.py").write_text(_KILL)
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, tmp_path / "kill.py", bundle_dir, images, tmp_path / "out"],
        capture_output=True, text=True, check=False, timeout=280, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed_at, found, skipped, nodes = map(int, (tmp_path / "found").read_text().split())
    assert killed_at < COUNT + BAD, "the node died after the job was over: nothing was tested"
    assert (found, skipped, nodes) == (COUNT, BAD, 3)
    assert len(rows(tmp_path / "out")) == COUNT


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--ray", "127.0.0.1:1", "--output", "logits"], 1, "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray", "local", "--shard", "0", "--output", "logits"], 2, "images in a shard cannot be 0"),
        (["--ray", "local", "--output", "fc9"], 2, "fc9"),
        (["--ray", "local", "--strict"], 2, "--strict does not go with --ray"),
        (["--shard", "9"], 2, "--shard belongs to --ray"),
    ],
)
def test_what_cannot_be_done_is_told_in_two_lines(
    bundle_dir: Path, images: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    asked = command("embed", bundle_dir, images, "-o", tmp_path / "out", *arguments)
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_without_images_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 no")
    for name, told in (("t", "has no column of images, only text"), ("u", "is not a Parquet file")):
        found = job("embed", bundle_dir, tmp_path / f"{name}.parquet", "-o", tmp_path / name, "--output", "logits",
                    "--ray", "local", code=1)  # fmt: skip
        assert told in found["told"]
