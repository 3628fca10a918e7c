"""What else the machine did while we measured: each fact is put into a made-up /proc and /sys, and one is real."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggdeploy.bench.interference import (
    Counters,
    CpuWatch,
    Rapl,
    governor,
    megahertz,
    peak_rss,
    swapped_pages,
    throttle_events,
    wait_until_idle,
    with_siblings,
)


def put(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def stat(*busy: int) -> dict[str, object]:
    """Ticks of each core, in order."""
    lines = [f"cpu{core} {ticks} 0 0 1000 0 0 0 0 0 0" for core, ticks in enumerate(busy)]
    return {"proc/stat": "\n".join([f"cpu {sum(busy)} 0 0 1000 0 0 0 0 0 0", *lines, "intr 7 0 0", "ctxt 9"])}


def vmstat(came: int, went: int) -> dict[str, object]:
    return {"proc/vmstat": f"nr_free_pages 5\npswpin {came}\npswpout {went}\npgfault 99"}


def throttled(core: int, package: int) -> dict[str, object]:
    place = "sys/devices/system/cpu/cpu0/thermal_throttle"
    return {f"{place}/core_throttle_count": core, f"{place}/package_throttle_count": package, f"{place}/total": "?"}


def test_busy_ticks_that_are_not_ours_are_those_of_others(tmp_path: Path) -> None:
    watch = CpuWatch(put(tmp_path, stat(0)))
    time.sleep(0.01)
    put(tmp_path, stat(1_000_000))
    assert watch.others() > 1
    quiet = CpuWatch(tmp_path)
    time.sleep(0.01)
    assert -0.1 < quiet.others() <= 0  # our own work is in the clock of the process, and in no tick yet


def test_a_burner_on_the_core_that_we_are_pinned_to_is_seen_among_64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {40})
    monkeypatch.setattr("vggdeploy.bench.interference.time.monotonic", iter([0.0, 1.0, 0.0, 1.0]).__next__)
    for burner, seen in ((40, True), (41, False)):
        watch = CpuWatch(put(tmp_path, stat(*[0] * 64)))
        put(tmp_path, stat(*[100 * (core == burner) for core in range(64)]))
        assert (watch.others() > 0.9) is seen


@pytest.mark.parametrize(("listed", "cores"), [("3,67", {3, 67}), ("3-4", {3, 4}), ("3", {3}), ("", {3})])
def test_who_shares_a_physical_core_with_us_is_watched_too(listed: str, cores: set[int], tmp_path: Path) -> None:
    put(tmp_path, {"sys/devices/system/cpu/cpu3/topology/thread_siblings_list": listed})
    assert with_siblings({3}, tmp_path) == cores


def test_the_time_that_the_hypervisor_took_is_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    watch = CpuWatch(put(tmp_path, {"proc/stat": "cpu0 0 0 0 0 0 0 0 0 0 0"}))
    time.sleep(0.01)
    put(tmp_path, {"proc/stat": "cpu0 0 0 0 0 0 0 0 1000000 0 0"})
    assert watch.others() > 1


def test_waits_for_memory_are_a_reason_from_a_share_of_the_time_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("vggdeploy.bench.interference.time.monotonic", clock.__next__)
    readings = []
    for microseconds in (500, 90_500, 990_500):
        some = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={microseconds}"
        put(tmp_path, {"proc/pressure/memory": f"{some}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7"})
        readings.append(Counters.read(tmp_path))
    first, second, third = readings
    assert second.doubts(first)[0] == ()  # 0.9% of the time
    assert third.doubts(second)[0] == ("memory: processes waited 0.90 s for it",)


def test_a_process_that_is_really_busy_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        watch = CpuWatch()
        time.sleep(0.5)
        assert watch.others() > 0.05
    finally:
        busy.kill()
        busy.wait()


class Threads:
    """Idle threads that spin for ``spin`` seconds after a call, on a clock of their own."""

    def __init__(self, spin: float) -> None:
        self.spin, self.now = spin, 0.0

    def cpu(self) -> float:
        return min(self.now, self.spin)

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("spin", [0.0, 0.04, 0.3])
def test_the_next_turn_begins_once_the_threads_have_stopped_spinning(spin: float) -> None:
    threads = Threads(spin)
    wait_until_idle(clock=threads.cpu, pause=threads.pause)
    assert spin + 0.005 <= threads.now <= spin + 0.02


def test_a_process_that_never_rests_is_not_waited_for_for_ever() -> None:
    threads = Threads(1e9)
    wait_until_idle(clock=threads.cpu, pause=threads.pause)
    assert threads.now == pytest.approx(1.0)


def test_a_quota_that_stopped_the_process_is_a_reason_and_one_that_did_not_is_none() -> None:
    """Half a core of quota stopped 89 of 102 periods, and the row was valid."""
    before = Counters(0, 0, 10, 0)
    assert Counters(0, 0, 99, 0).doubts(before) == (("quota: this container's CPU quota stopped it in 89 periods",), ())
    for same in (Counters(0, 0, 10, 0), Counters(0, 0, None, 0)):
        assert same.doubts(before) == ((), ())


def test_swapping_is_a_reason(tmp_path: Path) -> None:
    before = Counters.read(put(tmp_path, vmstat(5, 7)))
    after = Counters.read(put(tmp_path, vmstat(8, 7)))
    reasons, unchecked = after.doubts(before)
    assert reasons == ("swap: 3 pages went in or out",)
    assert [text.split(":")[0] for text in unchecked] == ["throttling", "memory pressure"]
    assert before.doubts(before)[0] == ()


def test_throttling_is_a_reason(tmp_path: Path) -> None:
    before = Counters.read(put(tmp_path, throttled(1, 2)))
    after = Counters.read(put(tmp_path, throttled(2, 4)))
    reasons, unchecked = after.doubts(before)
    assert reasons == ("throttled: the CPU slowed down 3 times for its heat",)
    assert [text.split(":")[0] for text in unchecked] == ["swap", "memory pressure"]


def test_a_machine_that_tells_nothing_is_not_checked_and_never_passes(tmp_path: Path) -> None:
    assert CpuWatch(tmp_path).others() is None
    assert swapped_pages(tmp_path) is throttle_events(tmp_path) is megahertz(tmp_path) is governor(tmp_path) is None
    assert peak_rss(tmp_path) is None
    reasons, unchecked = Counters.read(tmp_path).doubts(Counters.read(tmp_path))
    assert reasons == ()
    assert len(unchecked) == 3


def test_the_clock_is_the_fastest_cores_of_those_we_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    files = {
        f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": khz for n, khz in enumerate((800_000, 3_400_000))
    }
    put(tmp_path, files | {"sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": 4_000_000})
    assert megahertz(tmp_path) == 3400
    put(tmp_path, {"sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "<unknown>"})
    assert megahertz(tmp_path) == 800
    put(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"})
    assert governor(tmp_path) == "powersave"


def test_the_peak_of_memory_is_that_of_the_program_and_not_of_its_parent() -> None:
    held = bytearray(200 * 2**20)
    code = "from vggdeploy.bench.interference import peak_rss; print(peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < 150 * 2**20
    assert peak_rss() > len(held)


ZONES = "sys/class/powercap"


def zone(name: str, label: str, microjoules: object, lap: int = 1_000_000_000) -> dict[str, object]:
    where = f"{ZONES}/{name}"
    return {f"{where}/name": label, f"{where}/energy_uj": microjoules, f"{where}/max_energy_range_uj": lap}


def test_joules_are_those_of_packages_and_memory_and_no_part_is_counted_twice(tmp_path: Path) -> None:
    def at(package: int, memory: int) -> dict[str, object]:
        return (
            zone("intel-rapl:0", "package-0", package)
            | zone("intel-rapl:0:0", "core", package)
            | zone("intel-rapl:0:1", "dram", memory)
            | zone("intel-rapl:1", "psys", package)
            | zone("intel-rapl-mmio:0", "package-0", package)
        )

    put(tmp_path, at(5_000_000, 1_000_000))
    rapl = Rapl(tmp_path)
    before = rapl.read()
    put(tmp_path, at(8_000_000, 1_500_000))
    assert rapl.since(before) == pytest.approx(3.5)
    put(tmp_path, at(4_000_000, 1_500_000))  # the package started again at 1000 J
    assert rapl.since(before) == pytest.approx(999.5)


@pytest.mark.parametrize("text", ["", "secret", "-5"])
def test_energy_that_cannot_be_read_is_no_figure(tmp_path: Path, text: str) -> None:
    put(tmp_path, zone("intel-rapl:0", "package-0", text) | zone("intel-rapl:0:2", "dram", 7))
    rapl = Rapl(tmp_path)
    assert rapl.read() is None
    assert rapl.since(None) is None
    assert Rapl(tmp_path / "nowhere").read() is None
