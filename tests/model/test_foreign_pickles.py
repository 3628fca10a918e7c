"""Pickles that describe too much, or something else than tensors, are refused at once and in one line."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vggdeploy.errors import CheckpointError
from vggdeploy.model.foreign.files import read_state_file
from vggdeploy.model.foreign.pickled import MAX_STEPS, read_pickle

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([1.0, -1.0])}
END = b"."
TWO = b"\x80\x02"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def archive(path: Path, pickled: bytes, *, storage: bytes = bytes(24)) -> Path:
    """A zip archive as torch.save writes it, around any pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/data/0", storage)
    return path


def cause(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_state_file(path)
    assert str(path) in caught.value.cause
    assert "\n" not in str(caught.value)
    return caught.value.cause


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


NESTED = {
    "lists": b"]" * 1_000_000 + b"a" * 999_999,
    "lists by marks": b"(" * 1_000_000 + b"l" * 1_000_000,
    "tuples": b")" + b"\x85" * 1_000_000,
    "tuples of themselves": b")" + b"q\0h\0\x86" * 1_000_000,
    "dictionaries": b"}" + (text("a") + b"}") * 1_000_000 + b"s" * 1_000_000,
    "numbers": b"(" + b"K\0" * 1_000_000 + b"t",
}


@pytest.mark.parametrize("kind", NESTED)
def test_a_million_nested_things_are_refused(tmp_path: Path, kind: str) -> None:
    told = cause(archive(tmp_path / "w.pth", TWO + NESTED[kind] + END))
    assert f"more than {MAX_STEPS:,} instructions" in told or "the instruction LIST" in told


@pytest.mark.parametrize("kind", NESTED)
def test_the_most_that_is_read_ends_well(kind: str) -> None:
    """Just below the bound nothing recurses, neither while it is read nor when it is forgotten."""
    unit = MAX_STEPS // 4
    most = {
        "lists": b"]" * unit + b"a" * (unit - 1),
        "tuples": b")" + b"\x85" * (3 * unit),
        "tuples of themselves": b")" + b"q\0h\0\x86" * unit,
        "dictionaries": b"}" + (text("a") + b"}") * unit + b"s" * unit,
        "numbers": b"(" + b"K\0" * (3 * unit) + b"t",
    }
    if kind in most:
        read_pickle(io.BytesIO(TWO + most[kind] + END))


def test_a_key_whose_hash_would_take_for_ever_is_refused(tmp_path: Path) -> None:
    doubled = b")" + b"q\0h\0\x86" * 64  # 2⁶⁴ leaves in 64 pairs
    told = cause(archive(tmp_path / "w.pth", TWO + b"}" + doubled + b"K\1s" + END))
    assert "holds a tuple as a key" in told


def test_one_dictionary_under_many_names_is_not_searched_for_ever(tmp_path: Path) -> None:
    def many(inner: bytes, slot: int) -> bytes:
        again = b"".join(text(f"k{n}") + b"h" + bytes([slot]) for n in range(2000))
        return b"}(" + text("first") + inner + b"q" + bytes([slot]) + again + b"u"

    pickled = TWO + many(many(b"}" + text("a") + b"K\1s", 1), 2) + END
    assert "holds more than 100,000 entries" in cause(archive(tmp_path / "w.pth", pickled))


CALLS = {
    "memory": (b"ctorch\nFloatStorage\n\x8a\x06\0\0\0\0\0\x08\x85R", "torch.FloatStorage"),
    "an array": (b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x08\x85R", "builtins.bytearray"),
    "a tensor": (b"ctorch\nTensor\n\x8a\x06\0\0\0\0\0\x08\x85R", "torch.Tensor"),
    "a new object": (b"ctorch.nn.parameter\nParameter\n)\x81", "torch.nn.parameter.Parameter"),
    "code": (b"cos\nsystem\n" + text("true") + b"\x85R", "os.system"),
    "an encoder": (b"c_codecs\nencode\n" + text("x") + b"\x85R", "_codecs.encode"),
    "attributes": (REBUILD.replace(b"tensor_v2", b"from_type_v2") + b")R", "torch._utils._rebuild_from_type_v2"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_what_torch_would_call_is_refused_here(tmp_path: Path, kind: str) -> None:
    pickled, name = CALLS[kind]
    assert name in cause(archive(tmp_path / "w.pth", TWO + b"}" + text("x") + pickled + b"s" + END))


def tensor(offset: bytes, size: bytes, stride: bytes) -> bytes:
    made = REBUILD + b"(" + STORAGE + offset + size + stride + b"\x89}tR"
    return TWO + b"}" + text("0.weight") + made + b"s" + END


def test_the_handmade_tensor_is_read(tmp_path: Path) -> None:
    numbers = torch.arange(6.0).numpy().tobytes()
    path = archive(tmp_path / "w.pth", tensor(b"K\1", b"K\2K\2\x86", b"K\1K\2\x86"), storage=numbers)
    found = read_state_file(path).tensors["0.weight"]
    assert found.tolist() == [[1.0, 3.0], [2.0, 4.0]]


VIEWS = {
    "beyond the end": (b"K\1", b"K\x06\x85", b"K\1\x85"),
    "before the start": (b"J\xff\xff\xff\xff", b"K\1\x85", b"K\1\x85"),
    "a stride too far": (b"K\0", b"K\2\x85", b"K\x06\x85"),
    "a stride backwards": (b"K\1", b"K\2\x85", b"J\xff\xff\xff\xff\x85"),
    "more sizes than strides": (b"K\0", b"K\2K\2\x86", b"K\1\x85"),
    "a size that is a text": (b"K\0", text("2") + b"\x85", b"K\1\x85"),
    "a thousand dimensions": (b"K\0", b"(" + b"K\1" * 1000 + b"t", b"(" + b"K\1" * 1000 + b"t"),
    "a number of 255 bytes": (b"K\0", b"\x8a\xff" + b"\x7f" * 255 + b"\x85", b"K\0\x85"),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, kind: str) -> None:
    told = cause(archive(tmp_path / "w.pth", tensor(*VIEWS[kind])))
    assert "is damaged" in told or "claims" in told


def test_numbers_that_are_not_in_the_file_are_missed(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pth", tensor(b"K\0", b"K\6\x85", b"K\1\x85"), storage=bytes(20))
    assert "the numbers of a tensor are missing" in cause(path)


def test_an_attribute_cannot_stand_in_for_a_method(tmp_path: Path) -> None:
    ordered = b"ccollections\nOrderedDict\n)R}" + text("items") + b"K\1sb"
    assert "a dictionary with attributes" in cause(archive(tmp_path / "w.pth", TWO + ordered + END))


def test_two_pickles_in_one_archive_are_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as file:
        file.writestr("other/data.pkl", TWO + b"}" + END)
    assert "torch.save did not write" in cause(tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_training_state_is_read(tmp_path: Path, legacy: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.zeros(2, 3, 8, 8)).sum().backward()
    sgd.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [30, 60])
    whole = {
        "model": net.state_dict(),
        "optimizer": sgd.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 1,
    }
    torch.save(whole, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found = read_state_file(tmp_path / "w.pth")
    assert all(torch.equal(found.tensors[name], value) for name, value in net.state_dict().items())
    assert found.unused == ("optimizer", "lr_scheduler", "epoch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_plain_type_and_view_comes_back(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    base = torch.arange(24).reshape(4, 6).to(dtype)
    state = {"a.weight": base.T, "b.weight": base[1:3, ::2], "c": torch.tensor(1).to(dtype), "d": base[:0], "e": base}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    # Views share one storage: without padding the file would be smaller than all of them together.
    found = read_state_file(tmp_path / "w.pth").tensors
    assert all(torch.equal(found[name], value) and found[name].dtype == dtype for name, value in state.items())


def test_the_instructions_that_are_read_are_those_of_pickletools() -> None:
    from vggdeploy.model.foreign import pickled

    known = {code.name for code in pickletools.opcodes}
    assert {*pickled._VALUES, *pickled._CONSTANTS, *pickled._NEW, *pickled._TUPLES} <= known
