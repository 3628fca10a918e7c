"""Pictures as web applications have them, and answers as they send them: open files and uploads in, JSON out."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import fastapi
import flask
import numpy as np
import pytest
from fastapi.testclient import TestClient

import vggdeploy
from vggdeploy import InputError, Prediction
from vggdeploy.engine.engine import Engine
from vggdeploy.preprocess import prepare
from vggdeploy.spec import PreprocessSpec


@pytest.fixture(scope="module")
def engine(bundle_dir: Path) -> Iterator[Engine]:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as opened:
        yield opened


_open: list[Any] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def spooled(data: bytes, *, max_size: int) -> Any:
    file = SpooledTemporaryFile(max_size=max_size)  # noqa: SIM115  # `_closed` does
    _open.append(file)
    file.write(data)
    file.seek(0)
    return file


def starlette(data: bytes) -> Any:
    from starlette.datastructures import UploadFile

    return UploadFile(spooled(data, max_size=2**20), filename="three.png")


def werkzeug(data: bytes) -> Any:
    from werkzeug.datastructures import FileStorage

    return FileStorage(io.BytesIO(data), filename="three.png")


class Pipe(io.RawIOBase):
    """What cannot go back, and gives a few bytes at a time: a socket, a decompressor."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(memoryview(buffer)[:100])


FORMS: dict[str, Callable[[bytes], Any]] = {
    "BytesIO": io.BytesIO,
    "in memory": lambda data: spooled(data, max_size=2**20),
    "on disk": lambda data: spooled(data, max_size=1),
    "FastAPI": starlette,
    "Flask": werkzeug,
    "pipe": Pipe,
}


@pytest.mark.parametrize("form", FORMS)
def test_an_upload_is_one_picture(form: str, engine: Engine, digit_png: Path) -> None:
    data, make = digit_png.read_bytes(), FORMS[form]
    wanted = engine.classify(digit_png)
    assert engine.classify(make(data)) == wanted
    assert engine.classify([make(data), digit_png]) == [wanted, wanted]
    assert np.array_equal(engine.embed(make(data), output="logits"), engine.embed(digit_png, output="logits"))


def test_a_file_is_read_from_where_it_stands_and_put_back_there(engine: Engine, digit_png: Path) -> None:
    with io.BytesIO(b"a header" + digit_png.read_bytes()) as file:
        file.seek(8)
        assert engine.classify(file) == engine.classify(file) == engine.classify(digit_png)
        assert file.tell() == 8


def closed(data: bytes) -> Any:
    file = io.BytesIO(data)
    file.close()
    return file


class Asynchronous:
    async def read(self, size: int = -1) -> bytes:
        return b""


class Endless(io.RawIOBase):
    """A client that never ends."""

    sent = 0

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 2**20
        self.sent += size
        assert self.sent < 2**28  # of these a server would die
        return bytes(size)


@pytest.mark.parametrize(
    ("source", "cause", "hint"),
    [
        (closed(b"data"), "cannot be read: I/O operation on closed file", "open it anew"),
        (io.StringIO("text"), "is opened as text", "open(path, 'rb')"),
        (io.BytesIO(b""), "is empty (0 bytes)", "replace the file"),
        (Asynchronous(), "can only be read asynchronously", "await file.read()"),
        (Endless(), "has more than", "scale it down"),
        (io.BytesIO(b"no picture"), "not an image in a known format", "JPEG"),
        (object(), "a object is not an image", "an open file"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_file_that_gives_no_picture_is_one_clear_error(source: Any, cause: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(source, PreprocessSpec(), max_pixels=1000)
    assert cause in caught.value.cause
    assert hint in caught.value.hint


def test_a_file_that_was_just_written_is_to_be_rewound(digit_png: Path) -> None:
    file = io.BytesIO()
    file.write(digit_png.read_bytes())
    with pytest.raises(InputError, match=r"has been read to its end — rewind it first: file\.seek\(0\)"):
        prepare(file, PreprocessSpec())


def test_an_upload_is_named_as_its_sender_called_it_and_nothing_it_says_is_obeyed() -> None:
    upload = starlette(b"no picture")
    upload.filename = "\x1b[2J" + "a" * 10_000
    with pytest.raises(InputError) as caught:
        prepare(upload, PreprocessSpec())
    assert caught.value.cause.startswith("'\\x1b[2Jaaa")
    assert len(caught.value.cause) < 300


def test_answers_go_into_json_as_they_are(engine: Engine, digit_png: Path) -> None:
    answers = engine.classify([digit_png, digit_png], top=2)
    read = json.loads(json.dumps(answers))
    assert read == answers
    assert list(read[0][0]) == ["label", "index", "probability"]
    assert read[0][0]["label"] == answers[0][0].label == digit_png.stem
    assert isinstance(pickle.loads(pickle.dumps(answers))[0][0], Prediction)  # noqa: S301  # ours


def test_web_frameworks_send_answers_as_they_are(engine: Engine, digit_png: Path) -> None:
    wanted = engine.classify(digit_png)
    service = fastapi.FastAPI()

    @service.post("/classify")
    def classify(image: fastapi.UploadFile) -> list[Prediction]:
        return engine.classify(image.file)

    with TestClient(service) as client, digit_png.open("rb") as file:
        assert client.post("/classify", files={"image": ("a.png", file)}).json() == wanted
    application = flask.Flask("service")

    @application.post("/classify")
    def answer() -> Any:
        return engine.classify(flask.request.files["image"])

    with digit_png.open("rb") as file:
        assert application.test_client().post("/classify", data={"image": (file, "a.png")}).json == wanted


@pytest.mark.parametrize("call", ["run", "run_async", "run_on_device"])
def test_an_array_in_place_of_a_dict_is_told_what_to_type(call: str, engine: Engine) -> None:
    batch: Any = np.zeros((1, 32, 32, 1), np.uint8)
    if call == "run":
        with pytest.raises(InputError, match=r"a ndarray names no input of the graph — give a dict: {'image': batch}"):
            engine.run(batch)
    else:  # this variant has no such way at all
        with pytest.raises(vggdeploy.IncompatibleError):
            getattr(engine, call)(batch)


TYPED = """
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, assert_type
import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray
from PIL import Image
import vggdeploy
from vggdeploy import Prediction

def use(engine: vggdeploy.Engine, image: Image.Image, upload: UploadFile, array: NDArray[np.uint8]) -> None:
    assert_type(engine.classify("a.png"), list[Prediction])
    assert_type(engine.classify(Path("a.png")), list[Prediction])
    assert_type(engine.classify(b"data"), list[Prediction])
    assert_type(engine.classify(image), list[Prediction])
    assert_type(engine.classify(BytesIO()), list[Prediction])
    assert_type(engine.classify(SpooledTemporaryFile()), list[Prediction])
    assert_type(engine.classify(upload), list[Prediction])
    assert_type(engine.classify(upload.file)[0].label, str)
    assert_type(engine.classify(array), list[Any])
    assert_type(engine.classify(["a.png", "b.png"]), list[list[Prediction]])
    assert_type(engine.classify([array, array]), list[list[Prediction]])
    assert_type(engine.classify(Path(name) for name in "ab")[0][0].probability, float)
    engine.classify(3)  # type: ignore[call-overload]
"""


@pytest.mark.late
def test_type_checkers_know_one_picture_from_several(tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(TYPED)
    root = Path(vggdeploy.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", file],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
