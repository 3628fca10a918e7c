"""What an application sets in PyTorch neither breaks nor blurs the reference, and stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from vggdeploy.doctor.doctor import torch_logits
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.exact import exact_fp32

BACKENDS = torch.backends


def precisions() -> tuple[str, ...]:
    kinds = (
        BACKENDS.cudnn.conv,
        BACKENDS.cudnn.rnn,
        BACKENDS.cuda.matmul,
        BACKENDS.mkldnn.conv,
        BACKENDS.mkldnn.matmul,
    )
    return tuple(kind.fp32_precision for kind in kinds)


def said_by_older_settings() -> tuple[bool | None, str]:
    """None where PyTorch refuses to say, since the newer settings differ."""
    try:
        return BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        return None, ""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for kind in (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul):
        kind.fp32_precision = "none"
    for kind in (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn):
        kind.fp32_precision = "tf32"


HOSTS = {
    "nothing": lambda: None,
    "everything in FP32": lambda: setattr(BACKENDS, "fp32_precision", "ieee"),
    "everything in TF32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "products in less": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32, in the old words": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
}


@pytest.mark.parametrize("host", HOSTS)
def test_whatever_the_application_allows_fp32_is_fp32_and_its_settings_stay(host: str) -> None:
    HOSTS[host]()
    before, cudnn = precisions(), BACKENDS.cudnn.enabled
    older = said_by_older_settings()
    with exact_fp32(torch):
        assert set(precisions()) == {"ieee"}
        assert said_by_older_settings() == (False, "highest")
        assert BACKENDS.cudnn.enabled == cudnn
        with exact_fp32(torch):
            assert set(precisions()) == {"ieee"}
        assert set(precisions()) == {"ieee"}
    assert precisions() == before
    assert older[0] is None or said_by_older_settings() == older
    wanted = tiny.reference(tiny.images(3), tiny.weights())
    assert abs(torch_logits(torch, tiny.images(3), tiny.weights(), "cpu") - wanted).max() < 2e-5
    assert precisions() == before


def test_cudnn_is_not_switched_off_as_pytorch_s_own_block_does_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS.cudnn, "enabled", True)
    seen = []
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x: seen.append(BACKENDS.cudnn.enabled) or x)
    with exact_fp32(torch):
        torch.nn.functional.relu(torch.zeros(1))
    assert seen == [True] and BACKENDS.cudnn.enabled


def test_calls_that_overlap_stay_exact_until_the_last_and_then_give_back() -> None:
    BACKENDS.fp32_precision = "tf32"
    before = precisions()
    inside, leave = threading.Barrier(2), threading.Event()

    def other() -> None:
        with exact_fp32(torch):
            inside.wait()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with exact_fp32(torch):
        pass
    assert set(precisions()) == {"ieee"}  # the other call still computes
    leave.set()
    thread.join()
    assert precisions() == before
