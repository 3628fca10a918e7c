"""Several models in one server: names, settings and queues of their own."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve.conftest import live_server
from serve.stores import label, opened, settings_of, states

from vggdeploy.cli.app import run
from vggdeploy.errors import UsageError
from vggdeploy.serve.catalogue import places
from vggdeploy.serve.server import serve
from vggdeploy.serve.settings import MIB


def test_each_answers_under_its_name_and_the_first_without_one(store: Path, digit_png: Path) -> None:
    with live_server(settings_of(store)) as live:
        assert states(live) == dict.fromkeys(("ann", "bob", "cleo"), "READY")
        for name in ("ann", "bob", "cleo"):
            assert label(live, digit_png, name) == f"{name} {digit_png.stem}"
            assert live.client.get(f"/v2/models/{name}").json()["name"] == name
            assert live.client.get(f"/v2/models/{name}/config").json()["name"] == name
            assert live.client.get(f"/v2/models/{name}/ready").status_code == 200
        assert label(live, digit_png).startswith("ann ")
        body = {"inputs": [{"name": "image", "shape": [1, 32, 32, 1], "datatype": "UINT8", "data": [0] * 1024}]}
        assert live.client.post("/v2/models/bob/infer", json=body).json()["model_name"] == "bob"
        wrong = live.client.post("/classify", content=digit_png.read_bytes(), params={"model": "bobb"})
        assert (wrong.status_code, "did you mean 'bob'" in wrong.json()["fix"]) == (400, True)
        assert live.client.post("/v2/models/dora/infer", json=body).status_code == 404
        text = live.client.get("/metrics").text
        assert 'vggdeploy_model_requests_total{model="bob"}' in text
        assert 'vggdeploy_model_open{model="cleo"} 1.0' in text


def test_what_is_given_by_name_or_path_has_that_name(store: Path, bundle_dir: Path) -> None:
    def names(*bundles: object) -> list[str]:
        return [place.name for place in places(settings_of(*bundles))]

    assert names(store) == ["ann", "bob", "cleo"]
    assert names(f"digits={store / 'ann'}", bundle_dir) == ["digits", "bundle"]
    assert names(bundle_dir) == [""]  # one by itself: the manifest's, whatever that becomes
    assert names(store / "ann", f"other={store / 'bob'}") == ["bundle", "other"]
    with pytest.raises(UsageError, match="both called 'bundle'"):
        names(store / "ann", store / "bob")
    with pytest.raises(UsageError, match="cannot name a model"):
        names(f"a/b={store / 'ann'}", store / "bob")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bob.queue", "sets nothing"),
        ("queue=3", "sets nothing"),
        ("bobb.queue=3", "did you mean 'bob'"),
        ("bob.port=3", "setting 'port' is unknown"),
        ("bob.queue=many", "queue"),
        ("bob.queue=0", "--queue is 0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(store: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        places(settings_of(store, own=(text,)))


@pytest.mark.parametrize("more", [{"drift": True}, {"shadow": "ann"}])
def test_a_directory_of_several_goes_with_nothing_that_is_of_one(store: Path, more: dict[str, Any]) -> None:
    """The attack: one path was given, and the first of its bundles alone would be watched."""
    settings = settings_of(store, **more)
    with pytest.raises(UsageError, match="one bundle"):
        serve(settings, on_start=lambda url, engine: None)
    with pytest.raises(UsageError, match="one bundle"):
        opened(settings)
    shutil.rmtree(store / "bob")
    shutil.rmtree(store / "cleo")
    assert [place.name for place in places(settings)] == ["ann"]


def test_ray_serves_no_directory_of_several(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(store), "--ray", "local"]) == 2
    assert "--ray serves one bundle" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_one_who_sends_slowly_keeps_no_model_open(store: Path, digit_png: Path) -> None:
    with live_server(settings_of(store, memory=15 * MIB, timeout=20.0)) as live:
        host, port = live.address.split(":")
        with socket.create_connection((host, int(port))) as slow:
            for path in ("/classify", "/embed", "/v2/models/ann/infer"):
                head = f"POST {path}?model=ann HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
                slow.sendall(head.encode() + b"x" * 500)
                assert label(live, digit_png, "bob").startswith("bob ")
                assert states(live)["ann"] == "UNLOADED"
                assert label(live, digit_png, "ann").startswith("ann ")
                slow.sendall(b"x" * 500)
                answer = HTTPResponse(slow)
                answer.begin()
                assert (answer.status, b'"fix"' in answer.read()) == (400, True)


def test_settings_of_one_are_not_those_of_the_others(store: Path) -> None:
    found = places(settings_of(store, queue=100, own=("bob.queue=2", "cleo.max-batch=8")))
    assert [(p.name, p.settings.queue, p.settings.max_batch) for p in found] == [
        ("ann", 100, None), ("bob", 2, None), ("cleo", 100, 8),
    ]  # fmt: skip


def test_a_full_queue_of_one_refuses_nobody_else(store: Path, digit_png: Path) -> None:
    with live_server(settings_of(store, own=("ann.queue=1",))) as live:
        engine = next(iter(live.app.state.models)).seat.served.engine
        gate, real = threading.Event(), engine._session.run
        engine._session.run = lambda feeds: (gate.wait(20), real(feeds))[1]
        data = digit_png.read_bytes()
        with ThreadPoolExecutor(6) as pool:

            def ask(_: int) -> int:
                with httpx.Client(base_url=live.url, timeout=20) as client:
                    return client.post("/classify", content=data).status_code

            asked = [pool.submit(ask, n) for n in range(6)]
            while sum(one.done() for one in asked) < 4:  # one is computed, one waits
                time.sleep(0.01)
            assert label(live, digit_png, "bob").startswith("bob ")
            gate.set()
            assert sorted(one.result() for one in asked).count(503) >= 4
