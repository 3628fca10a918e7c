"""A file of weights from somewhere is read as data, or refused in one line. Nothing in it runs."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from foreign_nets import textbook_net, torchvision_net
from torch import Tensor, nn

from vggdeploy.errors import CheckpointError
from vggdeploy.model.foreign.files import read_state_file
from vggdeploy.system.files import sha256_of

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([1.0, -1.0])}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_state_file(path)
    assert type(caught.value) is CheckpointError
    assert "\n" not in str(caught.value)
    assert str(path) in caught.value.cause
    assert caught.value.hint
    return caught.value


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w"])
def test_what_torch_saved_comes_back_under_any_name(tmp_path: Path, name: str, legacy: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    file = read_state_file(tmp_path / name)
    assert same(file.tensors)
    assert (file.unused, file.notes, file.sha256) == ((), (), sha256_of(tmp_path / name))


def test_safetensors_come_back_under_any_name(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        safetensors.torch.save_file(STATE, tmp_path / name)
        assert same(dict(sorted(read_state_file(tmp_path / name).tensors.items(), reverse=True)))


def test_tensors_are_mapped_from_the_file_not_read(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1000, 1000)}, tmp_path / "w.pth")
    read_state_file(tmp_path / "w.pth")
    before = resident()
    torch.save({"0.weight": torch.zeros(8000, 8000)}, tmp_path / "w.pth")
    file = read_state_file(tmp_path / "w.pth")
    assert file.tensors["0.weight"].nbytes == 256_000_000
    assert resident() - before < 64_000_000


def resident() -> int:
    """Bytes of this process that are in memory and are not a file's pages."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("wrapped", "note", "unused"),
    [
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}}, "state_dict", ("epoch", "optimizer")),
        ({"model": STATE}, "model", ()),
        ({"arch": "vgg", "net": OrderedDict(STATE)}, "net", ("arch",)),
        ({"whatever": STATE}, "whatever", ()),
        ({"model": {"state_dict": STATE, "step": 1}, "ema": 0.9}, "model.state_dict", ("ema",)),
        ({"model_ema": STATE, "model": STATE}, "model", ("model_ema",)),
        ({"best": torch.tensor(0.9), "model": STATE}, "model", ("best",)),
    ],
)  # fmt: skip
def test_the_usual_wrappings_are_opened_and_the_rest_is_named(
    tmp_path: Path, wrapped: dict[str, Any], note: str, unused: tuple[str, ...]
) -> None:
    torch.save(wrapped, tmp_path / "w.pth")
    file = read_state_file(tmp_path / "w.pth")
    assert same(file.tensors)
    assert file.notes == (f"read from '{note}' in the file",)
    assert file.unused == unused


def test_what_stands_between_the_tensors_is_named(tmp_path: Path) -> None:
    torch.save({**STATE, "epoch": 7}, tmp_path / "w.pth")
    assert read_state_file(tmp_path / "w.pth").unused == ("epoch",)


def test_parameters_are_tensors_like_any(tmp_path: Path) -> None:
    torch.save({k: nn.Parameter(v) for k, v in STATE.items()}, tmp_path / "w.pth")
    file = read_state_file(tmp_path / "w.pth")
    assert same(file.tensors)
    assert not any(t.requires_grad for t in file.tensors.values())


# Files that want to run something.


