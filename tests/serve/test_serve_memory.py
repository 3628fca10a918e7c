"""Several models within one budget of memory."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serve.conftest import live_server
from serve.stores import ONE, label, opened, relabel, settings_of, states

from vggdeploy.errors import Overloaded, VggdeployError
from vggdeploy.serve.app import open_engine
from vggdeploy.serve.catalogue import places
from vggdeploy.serve.models import Models
from vggdeploy.serve.served import NotLoaded
from vggdeploy.serve.settings import MIB, Settings
from vggdeploy.serve.sizes import Sizes, resident
from vggdeploy.serve.telemetry import Metrics


@pytest.mark.usefixtures("small")
def test_within_a_budget_for_one_every_answer_is_right_and_never_two_are_open(store: Path, digit_png: Path) -> None:
    with live_server(settings_of(store, memory=15 * MIB)) as live:
        assert states(live) == {"ann": "READY", "bob": "UNLOADED", "cleo": "UNLOADED"}
        assert live.client.get("/v2/models/bob/ready").status_code == 200  # a request would open it
        models: Models = live.app.state.models
        data, most = digit_png.read_bytes(), [0]
        real = models._close

        async def close(model: Any) -> None:
            most[0] = max(most[0], sum(m.seat is not None for m in models))
            await real(model)

        models._close = close  # type: ignore[method-assign]

        def ask(number: int) -> tuple[str, int, str]:
            name = ("ann", "bob", "cleo")[number % 3]
            with httpx.Client(base_url=live.url, timeout=30) as client:
                reply = client.post("/classify", content=data, params={"model": name})
                return name, reply.status_code, reply.text

        with ThreadPoolExecutor(6) as pool:
            for name, status, text in pool.map(ask, range(24)):
                assert status == 200, text
                assert f'"{name} {digit_png.stem}"' in text
        assert most[0] == 1
        assert list(states(live).values()).count("READY") == 1
        text = live.client.get("/metrics").text
        assert float(text.split('vggdeploy_model_changes_total{model="bob",what="unloaded"} ')[1].split()[0]) >= 1


@pytest.mark.usefixtures("small")
def test_the_longest_unused_makes_room(store: Path, digit_png: Path) -> None:
    with live_server(settings_of(store, memory=25 * MIB)) as live:
        assert states(live) == {"ann": "READY", "bob": "READY", "cleo": "UNLOADED"}
        label(live, digit_png, "bob")
        label(live, digit_png, "ann")
        label(live, digit_png, "cleo")
        assert states(live) == {"ann": "READY", "bob": "UNLOADED", "cleo": "READY"}


@pytest.mark.usefixtures("small")
def test_one_that_fits_in_no_case_closes_no_other(
    store: Path, digit_png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack: any client names the large model, again and again, and the others would be loaded anew each time."""
    monkeypatch.setattr(Sizes, "needed", lambda self, place: 3 * ONE if place.name == "cleo" else ONE)
    with live_server(settings_of(store, memory=25 * MIB)) as live:
        for _ in range(2):
            reply = live.client.post("/classify", content=digit_png.read_bytes(), params={"model": "cleo"})
            assert reply.status_code == 503
            assert states(live) == {"ann": "READY", "bob": "READY", "cleo": "UNAVAILABLE"}


@pytest.mark.usefixtures("small")
def test_a_new_version_that_fits_in_no_case_beside_the_old_one_closes_no_other(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store, memory=25 * MIB))
        await models.open()
        ann, bob, _ = models
        assert ann.seat is not None
        ann.seat.bytes = 14 * MIB
        models.sizes.needed = lambda place: 14 * MIB  # type: ignore[method-assign]
        with pytest.raises(VggdeployError, match="takes 28 MiB, and the budget is 25 MiB"):
            relabel(store / "ann", "new")
            await models.load("ann")
        assert ann.seat is not None
        assert bob.seat is not None
        await models.aclose()

    asyncio.run(scenario())


