"""The trials of a fit on a Ray cluster: its nodes train, and this process chooses, measures and keeps.

Latency is measured on this machine alone, since it is the one that the limit is about. So the trainings take the cluster's
other nodes. Where there is no other one, a measurement waits until no training runs beside it.

Every node has to find the data, the output directory, and a teacher at the same paths.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggdeploy.errors import DataError, IncompatibleError, TrainingError, UsageError, counted
from vggdeploy.fit.ladder import BudgetSpentError, Ladder
from vggdeploy.fit.material import Material
from vggdeploy.fit.trials import Trials
from vggdeploy.records.fit import FitTrial, Rung, Shape
from vggdeploy.search.goals import Budget
from vggdeploy.system.ray import cluster, ray_module
from vggdeploy.train.environment import thread_count
from vggdeploy.train.record import TrainingStep
from vggdeploy.types import silent

_RETRIES = 2  # of a training whose process died


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an actor needs to know of the fit. ``images`` identifies them (see `Material.sha256`); paths count from
    ``directory``."""

    directory: Path
    dataset: str
    data_dir: Path | None
    images: str
    home: Path
    seed: int
    threads: int
    teacher: Path | None


class Trainer:
    """An actor: it trains the networks of trials that this process began, and leaves their checkpoints where it finds them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._ladder: Ladder | None = None

    def open(self) -> Ladder:
        """
        Raises:
            DataError: there are other images, or none. UsageError: the fit's directory is not there.
        """
        if self._ladder is None:
            work, host = self._work, socket.gethostname()
            if not (work.directory / work.home).is_dir():
                raise UsageError(
                    f"{host} does not find {work.home}", "write to a directory that all nodes share: -o DIR"
                )
            os.chdir(work.directory)
            material = Material.of(work.dataset, work.data_dir, seed=work.seed, on_progress=silent)
            if material.sha256 != work.images:
                raise DataError(f"{host} has other images of {work.dataset}", "give all nodes the same data")
            self._ladder = Ladder(material, work.home, work.seed, work.threads, work.teacher)
        return self._ladder

    def check(self) -> None:
        """Errors as `open`."""
        self.open()

    def climb(self, number: int, shape: Shape, rung: int, *, first: int | None, seconds: float) -> Rung:
        """As `Ladder.climb`, for so many seconds at most."""
        ladder, end = self.open(), time.monotonic() + seconds
        ladder.first = first

        def on_step(step: TrainingStep, part: int) -> None:
            if time.monotonic() > end:
                raise BudgetSpentError

        with thread_count(self._work.threads):
            return ladder.climb(number, shape, rung, on_step)


@dataclass
class ClusterTrials(Trials):
    """As `Trials`, with as many trials at a time as there are actors. One thread follows each actor.

    All that a trial is apart from its trainings happens in one thread at a time, which has the turn.
    """

    _turn: threading.Lock = field(default_factory=threading.Lock)
    _idle: threading.Condition = field(default_factory=threading.Condition)
    _training: int = 0
    _beside: bool = True  # trainings run on this machine
    _ending: bool = False
    _errors: list[BaseException] = field(default_factory=list)
    _mine: Any = field(default_factory=threading.local)  # the actor that a thread follows
    _ray: Any = None

    def _run(self, budget: Budget) -> None:
        options, threads = self.settings, self.settings.threads or 1
        with cluster(str(options.ray)) as self._ray:
            actors = self._actors(threads)
            unfinished = self._unfinished()
            followers = [
                threading.Thread(target=self._follow, args=(actor, unfinished, budget), name="vggdeploy-fit")
                for actor in actors
            ]
            try:
                for follower in followers:
                    follower.start()
                for follower in followers:
                    follower.join()
            finally:  # Ctrl-C comes here, too
                self._ending = True
                for actor in actors:
                    self._ray.kill(actor)
                for follower in followers:
                    follower.join()
        errors = sorted(self._errors, key=lambda error: isinstance(error, BudgetSpentError))
        if errors:
            raise errors[0]

    def _actors(self, threads: int) -> list[Any]:
        """One for each ``threads`` cores of the other nodes, or of this one; all have the same images.

        Raises:
            IncompatibleError: no node has so many cores. DataError, UsageError: as `Trainer.open`.
        """
        affinity = ray_module("util.scheduling_strategies").util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = self._ray.get_runtime_context().get_node_id()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        others = [node for node in nodes if node["NodeID"] != here]
        self._beside = not others
        places = [n["NodeID"] for n in others or nodes for _ in range(int(n["Resources"].get("CPU", 0) // threads))]
        places = places[: self.settings.ray_workers]
        if not places:
            raise IncompatibleError(
                f"no node of the cluster has {counted(threads, 'core')} to train with", "give fewer --threads"
            )
        work = Work(
            directory=Path.cwd(), dataset=self.material.name, data_dir=self.settings.data_dir, images=self.material.sha256,
            home=self.state.home, seed=self.settings.seed, threads=threads, teacher=self.ladder.teacher,
        )  # fmt: skip
        remote = self._ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=_RETRIES)(Trainer)
        actors = [remote.options(scheduling_strategy=affinity(place, soft=True)).remote(work) for place in places]
        self.told = (
            f"trained by {counted(len(actors), 'worker')} on {counted(len(set(places)), 'node')} of a Ray cluster"
        )
        self.settings.on_progress(None, f"{counted(len(actors), 'worker')} on Ray read the images")
        self._answers([actor.check.remote() for actor in actors])
        return actors

    def _answers(self, asked: Any) -> Any:
        """What actors answer; their own errors as they raised them."""
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def _follow(self, actor: Any, unfinished: list[FitTrial], budget: Budget) -> None:
        """One trial after the other on one actor, until the budget is spent or another thread fails."""
        self._mine.actor = actor
        try:
            with self._turn:
                while not self._ending:
                    begun = (unfinished.pop(0), None) if unfinished else self._new(budget)
                    if begun is None:
                        return
                    trial, asked = begun
                    self._put(trial)  # the next one takes another number
                    self._climb(trial, asked, self._trained_by(self._end, budget))
        except BaseException as error:
            if not self._ending:
                self._errors.append(error)
            self._ending = self._ending or not isinstance(error, BudgetSpentError)

    def _train(self, trial: FitTrial, rung: int, end: float) -> Rung:
        """
        Raises:
            TrainingError: as `Ladder.climb`, and where the process that trains dies again and again.
        """
        seconds = end - time.monotonic()
        self._count(1)
        self._turn.release()
        try:
            asked = self._mine.actor.climb.remote(
                trial.number, trial.shape, rung, first=self.ladder.first, seconds=seconds
            )
            return self._answers(asked)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError as error:
            if self._ending:  # it was ended, and stands at its last rung
                raise BudgetSpentError from error
            raise TrainingError("the process that trained it died", "look for what ended it: its memory?") from error
        finally:
            self._count(-1)
            self._turn.acquire()

    def _count(self, change: int) -> None:
        with self._idle:
            self._training += change
            self._idle.notify_all()

    def _measured(self, trial: FitTrial) -> FitTrial:
        if self._beside and not trial.ended and not trial.latency.variant:
            with self._idle:  # nobody can begin a training: this thread has the turn
                self._idle.wait_for(lambda: not self._training)
        return super()._measured(trial)
