"""Whether an engine fits a machine: every mismatch is named, on descriptions of machines, and on real engine files."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import msgspec
import pytest
import tensorrt_rtx
from fixtures.small import BATCH

from vggdeploy.build.targets import set_targets
from vggdeploy.build.tensorrt import build_engine
from vggdeploy.bundle import BuildRecord, Variant
from vggdeploy.errors import IntegrityError
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.runtime.preflight import Host, check_engine, head_error, mismatch, release
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Precision

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "13.0")
RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", "sm89", "13.0")
L4 = Gpu(0, "NVIDIA L4", "sm89", "13.0")
RTX_2080 = Gpu(0, "NVIDIA GeForce RTX 2080", "sm75", "13.0")


def engine(library: str = "tensorrt", version: str = "11.4.0.1", targets: tuple[str, ...] = ("sm89",), **more: object):
    record = BuildRecord(
        library=library, version=version, source="onnx-fp16", source_sha256="0" * 64, targets=targets,
        **{"options": {}, "seconds": 1.0, **more},
    )  # fmt: skip
    kind = library.replace("_", "-")
    return Variant(name="e", format=kind, precision=Precision.FP16, path="e", batch=BATCH, build=record)


def test_the_issue_s_own_example_names_both_sides_and_the_remedy():
    found = mismatch(engine(), Host("10.13.3.9", H100))
    assert found is not None
    assert "built by TensorRT 11.4.0.1 for sm89" in found.cause
    assert "here: 10.13.3.9, sm90 (NVIDIA H100 80GB HBM3), driver for CUDA 13.0" in found.cause
    assert "in the release that built it" in found.cause and "no code for sm90" in found.cause
    assert "vggdeploy build BUNDLE --engine tensorrt --precision fp16" in found.fix and "--rebuild" in found.fix


TUNED = {"gpu": "NVIDIA GeForce RTX 4090", "driver": "13.0"}
SAME_CC = {"hardware_compatible": "same-cc"}
AMPERE = {"hardware_compatible": "ampere+"}
ANY = {"version_compatible": "yes"}


@pytest.mark.parametrize(
    ("variant", "host", "wrong"),
    [
        (engine(**TUNED), Host("11.4.0.1", RTX_4090), None),
        (engine(**TUNED), Host("11.4.0.99", RTX_4090), None),  # another build of one release
        (engine(**TUNED), Host("11.4.1.1", RTX_4090), "in the release that built it"),
        (engine(**TUNED), Host("11.4.0.1", L4), "another (--hardware-compatible same-cc lifts that)"),
        (engine(**TUNED, options=SAME_CC), Host("11.4.0.1", L4), None),
        (engine(**TUNED, options=SAME_CC), Host("11.4.0.1", H100), "no code for sm90"),
        (engine(**TUNED, options=AMPERE), Host("11.4.0.1", H100), None),
        (engine(**TUNED, options=AMPERE), Host("11.4.0.1", RTX_2080), "Ampere and newer"),
        (engine(version="10.13.3", options=ANY), Host("11.4.0", RTX_4090), "needs the lean runtime of its own release"),
        (engine(version="10.13.3", options=ANY), Host("11.4.0", RTX_4090, "10.13.3.9"), None),
        (engine(version="10.13.3", options=ANY), Host("11.4.0", RTX_4090, "10.13.2.6"), "the one here is of 10.13.2.6"),
        (engine(version="10.13.3"), Host("11.4.0", RTX_4090, "10.13.3.9"), "in the release that built it"),
        (engine(version="11.4.0", options=ANY), Host("10.13.3", RTX_4090), "never in earlier ones"),
        (engine(version="11.4.0", options=ANY), Host("10.13.3", RTX_4090, "11.4.0"), "never in earlier ones"),
        (engine(version="11.4.0", options=ANY), Host("11.4.0", RTX_4090), None),
        (engine("tensorrt_rtx", "1.7.1.116", ("sm86", "sm89")), Host("1.7.1.116", L4), None),
        (engine("tensorrt_rtx", "1.7.1.116", ("sm86",)), Host("1.7.1.116", L4), "no code for sm89"),
        (engine("tensorrt_rtx", "1.6.0.1"), Host("1.7.1.116", L4), "in the release that built it"),
        (engine(**{**TUNED, "driver": "13.0"}), Host("11.4.0.1", Gpu(0, TUNED["gpu"], "sm89", "12.8")), "one is older"),
        (
            engine(**{**TUNED, "driver": "13.2"}),
            Host("11.4.0.1", RTX_4090),
            None,
        ),  # CUDA's minor versions are compatible
        (engine(), Host("11.4.0.1", None), None),  # what is not known speaks against nothing
        (engine(), Host(None, None), None),
    ],
)
def test_each_rule_on_each_machine(variant, host, wrong):
    found = mismatch(variant, host)
    assert (found is None) == (wrong is None)
    if found is not None:
        assert wrong in found.cause
        assert "\n" not in found.cause + found.fix


def test_what_was_not_built_fits_everywhere():
    onnx = Variant(name="o", format="onnx", precision=Precision.FP32, path="o", batch=BATCH)
    assert mismatch(onnx, Host("1.0", H100)) is None


@pytest.mark.parametrize(
    ("text", "parts"), [("10.13.3.9", (10, 13, 3)), ("1.7.1", (1, 7, 1)), ("11", (11,)), ("x", ()), ("9" * 5000, ())]
)
def test_a_release_is_the_first_three_numbers(text, parts):
    assert release(text) == parts


# The file, on engines of the real library


@pytest.fixture(scope="module")
def real(tmp_path_factory, onnx_files) -> Path:
    root = tmp_path_factory.mktemp("engine")
    source = onnx_files[Precision.FP16]

    def configure(config: object) -> None:
        set_targets(tensorrt_rtx, config, ("sm86", "sm89"))

    path = root / "model.engine"
    build_engine(tensorrt_rtx, source, path, precision=Precision.FP16, profiles=[BATCH], configure=configure)
    return path


@pytest.fixture
def built() -> Variant:
    return engine("tensorrt_rtx", tensorrt_rtx.__version__, ("sm86", "sm89"))


def check_file(variant: Variant, path: Path) -> None:
    with HashedFile.of(path).open() as file:
        check_engine(variant, file)


def test_a_real_engine_passes(real, built):
    check_file(built, real)


@pytest.mark.parametrize(
    ("targets", "version", "wrong"),
    [
        (("sm86",), "1.7.1.116", "holds code for sm86, sm89; its record says sm86"),
        (("sm86", "sm89"), "1.6.0.2", "was built by TensorRT for RTX 1.7.1.116; its record says 1.6.0.2"),
    ],
)
def test_a_record_that_is_another_engine_s_is_found(real, targets, version, wrong):
    data = real.read_bytes()
    assert head_error(engine("tensorrt_rtx", version, targets).build, data[:64], len(data)) == wrong


def field(offset: int, value: int, size: int = 4):
    return lambda data: data[:offset] + value.to_bytes(size, "little") + data[offset + size :]


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda data: b"ftrt" + data[4:], "is no engine of TensorRT for RTX"),
        (lambda data: b"", "is no engine"),
        (lambda data: data[:20], "is cut short"),
        (lambda data: data[:-1], "its header says"),
        (lambda data: data + b"\0", "its header says"),
        (field(8, 3), "has a damaged header"),
        (field(28, 0), "has a damaged header"),
        (field(24, 2, 1), "was built by TensorRT for RTX 2.7.1.116"),
        (field(32, 16), "holds code for sm120"),
    ],
)
def test_a_file_that_is_certainly_wrong_is_refused(real, built, tmp_path, damage, wrong):
    path = tmp_path / "model.engine"
    path.write_bytes(damage(real.read_bytes()))
    with pytest.raises(IntegrityError, match=wrong) as caught:
        check_file(built, path)
    assert "build it again" in caught.value.hint


def test_an_engine_of_tensorrt_is_known_by_its_magic(real, tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"ftrt" + bytes(100))
    check_file(engine(), path)
    with pytest.raises(IntegrityError, match="no engine of TensorRT: it starts with b'vtrt'"):
        check_file(engine(), real)


def test_only_what_is_certain_is_refused(real, built):
    """Targets and layouts of releases to come are not guessed at."""
    data = real.read_bytes()
    later = msgspec.structs.replace(built.build, version="1.8.0.1")
    assert head_error(later, field(8, 7)(data), len(data)) == ""
    new_gpu = field(32, 1 << 9)(field(25, 8, 1)(field(26, 0, 1)(data)))
    assert head_error(later, new_gpu, len(data)) == ""
    known = field(32, 1 << 9)(data)
    assert "holds code for unknown GPUs" in head_error(built.build, known, len(data))


def test_two_thousand_mutated_headers_never_crash(real, built):
    good, chance = real.read_bytes()[:64], random.Random(20261124)
    size = real.stat().st_size
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        head = bytes(data[: chance.randrange(65)])
        found = head_error(built.build, head, size)
        assert "\n" not in found
        if found == "":
            assert head[:4] == b"vtrt" and struct.unpack_from("<Q", head, 16) == (size,)
