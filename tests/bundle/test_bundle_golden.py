"""The golden arrays are what the manifest says they are, or the bundle is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from forgery import CLASSES, SAMPLES

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.bundle.arrays import array_bytes, read_array
from vggdeploy.errors import BundleError
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import TensorSpec

LOGITS = TensorSpec("logits", "float32", ("N", CLASSES))
FLOATS = np.arange(SAMPLES * CLASSES, dtype=np.float32).reshape(SAMPLES, CLASSES)


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin1")
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + text + data


def read(tmp_path: Path, data: bytes, spec: TensorSpec = LOGITS) -> np.ndarray:
    file = tmp_path / "x.npy"
    file.write_bytes(data)
    return read_array(HashedFile.of(file), spec)


def test_the_arrays_come_back_as_they_were_saved(root: Path) -> None:
    inputs, outputs = Bundle.open(root).golden()
    assert inputs["image"].shape == (SAMPLES, 32, 32, 1)
    assert inputs["image"].dtype == np.uint8
    assert outputs["logits"].shape == (SAMPLES, CLASSES)
    assert all(a.flags.writeable and a.flags.c_contiguous for a in (inputs["image"], outputs["logits"]))


@pytest.mark.parametrize("array", [FLOATS, np.asfortranarray(FLOATS), FLOATS[:1], FLOATS[::-1]])
def test_any_memory_order_reads_back(tmp_path: Path, array: np.ndarray) -> None:
    found = read(tmp_path, array_bytes(array))
    assert np.array_equal(found, array)
    assert found.flags.c_contiguous


def test_format_version_2_reads_back(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, FLOATS, version=(2, 0))
    assert np.array_equal(read(tmp_path, buffer.getvalue()), FLOATS)


class Bomb:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_bytes, (self.path, b"boom")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "boom")], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, bomb, allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb(tmp_path / "boom"))):
        with pytest.raises(BundleError):
            read(tmp_path, data)
    assert not (tmp_path / "boom").exists()


def test_a_zip_archive_is_no_array(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", array_bytes(FLOATS))
    with pytest.raises(BundleError, match="is not an array"):
        read(tmp_path, buffer.getvalue())


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 10)}"
HOSTILE = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "text": b"not an array at all",
    "version 9": npy(GOOD, FLOATS.tobytes(), version=b"\x09\0"),
    "no dictionary": npy("[1, 2]"),
    "missing key": npy("{'descr': '<f4', 'shape': (4, 10)}"),
    "code": npy("{'descr': __import__('os').system('false'), 'fortran_order': False, 'shape': (4, 10)}"),
    "deep": npy("(" * 5000),
    "deeper": npy("{'descr': " + "[" * 9000),
    "long header": npy("{'descr': '<f4'}" + " " * 20_000),
    "null bytes": npy("\0" * 50),
    "negative shape": npy(GOOD.replace("(4, 10)", "(-4, 10)"), FLOATS.tobytes()),
    "huge shape": npy(GOOD.replace("(4, 10)", "(4611686018427387904, 10)"), FLOATS.tobytes()),
    "shape beyond 64 bits": npy(GOOD.replace("(4, 10)", f"({10**30}, 10)"), FLOATS.tobytes()),
    "no samples": npy(GOOD.replace("(4, 10)", "(0, 10)")),
    "no batch axis": npy(GOOD.replace("(4, 10)", "()"), b"\0\0\0\0"),
    "structured": npy(GOOD.replace("'<f4'", "[('a', '<f4')]"), FLOATS.tobytes()),
    "object": npy(GOOD.replace("<f4", "|O"), FLOATS.tobytes()),
    "big endian": npy(GOOD.replace("<f4", ">f4"), FLOATS.tobytes()),
    "too short": npy(GOOD, FLOATS.tobytes()[:-1]),
    "too long": npy(GOOD, FLOATS.tobytes() + b"\0"),
    "float64": array_bytes(FLOATS.astype(np.float64)),
    "other classes": array_bytes(FLOATS[:, :9]),
    "other rank": array_bytes(FLOATS[..., None]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_array_is_one_clear_error(tmp_path: Path, case: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(tmp_path, HOSTILE[case])
    assert "x.npy" in caught.value.cause
    assert "\n" not in str(caught.value)


def test_an_array_cut_anywhere_is_refused(tmp_path: Path) -> None:
    good = array_bytes(FLOATS)
    for end in range(len(good)):
        with pytest.raises(BundleError):
            read(tmp_path, good[:end])


def rewrite(root: Path, name: str, array: np.ndarray) -> None:
    """Replace a golden array as an author would, with all its hashes right."""
    with update_bundle(Bundle.open(root)) as draft:
        draft.write(name, array_bytes(array))


@pytest.mark.parametrize(
    ("name", "array", "cause"),
    [
        ("golden/outputs/logits.npy", FLOATS[:, :9], "the manifest says logits: float32[N, 10]"),
        ("golden/outputs/logits.npy", FLOATS.astype(np.float64), "the manifest says logits: float32[N, 10]"),
        ("golden/inputs/image.npy", np.zeros((SAMPLES, 1, 32, 32), np.uint8), "says image: uint8[N, 32, 32, 1]"),
        ("golden/inputs/image.npy", np.zeros((SAMPLES, 32, 32, 1), np.float32), "says image: uint8[N, 32, 32, 1]"),
        ("golden/outputs/logits.npy", FLOATS[:3], "hold different numbers of samples"),
    ],
    ids=["classes", "dtype", "layout", "floats", "samples"],
)
def test_golden_arrays_that_contradict_the_manifest_are_refused(
    root: Path, name: str, array: np.ndarray, cause: str
) -> None:
    rewrite(root, name, array)
    bundle = Bundle.open(root)
    with pytest.raises(BundleError) as caught:
        bundle.golden()
    assert cause in caught.value.cause


def test_golden_arrays_of_another_name_are_refused(root: Path) -> None:
    with update_bundle(Bundle.open(root)) as draft:
        import msgspec

        golden = msgspec.structs.replace(draft.manifest.golden, outputs={"fc7": "golden/outputs/logits.npy"})
        draft.manifest = msgspec.structs.replace(draft.manifest, golden=golden)
    with pytest.raises(BundleError, match=r"golden arrays for \['fc7'\]; the graph has \['logits'\]"):
        Bundle.open(root).golden()
