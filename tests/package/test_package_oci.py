"""The container: a Dockerfile without a complaint of hadolint, whose steps are run here in a clean environment.

No container engine runs here. What ``docker build`` would do is done by hand: the pip step as it stands in the Dockerfile, the
copies as .dockerignore allows them, the commands of ENTRYPOINT, CMD and HEALTHCHECK.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.package.base import Order
from vggdeploy.package.oci import BASE, BUNDLE, EVERYWHERE, PORT, RUNTIMES, SERVER, package_oci, write_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contexts(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The two build contexts: without a server, and with one."""
    home = tmp_path_factory.mktemp("oci")
    found = {serve: home / f"serve-{serve}" for serve in (False, True)}
    for serve, path in found.items():
        package_oci(Order(bundle=Bundle.open(bundle_dir), output=path, variants=("onnx-fp32",), serve=serve or None))
    return found


def steps(context: Path) -> list[tuple[str, str]]:
    """Instruction and argument of every line."""
    text = (context / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def step(context: Path, instruction: str, has: str = "") -> str:
    (found,) = [argument for name, argument in steps(context) if name == instruction and has in argument]
    return found


@pytest.mark.parametrize("serve", [False, True])
def test_hadolint_has_no_complaint(contexts: dict[bool, Path], serve: bool) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, contexts[serve] / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("serve", [False, True])
def test_it_runs_as_nobody_with_a_healthcheck_and_without_a_cache(contexts: dict[bool, Path], serve: bool) -> None:
    found = steps(contexts[serve])
    assert [argument for name, argument in found if name == "USER"] == ["10001"]
    names = [name for name, _ in found]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert "HEALTHCHECK" in names
    assert "--no-cache-dir" in step(contexts[serve], "RUN", "pip install")


def test_its_packages_are_the_base_and_one_runtime_in_the_versions_that_proved_it(contexts: dict[bool, Path]) -> None:
    import onnxruntime

    lines = (contexts[False] / "requirements.txt").read_text().split()
    assert [re.split("==", line)[0] for line in lines[:-1]] == ["numpy", "msgspec", "pillow", "typer", "onnxruntime"]
    assert f"numpy=={np.__version__}" in lines
    assert f"onnxruntime=={onnxruntime.__version__}" in lines
    assert (contexts[False] / lines[-1]).is_file()


def test_the_lists_of_packages_are_the_project_s_own() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=\[]", line)[0] for line in lines}

    extras = project["optional-dependencies"]
    assert set(BASE) == names(project["dependencies"])
    assert set(SERVER) == names(extras["serve"])
    assert {name for packages in RUNTIMES.values() for name in packages} <= names(extras["cpu"])


def test_the_build_context_holds_what_is_copied_and_nothing_else(contexts: dict[bool, Path]) -> None:
    first, *kept = (contexts[True] / ".dockerignore").read_text().split()
    assert first == "*"
    patterns = [line.removeprefix("!") for line in kept]
    copied = [word for name, rest in steps(contexts[True]) if name == "COPY" for word in rest.split()[:-1]]
    assert sorted(patterns) == sorted(copied)
    seen = {p.name for p in contexts[True].iterdir() if any(fnmatch.fnmatch(p.name, k) for k in patterns)}
    assert seen == {"bundle", "requirements.txt", *(p.name for p in contexts[True].glob("*.whl"))}


def test_the_bundle_in_it_is_slim_and_whole(contexts: dict[bool, Path]) -> None:
    bundle = Bundle.open(contexts[False] / "bundle")
    assert [v.name for v in bundle.manifest.variants] == ["onnx-fp32"]
    assert bundle.manifest.origin is not None
    record = json.loads((contexts[False] / "vggdeploy-package.json").read_bytes())
    hashes = {f["path"]: f["sha256"] for f in record["files"]}
    assert hashes["bundle/variants/onnx-fp32/model.onnx"] == bundle.sha256("variants/onnx-fp32/model.onnx")


def test_the_wheel_is_this_code_and_the_same_every_time(tmp_path: Path) -> None:
    wheels = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheels.append(write_wheel(tmp_path / name))
    assert hashlib.sha256(wheels[0].read_bytes()).digest() == hashlib.sha256(wheels[1].read_bytes()).digest()
    with zipfile.ZipFile(wheels[0]) as archive:
        assert archive.read("vggdeploy/engine/engine.py") == (ROOT / "vggdeploy/engine/engine.py").read_bytes()
        assert not [name for name in archive.namelist() if "__pycache__" in name]
        (record,) = [name for name in archive.namelist() if name.endswith("/RECORD")]
        listed = {line.split(",")[0] for line in archive.read(record).decode().splitlines()}
        assert listed == set(archive.namelist())


@pytest.mark.parametrize("variant", ["torchscript-fp32", "torch-fp32"])
def test_what_needs_more_than_a_small_runtime_is_refused(
    bundle_dir: Path, tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["package", str(bundle_dir), "--target", "oci", "--variant", variant, "-o", str(out)]) == 2
    assert f"the container does not take {variant}" in capsys.readouterr().err
    assert not out.exists()


class Container:
    """What ``docker build`` makes of a context, as a directory and a virtual environment."""

    def __init__(self, context: Path, home: Path) -> None:
        self.app, self.bin, self.context = home / "app", home / "venv/bin", context
        self.app.mkdir(parents=True)
        for name, rest in steps(context):
            if name == "COPY":
                *sources, _ = rest.split()
                for path in (p for source in sources for p in context.glob(source)):
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, self.app / path.name)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        pip = shlex.split(step(context, "RUN", "pip install"))
        subprocess.run([self.bin / "python", "-m", *pip, "-q"], cwd=self.app, check=True)

    def words(self, json_list: str) -> list[str]:
        words: list[str] = json.loads(json_list[json_list.index("[") :])
        return [word.replace(BUNDLE, str(self.app / "bundle")) for word in words]

    def start(self, words: list[str], **options: Any) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "VGGDEPLOY_CACHE": str(self.app / "cache")}
        return subprocess.Popen(
            [str(self.bin / words[0]), *words[1:]],
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            env=environment,
            **options,
        )

    def run(self, *words: str) -> str:
        """The entry point with these words."""
        process = self.start([*self.words(step(self.context, "ENTRYPOINT")), *words])
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        return out

    def healthy(self) -> bool:
        health = self.words(step(self.context, "HEALTHCHECK"))
        with self.start(health, stderr=subprocess.DEVNULL) as process:
            return process.wait(timeout=120) == 0


