"""OpenVINO runs the bundle's ONNX files: as the reference computes, from many threads, without copies."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vggdeploy.bundle import Bundle, Variant
from vggdeploy.errors import BundleError, IncompatibleError, UsageError, VggdeployError
from vggdeploy.export.openvino import openvino_variant
from vggdeploy.runtime import get_backend, open_session, runnable
from vggdeploy.runtime import tiny_onnx as tiny
from vggdeploy.runtime.base import Source, shareable
from vggdeploy.system.sealed import HashedFile
from vggdeploy.types import Device, Precision

pytest.importorskip("openvino")
CPU = Device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.onnx_bytes(tiny.weights()))
    return tiny.source(CPU, file=HashedFile.of(path))


def session_of(source: Source):  # type: ignore[no-untyped-def]
    """A session of the file as it is now: by the hash of other bytes the library's cache would be asked for their model."""
    source = replace(source, file=HashedFile.of(source.file.path))
    return get_backend("openvino").load().SESSION(source)


def fp32(bundle: Bundle, precision: Precision = Precision.FP32) -> Variant:
    return openvino_variant(bundle.manifest.variant("onnx-fp32"), precision)


def lacks_bf16() -> bool:
    return Precision.BF16 in get_backend("openvino").probe(CPU).lacks


def test_every_batch_size_answers_as_numpy_does(source: Source) -> None:
    with session_of(source) as session:
        for batch in (1, 3, 4, 1):
            image = tiny.images(batch, seed=batch)
            found = session.run({"image": image})["logits"]
            np.testing.assert_allclose(found, tiny.reference(image, tiny.weights()), atol=1e-5)


def test_calls_from_several_threads_do_not_mix(source: Source) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(100):
            image = tiny.images(1 + (seed + step) % 4, seed=1000 * seed + step)
            found = session.run({"image": image})["logits"]
            if np.abs(found - tiny.reference(image, tiny.weights())).max() > 1e-4:
                wrong.append(step)

    with session_of(source) as session:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_an_answer_stays_after_the_next_call(source: Source) -> None:
    with session_of(source) as session:
        first = session.run({"image": tiny.images(2, seed=1)})["logits"]
        kept = first.copy()
        session.run({"image": tiny.images(2, seed=2)})
        np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, kept)  # nor does it hang on the session


def test_a_strided_array_is_taken_for_what_it_shows(source: Source) -> None:
    image = tiny.images(8, seed=3)[::2]
    with session_of(source) as session:
        found = session.run({"image": image})["logits"]
    np.testing.assert_allclose(found, tiny.reference(image, tiny.weights()), atol=1e-5)


def test_only_what_openvino_cannot_share_is_copied() -> None:
    image = tiny.images(2)
    assert shareable(image) is image
    image.flags.writeable = False
    copied = shareable(image)
    assert copied.flags.writeable
    assert not np.shares_memory(copied, image)
    np.testing.assert_array_equal(copied, image)


def test_threads_and_hint_reach_openvino(bundle: Bundle) -> None:
    with open_session(bundle, fp32(bundle), threads=1) as session:
        compiled = session.unchecked._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
    with open_session(bundle, fp32(bundle), hint="throughput") as session:
        compiled = session.unchecked._compiled  # type: ignore[attr-defined]
        assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("THROUGHPUT")


def test_a_hint_that_a_backend_cannot_follow_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="onnxruntime has no such setting"):
        open_session(bundle, bundle.manifest.variant("onnx-fp32"), hint="throughput")


def test_fp32_is_computed_in_fp32(bundle: Bundle) -> None:
    with open_session(bundle, fp32(bundle)) as session:
        assert set(session.unchecked.computes_in()) == {"fp32"}  # type: ignore[attr-defined]


@pytest.mark.skipif(lacks_bf16(), reason="this CPU has no BF16")
def test_bf16_is_computed_in_bf16(bundle: Bundle) -> None:
    with open_session(bundle, fp32(bundle, Precision.BF16)) as session:
        assert set(session.unchecked.computes_in()) == {"bf16"}  # type: ignore[attr-defined]


def test_kernels_that_may_not_use_bf16_run_no_bf16_variant(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO names BF16 as soon as the CPU has it, and then has no kernel to run it with."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert not runnable(fp32(bundle, Precision.BF16)).runs
    assert runnable(fp32(bundle)).runs


def test_a_cpu_without_bf16_runs_no_bf16_variant(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module = get_backend("openvino").load()
    monkeypatch.setattr(module, "_CAPABILITIES", {Precision.BF16: "none of this CPU's"})
    variant = fp32(bundle, Precision.BF16)
    assert not runnable(variant).runs
    assert runnable(fp32(bundle)).runs
    with pytest.raises(IncompatibleError, match="no bf16 arithmetic"):
        open_session(bundle, variant)


def test_a_file_that_is_no_model_is_one_line(source: Source) -> None:
    source.file.path.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"OpenVINO cannot open tiny\.onnx") as caught, session_of(source):
        pass
    assert "\n" not in str(caught.value)
    assert "/src/" not in caught.value.cause  # the places in OpenVINO's source say nothing to a user


def test_a_graph_with_other_names_is_refused(source: Source) -> None:
    source.file.path.write_bytes(source.file.path.read_bytes().replace(b"logits", b"scores"))
    with pytest.raises(BundleError, match="inputs and outputs"), session_of(source):
        pass


def test_an_error_of_openvino_ends_the_call_and_not_the_session(source: Source) -> None:
    with session_of(source) as session:
        with pytest.raises(VggdeployError, match="OpenVINO failed"):
            session.run({"image": np.zeros((1, 5, 5, 3), np.uint8)})
        image = tiny.images(2)
        found = session.run({"image": image})["logits"]
    np.testing.assert_allclose(found, tiny.reference(image, tiny.weights()), atol=1e-5)
