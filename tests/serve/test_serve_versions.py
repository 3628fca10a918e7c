"""Models that are loaded, replaced and taken away while a server runs."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from serve.conftest import Live, live_server
from serve.stores import label, opened, relabel, settings_of, states, until

from vggdeploy.bundle import Bundle, update_bundle
from vggdeploy.serve import models as models_module
from vggdeploy.serve.app import open_engine
from vggdeploy.serve.served import NotLoaded
from vggdeploy.serve.settings import Settings
from vggdeploy.serve.telemetry import Metrics


def test_one_that_cannot_be_opened_is_503_and_comes_back_when_it_is_mended(
    store: Path, digit_png: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store / "bob/variants/onnx-fp32/model.onnx"
    good = file.read_bytes()
    file.unlink()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with live_server(settings_of(store)) as live:
        assert states(live)["bob"] == "UNAVAILABLE"
        reply = live.client.post("/classify", content=digit_png.read_bytes(), params={"model": "bob"})
        assert reply.status_code == 503
        assert str(store) not in reply.text
        assert live.client.get("/v2/models/bob/ready").status_code == 503
        assert label(live, digit_png, "cleo").startswith("cleo ")
        file.write_bytes(good)
        monkeypatch.setattr(models_module, "_AGAIN", 0.0)
        assert label(live, digit_png, "bob").startswith("bob ")


@pytest.fixture
def watched(store: Path) -> Iterator[Live]:
    with live_server(settings_of(store, watch=0.1)) as live:
        yield live


def test_a_new_version_is_taken_when_it_is_proven(watched: Live, store: Path, digit_png: Path) -> None:
    relabel(store / "bob", "new")
    until(lambda: label(watched, digit_png, "bob").startswith("new "))
    assert label(watched, digit_png, "ann").startswith("ann ")


def test_a_version_that_misses_its_golden_pair_is_not_taken(watched: Live, store: Path, digit_png: Path) -> None:
    """The attack: every hash fits, and a manifest that says "pass"; only the golden pair can tell."""
    opened_bundle = Bundle.open(store / "bob")
    (name, path), *_ = opened_bundle.manifest.golden.outputs.items()
    with update_bundle(opened_bundle) as draft:
        wrong = np.load(store / "bob" / path)[:, ::-1].copy()
        draft.path(path)
        draft.save_arrays("golden/outputs", {name: wrong})
        labels = tuple(f"wrong {number}" for number in range(10))
        draft.manifest = msgspec.structs.replace(opened_bundle.manifest, labels=labels)
    until(lambda: 'what="reload_failed"' in watched.client.get("/metrics").text)
    assert label(watched, digit_png, "bob").startswith("bob ")
    relabel_text = (store / "bob/manifest.json").read_text()
    assert "wrong 1" in relabel_text  # it stands there, and is not served


def test_bundles_that_come_and_go_in_a_directory(watched: Live, store: Path, digit_png: Path) -> None:
    shutil.copytree(store / "ann", store / "dora")
    until(lambda: "dora" in states(watched))
    assert label(watched, digit_png, "dora").startswith("ann ")
    shutil.rmtree(store / "cleo")
    until(lambda: "cleo" not in states(watched))
    assert watched.client.post("/classify", content=b"x", params={"model": "cleo"}).status_code == 400


def test_a_version_that_is_still_being_copied_is_tried_again(
    watched: Live, store: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models_module, "_AGAIN", 0.2)
    shutil.copytree(store / "bob", tmp_path / "next")
    relabel(tmp_path / "next", "next")
    data = (tmp_path / "next/variants/onnx-fp32/model.onnx").read_bytes()
    file = store / "bob/variants/onnx-fp32/model.onnx"
    file.unlink()
    file.write_bytes(data[: len(data) // 2])
    fresh = store / "bob/manifest.new"
    shutil.copy(tmp_path / "next/manifest.json", fresh)
    fresh.replace(store / "bob/manifest.json")
    until(lambda: 'what="reload_failed"' in watched.client.get("/metrics").text)
    assert label(watched, digit_png, "bob").startswith("bob ")
    file.write_bytes(data)
    until(lambda: label(watched, digit_png, "bob").startswith("next "))


def test_unloaded_means_unloaded_until_it_is_loaded(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store))
        await models.open()
        await models.unload("bob")
        with pytest.raises(NotLoaded, match="unloaded"):
            async with models.use("bob"):
                pass
        await models.load("bob")
        async with models.use("bob") as here:
            assert here.model == "bob"
        await models.aclose()

    asyncio.run(scenario())


def test_an_unload_while_it_is_loaded_holds(store: Path) -> None:
    begun = threading.Event()

    def slow(settings: Settings, metrics: Metrics) -> Any:
        begun.set()
        time.sleep(0.3)
        return open_engine(settings, metrics)

    async def scenario() -> None:
        models = opened(settings_of(store), slow)
        await models.open()
        await models.unload("bob")
        begun.clear()
        loading = asyncio.create_task(models.load("bob"))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        later = models.find("cleo")
        await models._close(later)
        opening = asyncio.create_task(models.load("cleo"))  # waits for its turn
        await asyncio.sleep(0.02)
        await asyncio.gather(models.unload("bob"), models.unload("cleo"), loading, opening, return_exceptions=True)
        for name in ("bob", "cleo"):
            model = models.find(name)
            assert (model.seat, model.state, model.why) == (None, "UNAVAILABLE", "unloaded")
            with pytest.raises(NotLoaded, match="unloaded"):
                async with models.use(name):
                    pass
        await models.aclose()

    asyncio.run(scenario())


def test_what_was_not_foreseen_does_not_end_the_watching(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store, watch=0.1))
        asked: list[int] = []

        async def refresh() -> None:
            asked.append(1)
            raise RuntimeError("nobody thought of it")

        models.refresh = refresh  # type: ignore[method-assign,assignment]
        watching = asyncio.create_task(models.watch())
        while len(asked) < 2:
            await asyncio.sleep(0.02)
            assert not watching.done()
        watching.cancel()

    asyncio.run(scenario())


def test_who_goes_away_while_a_model_is_unloaded_leaves_none_half_closed(store: Path) -> None:
    """The attack: its memory would stay taken, and nobody would know of it any more."""

    async def scenario() -> None:
        models = opened(settings_of(store))
        await models.open()
        async with models.use("bob") as here:
            unloading = asyncio.create_task(models.unload("bob"))
            await asyncio.sleep(0.05)
            unloading.cancel()
            await asyncio.wait([unloading])
            assert not here.engine.closed
        while not here.engine.closed:
            await asyncio.sleep(0.02)
        await models.load("bob")
        assert models.find("bob").state == "READY"
        await models.aclose()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_two_looks_at_once_do_not_stumble_over_each_other(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store))
        await models.open()
        models.note()
        async with models.use("bob"):
            shutil.rmtree(store / "bob")
            shutil.rmtree(store / "cleo")
            looks = [asyncio.create_task(models.refresh()) for _ in range(2)]
            await asyncio.sleep(0.2)
        await asyncio.gather(*looks)
        assert [model.name for model in models] == ["ann"]
        models.note()
        gauge = models.metrics.registry.get_sample_value
        assert [gauge("vggdeploy_model_open", {"model": name}) for name in ("ann", "bob", "cleo")] == [1, 0, 0]
        assert gauge("vggdeploy_model_bytes", {"model": "bob"}) == 0
        await models.aclose()

    asyncio.run(scenario())


def test_a_directory_whose_bundles_have_gone_is_no_model_itself(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store, memory=2**30))
        store.rename(store.with_name("elsewhere"))
        store.mkdir()
        await models.refresh()
        assert [model.name for model in models] == ["ann"]  # the first one stays, whatever comes

    asyncio.run(scenario())


def test_a_request_that_took_too_long_has_failed(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store / "ann"))
        await models.open()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), models.use() as here:
                await asyncio.sleep(5)
        assert here.statistics.fail.count == 1
        await models.aclose()

    asyncio.run(scenario())
