"""The header of a safetensors file says where every number lies, and all of it is checked before the file is mapped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint
from vggdeploy.errors import CheckpointError
from vggdeploy.model.formats.safetensors import check_safetensors
from vggdeploy.model.vgg import new_vgg
from vggdeploy.model.weights import load_model, save_checkpoint
from vggdeploy.spec import ModelSpec, PreprocessSpec
from vggdeploy.system.files import sha256_of

SPEC = ModelSpec.named("vgg11_bn", width=0.125, image_size=32, classes=4, hidden=16)
STATE = {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3), "n": torch.tensor(7)}


@pytest.fixture(scope="module")
def honest() -> bytes:
    return safetensors.torch.save(STATE, {"format": "pt"})


def check(data: bytes) -> None:
    check_safetensors(memoryview(data))


def test_what_the_library_writes_is_admitted(honest: bytes) -> None:
    assert set(check_safetensors(memoryview(honest))) == set(STATE)


def rewritten(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "numbers before the first": lambda h: h["n"].update(data_offsets=[-8, 0]),
    "numbers behind the last": lambda h: h["n"].update(data_offsets=[8, 2**40]),
    "numbers in each other": lambda h: h["a.bias"].update(data_offsets=h["n"]["data_offsets"]),
    "a gap": lambda h: h.pop("a.bias"),
    "a shape of more": lambda h: h["a.weight"].update(shape=[3, 2**20]),
    "a negative side": lambda h: h["a.weight"].update(shape=[-3, -2]),
    "a type that is none": lambda h: h["a.weight"].update(dtype="F128"),
    "an unknown field": lambda h: h["a.weight"].update(secret=1),
    "a missing field": lambda h: h["a.weight"].pop("shape"),
    "no object": lambda h: h.update(x=3),
    "a side of 10¹⁰⁰": lambda h: h["a.weight"].update(shape=[10**100]),
    "a thousand sides": lambda h: h["a.weight"].update(shape=[1] * 1000),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_its_numbers_is_refused(name: str, honest: bytes) -> None:
    with pytest.raises(ValueError, match=r"numbers|header|bytes"):
        check(rewritten(honest, HEADERS[name]))


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"a":1,"a":2}', b'{"x":' * 50_000, b"\xff\xfe", b"nan", b"9" * 10_000],
    ids=["empty", "list", "open", "deep", "twice", "deeper", "no text", "no object", "a number"],
)
def test_a_header_that_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|name|JSON|line|decode|digits"):
        check(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_is_not_the_header_s_is_refused(length: int, honest: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        check(length.to_bytes(8, "little") + honest[8:])


def test_bytes_behind_the_last_tensor_are_refused_by_load(tmp_path: Path) -> None:
    about = Checkpoint(spec=SPEC, preprocess=PreprocessSpec(resize=32, crop=32), labels=())
    save_checkpoint(tmp_path / "ckpt", new_vgg(SPEC), about)
    load_model(tmp_path / "ckpt")
    with (tmp_path / "ckpt" / WEIGHTS_NAME).open("ab") as file:
        file.write(b"payload")
    record = json.loads((tmp_path / "ckpt" / CHECKPOINT_NAME).read_bytes())
    record["weights_sha256"] = sha256_of(tmp_path / "ckpt" / WEIGHTS_NAME)
    (tmp_path / "ckpt" / CHECKPOINT_NAME).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="belong to no tensor"):
        load_model(tmp_path / "ckpt")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_admitted_the_library_reads(honest: bytes, data: st.DataObject) -> None:
    damaged = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        check(bytes(damaged))
    except ValueError:
        return
    safetensors.torch.load(bytes(damaged))
