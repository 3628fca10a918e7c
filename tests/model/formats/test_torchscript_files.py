"""`torch.jit.load` runs code of the archive that it opens: what is not a traced VGG never gets there."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CASES, SMALL

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.errors import BundleError, VggdeployError
from vggdeploy.model.formats.objects import parameters
from vggdeploy.model.formats.torchscript import check_torchscript
from vggdeploy.runtime import open_session


def check(data: bytes, case=SMALL) -> None:
    check_torchscript(memoryview(data), case.chain, "the file")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return SMALL.torchscript(tmp_path_factory.mktemp("honest") / "model.pt")


@pytest.mark.parametrize("name", CASES)
def test_what_the_exporter_writes_is_admitted(name: str, tmp_path: Path) -> None:
    data = CASES[name].torchscript(tmp_path / "model.pt")
    check(data, CASES[name])
    assert parameters(memoryview(data), "the file")["features.0.0.weight" if "low" in name else "features.0.weight"]


def test_what_pytorch_itself_loads_and_saves_again_is_admitted(honest: bytes) -> None:
    again = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.load(io.BytesIO(honest)), again)
    check(again.getvalue())


def test_a_file_of_another_network_is_refused(honest: bytes) -> None:
    for name in ("vgg11", "a mean pool", "no classes", "low ranks", "before a ReLU"):
        with pytest.raises(BundleError, match="not what vggdeploy writes of this network"):
            check(honest, CASES[name])


# The attack: code that runs while the file is opened.


class Planted(torch.nn.Module):
    """Writes ``path`` when it is loaded: `aten::from_file` with ``shared`` makes the file and maps it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (image.float(),)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = bool(torch.from_file(self.path, True, 16, dtype=torch.uint8).fill_(120).sum() < 0)


def planted(target: Path) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Planted(str(target))), data)
    return data.getvalue()


