"""The columns of ``vggdeploy bench --gpu-detail``: one engine's times on the device, several streams, and trtexec's row."""

from __future__ import annotations

from vggdeploy.report.tables import BATCH, FIGURES, IMAGES, JOULES, OF_THE_ROOF, RUN, Column

ON_DEVICE = (
    Column("h2d_ms", "H2D ms", FIGURES), Column("compute_ms", "compute ms", FIGURES), Column("d2h_ms", "D2H ms", FIGURES),
    Column("device_ms", "device ms", FIGURES),
)  # fmt: skip
TIMES = (
    BATCH, Column("graph", "graph", left=True), *ON_DEVICE,
    Column("host_compute_ms", "host ms, no copies", FIGURES), Column("host_ms", "host ms", FIGURES),
    Column("tera_ops", "TOP/s", FIGURES), OF_THE_ROOF,
)  # fmt: skip
TRTEXEC = (BATCH, *ON_DEVICE, IMAGES)
LOADS = (
    BATCH, Column("streams", "streams", "d"), Column("graph", "graph", {True: "yes", False: "no"}.get, left=True), RUN,
    IMAGES, JOULES, Column("seen.power_watts_mean", "W", FIGURES),
    Column("seen.sm_clock_mhz_min", "SM MHz", lambda low, high: f"{low}–{high}", ("seen.sm_clock_mhz_max",)),
    Column("seen.temperature_c_max", "°C"),
)  # fmt: skip
