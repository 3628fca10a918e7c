"""TF32 in PyTorch is a precision of its own: asked for by name, on a GPU that has it, and never beside work that is exact."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vggdeploy
from vggdeploy.bundle import Bundle
from vggdeploy.cli.app import run
from vggdeploy.engine.selection import choices
from vggdeploy.errors import IncompatibleError
from vggdeploy.records import CEILINGS
from vggdeploy.runtime.exact import exact_fp32, fp32_in_tf32
from vggdeploy.runtime.torch import probe, run_module
from vggdeploy.types import Device, Precision, TensorSpec, Verdict

KINDS = (
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.matmul,
)
EXACT = ("ieee",) * 5
TF32 = ("tf32", "tf32", "tf32", "ieee", "ieee")  # a GPU's convolutions and products, and nothing of the CPU's


def precisions() -> tuple[str, ...]:
    return tuple(kind.fp32_precision for kind in KINDS)


@pytest.fixture(autouse=True)
def _stays_as_it_was() -> Iterator[None]:
    before = precisions()
    yield
    assert precisions() == before


def ask(precision: Precision) -> tuple[str, ...]:
    """What a session of that precision sets while its network computes."""
    seen: list[tuple[str, ...]] = []

    def network(image: torch.Tensor) -> torch.Tensor:
        seen.append(precisions())
        return image

    spec = (TensorSpec("image", "float32", ("N", 1)),)
    source: Any = SimpleNamespace(inputs=spec, outputs=spec, device=Device("cpu"), precision=precision)
    run_module(network, {"image": np.ones((1, 1), np.float32)}, source)
    return seen[0]


def test_only_a_session_of_that_precision_allows_it() -> None:
    assert ask(Precision.TF32) == TF32
    assert ask(Precision.FP32) == EXACT


def test_work_that_is_exact_keeps_tf32_waiting_and_the_other_way_round() -> None:
    """The attack: both kinds of engine in one process, whose settings are one for all threads."""
    for first, second, inside in ((exact_fp32, fp32_in_tf32, EXACT), (fp32_in_tf32, exact_fp32, TF32)):
        entered = threading.Event()

        def other(second: Any = second, entered: threading.Event = entered) -> None:
            with second(torch):
                entered.set()

        thread = threading.Thread(target=other)
        with first(torch):
            thread.start()
            assert not entered.wait(0.2)
            assert precisions() == inside
        assert entered.wait(30)
        thread.join()


def test_many_threads_of_both_kinds_each_see_their_own() -> None:
    def one(number: int) -> bool:
        precise = random.Random(number).choice((Precision.TF32, Precision.FP32))
        return ask(precise) == (TF32 if precise is Precision.TF32 else EXACT)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(400)))


def test_what_fails_inside_gives_the_settings_back() -> None:
    with pytest.raises(ZeroDivisionError), fp32_in_tf32(torch):
        raise ZeroDivisionError
    assert ask(Precision.FP32) == EXACT


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_has_it_from_ampere_on_and_a_cpu_never(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert (Precision.TF32 not in probe(Device("cuda")).lacks) == has
    assert Precision.TF32 in probe(Device("cpu")).lacks


def test_it_is_judged_as_fp16_is() -> None:
    assert CEILINGS[Precision.TF32] == CEILINGS[Precision.FP16]


@pytest.fixture
def with_tf32(own_bundle: Path) -> Path:
    assert run(["optimize", str(own_bundle), "--step", "torch-tf32", "--samples", "20"]) == 0
    return own_bundle


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: the next test is for it")
def test_without_a_gpu_it_is_unproven_and_nothing_takes_it(with_tf32: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = Bundle.open(with_tf32).manifest.variant("torch-tf32")
    assert (variant.verdict, variant.precision, variant.path) == (Verdict.UNPROVEN, Precision.TF32, "checkpoint")
    assert "torch-tf32" not in [c.variant.name for c in choices(Bundle.open(with_tf32)) if c.usable]
    with pytest.raises(IncompatibleError, match="no tf32 arithmetic on this cpu") as refused:
        vggdeploy.load(with_tf32, variant="torch-tf32")
    assert "--device cuda" in refused.value.hint
    capsys.readouterr()
    assert run(["verify", str(with_tf32), "--data", "golden"]) == 0  # what cannot run here fails nothing here
    assert "torch-tf32" in capsys.readouterr().out


@pytest.mark.gpu
def test_on_a_gpu_it_is_proven_and_is_not_fp32(own_bundle: Path) -> None:
    if not torch.cuda.is_available() or Precision.TF32 in probe(Device("cuda")).lacks:
        pytest.skip("no GPU with TF32 is here")
    assert run(["optimize", str(own_bundle), "--step", "torch-tf32", "--samples", "400"]) == 0
    record = Bundle.open(own_bundle).manifest.variant("torch-tf32").parity
    assert record is not None and record.device == "cuda"
    assert record.verdict is Verdict.PASS
    assert record.outputs[0].relative_l2 > CEILINGS[Precision.FP32].relative_l2