def test_the_attack_works_on_pytorch_itself(tmp_path: Path) -> None:
    """Else the next test would prove nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(io.BytesIO(planted(tmp_path / "written")))
    assert (tmp_path / "written").read_bytes() == b"x" * 16


@pytest.mark.parametrize("command", ["predict", "verify", "inspect", "bench", "load", "embed"])
def test_code_of_an_archive_is_not_run_by_any_verb(
    command: str, own_bundle: Path, digit_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(own_bundle)
    variant = bundle.manifest.variant("torchscript-fp32")
    with update_bundle(bundle) as draft:
        draft.write(variant.path, planted(tmp_path / "written"))
    chosen = ["--variant", variant.name]
    arguments = {
        "predict": [str(digit_png), *chosen],
        "verify": [*chosen, "--data", "golden"],
        "inspect": [],
        "bench": [*chosen, "--seconds", "0.01", "--rounds", "3"],
        "embed": [str(digit_png.parent), *chosen, "-o", str(tmp_path / "vectors")],
    }
    if command == "load":
        with (
            pytest.raises(BundleError, match="not what vggdeploy writes"),
            open_session(Bundle.open(own_bundle), variant),
        ):
            pass
    else:
        assert run([command, str(own_bundle), *arguments[command]]) != 0
        shown = capsys.readouterr()
        assert "bug" not in shown.err
    assert not (tmp_path / "written").exists()


# Edits of an honest archive.


def rezipped(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The archive with every entry changed (None: left out), written as PyTorch writes: one behind the other."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            content = change(info.filename.partition("/")[2], old.read(info))
            if content is not None:
                fresh = zipfile.ZipInfo(info.filename)
                fresh.compress_type, fresh.create_system = zipfile.ZIP_STORED, 0
                new.writestr(fresh, content)
    return made.getvalue()


def edited(data: bytes, find: str, put: str) -> bytes:
    """Another text in the code, wherever ``find`` stands."""
    hits = 0

    def change(name: str, content: bytes) -> bytes:
        nonlocal hits
        if not name.endswith(".py"):
            return content
        hits += find in content.decode()
        return content.replace(find.encode(), put.encode())

    made = rezipped(data, change)
    assert hits, f"{find} stands nowhere"
    return made


def test_an_archive_that_is_only_packed_anew_is_admitted(honest: bytes) -> None:
    check(rezipped(honest, lambda name, content: content))


RELU = "return torch.relu_(argument_1)"
CODE = {
    "a file written": (RELU, "return torch.from_file(argument_1, True, 16)"),
    "a loop without end": (RELU, "while True:\n      pass\n    return torch.relu_(argument_1)"),
    "a branch": (RELU, "if True:\n      pass\n    return torch.relu_(argument_1)"),
    "an operator of another name": (RELU, "return ops.aten.relu(argument_1)"),
    "an operator by a string": (RELU, 'return getattr(torch, "load")(argument_1)'),
    "memory without end": (RELU, "return torch.repeat(argument_1, [99999, 99999, 1, 1])"),
    "a lambda": (RELU, "return (lambda x: x)(argument_1)"),
    "a comprehension": (RELU, "return [argument_1 for x in argument_1][0]"),
    "an attribute that is not there": (RELU, "return torch.relu_(self.weight)"),
    "an attribute's attribute": (RELU, "return torch.relu_(argument_1.data)"),
    "a keyword": (RELU, "return torch.relu_(argument_1, out=argument_1)"),
    "nothing returned": (RELU, "x = torch.relu_(argument_1)"),
    "a second ReLU": (RELU, "return torch.sigmoid(torch.relu_(argument_1))"),
    "a call of itself": (RELU, "return (self).forward(argument_1, )"),
    "a name of PyTorch's": (RELU, "torch = argument_1\n    return torch.relu_(argument_1)"),
    "a second method": (RELU, RELU + "\n  def __setstate__(self, x: Tensor) -> Tensor:\n    return x"),
    "a statement of the class": ("  training : bool", "  training : bool\n  print(1)"),
    "a comment": (RELU, RELU + " # type: ignore"),
    "an escape": (', "0")', ', "\\x30")'),
    "a number in another notation": ("[2, 2], [2, 2], [0, 0]", "[0x2, 2], [2, 2], [0, 0]"),
    "a number with a line in it": ("[2, 2], [2, 2], [0, 0]", "[0_2, 2], [2, 2], [0, 0]"),
    "two texts in a row": (', "0")', ', "" "0")'),
    "a text with a prefix": (', "0")', ', b"0")'),
    "a larger pool": ("[2, 2], [2, 2], [0, 0]", "[9, 9], [2, 2], [0, 0]"),
    "other pads": ("[1, 1], [1, 1], [1, 1], False", "[1, 1], [9, 9], [1, 1], False"),
    "a transposed convolution": ("[1, 1], [1, 1], [1, 1], False", "[1, 1], [1, 1], [1, 1], True"),
    "True for 1": ("torch.flatten(argument_1, 1)", "torch.flatten(argument_1, True)"),
    "dropout that is on": ("0.5, False", "0.5, True"),
    "a field of another type": ("bias : Tensor", "bias : Tuple[Tensor]"),
    "fields in another order": ("weight : Tensor\n  bias : Tensor", "bias : Tensor\n  weight : Tensor"),
    "an own constant": ("[2, 2], [2, 2], [0, 0]", "CONSTANTS.c0, [2, 2], [0, 0]"),
    "brackets without end": (RELU, "return " + "(" * 5000 + "argument_1" + ")" * 5000),
    "signs without end": (RELU, "return " + "-" * 9000 + "1"),
    "dots without end": (RELU, "return argument_1" + ".a" * 7000),
    "dots as deep as Python goes": (RELU, "return argument_1" + ".a" * 450),
    "lists as deep as is read": (RELU, "return " + "[" * 45 + "argument_1" + "]" * 45),
    "another signature": ("argument_1: Tensor) -> Tensor", "argument_1: Tensor, x: int=1) -> Tensor"),
    "a decorator": ("  def forward(self", "  @staticmethod\n  def forward(self"),
    "a base class": ("class ReLU(Module)", "class ReLU(Interface)"),
    "an import": ("class ReLU(Module)", "import os\nclass ReLU(Module)"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_tracing_does_not_give_is_refused(name: str, honest: bytes) -> None:
    with pytest.raises(BundleError, match="not what vggdeploy writes of this network"):
        check(edited(honest, *CODE[name]))


def pickled(data: bytes, entry: str, change: Callable[[bytes], bytes]) -> bytes:
    def apply(name: str, content: bytes) -> bytes:
        return change(content) if name.endswith(entry) else content

    made = rezipped(data, apply)
    assert made != rezipped(data, lambda _, content: content)
    return made


PICKLES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a function of the system": ("data.pkl", lambda p: p.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"cposix\nsystem")),
    "a function in the debug table": (
        ".debug_pkl", lambda p: b"\x80\x02cposix\nsystem\n(X\x02\0\0\0idtR."
    ),
    "a constant": ("constants.pkl", lambda p: b"\x80\x02cposix\nsystem\n(X\x02\0\0\0idtR."),
    "another protocol": ("data.pkl", lambda p: b"\x80\x04" + p[2:]),
    "bytes behind its end": ("data.pkl", lambda p: p + b"\x80\x02N."),
    "no end": ("data.pkl", lambda p: p[:-1]),
    "an extension": ("data.pkl", lambda p: p[:2] + b"\x82\x01" + p[2:]),
    "a tensor behind its data": ("data.pkl", lambda p: p.replace(b"K\x6c", b"K\x7f", 2)),
    "an object of itself": ("data.pkl", lambda p: p[:-1] + b"q\xffh\xffb."),
    "an index outside of the debug table": (
        ".debug_pkl", lambda p: p.replace(b"K\x0c", b"K\xff")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_with_anything_else_are_refused(name: str, honest: bytes) -> None:
    with pytest.raises(BundleError):
        check(pickled(honest, *PICKLES[name]))


def with_entry(data: bytes, name: str, content: bytes = b"", compress: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(made, "a") as archive:
        warnings.simplefilter("ignore")  # a name twice is what is wanted
        archive.writestr(zipfile.ZipInfo(name), content, compress)
    return made.getvalue()


@pytest.mark.parametrize(
    "name", ["model/../../x", "/etc/x", "model/extra/x", "model/data.pkl", "model/DATA.PKL", "model/code/x.py", "model\\x",
             "model/data/99", "model/code/__torch__/torch/nn/modules/activation.py.debug_pkl", "model/code/a.b.py"],
)  # fmt: skip
def test_an_entry_beside_the_network_is_refused(name: str, honest: bytes) -> None:
    plain = rezipped(honest, lambda _, content: content)
    with pytest.raises(BundleError):
        check(with_entry(plain, name, b"class A(Module):\n  x : Tensor\n"))


def test_an_archive_that_unpacks_to_much_is_refused_without_unpacking_it(honest: bytes) -> None:
    plain = rezipped(honest, lambda name, content: None if name == "version" else content)
    bomb = with_entry(plain, "model/version", b"3" * 2**28, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    with pytest.raises(BundleError, match="more than"):
        check(bomb)


def test_entries_that_lie_in_each_other_are_refused(honest: bytes) -> None:
    plain = bytearray(rezipped(honest, lambda _, content: content))
    first = plain.index(b"PK\1\2")
    second = plain.index(b"PK\1\2", first + 4)
    plain[second + 42 : second + 46] = plain[first + 42 : first + 46]  # both begin where the first does
    with pytest.raises(BundleError):
        check(bytes(plain))


@pytest.mark.parametrize("put", [b"x", b"PK\5\6" + bytes(18)])
@pytest.mark.parametrize("where", ["before", "behind", "between"])
def test_bytes_that_belong_to_no_entry_are_refused(put: bytes, where: str, honest: bytes) -> None:
    start = honest.rindex(b"PK\6\6") - struct.unpack_from("<Q", honest, honest.rindex(b"PK\6\6") + 40)[0]
    data = {"before": put + honest, "behind": honest + put, "between": honest[:start] + put + honest[start:]}[where]
    with pytest.raises(BundleError):
        check(data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_leads_to_anything_but_an_answer_or_that_error(honest: bytes, data: st.DataObject) -> None:
    damaged = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        check(bytes(damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))]))
    except VggdeployError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(bytes(damaged)))
    assert module(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))[0].shape == (1, 7)
