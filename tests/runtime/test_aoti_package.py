"""What AOTInductor compiled here is kept for the next start; what was damaged, or belongs to others, is compiled anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacks.foreign_cache import ATTACKS

from vggdeploy.doctor.doctor import write_program
from vggdeploy.errors import BuildError
from vggdeploy.runtime import get_backend
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.aoti import package, session
from vggdeploy.runtime.base import Source
from vggdeploy.system import machine
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Device

CPU = Device("cpu")
pytestmark = pytest.mark.skipif(not package.compiler(), reason="there is no C++ compiler")
late = pytest.mark.late  # it compiles, for half a minute


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    write_program(path)
    return path


@pytest.fixture(scope="module")
def compiled(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the one package, compiled once."""
    home = tmp_path_factory.mktemp("compiled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGDEPLOY_CACHE", str(home))
        logits(source_of(program))
    return home


def source_of(program: Path) -> Source:
    return tiny.source(CPU, file=HashedFile.of(program))


@pytest.fixture
def source(program: Path) -> Source:
    return source_of(program)


@pytest.fixture
def home(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own that has the package; and compiling would fail the test."""
    shutil.copytree(compiled, tmp_path / "cache")
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "aoti"


class Compiled(Exception):
    pass


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_it(source: Source, target: Path) -> None:
        raise Compiled

    monkeypatch.setattr(package, "_compile", compile_it)


def logits(source: Source, batch: int = 3) -> np.ndarray:
    with get_backend("aoti").load().SESSION(source) as opened:
        return np.asarray(opened.run({"image": tiny.images(batch)})["logits"])


def entry(home: Path) -> Path:
    (found,) = (path for path in home.iterdir() if path.is_dir())
    return found


@late
def test_the_second_start_loads_what_the_first_one_compiled(source: Source, home: Path, no_compiling: None) -> None:
    for batch in (1, 2, 5):
        wanted = tiny.reference(tiny.images(batch), tiny.weights())
        np.testing.assert_allclose(logits(source, batch), wanted, atol=1e-5)
    assert {path.stat().st_mode & 0o022 for path in (home, entry(home), *entry(home).iterdir())} == {0}


@late
@pytest.mark.parametrize("part", [package.PACKAGE, package.ENTRY])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_package_is_never_loaded(
    source: Source, home: Path, no_compiling: None, part: str, damage: str
) -> None:
    file = entry(home) / part
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 2])}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    with pytest.raises(Compiled):
        logits(source)


@late
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("what", ["package", "entry", "kind"])
def test_a_package_that_others_may_write_is_never_loaded(
    source: Source, home: Path, no_compiling: None, attack: str, what: str
) -> None:
    ATTACKS[attack]({"package": entry(home) / package.PACKAGE, "entry": entry(home), "kind": home}[what])
    with pytest.raises(Compiled):
        logits(source)


@late
def test_what_is_loaded_leaves_no_file_behind(
    source: Source, home: Path, no_compiling: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with session.AotiSession(source) as opened:
        assert not list(tmp_path.glob("vggdeploy-*"))
        assert opened.compiled_sha256 == HashedFile.of(entry(home) / package.PACKAGE).sha256
        opened.run({"image": tiny.images(2)})


@late
def test_two_networks_are_two_libraries(source: Source, home: Path, tmp_path: Path) -> None:
    """A linker that finds a path again gives what it loaded from there before."""
    other = tmp_path / "other.pt2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "weights", lambda real=tiny.weights: real(seed=1))
        write_program(other)
    image = tiny.images(2)
    with session.AotiSession(source) as first, session.AotiSession(source_of(other)) as second:
        answers = [x.run({"image": image})["logits"] for x in (first, second, first)]
    for found, seed in zip(answers, (0, 1, 0), strict=True):
        np.testing.assert_allclose(found, tiny.reference(image, tiny.weights(seed)), atol=1e-5)


def test_the_key_is_all_that_decides_the_code(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [package.about(source), package.about(replace(source, file=HashedFile(source.file.path, "0" * 64)))]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    keys.append(package.about(source))
    for owner, name, value in (
        (package, "__version__", "0"),
        (package.torch, "__version__", "0"),
        (package, "settings", lambda source: "{}"),
        (package, "compiler", lambda: "another"),
        (package, "machine", lambda real=package.machine(): type(real)(**{**fields(real), "cpu": "another"})),
    ):
        monkeypatch.setattr(owner, name, value)
        keys.append(package.about(source))
    assert len({str(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_a_processor_that_lacks_any_instruction_compiles_anew(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The compiler takes all that this one has, also what decides no kernel of a library: a home may be on several machines."""
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = []
    for flags in ("avx2 bmi2", "avx2"):
        (tmp_path / "cpuinfo").write_text(f"model name : CPU\n{name} : {flags}\n")
        found.append(package.about(source))
    assert found[0] != found[1]


def fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_compilation_that_takes_too_long_is_ended_with_all_that_it_started(
    source: Source, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "SECONDS", 0.2)
    started = watched(monkeypatch)
    with pytest.raises(BuildError, match=r"did not compile tiny\.pt2 within 0\.2 s"):
        logits(source)
    assert [process.poll() for process in started] == [-9]
    assert not [path for path in empty_cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def watched(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[str]], list[str]] = lambda args: args) -> list:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen):
        def __init__(self, args: list[str], **options: object) -> None:
            super().__init__(change(args), **options)
            self.environment = options.get("env")
            started.append(self)

    monkeypatch.setattr(package.subprocess, "Popen", Watched)
    return started


@late
def test_a_child_without_its_parent_compiles_nothing(program: Path, tmp_path: Path) -> None:
    """The parent was killed while the child imported PyTorch: the kernel's signal would come for its end alone."""
    target, nobody = tmp_path / "model.pt2", "1"
    line = [sys.executable, "-P", "-m", package._CHILD, str(program), str(target), "{}", nobody]
    assert subprocess.run(line, check=False).returncode == 0
    assert not target.exists()


def test_a_compilation_that_fails_is_one_line_and_leaves_nothing(
    source: Source, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, lambda args: [args[0], "-c", "raise SystemExit('x\\nCppCompileError: C++ compile error\\ny')"])
    with pytest.raises(BuildError) as caught:
        logits(source)
    assert caught.value.cause == "AOTInductor cannot compile tiny.pt2: CppCompileError: C++ compile error"
    assert not [path for path in empty_cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_settings_of_the_shell_change_nothing(
    source: Source, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHINDUCTOR_FREEZING", "AOT_INDUCTOR_DEBUG_COMPILE", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "1")
    started = watched(monkeypatch, lambda args: [args[0], "-c", "raise SystemExit(1)"])
    with pytest.raises(BuildError):
        logits(source)
    [environment] = [process.environment for process in started]
    assert not {"TORCHINDUCTOR_FREEZING", "AOT_INDUCTOR_DEBUG_COMPILE"} & environment.keys()
    assert Path(environment["TORCHINDUCTOR_CACHE_DIR"]).parent == empty_cache  # and removed


def test_without_a_compiler_it_does_not_run_and_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    package.compiler.cache_clear()
    monkeypatch.setenv("CXX", "/nowhere/g++")
    try:
        found = get_backend("aoti").probe(CPU)
    finally:
        package.compiler.cache_clear()
    assert not found.runs
    assert found.reason == "AOTInductor compiles a network where it runs, and there is no C++ compiler (/nowhere/g++)"
    assert "apt-get install g++" in found.fix and "torch-export-fp32" in found.fix
