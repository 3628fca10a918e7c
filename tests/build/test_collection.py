"""A build does not stand still when Python's garbage collector meets an old builder."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

from vggdeploy.runtime.tensorrt.api import no_collection
from vggdeploy.types import Precision


def test_the_collector_is_off_inside_and_back_after_the_last_user() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_old_builders_in_cycles_do_not_stop_the_next_build(onnx_files, tmp_path) -> None:
    """Builders in reference cycles, and a collection inside the library's log: without care this never ends."""
    source = onnx_files[Precision.FP16]
    code = f"""
    import gc
    from pathlib import Path
    import tensorrt_rtx
    from vggdeploy.build.tensorrt import build_engine
    from vggdeploy.runtime.tensorrt.api import Log, logger_for
    from vggdeploy.types import BatchRange, Precision

    gc.disable()
    for _ in range(3):
        cycle = []
        logger = logger_for(tensorrt_rtx, Log())
        cycle.append((cycle, logger, tensorrt_rtx.Builder(logger)))
        del cycle, logger
    real = Log.add
    def add(self, *words):
        gc.collect()
        real(self, *words)
    Log.add = add
    build_engine(tensorrt_rtx, Path({str(source)!r}), Path({str(tmp_path / "e")!r}),
                 precision=Precision.FP16, profiles=[BatchRange(1, 4, 8)])
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "done" in done.stdout, done.stderr
