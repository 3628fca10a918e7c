"""Loops that are measured beside each other: one process each, one at a time, in an order that turns every round.

A machine that slows down slows all of them, and no loop's idle threads spin beside another's.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

# Seconds: idle threads of the loop before spin for some 20 ms (ONNX Runtime's), and would beside this one's.
QUIET = 0.1
Make = Callable[[str, Any], Iterator[Any]]


def take_turns(make: Make, names: Sequence[str], options: Any, *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of every loop in every round.

    Args:
        make: gives the loop of a name: an iterator of endless steps. Whatever its first step yields is shown.
        options: for ``make``; it is pickled into the processes.
        steps: of each loop in a round.

    Raises:
        SystemExit: a loop ended before it was asked to.
    """
    context = multiprocessing.get_context("spawn")
    wires: dict[str, Connection] = {}
    processes = {}
    for name in names:
        wires[name], theirs = context.Pipe()
        processes[name] = context.Process(target=_serve, args=(make, name, options, steps, theirs), daemon=True)
        processes[name].start()
        theirs.close()
        print(f"{name}: {_answer(name, wires[name])}", flush=True)  # nothing runs beside the next one's start
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            wires[name].send("go")
            found[name].append(_answer(name, wires[name]))
        print(f"round {number + 1}: " + "  ".join(f"{n} {v[-1] * 1e3:.1f} ms" for n, v in found.items()), flush=True)
    for name in names:
        wires[name].send(None)
        processes[name].join()
    return found


def _answer(name: str, wire: Connection) -> Any:
    try:
        return wire.recv()
    except EOFError:
        raise SystemExit(f"the loop of {name} ended: its error stands above") from None


def _serve(make: Make, name: str, options: Any, steps: int, wire: Connection) -> None:
    loop = make(name, options)
    wire.send(next(loop))  # the very first step allocates and compiles
    while _asked(wire):
        time.sleep(QUIET)
        next(loop)  # not counted: another process has just used the caches
        start = time.perf_counter()
        for _ in range(steps):
            next(loop)
        wire.send((time.perf_counter() - start) / steps)


def _asked(wire: Connection) -> bool:
    try:
        return wire.recv() is not None
    except EOFError:  # the others' parent is gone
        return False


def ratio(baseline: Sequence[float], candidate: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline: median of the rounds' ratios of seconds, with a 95% bootstrap interval."""
    ratios = np.asarray(baseline) / np.asarray(candidate)
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}
