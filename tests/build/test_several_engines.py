"""Several engines in one bundle: their names never collide, and each machine takes the one that fits it."""

from __future__ import annotations

import shutil
import types

import msgspec
import pytest
from fixtures.small import write_bundle

from vggdeploy.build.engines import build_into
from vggdeploy.build.options import BuildOptions
from vggdeploy.build.profiles import parse_profiles
from vggdeploy.build.request import BuildPlan, BuildRequest
from vggdeploy.bundle import Bundle, Measurement, Variant, update_bundle
from vggdeploy.engine.selection import choices, select, unfit
from vggdeploy.errors import IncompatibleError
from vggdeploy.runtime import sessions
from vggdeploy.runtime.base import Availability
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.runtime.preflight import Host
from vggdeploy.runtime.registry import ENGINES, get_engine
from vggdeploy.runtime.tensorrt import rtx as backend
from vggdeploy.system.machine import fingerprint
from vggdeploy.types import Precision

RTX_4090, L4 = Gpu(0, "RTX 4090", "sm89", "13.0"), Gpu(0, "L4", "sm89", "13.0")


def names(bundle: Bundle) -> list[str]:
    return [v.name for v in Bundle.open(bundle.root).manifest.variants if v.build]


def of_another_release(bundle: Bundle, name: str, version: str) -> Bundle:
    """The bundle, in which that engine says that it comes from another release."""
    old = bundle.manifest.variant(name)
    with update_bundle(bundle) as draft:
        record = msgspec.structs.replace(old.build, version=version)
        draft.manifest = bundle.manifest.with_variants(msgspec.structs.replace(old, build=record))
    return Bundle.open(bundle.root)


def test_engines_for_other_gpus_stand_beside_each_other(bundle):
    for targets in (None, ["ada"], ["sm120", "sm86"], ["ada"]):
        bundle = build_into(bundle, BuildPlan(engine="rtx", targets=targets)).bundle
    assert names(bundle) == ["tensorrt-rtx-fp16", "tensorrt-rtx-fp16-sm89", "tensorrt-rtx-fp16-sm86-sm120"]


def test_an_engine_of_another_release_is_not_replaced_and_one_of_this_release_is(bundle, library):
    first = build_into(bundle, BuildPlan(engine="rtx")).bundle
    bundle = of_another_release(first, "tensorrt-rtx-fp16", "1.6.0.2")
    release = ".".join(library.__version__.split(".")[:3])
    for _ in range(2):
        added = build_into(bundle, BuildPlan(engine="rtx"))
        bundle = added.bundle
        assert added.variant.name == f"tensorrt-rtx-fp16-{release}"
    assert names(bundle) == ["tensorrt-rtx-fp16", f"tensorrt-rtx-fp16-{release}"]


def of_tensorrt(bundle: Bundle, gpu: Gpu, version: str = "10.13.3.9", **options: str) -> BuildRequest:
    source = bundle.manifest.variant("onnx-fp16")
    library = types.SimpleNamespace(__version__=version, __name__="tensorrt")
    return BuildRequest(
        get_engine("tensorrt"), library, source, bundle.sha256(source.path), Precision.FP16, (source.batch,),
        (gpu.capability,), gpu, BuildOptions(**options),
    )  # fmt: skip


def test_tensorrt_s_engines_are_named_by_their_gpu_and_numbered_where_that_is_not_enough(bundle):
    manifest = bundle.manifest

    def add(request: BuildRequest) -> str:
        nonlocal manifest
        name = request.name(manifest)
        variant = msgspec.structs.replace(
            manifest.variant("onnx-fp16"), name=name, format="tensorrt", build=request.record(1.0)
        )
        manifest = manifest.with_variants(variant)
        return name

    assert add(of_tensorrt(bundle, RTX_4090)) == "tensorrt-fp16-sm89"
    assert add(of_tensorrt(bundle, RTX_4090)) == "tensorrt-fp16-sm89"
    assert add(of_tensorrt(bundle, L4)) == "tensorrt-fp16-sm89-10.13.3"  # another model, of the same capability
    assert add(of_tensorrt(bundle, L4)) == "tensorrt-fp16-sm89-10.13.3"
    assert add(of_tensorrt(bundle, RTX_4090, hardware_compatible="same-cc")) == "tensorrt-fp16-sm89-10.13.3-2"
    assert add(of_tensorrt(bundle, L4, hardware_compatible="same-cc")) == "tensorrt-fp16-sm89-10.13.3-2"
    assert add(of_tensorrt(bundle, RTX_4090, version="11.4.0.1")) == "tensorrt-fp16-sm89-11.4.0"


@pytest.fixture
def machine(monkeypatch, library):
    """This machine, as if it had that GPU."""

    def put(gpu: Gpu, version: str = library.__version__) -> None:
        from vggdeploy.engine import selection

        monkeypatch.setattr(
            backend, "probe", lambda device: Availability(True, f"cuda:0 ({gpu.name})", version=version)
        )
        for module in (sessions.preflight, selection):
            monkeypatch.setattr(module, "host_of", lambda variant, device: Host(version, gpu))

    return put