def test_what_was_measured_as_too_large_is_measured_again_later(store: Path) -> None:
    """The process may have grown by others' requests, and the model would not be opened again until a restart."""

    async def scenario() -> None:
        models = opened(settings_of(store, memory=1024 * MIB))
        await models.open()
        ann, bob, cleo = models
        assert bob.seat is not None
        models.sizes.learn(bob.place, bob.seat.served.engine, 2048 * MIB)
        await models._close(bob)
        with pytest.raises(NotLoaded):
            await models.load("bob")
        assert ann.seat is not None
        assert cleo.seat is not None
        assert bob.failed > time.monotonic() + 500  # meanwhile no request opens it
        bob.failed = time.monotonic() - 11
        async with models.use("bob") as here:
            assert here.model == "bob"
        await models.aclose()

    asyncio.run(scenario())


@pytest.mark.usefixtures("small")
def test_a_busy_model_makes_room_only_after_its_last_request(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store, memory=15 * MIB))
        await models.open()
        async with models.use("ann") as ann:
            asking = asyncio.create_task(models.use("bob").__aenter__())
            await asyncio.sleep(0.4)
            assert not asking.done()
            assert not ann.engine.closed
            assert len((await ann.batching.run({"image": np.zeros((1, 32, 32, 1), np.uint8)}))["logits"]) == 1
        bob = await asyncio.wait_for(asking, 20)
        assert ann.engine.closed
        assert not bob.engine.closed
        for model in models:
            if model.seat:
                model.seat.idle.set()
        await models.aclose()

    asyncio.run(scenario())


@pytest.mark.usefixtures("small")
def test_many_that_ask_for_a_closed_model_open_it_once_and_who_leaves_ends_it_for_nobody(store: Path) -> None:
    opens: list[str] = []

    def slow(settings: Settings, metrics: Metrics) -> Any:
        opens.append(Path(settings.bundle).name)
        time.sleep(0.3)
        return open_engine(settings, metrics)

    async def scenario() -> None:
        models = opened(settings_of(store, memory=15 * MIB, own=("bob.queue=5",)), slow)
        await models.open()

        async def ask() -> str:
            async with models.use("bob") as here:
                return here.model

        asked = [asyncio.create_task(ask()) for _ in range(7)]
        await asyncio.sleep(0.1)
        asked[0].cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(one) for one in found].count("bob") == 4
        assert sum(isinstance(one, Overloaded) for one in found) == 2
        assert opens == ["ann", "bob"]
        await models.aclose()

    asyncio.run(scenario())


def test_what_is_larger_than_the_budget_does_not_start(store: Path) -> None:
    async def scenario() -> None:
        models = opened(settings_of(store, memory=MIB))
        with pytest.raises(Exception, match="the budget is 1 MiB"):
            await models.open()

    asyncio.run(scenario())


def test_one_that_was_open_before_counts_as_what_was_guessed(store: Path) -> None:
    """The attack: the command opens the first model early, when nothing measures, and it would count as next to nothing."""

    async def scenario() -> None:
        models = opened(settings_of(store))
        guess = models.sizes.needed(models.first.place)
        await models.open(open_engine(models.first.place.settings))
        assert models.first.seat is not None
        assert models.first.seat.bytes >= guess
        await models.aclose()

    asyncio.run(scenario())


def test_a_size_is_guessed_from_the_file_and_then_what_was_measured(store: Path) -> None:
    (place, *_) = places(settings_of(store))
    file = (store / "ann/variants/onnx-fp32/model.onnx").stat().st_size
    sizes = Sizes()
    assert sizes.needed(place) >= 2 * file
    before = resident()
    engine = open_engine(place.settings).engine
    assert sizes.learn(place, engine, resident() - before) >= file
    assert sizes.learn(place, engine, 123 * MIB) == 123 * MIB
    assert sizes.learn(place, engine, 0) == 123 * MIB  # it was opened into memory that was there
    assert sizes.needed(place) == 123 * MIB
    engine.close()