@pytest.mark.parametrize("force", ["", "1"])
@pytest.mark.parametrize("inside", ["alone", "beside", "key", "nested"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, inside: str, force: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)  # this must not open the door either
    evil = Evil(tmp_path / "ran")
    content = {
        "alone": evil,
        "beside": {**STATE, "x": evil},
        "key": {evil: 1},
        "nested": {"state_dict": STATE, "o": [evil]},
    }
    torch.save(content[inside], tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    cause = refused(tmp_path / "w.pth").cause
    assert "asks to run posix.system, and was refused" in cause
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_bare_pickle_is_not_even_opened(tmp_path: Path, protocol: int, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol))
    refused(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_with_torchs_magic_number_in_front_is_refused(tmp_path: Path) -> None:
    """The unpickler must be the safe one from the first byte on."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    (tmp_path / "w.pth").write_bytes(magic + pickle.dumps(Evil(tmp_path / "ran"), 2))
    refused(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_torchs_tar_format_of_2016_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.pth", "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Evil(tmp_path / "ran"), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refused(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    torch.save(torchvision_net(), tmp_path / "w.pth")
    error = refused(tmp_path / "w.pth")
    assert "torchvision.models.vgg.VGG" in error.cause
    assert "torch.save(model.state_dict(), FILE)" in error.hint


# Files that claim more than they hold.


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """4 MB that would become 100 MB: torch.save stores, it never compresses."""
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
        archive.writestr("archive/version", b"3\n")
    assert "is compressed" in refused(tmp_path / "w.pth").cause


def test_a_giant_pickle_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(65 * 2**20))
        archive.writestr("archive/version", b"3\n")
    assert "holds a pickle of more than" in refused(tmp_path / "w.pth").cause


def test_a_tensor_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1).expand(2_000_000, 1_000_000)}, tmp_path / "w.pth")
    assert "claims 8,000,000,000,000 bytes of weights" in refused(tmp_path / "w.pth").cause


def test_a_legacy_file_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(4096)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "w.pth").read_bytes()
    assert data.count(b"M\x00\x10") == 2  # pickle's two-byte 4096: the storage's size, the tensor's
    (tmp_path / "w.pth").write_bytes(data.replace(b"M\x00\x10", b"\x8a\x06\x00\x00\x00\x00\x00\x08"))
    refused(tmp_path / "w.pth")


def test_tensors_without_plain_numbers_are_refused(tmp_path: Path) -> None:
    for odd in (
        torch.zeros(2, 3, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ):
        torch.save({"0.weight": odd}, tmp_path / "w.pth")
        assert "is not a plain tensor" in refused(tmp_path / "w.pth").cause


# Files that are something else, or damaged.


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
        (b"features.0.weight 1 2 3", "is not a file of weights"),
        (bytes(4096), "is not a file of weights"),
        (b"PK", "is damaged"),
        (b"PK\x03\x04" + bytes(100), "is damaged"),
        (b"\xff" * 8 + b"{}", "is damaged"),
        ((2**40).to_bytes(8, "little") + b'{"a":', "is damaged"),
    ],
    ids=["empty", "web", "lfs", "keras", "text", "zeros", "zip", "zip-zeros", "safetensors", "safetensors-length"],
)
def test_what_is_no_file_of_weights_is_told_by_its_bytes(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert cause in refused(tmp_path / "w.pth").cause


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({}, "holds no state dict: nothing"),
        ({"epoch": 3, "loss": 0.5}, "holds no state dict: epoch, loss"),
        ({"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}, "holds no state dict: optimizer"),
    ],
    ids=["list", "tensor", "empty", "numbers", "optimizer"],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, content: object, cause: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert cause in refused(tmp_path / "w.pth").cause


def test_a_zip_of_anything_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("vgg16.pth", b"inside")
    assert "is a zip archive that torch.save did not write" in refused(tmp_path / "w.zip").cause


def test_a_torchscript_file_is_called_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated since 2.14; its files are still around
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "is a TorchScript program" in refused(tmp_path / "w.pt").cause


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "null"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pth"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "null":
        path = Path("/dev/null")
    assert "cannot be read" in refused(path).cause


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small network in the three containers."""
    root, state = tmp_path_factory.mktemp("good"), textbook_net().state_dict()
    torch.save(state, root / "zip")
    torch.save(state, root / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, root / "safetensors")
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_cut_file_is_refused_wherever_it_was_cut(good: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    data = good[kind]
    for end in {1, 2, 9, 60, 1000, len(data) // 2, len(data) - 100, len(data) - 1}:
        (tmp_path / "w").write_bytes(data[:end])
        refused(tmp_path / "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(good: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    chance, data = random.Random(0), good[kind]
    structure = [*range(min(6000, len(data))), *range(max(0, len(data) - 3000), len(data))]
    refusals = 0
    for _ in range(150):
        copy = bytearray(data)
        for at in chance.sample(structure, chance.choice((1, 1, 4))):
            copy[at] = chance.randrange(256)
        (tmp_path / "w").write_bytes(copy)
        try:
            read_state_file(tmp_path / "w")
        except CheckpointError as error:
            refusals += 1
            assert "\n" not in str(error)
            assert error.hint
    assert refusals > 10
