"""A shadow is asked off the callers' path, counted honestly, the first to go under load, and never changes an answer."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from serve.conftest import Live, live_server

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.cli.app import run
from vggdeploy.data.loaders import ImageSet
from vggdeploy.errors import VggdeployError
from vggdeploy.parity.bounds import flip_count
from vggdeploy.records import from_json
from vggdeploy.records.shadow import ShadowReport
from vggdeploy.report.write import write_report
from vggdeploy.serve import shadow as shadow_module
from vggdeploy.serve.aside import Aside
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.shadow import Shadow, difference
from vggdeploy.types import Verdict


def settings_of(served: Path, shadow: Path, **more: Any) -> Settings:
    given = {"variant": "onnx-fp32", "sample": 1.0, "own": ("shadow.variant=onnx-fp32",)} | more
    return Settings(bundle=str(served), shadow=str(shadow), **given)


@pytest.fixture
def turned(own_bundle: Path) -> Path:
    """The same network with its labels moved on by one: proven, and never of the same opinion."""
    turn(own_bundle)
    return own_bundle


def turn(home: Path) -> None:
    opened = Bundle.open(home)
    with update_bundle(opened) as draft:
        labels = opened.manifest.labels
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=(*labels[1:], labels[0]))


def shadow_of(live: Live) -> Shadow:
    found: Shadow = live.app.state.models.shadow
    return found


def told(live: Live) -> ShadowReport:
    assert shadow_of(live).settle()
    reply = live.client.get("/shadow")
    assert reply.status_code == 200
    return from_json(reply.content, ShadowReport, what="the answer")


def ask(live: Live, images: np.ndarray[Any, Any]) -> None:
    """One array request for each image, as fast as the shadow follows."""
    for number, image in enumerate(images):
        body = {
            "inputs": [{"name": "image", "shape": [1, 32, 32, 1], "datatype": "UINT8", "data": image.ravel().tolist()}]
        }
        assert live.client.post("/v2/models/bundle/infer", json=body).status_code == 200
        if number % 40 == 39:
            assert shadow_of(live).settle()


def test_the_same_model_agrees_and_each_input_counts_once(
    bundle_dir: Path, digit_png: Path, digits_test: ImageSet
) -> None:
    with live_server(settings_of(bundle_dir, bundle_dir)) as live:
        assert told(live).verdict is Verdict.UNPROVEN
        ask(live, digits_test.images[:20])
        for _ in range(30):  # the attack: one picture again and again is one picture
            live.client.post("/classify", content=digit_png.read_bytes())
            assert shadow_of(live).settle()
        found = told(live)
        assert (found.compared, found.repeated, found.errors) == (21, 29, 0)
        assert found.flips == flip_count(0, 21)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "look at " in found.reasons[0]
        assert found.served.p50_ms is not None
        text = live.client.get("/metrics").text
        assert 'vggdeploy_shadow_requests_total{outcome="same"} 21.0' in text
        assert 'vggdeploy_shadow_verdict{verdict="inconclusive"} 1.0' in text
        assert 'vggdeploy_shadow_verdict{verdict="pass"} 0.0' in text


def test_it_may_take_over_when_enough_have_agreed(bundle_dir: Path, digits_test: ImageSet, tmp_path: Path) -> None:
    with live_server(settings_of(bundle_dir, bundle_dir, max_flips=0.05)) as live:
        ask(live, digits_test.images[:80])
        found = told(live)
        assert found.flips is not None
        assert found.flips.upper <= 0.05
        assert found.verdict is Verdict.PASS
        (tmp_path / "shadow.json").write_bytes(live.client.get("/shadow").content)
    for suffix in ("md", "csv", "html"):
        write_report([tmp_path / "shadow.json"], tmp_path / f"report.{suffix}")
    assert "onnx-fp32 of bundle may take over" in (tmp_path / "report.md").read_text()
    assert "flips.upper" in (tmp_path / "report.csv").read_text()


def test_one_that_answers_otherwise_fails_and_callers_do_not_see_it(
    bundle_dir: Path, turned: Path, digit_png: Path, digits_test: ImageSet, tmp_path: Path
) -> None:
    with live_server(settings_of(bundle_dir, turned)) as live:
        ask(live, digits_test.images[:12])
        reply = live.client.post("/classify", content=digit_png.read_bytes()).json()
        assert reply["predictions"][0]["label"] == digit_png.stem
        found = told(live)
        assert found.flips == flip_count(13, 13)
        assert found.verdict is Verdict.FAIL
        (tmp_path / "shadow.json").write_bytes(live.client.get("/shadow").content)
    write_report([tmp_path / "shadow.json"], tmp_path / "report.md")
    assert "may not take over" in (tmp_path / "report.md").read_text()


def test_its_errors_are_counted_as_flips_and_reach_no_caller(bundle_dir: Path, digits_test: ImageSet) -> None:
    def broken(feeds: Any) -> Any:
        raise VggdeployError("the runtime is broken")

    with live_server(settings_of(bundle_dir, bundle_dir)) as live:
        shadow_of(live).engine._session.run = broken  # type: ignore[method-assign]
        ask(live, digits_test.images[:10])
        found = told(live)
        assert (found.compared, found.errors) == (10, 10)
        assert found.verdict is Verdict.FAIL
        assert "errors of the shadow" in found.reasons[-1]
        assert found.last_error == "the runtime is broken"


def test_callers_do_not_wait_for_a_shadow_that_hangs(bundle_dir: Path, digits_test: ImageSet) -> None:
    with live_server(settings_of(bundle_dir, bundle_dir)) as live:
        gate, session = threading.Event(), shadow_of(live).engine._session
        real = session.run
        session.run = lambda feeds: (gate.wait(30), real(feeds))[1]  # type: ignore[method-assign]
        for image in digits_test.images[:100]:
            body = {
                "inputs": [
                    {"name": "image", "shape": [1, 32, 32, 1], "datatype": "UINT8", "data": image.ravel().tolist()}
                ]
            }
            assert live.client.post("/v2/models/bundle/infer", json=body).status_code == 200
        before = from_json(live.client.get("/shadow").content, ShadowReport, what="the answer")
        assert before.compared == 0
        assert before.shed == 100 - 1 - 64  # one is under way, 64 wait, the others are not kept
        gate.set()
        assert told(live).compared == 65


def test_under_overload_the_shadow_goes_first_and_no_caller(bundle_dir: Path, digit_png: Path) -> None:
    with live_server(settings_of(bundle_dir, bundle_dir, max_batch=2, queue=64)) as live:
        served, gate = live.engine._session, threading.Event()
        real, asked = served.run, []
        served.run = lambda feeds: (gate.wait(20), time.sleep(0.05), real(feeds))[2]
        shadow_session = shadow_of(live).engine._session
        shadow_real = shadow_session.run
        shadow_session.run = lambda feeds: (asked.append(1), shadow_real(feeds))[1]  # type: ignore[method-assign]
        data = digit_png.read_bytes()

        def call(number: int) -> int:
            with httpx.Client(base_url=live.url, timeout=30) as client:
                return client.post("/classify", content=data + bytes([number])).status_code

        with ThreadPoolExecutor(30) as pool:
            calls = [pool.submit(call, number) for number in range(30)]
            while live.app.state.served.batching.waiting < 20:
                time.sleep(0.01)
            gate.set()
            assert [one.result() for one in calls] == [200] * 30  # every caller is answered
        found = told(live)
        assert found.shed >= 15
        assert found.compared + found.shed == 30
        assert len(asked) == found.compared


def test_another_version_of_either_is_counted_anew(
    turned: Path, bundle_dir: Path, digits_test: ImageSet, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    shutil.copytree(bundle_dir, served)
    with live_server(settings_of(served, turned, watch=0.1)) as live:
        ask(live, digits_test.images[:5])
        assert told(live).verdict is Verdict.FAIL
        opened = Bundle.open(served)
        labels = Bundle.open(turned).manifest.labels
        with update_bundle(opened) as draft:
            draft.manifest = msgspec.structs.replace(opened.manifest, labels=labels)
        end = time.monotonic() + 30
        while live.engine.labels != labels:
            assert time.monotonic() < end
            time.sleep(0.05)
        ask(live, digits_test.images[:5])  # the same inputs: asked of another pair
        found = told(live)
        assert (found.compared, found.flips) == (5, flip_count(0, 5))


def test_a_version_that_was_never_compared_has_no_verdict(
    own_bundle: Path, bundle_dir: Path, digits_test: ImageSet, tmp_path: Path
) -> None:
    """The attack: the version before passed, and the new one, which nobody asked yet, is told under its numbers."""
    served = tmp_path / "served"
    shutil.copytree(bundle_dir, served)
    with live_server(settings_of(served, own_bundle, max_flips=0.3)) as live:
        ask(live, digits_test.images[:20])
        assert told(live).verdict is Verdict.PASS
        assert "vggdeploy_shadow_flip_bound{" in live.client.get("/metrics").text
        turn(own_bundle)
        shadow_of(live).renew()
        assert shadow_of(live).settle()
        unproven(live)
        turn(served)
        live.engine.reload()
        ask(live, digits_test.images[:20])
        assert told(live).verdict is Verdict.PASS
        turn(served)
        live.engine.reload()
        unproven(live)


def unproven(live: Live) -> None:
    found = told(live)
    assert (found.compared, found.flips, found.verdict) == (0, None, Verdict.UNPROVEN)
    text = live.client.get("/metrics").text
    assert 'vggdeploy_shadow_verdict{verdict="pass"} 0.0' in text
    assert "vggdeploy_shadow_flip_bound{" not in text


def test_a_version_that_was_half_copied_is_tried_again(
    own_bundle: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live_server(settings_of(bundle_dir, own_bundle)) as live:
        shadow = shadow_of(live)
        before = shadow.engine.bundle.manifest.digest
        opened = Bundle.open(own_bundle)
        with update_bundle(opened) as draft:
            draft.manifest = msgspec.structs.replace(opened.manifest, name="next")
        file = own_bundle / "variants/onnx-fp32/model.onnx"
        data = file.read_bytes()
        file.unlink()  # others link to it
        file.write_bytes(data[:-100])
        shadow.renew()
        assert shadow.settle()
        file.write_bytes(data)
        shadow.renew()  # too soon
        assert shadow.settle()
        assert shadow.engine.bundle.manifest.digest == before
        monkeypatch.setattr(shadow_module, "_AGAIN", 0.0)
        shadow._not_before = 0.0
        shadow.renew()
        assert shadow.settle()
        assert shadow.engine.bundle.manifest.name == "next"


def test_its_threads_have_the_lowest_priority(bundle_dir: Path, digits_test: ImageSet) -> None:
    def niceness() -> dict[int, int]:
        tasks = Path("/proc/self/task").iterdir()
        return {int(t.name): int((t / "stat").read_text().rsplit(")", 1)[1].split()[16]) for t in tasks}

    before = {thread for thread, nice in niceness().items() if nice == 19}
    with live_server(settings_of(bundle_dir, bundle_dir, own=("shadow.variant=onnx-fp32", "shadow.threads=2"))) as live:
        ask(live, digits_test.images[:2])
        assert shadow_of(live).settle()
        found = niceness()
        low = {thread for thread, nice in found.items() if nice == 19} - before
        assert shadow_of(live)._aside._thread.native_id in low
        assert len(low) >= 2  # the runtime's own thread, too
        assert found[os.getpid()] < 19
        shadow_of(live).renew(forced=True)
        ask(live, digits_test.images[:2])
        assert shadow_of(live).settle()
        # Those of the new version, too.
        assert {thread for thread, nice in niceness().items() if nice == 19} - before - low


def test_a_job_beside_goes_before_what_waits_and_once_however_often_it_is_asked_for() -> None:
    gate, done = threading.Event(), []
    aside: Aside[int] = Aside("test", lambda item: (gate.wait(20), done.append(item))[1])

    def job() -> None:
        done.append("job")
        raise ZeroDivisionError  # which ends neither the thread nor what waits

    aside.start()
    aside.offer(0)
    while aside._items:
        time.sleep(0.005)
    aside.offer(1)
    for _ in range(3):
        aside.do(job)
    gate.set()
    assert aside.settle(20)
    assert done == [0, "job", 1]
    aside.do(job)
    assert aside.settle(20)
    assert done == [0, "job", 1, "job"]
    aside.close()


def test_labels_decide_and_not_their_order(bundle: Bundle) -> None:
    manifest = bundle.manifest
    replaced: Callable[..., Any] = msgspec.structs.replace
    assert difference(manifest, replaced(manifest, labels=manifest.labels[::-1])) == ""
    assert "not the same" in difference(manifest, replaced(manifest, labels=tuple("abcdefghij")))
    assert "labels" in difference(manifest, replaced(manifest, labels=()))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shadow", "{bundle}", "--workers", "2"], "counts in one process"),
        (["--shadow", "{bundle}", "--memory", "1GiB"], "goes with one bundle"),
        (["--shadow", "{bundle}", "--sample", "0%"], "--sample is 0%"),
        (["--shadow", "{bundle}", "--sample", "101"], "--sample is 101"),
        (["--shadow", "{bundle}", "--max-flips", "0"], "--max-flips is 0"),
        (["--shadow", "{bundle}", "--set", "shadow.variant=onnx-fp33"], "onnx-fp33"),
        (["--shadow", "{other}"], "their labels are not the same"),
        (["--set", "shadow.variant=onnx-fp32"], "add --shadow"),
        (["--sample", "5%"], "--sample belongs to --shadow"),
    ],
)
def test_what_cannot_be_compared_does_not_start(
    bundle_dir: Path, own_bundle: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Bundle.open(own_bundle)
    with update_bundle(opened) as draft:
        draft.manifest = msgspec.structs.replace(opened.manifest, labels=tuple("abcdefghij"))
    given = [argument.format(bundle=bundle_dir, other=own_bundle) for argument in arguments]
    assert run(["serve", str(bundle_dir), "--variant", "onnx-fp32", "--port", "0", *given]) == 2
    assert told in capsys.readouterr().err


def test_a_server_without_a_shadow_says_so(live: Live) -> None:
    reply = live.client.get("/shadow")
    assert (reply.status_code, json.loads(reply.content)["fix"]) == (404, "start it with --shadow BUNDLE")


def test_what_waits_beside_is_bounded_by_number_and_bytes() -> None:
    gate, done = threading.Event(), []
    aside: Aside[int] = Aside("test", lambda item: (gate.wait(20), done.append(item))[1], most=3, room=100)
    aside.start()
    assert aside.offer(0)
    while aside._items:
        time.sleep(0.005)
    assert [aside.offer(1, 60), aside.offer(2, 60), aside.offer(3, 40), aside.offer(4), aside.offer(5)] == [
        True, False, True, True, False,
    ]  # fmt: skip
    gate.set()
    assert aside.settle(20)
    assert done == [0, 1, 3, 4]
    aside.close()
    assert not aside.offer(6)
