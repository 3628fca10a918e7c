"""Which library builds where none is named: by the GPU that is here, and by what is installed."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable

import pytest
import tensorrt_rtx

from vggdeploy.build import choice, request
from vggdeploy.build.choice import choose_engine
from vggdeploy.build.engines import build_into
from vggdeploy.build.readback import EngineFacts
from vggdeploy.build.request import BuildPlan, make_request
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import IncompatibleError, MissingDependencyError, UsageError
from vggdeploy.runtime.gpu import cuda
from vggdeploy.runtime.gpu.cuda import Gpu
from vggdeploy.types import Device

H100, L4 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "13.0"), Gpu(1, "NVIDIA L4", "sm89", "13.0")
Put = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Put:
    """A machine with these GPUs, and with TensorRT of that version where one is given."""

    def put(*found: Gpu, tensorrt: str | None = None) -> None:
        def find(device: Device) -> Gpu:
            if device.index >= len(found):
                raise IncompatibleError(f"there is no {device}: this machine has {len(found)} GPU(s)", "count from 0")
            return found[device.index]

        for module in (choice, request, cuda):
            monkeypatch.setattr(module, "find_gpu", find)
        monkeypatch.setattr(request, "use", lambda device: None)
        monkeypatch.setattr(request, "inspect_engine", lambda library, engine: EngineFacts({"fp16": 11}, ()))
        if tensorrt is not None:
            module = types.ModuleType("tensorrt")
            module.__spec__ = types.SimpleNamespace()  # what `installed` looks at
            module.__version__ = tensorrt
            module.BuilderFlag = tensorrt_rtx.BuilderFlag
            module.IBuilderConfig = tensorrt_rtx.IBuilderConfig
            monkeypatch.setitem(sys.modules, "tensorrt", module)
        else:
            monkeypatch.setitem(sys.modules, "tensorrt", None)

    return put


@pytest.mark.parametrize(
    ("found", "tensorrt", "taken", "said"),
    [
        ([H100], "10.13.3.9", "tensorrt", "cuda:0 is NVIDIA H100 80GB HBM3 (sm90)"),
        ([L4], "11.4.0", "tensorrt", "cuda:0 is NVIDIA L4 (sm89)"),
        ([L4], None, "tensorrt-rtx", "'tensorrt' is needed to run the tensorrt backend, and it is not installed"),
        ([], "11.4.0", "tensorrt-rtx", "no GPU can be used here (there is no cuda:0"),
        ([], None, "tensorrt-rtx", "for ampere, ada, blackwell"),
    ],
)
def test_the_library_is_the_one_that_fits_the_gpu(gpus: Put, found, tensorrt, taken, said) -> None:
    gpus(*found, tensorrt=tensorrt)
    chosen = choose_engine()
    assert chosen.backend.name == taken
    assert said in chosen.reason and "\n" not in chosen.reason
    assert chosen.device == (Device("cuda") if found else None)


def test_an_h100_never_gets_rtx(gpus: Put, bundle: Bundle) -> None:
    gpus(H100)
    with pytest.raises(
        IncompatibleError, match=r"sm90\); .*'tensorrt' is needed.*does not run on NVIDIA H100"
    ) as caught:
        choose_engine()
    assert caught.value.exit_code == 5
    assert "pip install 'vggdeploy[gpu]'" in caught.value.hint and "--target ampere,ada" in caught.value.hint
    with pytest.raises(UsageError, match="does not support 'sm90'"):
        make_request(bundle, BuildPlan("tensorrt-rtx", device=Device("cuda")))
    assert choose_engine(targets=["ada"]).backend.name == "tensorrt-rtx"  # for another machine


@pytest.mark.parametrize("driver", [True, False])
def test_a_gpu_that_cannot_be_asked_for_is_not_taken_for_none(monkeypatch, driver: bool) -> None:
    """On an H100 with a driver and no cuda-bindings, an engine for other GPUs would be built."""

    def find(device: Device) -> Gpu:
        raise MissingDependencyError("the Python package 'cuda.bindings.runtime' is needed", "pip install it")

    def check() -> None:
        if not driver:
            raise IncompatibleError("there is no NVIDIA driver here", "install it")

    monkeypatch.setattr(choice, "find_gpu", find)
    monkeypatch.setattr(choice, "check_driver", check)
    if driver:
        with pytest.raises(MissingDependencyError, match=r"cuda\.bindings"):
            choose_engine()
    else:
        assert choose_engine().backend.name == "tensorrt-rtx"


def test_each_gpu_of_a_machine_is_built_for(gpus: Put, bundle: Bundle) -> None:
    gpus(H100, L4)
    assert choose_engine(Device("cuda", 1)).backend.name == "tensorrt-rtx"
    built = build_into(bundle, BuildPlan("tensorrt-rtx", device=Device("cuda", 1)))
    assert built.variant.build.targets == ("sm89",)
    assert built.variant.proof.engine == {"fp16": 11}  # looked at on that GPU, not on the first
    gpus(H100, L4, tensorrt="10.13.3.9")
    asked = make_request(bundle, BuildPlan("tensorrt", device=Device("cuda", 1)))
    assert (asked.gpu, asked.targets, asked.device) == (L4, ("sm89",), Device("cuda", 1))
    assert make_request(bundle, BuildPlan("tensorrt")).gpu == H100


@pytest.mark.parametrize(
    ("device", "targets", "error", "cause"),
    [
        (Device("cpu"), None, UsageError, "cannot be built for cpu"),
        (Device("cuda+rtx"), None, UsageError, "cannot be built for cuda"),
        (Device("cuda", 7), None, IncompatibleError, "there is no cuda:7"),
    ],
)
def test_a_device_that_is_no_gpu_of_this_machine_is_refused(gpus: Put, bundle, device, targets, error, cause) -> None:
    gpus(L4)
    with pytest.raises(error, match=cause):
        choose_engine(device)
    with pytest.raises(error, match=cause):
        make_request(bundle, BuildPlan("tensorrt-rtx", device=device))


def test_target_and_device_together_are_refused(gpus: Put, bundle: Bundle) -> None:
    gpus(L4)
    with pytest.raises(UsageError, match="both say which GPUs"):
        make_request(bundle, BuildPlan("tensorrt-rtx", targets=["ada"], device=Device("cuda")))


# The command


def test_build_says_what_it_took_and_why_and_json_stays_alone(gpus: Put, bundle: Bundle, capsys) -> None:
    gpus(L4)
    assert run(["build", str(bundle.root), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["variant"]["name"] == "tensorrt-rtx-fp16-sm89"
    assert "engine: TensorRT for RTX, since cuda:0 is NVIDIA L4 (sm89); " in shown.err
    assert run(["build", str(bundle.root), "--engine", "tensorrt-rtx", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["variant"]["name"] == "tensorrt-rtx-fp16"
    assert "since" not in shown.err


def test_without_a_gpu_the_default_targets_are_built(gpus: Put, bundle: Bundle, capsys) -> None:
    gpus(tensorrt="11.4.0")
    assert run(["build", str(bundle.root), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["variant"]["name"] == "tensorrt-rtx-fp16"
    assert "since no GPU can be used here" in shown.err


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (["--device", "cuda:3"], 5, "there is no cuda:3"),
        (["--device", "cpu"], 2, "cannot be built for cpu"),
        (["--device", "tpu"], 2, "the device 'tpu' is unknown"),
        (["--device", "cuda", "--target", "ada"], 2, "both say which GPUs"),
        (["--engine", "tensorrt-rtx", "--device", "cuda"], 2, "does not support 'sm90'"),
        ([], 5, "nothing here builds an engine for this GPU"),
    ],
)
def test_what_cannot_be_built_is_two_lines_and_changes_nothing(gpus: Put, bundle, capsys, options, code, cause) -> None:
    gpus(H100)
    before = (bundle.root / "manifest.json").read_bytes()
    assert run(["build", str(bundle.root), *options]) == code
    shown = capsys.readouterr().err
    assert cause in shown and len(shown.strip().splitlines()) == 2
    assert (bundle.root / "manifest.json").read_bytes() == before
