"""An engine without weights gets those of its bundle's ONNX at load, checked first; and never runs without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.gpu import Library, expected, pixels
from msgspec import structs

from vggdeploy.build.options import BuildOptions
from vggdeploy.bundle import BuildRecord, Bundle, Variant
from vggdeploy.errors import IncompatibleError, IntegrityError, UsageError
from vggdeploy.runtime.base import Source
from vggdeploy.runtime.sessions import _weights
from vggdeploy.runtime.tensorrt.rtx import RtxSession
from vggdeploy.runtime.tensorrt.session import EngineSession
from vggdeploy.system.sealed import HashedFile, SealedFile

Gpu = Callable[..., tuple[Any, Library]]
ONNX = b"an ONNX file with the weights"


@pytest.fixture
def stripped(source: Source, tmp_path: Path) -> Source:
    """The engine's source, with an ONNX file to take its weights from."""
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX)

    @contextmanager
    def weights() -> Iterator[SealedFile]:
        with HashedFile.of(path).open() as file:
            yield file

    return replace(source, weights=weights)


def library(fault: str | None = None) -> Library:
    made = Library(fault)
    made.stripped = True
    return made


@pytest.mark.parametrize("kind", [EngineSession, RtxSession])
def test_a_session_gives_its_engine_the_weights_before_anything_runs(
    gpu: Gpu, stripped: Source, kind: type[EngineSession]
) -> None:
    cudart, fake = gpu(library=library())
    with kind(stripped) as session:
        assert fake.refitted == [ONNX]
        np.testing.assert_array_equal(session.run({"image": pixels(2)})["logits"], expected(pixels(2)))
    assert not cudart.alive
    assert not fake.alive


def test_an_engine_that_nobody_gives_weights_answers_nonsense(gpu: Gpu, source: Source) -> None:
    """What the golden pair has to find, if the loader ever forgot them."""
    gpu(library=library())
    with EngineSession(source) as session:
        assert not session.run({"image": pixels(2)})["logits"].any()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refit_from_bytes", "the initializer features.0.weight has another size"),
        (
            "get_missing_weights",
            r"the engine also needs features.0.weight, features.0.bias, classifier.6.bias and 1 more",
        ),
        ("refit_cuda_engine", "it gave no reason"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_stays(
    gpu: Gpu, stripped: Source, fault: str, said: str
) -> None:
    cudart, fake = gpu(library=library(fault))
    with pytest.raises(IncompatibleError, match=said) as caught, EngineSession(stripped):
        pass
    assert "cannot give the engine the weights of model.onnx" in caught.value.cause
    assert fake.refitted == []
    assert not cudart.alive
    del caught
    assert not fake.alive


def test_an_engine_that_was_not_built_for_it_is_given_nothing(gpu: Gpu, stripped: Source) -> None:
    _, fake = gpu()  # an engine with its own weights
    with pytest.raises(IncompatibleError, match="was not built to be given weights"), EngineSession(stripped):
        pass
    assert fake.refitted == []


def test_an_onnx_that_was_altered_never_reaches_the_library(gpu: Gpu, source: Source, tmp_path: Path) -> None:
    _, fake = gpu(library=library())
    path = tmp_path / "model.onnx"
    path.write_bytes(ONNX)
    known = HashedFile.of(path)
    path.write_bytes(ONNX[:-1] + b"!")

    def weights() -> AbstractContextManager[SealedFile]:
        return known.open()

    with pytest.raises(IntegrityError, match="altered"), EngineSession(replace(source, weights=weights)):
        pass
    assert fake.refitted == []
    assert not fake.alive


def engine_of(bundle: Bundle, strip: str | None = "identical", **changed: Any) -> Variant:
    onnx = bundle.manifest.variant("onnx-fp32")
    record = BuildRecord(
        library="tensorrt", version="10.13.0", source=onnx.name, source_sha256=bundle.sha256(onnx.path), targets=("sm89",),
        options={"batch": "1:1:4", **({"strip": strip} if strip else {})}, seconds=1.0,
    )  # fmt: skip
    return structs.replace(onnx, name="tensorrt-fp32", format="tensorrt", build=structs.replace(record, **changed))


def test_the_weights_are_those_of_the_onnx_that_the_record_names_by_hash(bundle: Bundle) -> None:
    found = _weights(bundle, engine_of(bundle))
    assert found is not None
    with found() as file:
        assert file.path.read_bytes() == bundle.path(bundle.manifest.variant("onnx-fp32").path).read_bytes()
    assert _weights(bundle, engine_of(bundle, strip=None)) is None
    assert _weights(bundle, bundle.manifest.variant("onnx-fp32")) is None
    for wrong in ({"source": "onnx-fp61"}, {"source_sha256": "0" * 64}, {"source": "onnx-fp16"}):
        with pytest.raises(IncompatibleError, match="has no weights of its own") as caught:
            _weights(bundle, engine_of(bundle, **wrong))
        assert caught.value.hint


def test_a_graph_that_is_not_the_network_s_is_refused_before_the_library_reads_it(own_bundle: Path) -> None:
    """Whoever can write the manifest can write the hash of any file."""
    from vggdeploy.bundle import update_bundle
    from vggdeploy.errors import ForeignModelError

    opened = Bundle.open(own_bundle, only=())
    with update_bundle(opened) as draft:
        draft.write(opened.manifest.variant("onnx-fp32").path, b"no ONNX")
    opened = Bundle.open(own_bundle, only=())
    found = _weights(opened, engine_of(opened))
    assert found is not None
    with pytest.raises(ForeignModelError), found():
        pass


def test_the_option_names_its_values_and_is_read_back() -> None:
    with pytest.raises(UsageError, match="value of --strip 'yes' is unknown"):
        BuildOptions(strip="yes")
    for value in ("identical", "any"):
        options = BuildOptions(strip=value)
        assert options.as_text() == {"strip": value}
        assert BuildOptions.from_record(options.as_text()) == options


@pytest.mark.parametrize(
    ("strip", "flags"), [("identical", {"STRIP_PLAN", "REFIT_IDENTICAL"}), ("any", {"STRIP_PLAN", "REFIT"})]
)
def test_the_flags_are_those_of_the_real_library(strip: str, flags: set[str]) -> None:
    import tensorrt_rtx
    from fixtures.small import BATCH

    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    config = builder.create_builder_config()
    options = BuildOptions(strip=strip)
    options.check(tensorrt_rtx, BATCH)
    options.apply(tensorrt_rtx, config)
    members = tensorrt_rtx.BuilderFlag.__members__
    assert {name for name in ("STRIP_PLAN", "REFIT", "REFIT_IDENTICAL") if config.get_flag(members[name])} == flags
