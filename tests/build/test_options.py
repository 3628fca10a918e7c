"""Build options: what reaches the library, what a library lacks is refused by name, and nothing is ignored."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from fixtures.small import BATCH

from vggdeploy.build.engines import build_into
from vggdeploy.build.options import BuildOptions, parse_size
from vggdeploy.build.request import BuildPlan
from vggdeploy.build.targets import set_targets
from vggdeploy.build.tensorrt import build_engine
from vggdeploy.bundle import Bundle
from vggdeploy.errors import BuildError, IncompatibleError, UsageError
from vggdeploy.types import Precision

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2**31), ("2 gib", 2**31), ("1.5GiB", 3 * 2**29), ("512MiB", 2**29), ("2GB", 2 * 10**9), ("2G", 2 * 10**9),
        ("1048576", MIB), ("100kB", 100_000),
    ],
)  # fmt: skip
def test_sizes_are_read_as_they_are_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2XB", "-1GiB", "1e9", "2GiB extra", "9" * 30])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_a_small_number_without_unit_is_asked_back():
    """Ultralytics means GiB by it, old trtexec MiB."""
    with pytest.raises(UsageError, match="has no unit") as caught:
        parse_size("4")
    assert "4GiB or 4MiB" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"opt_level": 6}, "the optimisation level is 6"),
        ({"opt_level": -1}, "the optimisation level is -1"),
        ({"hardware_compatible": "ampere"}, "hardware compatibility 'ampere' is unknown"),
        ({"workspace": 0}, "0 bytes"),
    ],
)
def test_values_that_mean_nothing_are_refused_at_once(options, match):
    with pytest.raises(UsageError, match=match):
        BuildOptions(**options)


@pytest.mark.parametrize(
    ("options", "named", "instead"),
    [
        ({"timing_cache": Path("t.cache")}, "--timing-cache", "leave --timing-cache out"),
        ({"hardware_compatible": "ampere+"}, "--hardware-compatible", "--target"),
        ({"version_compatible": True}, "--version-compatible", "no lean runtime"),
        ({"sparse": True}, "--sparse", "byte for byte the same"),
    ],
)
def test_what_rtx_lacks_is_refused_by_name_and_changes_nothing(bundle, options, named, instead):
    before = (bundle.root / "manifest.json").read_bytes()
    with pytest.raises(IncompatibleError, match=f"TensorRT for RTX .* has no {named}") as caught:
        build_into(bundle, BuildPlan(engine="tensorrt-rtx", options=BuildOptions(**options)))
    assert caught.value.exit_code == 5
    assert instead in caught.value.hint
    assert (bundle.root / "manifest.json").read_bytes() == before


def older(library, *missing: str):
    """The real module without some of its names, as an older version would be."""
    flags = types.SimpleNamespace(**{n: f for n, f in library.BuilderFlag.__members__.items() if n not in missing})
    names = {n: getattr(library, n) for n in dir(library) if n not in ("BuilderFlag", *missing)}
    config = types.SimpleNamespace(**{n: 0 for n in dir(library.IBuilderConfig) if n not in missing})
    names |= {"BuilderFlag": flags, "IBuilderConfig": config, "__name__": "tensorrt", "__version__": "10.3.0"}
    return types.SimpleNamespace(**names)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"sparse": True}, "SPARSE_WEIGHTS"),
        ({"weight_streaming": True}, "WEIGHT_STREAMING"),
        ({"version_compatible": True}, "EXCLUDE_LEAN_RUNTIME"),
        ({"hardware_compatible": "same-cc"}, "HardwareCompatibilityLevel"),
        ({"timing_cache": Path("t")}, "set_timing_cache"),
        ({"opt_level": 3}, "builder_optimization_level"),
    ],
)
def test_what_a_version_lacks_is_found_by_looking_at_it(library, options, missing):
    BuildOptions(**options).check(older(library), BATCH)  # TensorRT 10 has them all
    with pytest.raises(IncompatibleError, match=r"TensorRT 10\.3\.0 has no --"):
        BuildOptions(**options).check(older(library, missing), BATCH)


def test_a_level_that_only_one_library_version_has_is_looked_for_too(library):
    levels = types.SimpleNamespace(NONE=0, AMPERE_PLUS=1)
    lacks = older(library)
    lacks.HardwareCompatibilityLevel = levels
    BuildOptions(hardware_compatible="ampere+").check(lacks, BATCH)
    with pytest.raises(IncompatibleError, match="--hardware-compatible"):
        BuildOptions(hardware_compatible="same-cc").check(lacks, BATCH)


def test_options_reach_the_real_builder_and_stand_in_the_manifest(bundle):
    plain = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"]))
    options = BuildOptions(workspace=2**31, opt_level=5, weight_streaming=True, graph_batches=(1, 4))
    tuned = build_into(plain.bundle, BuildPlan(engine="rtx", targets=["ada"], options=options))
    record = Bundle.open(bundle.root).manifest.variant(tuned.variant.name).build
    assert record.options == {
        "batch": "1:1:1,2:4:4,5:8:8,9:16:16",
        "workspace": str(2**31),
        "opt_level": "5",
        "weight_streaming": "yes",
    }
    assert record.graph_batches == (1, 4)
    assert BuildOptions.from_record(record.options, record.graph_batches) == options
    assert tuned.report().sha256 != plain.report().sha256  # the workspace is in the engine


def test_too_small_a_workspace_is_the_library_s_own_cause(bundle):
    with pytest.raises(BuildError, match="within workspace limit"):
        build_into(bundle, BuildPlan(engine="rtx", targets=["ada"], options=BuildOptions(workspace=70_000)))


def test_a_graph_for_a_batch_that_the_engine_does_not_take_is_refused(bundle):
    with pytest.raises(UsageError, match="batches of 32, and the engine takes 1 to 16"):
        build_into(bundle, BuildPlan(engine="rtx", options=BuildOptions(graph_batches=(1, 32))))


class Config:
    """An ``IBuilderConfig`` that takes what it is told to take."""

    hardware_compatibility_level = None
    builder_optimization_level = 3

    def __init__(self, *, takes: bool = True) -> None:
        self.takes, self.flags, self.given = takes, [], b""

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("builder_optimization_level", "hardware_compatibility_level") and not self.takes:
            return
        object.__setattr__(self, name, value)

    def set_flag(self, flag: object) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, data: bytes) -> bytes:
        self.given = data
        return data

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        return self.takes


@pytest.mark.parametrize(("options", "named"), [({"opt_level": 5}, "5"), ({"hardware_compatible": "same-cc"}, "SAME")])
def test_a_setter_that_ignores_its_value_is_found_by_reading_it_back(library, options, named):
    with pytest.raises(BuildError, match=f"does not take --.*{named}"):
        BuildOptions(**options).apply(library, Config(takes=False))


def test_a_version_compatible_engine_never_holds_host_code(library):
    config = Config()
    BuildOptions(version_compatible=True).apply(library, config)
    assert config.flags == [library.BuilderFlag.VERSION_COMPATIBLE, library.BuilderFlag.EXCLUDE_LEAN_RUNTIME]


def test_a_timing_cache_is_read_from_its_file_and_a_foreign_one_is_refused(library, tmp_path):
    file = tmp_path / "timing.cache"
    config = Config()
    BuildOptions(timing_cache=file).apply(library, config)
    assert config.given == b""  # there is none yet
    file.write_bytes(b"times")
    BuildOptions(timing_cache=file).apply(library, config)
    assert config.given == b"times"
    with pytest.raises(BuildError, match="another version or GPU"):
        BuildOptions(timing_cache=file).apply(library, Config(takes=False))


def test_a_timing_cache_does_not_change_the_key(tmp_path):
    """It did: each build adds to the file, so that no build ever found its engine."""
    file = tmp_path / "timing.cache"
    texts = [BuildOptions().as_text()]
    for data in (None, b"times", b"other times"):
        if data is not None:
            file.write_bytes(data)
        texts.append(BuildOptions(timing_cache=file).as_text())
    assert texts == [{}] * 4


# FACTS.md: what TensorRT for RTX cannot build without a GPU


@pytest.mark.parametrize("flag", ["REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE"])
def test_what_cannot_be_built_without_a_gpu_is_one_clear_line(library, onnx_files, tmp_path, flag):
    def configure(config):
        set_targets(library, config, ("sm89",))
        config.set_flag(getattr(library.BuilderFlag, flag))

    with pytest.raises(BuildError, match=r"cannot build fp16\.onnx: \S") as caught:
        build_engine(
            library, onnx_files[Precision.FP16], tmp_path / "e", precision=Precision.FP16, profiles=[BATCH],
            configure=configure,
        )  # fmt: skip
    assert "\n" not in caught.value.cause


def test_fp32_means_fp32_and_not_tf32(library, onnx_files, tmp_path):
    seen = []

    def configure(config):
        set_targets(library, config, ("sm89",))
        seen.append(config.get_flag(library.BuilderFlag.TF32))

    build_engine(
        library,
        onnx_files[Precision.FP32],
        tmp_path / "e",
        precision=Precision.FP32,
        profiles=[BATCH],
        configure=configure,
    )
    assert seen == [False]
