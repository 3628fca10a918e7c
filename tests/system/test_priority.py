"""Work behind others: what it gives, what it raises, and where a sandbox refuses a priority."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import weakref

import pytest

from vggdeploy.system.priority import LOWEST, behind, lower_priority


class Noted(Exception):
    """An exception that a test can see vanish."""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority belongs to the whole process")
def test_it_has_a_low_priority_and_its_caller_keeps_its_own() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert behind(lambda: os.getpriority(os.PRIO_PROCESS, 0)) == max(10, mine)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority belongs to the whole process")
def test_a_thread_of_the_lowest_priority_does_not_raise_it_by_the_way() -> None:
    found: list[int] = []

    def lowest() -> None:
        lower_priority(LOWEST)
        found.append(behind(lambda: os.getpriority(os.PRIO_PROCESS, 0)))

    thread = threading.Thread(target=lowest)
    thread.start()
    thread.join()
    assert found == [19]


def test_a_sandbox_that_refuses_it_does_not_keep_the_work_from_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "setpriority", refused)
    assert behind(lambda: 7) == 7


def test_an_error_is_raised_and_holds_nothing() -> None:
    def fails() -> None:
        raise Noted

    gc.disable()
    try:
        with pytest.raises(Noted) as caught:
            behind(fails)
        error = weakref.ref(caught.value)
        del caught
        assert error() is None
    finally:
        gc.enable()
