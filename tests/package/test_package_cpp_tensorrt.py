"""The C++ project's TensorRT source, built and run without a GPU: against CUDA's real header and a stand-in for TensorRT.

No registry has TensorRT's C++ headers. So a contract is compiled against the stand-in's header here, and against the real one
wherever it is installed: what both are is what the source may use.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vggdeploy
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec

pytestmark = pytest.mark.late
SOURCES = Path(vggdeploy.__file__).parent / "package" / "cpp_project" / "src"
STANDIN = Path(__file__).parents[1] / "fakes" / "nvinfer"
CLASSES = 10
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def cuda_headers() -> Path:
    """CUDA's headers, as a package of PyTorch's brings them."""
    triton = pytest.importorskip("triton", reason="it waits for CUDA's headers, which Triton (of PyTorch) brings")
    return Path(triton.__path__[0]) / "backends" / "nvidia" / "include"


def compile_cpp(*words: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (Debian: apt-get install g++ libpng-dev libjpeg-dev)")
    command = ["g++", *FLAGS, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the sanitizers that find what lies past the end of a buffer, and what is not freed."""
    program = tmp_path_factory.mktemp("classify") / "classify"
    others = {"onnxruntime.cpp", "torchscript.cpp"}
    sources = [path for path in sorted(SOURCES.glob("*.cpp")) if path.name not in others]
    done = compile_cpp(
        "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-isystem", STANDIN, "-isystem", cuda_headers(),
        "-I", SOURCES, *sources, STANDIN / "library.cpp", "-lpng", "-ljpeg", "-o", program,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as `vggdeploy package --target cpp` writes it for an engine with two outputs."""
    root = tmp_path / "model"
    root.mkdir()
    (root / "model.engine").write_text(f"ftrt {CLASSES} image fc7 logits")
    settings = {
        "file": "model.engine", "input": "image", "output": "logits", "output_index": 1, "classes": CLASSES, "channels": 3,
        "resize": 40, "crop": 32, "interpolation": "bilinear", "tall_first": 0,
    }  # fmt: skip
    (root / "model.txt").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    (root / "labels.txt").write_text("".join(f"class {k}\n" for k in range(CLASSES)))
    return root


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(5):
        paths.append(tmp_path / f"{seed}.png")
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths


def run(classify: Path, *words: object, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STANDIN_FAULT": fault}
    return subprocess.run([classify, *map(str, words)], env=environment, capture_output=True, text=True, check=False)


def test_every_image_s_own_pixels_reach_the_engine_and_its_scores_come_back(
    classify: Path, model: Path, images: list[Path], tmp_path: Path
) -> None:
    done = run(classify, "--device", "cuda", "--top", "1", "--dump", tmp_path, model, *images)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no line of the library below a warning
    spec = PreprocessSpec(resize=40, crop=32)
    prepared = np.stack([prepare(image, spec) for image in images])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "input.raw", np.uint8).reshape(prepared.shape), prepared)
    scores = np.fromfile(tmp_path / "output.raw", np.float32).reshape(len(images), CLASSES)
    sums = prepared.reshape(len(images), -1).sum(axis=1, dtype=np.float32)
    np.testing.assert_array_equal(scores, sums[:, None] + np.arange(CLASSES, dtype=np.float32))
    assert all(": class 9 " in line for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("createInferRuntime", "the runtime does not start"),
        ("createExecutionContext", "to make a context"),
        ("setInputShape", "a batch of 1"),
        ("setTensorAddress", "the input's address"),
        ("enqueueV3", "to run"),
        ("cudaMalloc", "CUDA: out of memory"),
        ("cudaMemcpyAsync", "CUDA: out of memory"),
        ("cudaStreamSynchronize", "CUDA: out of memory"),
    ],
)
def test_what_fails_is_said_and_everything_is_freed(
    classify: Path, model: Path, images: list[Path], fault: str, cause: str
) -> None:
    """The sanitizer ends a program that leaks with another exit code."""
    done = run(classify, "--device", "cuda", model, images[0], fault=fault)
    assert done.returncode == 1 and cause in done.stderr, done
    assert "Sanitizer" not in done.stderr


def test_an_engine_that_the_library_refuses_and_a_cpu_are_refused(
    classify: Path, model: Path, images: list[Path]
) -> None:
    assert "give --device cuda" in run(classify, model, images[0]).stderr
    (model / "model.engine").write_text("ftrt")
    assert "another release of TensorRT" in run(classify, "--device", "cuda", model, images[0]).stderr


def test_the_sanitizer_sees_a_buffer_that_is_too_small(classify: Path, model: Path, images: list[Path]) -> None:
    """An engine with more classes than the settings say: what the tests above would not notice without it."""
    (model / "model.engine").write_text(f"ftrt {CLASSES + 1} image fc7 logits")
    done = run(classify, "--device", "cuda", model, images[0])
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def real_header() -> bool:
    probe = subprocess.run(
        ["g++", "-E", "-x", "c++", "-isystem", cuda_headers(), "-"],
        input="#include <NvInfer.h>", capture_output=True, text=True, check=False,
    )  # fmt: skip
    return probe.returncode == 0


@pytest.mark.parametrize("header", ["stand-in", "real"])
def test_the_header_is_what_the_source_needs(header: str) -> None:
    """``CPLUS_INCLUDE_PATH`` names the real one's directory, where it is not among the compiler's own."""
    if header == "real" and not real_header():
        pytest.skip("it waits for TensorRT's C++ headers")
    where = ["-isystem", STANDIN] if header == "stand-in" else []
    for source in (STANDIN / "contract.cpp", SOURCES / "tensorrt.cpp"):
        done = compile_cpp("-fsyntax-only", *where, "-isystem", cuda_headers(), "-I", SOURCES, source)
        assert done.returncode == 0, done.stderr[-3000:]


def test_the_contract_names_all_that_the_source_uses() -> None:
    source, contract = (p.read_text() for p in (SOURCES / "tensorrt.cpp", STANDIN / "contract.cpp"))
    methods = set(re.findall(r"(?:runtime_|engine_|context_)->(\w+)\(", source))
    names = set(re.findall(r"nvinfer1::(\w+)", source)) | set(re.findall(r"\b(k[A-Z]+)\b", source))
    assert {"enqueueV3", "deserializeCudaEngine", "setTensorAddress"} <= methods
    assert {"IRuntime", "Dims4", "kOUTPUT", "kWARNING"} <= names
    assert [name for name in sorted(methods | names) if not re.search(rf"\b{name}\b", contract)] == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("bool enqueueV3(cudaStream_t stream) noexcept", "void enqueueV3(cudaStream_t stream) noexcept"),
        ("std::int64_t d[MAX_DIMS]", "std::int32_t d[MAX_DIMS]"),
        ("kINPUT = 1, kOUTPUT = 2", "kOUTPUT = 1, kINPUT = 2"),
        ("createExecutionContext() noexcept", "createExecutionContext(int) noexcept"),
        ("virtual ~IRuntime() noexcept = default;", ""),
    ],
)
def test_another_header_breaks_the_contract(tmp_path: Path, was: str, becomes: str) -> None:
    text = (STANDIN / "NvInfer.h").read_text()
    assert was in text
    (tmp_path / "NvInfer.h").write_text(text.replace(was, becomes))
    done = compile_cpp("-fsyntax-only", "-isystem", tmp_path, "-isystem", cuda_headers(), STANDIN / "contract.cpp")
    assert done.returncode != 0