@pytest.fixture(scope="module")
def three(tmp_path_factory, onnx_files) -> Bundle:
    """Engines for the default GPUs, for Ada alone and for Turing alone. Treat it as read-only."""
    root = tmp_path_factory.mktemp("three") / "bundle"
    bundle = write_bundle(root, {Precision.FP16: onnx_files[Precision.FP16]})
    for targets in (None, ["ada"], ["turing"]):
        bundle = build_into(bundle, BuildPlan(engine="rtx", targets=targets)).bundle
    return bundle


@pytest.mark.parametrize(
    ("capability", "taken"),
    [("sm86", "tensorrt-rtx-fp16"), ("sm89", "tensorrt-rtx-fp16-sm89"), ("sm75", "tensorrt-rtx-fp16-sm75")],
)
def test_each_gpu_takes_the_engine_that_fits_it_best(three, machine, capability, taken):
    machine(Gpu(0, "a GPU", capability, "13.0"))
    assert select(three)[0].name == taken
    for choice in choices(three, backend="rtx"):
        assert choice.reason and (choice.usable or (choice.fix and f"no code for {capability}" in choice.reason))


@pytest.fixture(scope="module")
def sized(tmp_path_factory, onnx_files) -> Bundle:
    """Engines for batches 1, 4, 8 and 16, for 8 alone, for 16 alone, and for 1 to 64 in one profile. Read-only."""
    root = tmp_path_factory.mktemp("sized") / "bundle"
    bundle = write_bundle(root, {Precision.FP16: onnx_files[Precision.FP16]})
    for batch in (None, "8", "16", "1:16:64"):
        profiles = parse_profiles(batch) if batch else None
        bundle = build_into(bundle, BuildPlan(engine="rtx", targets=["ada"], profiles=profiles)).bundle
    return bundle


@pytest.mark.parametrize(
    ("batch", "taken"),
    [
        (None, ""),  # takes single images and is tuned for four sizes
        (1, ""),
        (8, "-b8"),  # both are tuned for it, this one for nothing else
        (16, "-b16"),
        (7, ""),  # -b8 does not take it
        (40, "-b1to64"),  # the only one that does
        (500, "-b1to64"),  # none does: it is cut into batches, large ones best
    ],
)
def test_of_engines_for_several_batches_the_one_that_is_tuned_for_the_wanted_one_is_taken(sized, machine, batch, taken):
    machine(RTX_4090)
    assert select(sized, backend="rtx", batch=batch)[0].name == f"tensorrt-rtx-fp16-sm89{taken}"


def test_what_was_measured_here_counts_by_the_images_that_are_wanted(sized, machine, tmp_path):
    """1 ms a batch of 8 is more than 0.5 ms a single image for whoever has one, and less for whoever has eight."""
    machine(RTX_4090)
    bundle = Bundle.open(shutil.copytree(sized.root, tmp_path / "own"))

    def measured(name: str, batch: int, p50: float) -> Variant:
        row = Measurement(machine=fingerprint(), backend="tensorrt-rtx", batch=batch, threads=1, p50_ms=p50)
        return msgspec.structs.replace(bundle.manifest.variant(name), measured=(row,))

    with update_bundle(bundle) as draft:
        draft.manifest = bundle.manifest.with_variants(
            measured("tensorrt-rtx-fp16-sm89", 1, 0.5), measured("tensorrt-rtx-fp16-sm89-b8", 8, 1.0)
        )
    bundle = Bundle.open(bundle.root)
    assert select(bundle, backend="rtx", batch=1)[0].name == "tensorrt-rtx-fp16-sm89"
    assert select(bundle, backend="rtx", batch=8)[0].name == "tensorrt-rtx-fp16-sm89-b8"


def test_without_a_fitting_engine_the_cpu_serves_and_naming_one_is_exit_code_5(three, machine):
    machine(Gpu(0, "a GPU", "sm121", "13.0"), version="1.9.0")
    assert select(three)[0].format == "onnx"
    assert [v.name for v in unfit(three)] == ["tensorrt-rtx-fp16", "tensorrt-rtx-fp16-sm89", "tensorrt-rtx-fp16-sm75"]
    with pytest.raises(IncompatibleError, match=r"built by TensorRT for RTX .*; here: 1\.9\.0, sm121") as caught:
        select(three, variant="tensorrt-rtx-fp16-sm89")
    assert caught.value.exit_code == 5
    assert "--rebuild" in caught.value.hint
    with pytest.raises(IncompatibleError, match="built by"):
        select(three, backend="tensorrt-rtx")


def test_a_missing_driver_and_another_release_are_both_named(three, tmp_path):
    own = Bundle.open(shutil.copytree(three.root, tmp_path / "own"))
    old = of_another_release(own, "tensorrt-rtx-fp16", "1.6.0.2")
    [found] = [c for c in choices(old) if c.variant.name == "tensorrt-rtx-fp16"]
    if not found.usable:  # on a machine with an RTX GPU only the release is wrong
        assert "1.6.0.2" in found.reason


def test_every_kind_of_engine_has_its_own_format():
    assert len({kind.name for kind in ENGINES}) == len(ENGINES)
