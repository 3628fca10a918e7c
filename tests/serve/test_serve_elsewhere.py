"""The application under other servers, and an engine in processes and loops of every kind: it works or says why not."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import vggdeploy
from vggdeploy.errors import IncompatibleError, UsageError
from vggdeploy.serve.asgi import app

# Of two workers of gunicorn each, or of uvicorn's.
SERVERS = {
    "gunicorn": "-m gunicorn -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:0 elsewhere:made",
    "gunicorn, preloaded": "-m gunicorn --preload -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:0 elsewhere:made",
    "gunicorn, called": "-m gunicorn -k uvicorn_worker.UvicornWorker -w 1 -b 127.0.0.1:0 vggdeploy.serve.asgi:app(BUNDLE)",
    "uvicorn": "-m uvicorn --workers 2 --port 0 elsewhere:made",
    "uvicorn, asyncio": "-m uvicorn --loop asyncio --port 0 --factory elsewhere:make",
}


@pytest.fixture
def elsewhere(bundle_dir: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the module with the application."""
    (tmp_path / "elsewhere.py").write_text(
        "from vggdeploy.serve.asgi import app\n"
        f"def make():\n    return app({str(bundle_dir)!r}, variant='onnx-fp32', threads=1, drain=0.2)\n"
        "made = make()\n"
    )
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def running(request: Any, elsewhere: dict[str, str], bundle_dir: Path, tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    command = SERVERS[request.param].replace("BUNDLE", repr(str(bundle_dir))).split()
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], env=elsewhere, stderr=file, stdout=file, start_new_session=True
        )
        yield process, log
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.late
@pytest.mark.parametrize("running", SERVERS, indirect=True)
def test_another_server_serves_the_application_and_ends_in_order(running: Any, digit_png: Path) -> None:
    process, log = running
    end = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    url = f"http://127.0.0.1:{found[1]}"
    for _ in range(6):  # each on a connection of its own, which any worker may take
        while True:
            try:
                reply = httpx.post(f"{url}/classify", content=digit_png.read_bytes(), timeout=20)
                break
            except httpx.TransportError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        assert reply.json()["predictions"][0]["label"] == digit_png.stem
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"port": 1}, "port is not the application's"),
        ({"wokers": 2}, "'wokers' is no setting"),
        ({"queue": 0}, "--queue is 0"),
    ],
)
def test_a_setting_that_is_none_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        app("bundle", **given)


ALONE = """
import asyncio, os, signal, sys
from vggdeploy.serve.asgi import app
made = app(sys.argv[1], variant="onnx-fp32", drain=0.1)
async def main():
    async with made.router.lifespan_context(made):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(20)
asyncio.run(main())
"""


def test_where_nobody_handles_sigterm_the_process_still_ends_by_it(bundle_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, bundle_dir], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


def _ask(engine: Any, image: str, answers: Any) -> None:
    """In a child: the label, or the error's kind and words."""
    try:
        answers.put(engine.classify(image, top=1)[0].label)
    except IncompatibleError as error:
        answers.put(str(error))


def _ask_async(engine: Any, image: str, answers: Any) -> None:
    import asyncio

    try:
        answers.put(asyncio.run(engine.classify(image, top=1))[0].label)
    except IncompatibleError as error:
        answers.put(str(error))


@pytest.mark.parametrize("ask", [_ask, _ask_async])
def test_an_engine_that_is_taken_through_a_fork_says_so_at_once(bundle_dir: Path, digit_png: Path, ask: Any) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        engine.classify(digit_png)
        held = engine if ask is _ask else vggdeploy.AsyncEngine(engine)
        child = context.Process(target=ask, args=(held, str(digit_png), answers))
        child.start()
        told = answers.get(timeout=30)
        child.join(10)
        assert child.exitcode == 0
        if held is not engine:
            held.close()
    assert "before this process was forked" in told


def test_an_engine_that_is_sent_to_a_spawned_process_is_refused_with_a_sentence(bundle_dir: Path) -> None:
    with vggdeploy.load(bundle_dir, variant="onnx-fp32") as engine:
        child = multiprocessing.get_context("spawn").Process(target=_ask, args=(engine, "", None))
        with pytest.raises(IncompatibleError, match="load it in the process that uses it"):
            child.start()


NOTEBOOK = """
import asyncio, sys, threading
import vggdeploy
async def cell():  # a notebook's cells run within an event loop that runs already
    with vggdeploy.load(sys.argv[1], variant="onnx-fp32") as engine:
        labels = [engine.classify(sys.argv[2], top=1)[0].label]
        async with vggdeploy.AsyncEngine(engine) as many:
            labels += [found[0].label for found in await asyncio.gather(*(many.classify(sys.argv[2]) for _ in range(8)))]
            threads = [
                threading.Thread(target=lambda: labels.append(asyncio.run(many.classify(sys.argv[2]))[0].label))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            labels += [found[0].label for found in await asyncio.gather(*(many.classify(sys.argv[2]) for _ in range(8)))]
            await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        assert labels == [sys.argv[3]] * 21, labels
asyncio.run(cell())
"""


def test_within_a_running_loop_and_threads_with_loops_of_their_own_it_answers(
    bundle_dir: Path, digit_png: Path
) -> None:
    command = [sys.executable, "-c", NOTEBOOK, bundle_dir, digit_png, digit_png.stem]
    subprocess.run(command, check=True, timeout=60)
