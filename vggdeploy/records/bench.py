"""What the benchmark harness measured, and whether it counts."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.records.conclusions import ComparisonReport
from vggdeploy.records.parity import OutputParity
from vggdeploy.types import Precision, SpeedOutcome, Verdict


class Machine(Record, frozen=True, kw_only=True):
    """Where a measurement was taken.

    ``features`` are the CPU's instructions, ``affinity`` the cores that the process may run on, ``quota`` the cores that
    its control group grants it (None without one); ``cores`` is the smaller of both.
    """

    cpu: str
    cores: int
    memory_gib: float
    features: tuple[str, ...]
    system: str
    python: str
    gpu: str | None = None
    caches: tuple[str, ...] = ()
    affinity: int | None = None
    quota: float | None = None


class HostTimes(Record, frozen=True, kw_only=True):
    """Where the host's time for one image goes on the way through `Engine.classify`: medians, in milliseconds an image.

    ``source`` is what was classified. ``queue_ms`` is the wait of a request between its arrival and the start of its
    batch: None where there is no queue, as in a process that calls the engine itself; a server has one.
    """

    calls: int
    source: str
    preprocess_ms: float
    queue_ms: float | None
    run_ms: float
    postprocess_ms: float


class FreshStart(Record, frozen=True, kw_only=True):
    """A variant in a process that runs nothing else, started for this: torch-free, unless torch is its backend.

    ``cold_start_ms`` goes from the start of the process to its first answer (a batch of ``batch``): interpreter, imports,
    the hashes of the variant's files, session, one call; the files are in the system's cache. Of that, ``load_ms`` is the
    opening of the session, its library imported, and ``first_ms`` the first call. ``peak_rss_bytes`` is the most memory
    that was resident after one batch of every size that was measured; None where the system does not tell. ``size_bytes``
    is what the variant's files take in the bundle; None in records older than this field. ``proof_ms`` is what the golden
    pair takes that the first load on another machine runs before that answer; None for a variant that does not need it.
    """

    variant: str
    backend: str
    batch: int
    cold_start_ms: float
    load_ms: float
    first_ms: float
    peak_rss_bytes: int | None
    sha256: str
    size_bytes: int | None = None
    proof_ms: float | None = None


class CpuRoof(Record, frozen=True, kw_only=True):
    """The fastest product of two ``side`` × ``side`` matrices of a precision that a library made on this machine's CPUs.

    ``tera_ops``: 10¹² operations a second, a multiply-add counted as two: 2·side³ a product.
    """

    precision: Precision
    tera_ops: float
    side: int
    threads: int
    library: str


class Conditions(Record, frozen=True, kw_only=True):
    """The conditions in which a report was measured. A counter is None where this machine has none.

    ``affinity``: the CPUs that the workers may use; ``pinned``, whether that was asked for. ``environment``: variables
    that libraries take thread counts and the like from. ``commit``: of the git repository in the current directory, with
    "-dirty" where files differ from it. Swapped pages, and how often the CPU slowed down for its heat, are counted since
    the machine started, before and after the measurement.
    """

    affinity: tuple[int, ...]
    pinned: bool = False
    environment: dict[str, str] = {}
    governor: str | None = None
    commit: str | None = None
    swapped_before: int | None = None
    swapped_after: int | None = None
    throttled_before: int | None = None
    throttled_after: int | None = None
    mhz_before: float | None = None
    mhz_after: float | None = None


class BenchRow(Record, frozen=True, kw_only=True):
    """One variant at one batch size. Times are milliseconds a batch, None where too few calls lie beyond the percentile.

    ``ratio`` is speed against the baseline at the same batch (above 1 is faster), with a 95% interval over the
    ``processes`` that the interleaved rounds were measured in, one after another, each with a like share of them (of one
    process: over its rounds); ``comparison`` is what that interval shows. ``valid`` is False with ``reasons`` when
    something else than the variant was measured; ``not_checked`` says what this machine could not look at, and that counts
    neither way. ``round_medians_ms`` has the median of each round, in order; ``quantiles_ms`` the 0th, 1st, … 100th
    percentile of all calls, from the fastest call to the slowest. Both are empty in records of schema version 1.

    ``cpu_seconds_per_image`` counts all threads of the variant's process. ``joules_per_image`` comes from the counter
    that ``joules_from`` names (RAPL counts the whole machine's CPUs, NVML the GPU), and is None without one.
    ``others_share`` is the share of the cores that other processes used meanwhile, ``mhz_low`` to ``mhz_high`` the clock
    of the fastest core over the rounds. ``tera_ops`` are the network's operations, 10¹² a second, and ``roof_share`` is
    what that is of the roof of the precision that it computes in; None where no roof was measured. ``on_cpu`` is why the row
    ran on the CPU beside an engine on a GPU.
    """

    variant: str
    backend: str
    device: str
    batch: int
    rounds: int
    processes: int = 1
    calls: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    images_per_second: float
    load_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: Verdict
    valid: bool
    reasons: tuple[str, ...] = ()
    sha256: str = ""
    round_medians_ms: tuple[float, ...] = ()
    quantiles_ms: tuple[float, ...] = ()
    comparison: SpeedOutcome = SpeedOutcome.NOT_JUDGED
    not_checked: tuple[str, ...] = ()
    cpu_seconds_per_image: float | None = None
    joules_per_image: float | None = None
    joules_from: str = ""
    others_share: float | None = None
    mhz_low: float | None = None
    mhz_high: float | None = None
    host: HostTimes | None = None
    tera_ops: float | None = None
    roof_share: float | None = None
    on_cpu: str = ""


class LoadAnswers(Record, frozen=True, kw_only=True):
    """The answers that LoadGen got in its accuracy mode, under the load of a scenario.

    Each of ``images`` distinct images was asked. ``outputs`` compares the answers to the bundle's golden images with the
    reference's. ``misplaced`` answers are those of another image; ``changed`` ones are further than the precision allows
    from what the same session answers without load.
    """

    images: int
    misplaced: int
    changed: int
    outputs: tuple[OutputParity, ...]
    verdict: Verdict
    reasons: tuple[str, ...] = ()


class RateTry(Record, frozen=True, kw_only=True):
    """One run of a search for the highest rate; ``confirms`` marks one of the whole time."""

    qps: float
    queries: int
    p50_ms: float | None
    p99_ms: float | None
    valid: bool
    reasons: tuple[str, ...] = ()
    confirms: bool = False


class RateSearch(Record, frozen=True, kw_only=True):
    """The highest Poisson rate found, in queries a second, whose p99 is at most ``bound_ms``; ``qps`` is None where none
    was confirmed. ``tries`` are in the order in which they ran, in ``seconds`` together."""

    bound_ms: float
    qps: float | None
    tries: tuple[RateTry, ...]
    seconds: float


class ServerTimes(Record, frozen=True, kw_only=True):
    """What a server says of its own requests during one load, by the protocol's statistics extension: means in milliseconds.

    Of a server of several processes these are of the one that was asked for them.
    """

    requests: int
    failed: int
    queue_ms: float
    input_ms: float
    run_ms: float
    output_ms: float


class ServerAbout(Record, frozen=True, kw_only=True):
    """The server that was asked. ``judged_as`` is the strictest precision whose limits its answers to the golden pair keep;
    None where no bundle was given, or they keep none. ``held_against`` is the bundle's variant whose answers, on the machine
    that asked, every answer was compared with; empty where there was none. ``same_machine``: client and server shared the
    processor.
    """

    url: str
    protocol: str
    model: str
    server: str
    platform: str
    same_machine: bool
    judged_as: Precision | None = None
    held_against: str = ""


class ScenarioRow(Record, frozen=True, kw_only=True):
    """One variant under one of LoadGen's scenarios. Latencies are milliseconds a query.

    ``estimate_ms`` is LoadGen's early-stopping estimate (p90 of single_stream, p99 of multi_stream), None where too few
    queries ran; ``unique_over_same`` the median on distinct samples over that on one repeated sample. Of ``server``,
    ``queue`` is the time from a query's arrival to the start of the batch that it is in, ``run`` that of the batch.
    ``answers`` were given under the same load; ``search`` is how ``target_qps`` was found; ``loadgen`` is the version and
    ``seeds`` are its random numbers'. ``on_cpu`` as in `BenchRow`.

    Of a server that is asked over a network, a query is a request of ``batch`` images and ``queue`` its wait for one of the
    client's ``connections``; of the scenario ``callers``, so many callers each wait for their answer. ``failed`` requests had
    no answer; ``client_cores`` is what asking took.
    """

    variant: str
    backend: str
    device: str
    scenario: str
    queries: int
    batch: int
    target_qps: float | None
    latency_bound_ms: float | None
    samples_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    estimate_ms: float | None
    unique_over_same: float | None
    verdict: Verdict
    valid: bool
    reasons: tuple[str, ...] = ()
    sha256: str = ""
    queue_p50_ms: float | None = None
    queue_p99_ms: float | None = None
    run_p50_ms: float | None = None
    run_p99_ms: float | None = None
    answers: LoadAnswers | None = None
    search: RateSearch | None = None
    loadgen: str = ""
    seeds: dict[str, int] = {}
    on_cpu: str = ""
    connections: int | None = None
    failed: int = 0
    client_cores: float | None = None
    server: ServerTimes | None = None


class BenchReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy bench --json`` prints. ``command`` is the line that made it; of several ``bundles`` ``bundle`` is
    the first, the baseline's.

    ``summary`` has a sentence a batch size: the verdict, then the number. ``percentile`` is the one that was asked for: a
    row with too few calls for it is invalid. ``harness_cpu_share`` is what the process that hands out the turns used
    itself, in cores: 0.01 is 1% of one core. ``roofs`` are there where they were asked for (``--roof``), and
    so is ``gate``, the second bundle held against the first (``--fail-if-slower``). ``server`` is the one that was asked
    (``--url``); then ``bundle`` is what its answers were held against, or its URL where nothing was.
    """

    schema_version: int = RESULT_VERSION
    bundle: str
    bundles: tuple[str, ...] = ()
    created: str
    machine: Machine
    threads: int
    data: str
    baseline: str
    rows: tuple[BenchRow, ...]
    scenarios: tuple[ScenarioRow, ...] = ()
    tools: dict[str, str] = {}
    command: str = ""
    summary: tuple[str, ...] = ()
    percentile: int = 90
    fresh: tuple[FreshStart, ...] = ()
    conditions: Conditions | None = None
    harness_cpu_share: float | None = None
    roofs: tuple[CpuRoof, ...] = ()
    gate: ComparisonReport | None = None
    server: ServerAbout | None = None
