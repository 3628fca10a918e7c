"""The columns of a server that was asked over a network."""

from __future__ import annotations

from vggdeploy.records import ScenarioRow
from vggdeploy.report.digits import figures
from vggdeploy.report.tables import FIGURES, P50, P90, P99, QUERIES, RUN, VARIANT, VERDICT, Column

SERVER = (
    VARIANT, Column("scenario", "scenario", left=True), Column("connections", "connections", "d"),
    Column("batch", "images a request", "d"), Column("target_qps", "requests/s", FIGURES), P50, P90, P99,
    Column("latency_bound_ms", "bound ms", "g", wide=True), Column("samples_per_second", "images/s", FIGURES),
    VERDICT, RUN, QUERIES, Column("failed", "failed", ",d"), Column("server.queue_ms", "its queue ms", FIGURES),
    Column("server.run_ms", "its run ms", FIGURES), Column("client_cores", "client cores", ".2f", wide=True),
    Column("queue_p99_ms", "client queue p99 ms", FIGURES, wide=True),
    *(Column(key, "") for key in ("run_p50_ms", "run_p99_ms", "estimate_ms", "answers", "search", "seeds", "server")),
)  # fmt: skip


def scenario_name(row: ScenarioRow) -> str:
    """Which run it was: of a server there are several of one scenario."""
    if row.connections is None:
        return row.scenario
    return f"{figures(row.target_qps)} a second" if row.target_qps is not None else f"{row.connections} {row.scenario}"
