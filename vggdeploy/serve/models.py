"""The models of one server process: opened when they are asked for, within one budget of memory, and replaced when they change.

Everything here belongs to the event loop of the server: nothing is locked but the opening of models, one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from vggdeploy.bundle.store import now
from vggdeploy.engine.async_engine import AsyncEngine
from vggdeploy.errors import Overloaded, UsageError, VggdeployError, unknown_name
from vggdeploy.serve.catalogue import places, shadow_place
from vggdeploy.serve.drift import Drift
from vggdeploy.serve.model import Model, Seat
from vggdeploy.serve.model_metrics import ModelMetrics
from vggdeploy.serve.served import NotLoaded, Served, unloaded
from vggdeploy.serve.settings import MIB, Settings
from vggdeploy.serve.shadow import Shadow
from vggdeploy.serve.sizes import Sizes, TooLarge, resident
from vggdeploy.serve.telemetry import LOGGER, Metrics, say
from vggdeploy.system.machine import trim_heap

_STAY = 5.0  # seconds that a busy model stays at least before it has to make room: else two would only take turns in loading
_AGAIN, _LONGEST = 10.0, 600.0  # seconds after which what could not be opened is tried again; doubled for a new version
T = TypeVar("T")
Opener = Callable[[Settings, Metrics], AsyncEngine]


class Models:
    """All models of a process. The first one answers where no name is given.

    Args:
        opener: opens the engine that settings name; its errors are those of a model that cannot be opened.
    """

    def __init__(self, settings: Settings, metrics: Metrics, opener: Opener) -> None:
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        self.since = now()
        self.sizes = Sizes()
        self.shadow: Shadow | None = None
        self.drift: Drift | None = None
        self._budget = None if settings.memory is None else max(MIB, settings.memory // settings.workers)
        self._opener = opener
        self._all = [Model(place) for place in places(settings)]
        self._counts = ModelMetrics(metrics.registry) if settings.several or self._all[0].place.name else None
        self._opening = asyncio.Lock()
        self._refreshing = asyncio.Lock()  # a second one would go through a list that the first has changed meanwhile
        self._under_way: set[asyncio.Task[Any]] = set()

    def __iter__(self) -> Any:
        return iter(tuple(self._all))

    @property
    def first(self) -> Model:
        return self._all[0]

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self.draining

    @property
    def waiting(self) -> int:
        """Requests that wait, of all models."""
        return sum(m.waiting + (m.seat.served.batching.waiting if m.seat else 0) for m in self._all)

    def find(self, name: str | None) -> Model:
        """The model of that name, None for the first.

        Raises:
            UsageError: there is none.
        """
        if name is None:
            return self.first
        found = next((model for model in self._all if model.name == name), None)
        if found is None:
            raise unknown_name("model", name[:80], [model.name for model in self._all])
        return found

    async def open(self, first: AsyncEngine | None = None) -> None:
        """Open the models in their order, as long as they fit; the others wait for a request.

        Args:
            first: the engine of the first model, where it is open already.

        Raises:
            Errors of the opener, of the first model. Another that cannot be opened is told in the log.
        """
        for model in self._all:
            if model is not self.first and not self._fits(model):
                continue
            if (error := await self._open(model, first if model is self.first else None)) and model is self.first:
                raise error
        place, seat = shadow_place(self.settings), self.first.seat
        if place is not None and seat is not None:
            limit, sample = self.settings.max_flips, self.settings.sample
            self.shadow = await asyncio.to_thread(Shadow, seat.served, place, sample, limit, self.metrics)
            seat.served.watchers.append(self.shadow.offer)
        if self.settings.drift and seat is not None:
            self.drift = await asyncio.to_thread(Drift, seat.served, self.metrics, processes=self.settings.workers)
            seat.served.watchers.append(self.drift.offer)

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Served]:
        """A model that stays open within the block. It is opened first where it is not.

        Raises:
            UsageError: no model of that name. Overloaded: too many wait for it to be opened. NotLoaded: it cannot be opened.
        """
        model = self.find(name)
        while (seat := model.seat) is None:
            await self._wait_for(model)
        seat.users += 1
        seat.idle.clear()
        model.used = time.monotonic()
        if self._counts:
            self._counts.requests.labels(model.name).inc()
        started = time.perf_counter()
        try:
            yield seat.served
        except BaseException:  # also one that took too long, or whose caller went away
            seat.served.statistics.failed(time.perf_counter() - started)
            raise
        finally:
            seat.users -= 1
            model.used = time.monotonic()
            if not seat.users:
                seat.idle.set()

    def refuse_early(self, name: str | None = None) -> None:
        """Before a body is read, which may take long and for which no model is kept open: one that nobody has room for need
        not arrive.

        Raises:
            UsageError: no model of that name. Overloaded: its queue is full.
        """
        model = self.find(name)
        if model.seat is None:
            return
        try:
            model.seat.served.refuse_when_full()
        except Overloaded:
            model.seat.served.statistics.failed(0.0)
            if self._counts:
                self._counts.requests.labels(model.name).inc()
            raise

    def drain(self) -> None:
        """Say "not ready" from now on, and go on answering."""
        self.draining = True
        self.metrics.ready.set(0)
        for model in self._all:
            if model.seat:
                model.seat.served.draining = True

    async def load(self, name: str) -> None:
        """Open a model now, or look for a new version of one that is open; errors as `use`, and of a reload."""
        model = self.find(name)
        async with self._opening:  # an unload before it has its effect first
            model.unloaded, model.failed = False, 0.0
        if model.seat is None:
            await self._wait_for(model)
        elif error := await self._to_its_end(self._renew(model, forced=False)):
            raise error

    async def unload(self, name: str) -> None:
        """Close a model after the requests that use it; until `load` it is not opened again.

        Raises:
            UsageError: no model of that name, or the only one.
        """
        model = self.find(name)
        if len(self._all) == 1:
            raise UsageError(f"'{model.name}' is all that this server has", "stop the server")
        await self._to_its_end(self._unload(model))

    async def refresh(self, *, forced: bool = False) -> None:
        """Take what now stands in the places: new versions, which have to repeat their golden pair first; bundles that are new
        in a directory, which are opened when they are asked for; bundles that have gone, which are closed.

        Args:
            forced: open each again, whether it seems to have changed or not.
        """
        async with self._refreshing:
            try:
                found = {place.path: place for place in await asyncio.to_thread(places, self.settings)}
            except VggdeployError as error:  # two of one name, say
                LOGGER.error("the bundles cannot be listed", extra={"about": {"error": str(error)}})
                found = {model.place.path: model.place for model in self._all}
            known = {model.place.path for model in self._all}
            taken = {model.place.name for model in self._all}
            for path, place in found.items():
                # A directory whose bundles have all gone stands there itself, and is none.
                if path not in known and place.name and place.name not in taken and place.stamp() is not None:
                    self._all.append(Model(place))
                    say("a new model", model=place.name)
            for model in tuple(self._all):
                if model.place.path not in found and model is not self.first:
                    await self._forget(model)
                else:
                    await self._renew(model, forced=forced)
        if self.shadow is not None:
            self.shadow.renew(forced=forced)

    async def watch(self) -> None:
        """`refresh` again and again, whatever comes of one."""
        while True:
            await asyncio.sleep(self.settings.watch)
            try:
                await self.refresh()
            except Exception:
                LOGGER.exception("a bug: new versions were not looked for this time")

    async def aclose(self) -> int:
        """Close all, after the requests that use them; how many they answered."""
        answered = 0
        for beside in (self.shadow, self.drift):
            if beside is not None:
                await asyncio.to_thread(beside.close)
        for model in self._all:
            if model.seat is not None:
                answered += model.seat.served.batching.health().answered
                await self._close(model)
        return answered

    def note(self) -> None:
        """Write what changes by itself into the metrics."""
        self.metrics.waiting.set(self.waiting)
        for model in self._all if self._counts else ():
            assert self._counts is not None  # noqa: S101  # for mypy
            seat, waiting = model.seat, model.waiting
            waiting += seat.served.batching.waiting if seat else 0
            self._counts.note(model.name, taken=seat.bytes if seat else None, waiting=waiting)

    async def _wait_for(self, model: Model) -> None:
        if model.unloaded:
            raise unloaded(model.name)
        if model.loading is None and model.failed and time.monotonic() - model.failed < _AGAIN:
            raise NotLoaded(f"the model '{model.name}' cannot be opened at present", "the server's log has the reason")
        if model.waiting >= model.place.settings.queue:
            raise Overloaded(f"{model.waiting} requests are waiting already", "try again a little later")
        if model.loading is None:
            model.loading = asyncio.create_task(self._open(model))
            model.loading.add_done_callback(lambda _: setattr(model, "loading", None))
        model.waiting += 1
        try:
            error = await asyncio.shield(model.loading)  # who goes away does not end it for the others
        finally:
            model.waiting -= 1
        if isinstance(error, NotLoaded):
            raise error
        if error is not None:
            raise NotLoaded(f"the model '{model.name}' cannot be opened at present", "the server's log has the reason")

    async def _open(self, model: Model, batching: AsyncEngine | None = None) -> VggdeployError | None:
        """Open it, or say why not."""
        async with self._opening:
            if model.seat is not None:
                return None
            if model.unloaded:  # meanwhile
                return unloaded(model.name)
            try:
                needed, there = self.sizes.needed(model.place), batching is not None
                await self._make_room(model, needed)
                model.stamp, before = model.place.stamp(), resident()
                if batching is None:
                    batching = await asyncio.to_thread(self._opener, model.place.settings, self.metrics)
            except (VggdeployError, OSError) as error:
                known = self._failed(model, error)
                if isinstance(error, TooLarge) and self.sizes.forget(model.place):
                    # Others' requests may have grown the process while it was measured: once more, much later.
                    model.failed += _LONGEST - _AGAIN
                return known
            # Of one that was open before, nobody has seen by how much the process grew.
            taken = self.sizes.learn(model.place, batching.engine, needed if there else resident() - before)
            model.seat = Seat(Served(batching, model.place.settings, self.metrics, name=model.place.name), taken)
            model.reason, model.failed = "", 0.0
            self._tell(model, "loaded")
            try:
                await self._make_room(model, taken)
            except VggdeployError as error:  # it takes more than was thought, and more than there is
                await self._close(model)
                return self._failed(model, error)
        return None

    def _failed(self, model: Model, error: VggdeployError | OSError) -> VggdeployError:
        known = error if isinstance(error, VggdeployError) else VggdeployError(error.strerror or str(error))
        model.reason, model.failed = known.cause, time.monotonic()
        LOGGER.error("a model cannot be opened", extra={"about": {"model": model.name, "error": str(known)}})
        if self._counts:
            self._counts.changes.labels(model.name, "failed").inc()
        return known

    def _fits(self, model: Model) -> bool:
        return self._budget is None or self._taken() + self.sizes.needed(model.place) <= self._budget

    def _taken(self, but: Model | None = None) -> int:
        return sum(m.seat.bytes for m in self._all if m.seat and m is not but)

    async def _make_room(self, model: Model, needed: int) -> None:
        """Close others until there is room: those that nobody uses, the longest unused first; then one that is in use, after
        the requests that have it.

        Raises:
            TooLarge: it takes more than the whole budget; no other was closed for it.
        """
        if self._budget is not None and needed > self._budget:
            raise TooLarge(
                f"{model.name} takes {needed // MIB} MiB, and the budget is {self._budget // MIB} MiB a process",
                "give more: --memory",
            )
        while self._budget is not None and self._taken(but=model) + needed > self._budget:
            victim = min((m for m in self._all if m.seat and m is not model), key=lambda m: (m.busy, m.used))
            assert victim.seat is not None  # noqa: S101  # for mypy: it was filtered
            stay = victim.seat.opened + _STAY - time.monotonic()
            if victim.busy and stay > 0:
                await asyncio.sleep(min(stay, 0.1))  # and look again: another may be idle by then
            else:
                await self._close(victim)

    async def _unload(self, model: Model) -> None:
        async with self._opening:  # after an opening that is under way, which would put it back
            model.unloaded, model.reason = True, "unloaded"
            await self._close(model)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Also when who asked for it goes away: a model that is half closed would stay in memory, and be nobody's."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _close(self, model: Model) -> None:
        seat, model.seat = model.seat, None  # from here on a request waits for a new one
        if seat is None:
            return
        await seat.idle.wait()
        await seat.served.batching.aclose()
        await asyncio.to_thread(trim_heap)
        self._tell(model, "unloaded")

    async def _renew(self, model: Model, *, forced: bool) -> VggdeployError | None:
        """Take the version that now stands there, if it is another one."""
        stamp = model.place.stamp()
        paused = stamp == model.tried and time.monotonic() < model.not_before
        if not forced and (stamp == model.stamp or paused):
            return None
        async with self._opening:
            seat = model.seat
            if seat is None:  # the next request opens what stands there
                model.stamp, model.failed = stamp, 0.0
                model.reason = model.reason if model.unloaded else ""
                return None
            try:
                # Until the last request has left the old one, both are in memory.
                await self._make_room(model, seat.bytes + self.sizes.needed(model.place))
                before = resident()
                await seat.served.batching.reload()
            except (VggdeployError, OSError) as error:
                about = {"model": model.name, "error": str(error)}
                LOGGER.error("the reload failed, the old bundle goes on", extra={"about": about})
                if self._counts:
                    self._counts.changes.labels(model.name, "reload_failed").inc()
                # It may be on its way still, file by file: it is tried again, later and later.
                model.pause = min(2 * model.pause, _LONGEST) if stamp == model.tried else _AGAIN
                model.tried, model.not_before = stamp, time.monotonic() + model.pause
                return error if isinstance(error, VggdeployError) else VggdeployError(str(error))
            model.stamp, model.tried = stamp, None
            seat.bytes = self.sizes.learn(model.place, seat.served.engine, resident() - before)
            seat.since = now()
        await asyncio.to_thread(trim_heap)
        self._tell(model, "reloaded")
        return None

    async def _forget(self, model: Model) -> None:
        self._all.remove(model)
        async with self._opening:
            await self._close(model)
        if self._counts:  # else it would be open for ever
            self._counts.note(model.name, taken=None, waiting=0)
        say("a model has gone", model=model.name)

    def _tell(self, model: Model, what: str) -> None:
        self.metrics.served(*(m.seat.served.engine for m in self._all if m.seat))
        if self._counts:
            self._counts.changes.labels(model.name, what).inc()
        about: dict[str, Any] = {"model": model.name}
        if model.seat:
            engine = model.seat.served.engine
            about |= {"variant": engine.variant.name, "digest": engine.bundle.manifest.digest}
        say(what, **about)