@pytest.mark.slow
def test_its_steps_make_an_image_that_proves_itself_and_answers(
    contexts: dict[bool, Path], tmp_path: Path, digit_png: Path
) -> None:
    container = Container(contexts[False], tmp_path)
    assert "golden pair" in container.run(*container.words(step(contexts[False], "CMD")))
    assert f": {digit_png.stem} " in container.run("predict", str(container.app / "bundle"), str(digit_png))
    assert container.healthy()
    missing = container.start(
        ["python", "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('onnx'))"]
    )
    assert missing.communicate()[0].split() == ["None", "None"]
    model = container.app / "bundle/variants/onnx-fp32/model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    assert not container.healthy()


@pytest.mark.slow
def test_with_a_server_it_becomes_healthy_and_answers_over_http(
    contexts: dict[bool, Path], tmp_path: Path, digit_png: Path
) -> None:
    container = Container(contexts[True], tmp_path)
    words = container.words(step(contexts[True], "CMD"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # Another test may use the port of the image: here it is a free one, in the command and in the health check.
    local = {EVERYWHERE: "127.0.0.1", str(PORT): port}
    health = step(contexts[True], "HEALTHCHECK").replace(f":{PORT}/", f":{port}/")
    entry = container.words(step(contexts[True], "ENTRYPOINT"))
    with container.start([*entry, *(local.get(w, w) for w in words)], stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_healthy(container, health)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/classify", digit_png.read_bytes())
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                assert json.load(answer)["predictions"][0]["label"] == digit_png.stem
        finally:
            server.terminate()
            assert server.wait(timeout=60) == 0


def _wait_until_healthy(container: Container, health: str) -> None:
    for _ in range(120):
        with container.start(container.words(health), stderr=subprocess.DEVNULL) as check:
            if check.wait(timeout=60) == 0:
                return
        time.sleep(0.5)
    pytest.fail("it never became healthy")
