"""The columns of every kind of result, defined once: the terminal, Markdown, the CSV and the page all draw these.

A row is a tuple of records, and a column reads its ``key`` from the first of them that has it. Cells are plain text on
one line; whoever draws them escapes for its own medium.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from vggdeploy.errors import one_line
from vggdeploy.records import BatchParity, BenchReport, BenchRow, LayerReport, OutputParity, ScenarioRow
from vggdeploy.report.digits import figures
from vggdeploy.types import Verdict

FIGURES = "figures"  # a column's ``write``: three significant digits
MARKS = {Verdict.PASS: "✔", Verdict.FAIL: "✘", Verdict.INCONCLUSIVE: "?", Verdict.UNPROVEN: "–"}
Row = tuple[object, ...]
Facts = SimpleNamespace  # the part of a row that stands in no record: a label, a share, a choice


@dataclass(frozen=True)
class Cell:
    """What a cell says, the number that it is sorted by, and the verdict whose sign stands beside it."""

    text: str
    value: float | None = None
    light: Verdict | None = None


NONE = Cell("–")


@dataclass(frozen=True)
class Column:
    """One column of one kind of result.

    ``key`` is the field's name in JSON and in the CSV, with dots into records inside records; the cell is sorted by it.
    ``write`` is a format for that value times ``scale``, `FIGURES`, or a function of it and the fields in ``also``. A
    column that is ``left`` holds text, a ``long`` one sentences, and a ``wide`` one has no room in a terminal. Without a
    title it holds numbers that only the CSV has.
    """

    key: str
    title: str
    write: str | Callable[..., str | Cell] = ""
    also: tuple[str, ...] = ()
    scale: float = 1.0
    left: bool = False
    wide: bool = False
    long: bool = False

    def cell(self, row: Row) -> Cell:
        """What this column says of a row: a dash where there is no value."""
        value = value_of(row, self.key)
        if value is None or value in ("", ()):
            return NONE
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if callable(self.write):
            told = self.write(value, *(value_of(row, key) for key in self.also))
        elif isinstance(value, tuple):
            told = "; ".join(value)
        elif self.write == FIGURES:
            told = figures(value * self.scale)
        else:
            told = format(value if self.scale == 1 else value * self.scale, self.write)
        return told if isinstance(told, Cell) else Cell(one_line(told), value * self.scale if number else None)


@dataclass(frozen=True)
class Grid:
    """A table ready to be drawn: a cell for each row and column."""

    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]


def grid(columns: Iterable[Column], rows: Iterable[Row], caption: str = "") -> Grid:
    """The cells of ``rows`` in all columns that have a title."""
    shown = tuple(column for column in columns if column.title)
    return Grid(one_line(caption), shown, [[column.cell(row) for column in shown] for row in rows])


def without_empty_columns(found: Grid) -> Grid:
    """The same without the columns in which no row says anything; the first one names the rows, and stays."""
    kept = [i for i in range(len(found.columns)) if i == 0 or any(row[i] != NONE for row in found.rows)]
    return Grid(found.caption, tuple(found.columns[i] for i in kept), [[row[i] for i in kept] for row in found.rows])


def numbers(columns: Iterable[Column], row: Row) -> dict[str, float | str]:
    """Every number behind a row by its name in the CSV, and its verdict. Lists have an index in their names."""
    named: dict[str, float | str] = {}
    for column in columns:
        for key in (column.key, *column.also):
            named.update(_numbers(value_of(row, key), key))
    return named


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float | str]]:
    if isinstance(value, (bool, int, float)):
        yield name, int(value) if isinstance(value, bool) else value
    elif name in ("verdict", "numerical", "bounds") and value:
        yield name, str(value)
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            if isinstance(part, (int, float)):
                yield f"{name}.{index}", part
    elif isinstance(value, Mapping) or hasattr(value, "__struct_fields__"):
        names = value if isinstance(value, Mapping) else value.__struct_fields__
        for part in names:
            yield from _numbers(_part(value, part), f"{name}.{part}")


def value_of(row: Row, key: str) -> Any:
    """The field ``key`` of the first part of a row that has one of this name; None where no part has it."""
    first, *rest = key.split(".")
    value = next((getattr(part, first) for part in row if hasattr(part, first)), None)
    for name in rest:
        value = _part(value, name)
    return value


def _part(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, tuple):
        return value[int(name)] if int(name) < len(value) else None
    return None if value is None else getattr(value, name)


def layer_rows(report: LayerReport) -> list[Row]:
    """The layers in order, with their numbers, and which of them is the culprit."""
    return [(Facts(index=i, first=layer.layer == report.culprit), layer) for i, layer in enumerate(report.layers, 1)]


def row_notes(row: BenchRow | ScenarioRow) -> tuple[str, ...]:
    """What has to be said beside a row: why it does not count, and why it ran elsewhere than the engine beside it."""
    return (*row.reasons, f"it ran on the CPU beside an engine on a GPU: {row.on_cpu}") if row.on_cpu else row.reasons


def has_shares(bench: BenchReport) -> bool:
    """Whether any row of a bench says where the time or the energy of an image goes."""
    return any(r.host or r.cpu_seconds_per_image is not None or r.joules_per_image is not None for r in bench.rows)


# How cells are written.


def verdict_cell(verdict: Verdict | str) -> Cell:
    return Cell(str(verdict), light=verdict if isinstance(verdict, Verdict) else None)


def _mood(texts: Mapping[Any, str], lights: Mapping[Any, Verdict]) -> Callable[[Any], Cell]:
    return lambda value: Cell(texts.get(value, str(value)), light=lights.get(value))


def _sizes(batches: Sequence[BatchParity]) -> str:
    return ", ".join(str(batch.batch) for batch in batches)


def _worst(outputs: Sequence[OutputParity]) -> str:
    return format(max(output.relative_l2 for output in outputs), ".1e")


def _repeats(calls: int, differing: int, upper: float) -> str:
    return f"{differing} of {calls} differ (≤ {upper:.2%}, one-sided 95%)"


_run = _mood({True: "valid", False: "invalid"}, {True: Verdict.PASS, False: Verdict.INCONCLUSIVE})


def _interval(form: str) -> Callable[..., str]:
    tell = figures if form == FIGURES else lambda value: format(value, form)

    def write(middle: float, low: float | None, high: float | None) -> str:
        return tell(middle) + ("" if low is None or high is None else f" ({tell(low)}–{tell(high)})")

    return write


def _outcome(outcome: str, too_slow: bool) -> Cell:
    lights = {"faster": Verdict.PASS, "slower": Verdict.INCONCLUSIVE, "not judged": Verdict.INCONCLUSIVE}
    return Cell("too slow", light=Verdict.FAIL) if too_slow else Cell(outcome, light=lights.get(outcome))


def _relative_l2(value: float, finite: bool | None) -> Cell:
    return Cell("not finite", float("inf"), Verdict.FAIL) if finite is False else Cell(f"{value:.1e}", value)


def _flips(upper: float, flips: int, samples: int) -> str:
    return f"{flips}/{samples} (≤ {upper:.2%})"


def _at_most(middle: float, upper: float) -> str:
    return f"{middle:.2%} (≤ {upper:.2%})"


def _accuracies(candidate: float, reference: float | None) -> str:
    return f"{candidate:.2%}" if reference is None else f"{reference:.2%} → {candidate:.2%}"


def _points(drop: float, upper: float) -> Cell:
    return Cell(f"{-100 * drop:+z.2f} (at worst {-100 * upper:+z.2f})", -100 * drop)


def _lost(drop: float, lower: float, upper: float) -> str:
    return f"{100 * drop:+z.2f} ({100 * lower:+z.2f} … {100 * upper:+z.2f})"


def _share(now: float, before: float) -> str:
    return f"{now:,} ({now / before:.1%})" if before else f"{now:,}"


def _at_batch(median: float, batch: int | None) -> Cell:
    return Cell(f"{figures(median)} at batch {batch}" if batch else figures(median), median)


def _layers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "–"


def _here(runs: bool, builds: bool) -> Cell:
    if runs:
        return Cell("runs", light=Verdict.PASS)
    return Cell("builds only", light=Verdict.INCONCLUSIVE) if builds else Cell("cannot", light=Verdict.FAIL)


def _text(key: str, title: str, *, wide: bool = False, long: bool = False) -> Column:
    return Column(key, title, left=True, wide=wide, long=long)


def _data(*keys: str) -> tuple[Column, ...]:
    """What only the CSV has; of a key that is a list or a record, every number in it."""
    return tuple(Column(key, "") for key in keys)


def _light(key: str, title: str, write: Callable[..., Cell], *also: str) -> Column:
    return Column(key, title, write, also, left=True)


# Columns of more than one kind.
VARIANT = _text("variant", "variant")
VERDICT = _light("verdict", "parity", verdict_cell)
NUMERICAL = _light("verdict", "numerical", lambda whole, own: verdict_cell(own or whole), "numerical")
BOUNDS = _light("bounds", "bounds", verdict_cell)
RUN = _light("valid", "run", _run)
BATCH = Column("batch", "batch", "d")
QUERIES = Column("queries", "queries", ",d")
P50, P90, P99 = (Column(f"p{p}_ms", f"p{p} ms", FIGURES) for p in (50, 90, 99))
ONE_IMAGE, IMAGES = "p50 ms of one image", Column("images_per_second", "images/s", FIGURES)
SPEED = Column("ratio", "speed × (95%)", _interval(FIGURES), ("ratio_low", "ratio_high"))
JOULES = Column("joules_per_image", "J/image", FIGURES)
OF_THE_ROOF = Column("roof_share", "of the roof", ".0%")
ON = _text("data", "on")
RAN_ON = Column("backend", "ran on", lambda backend, device: f"{backend}, {device}", ("device",), left=True, wide=True)
MAX_ABS = Column("max_abs", "max |Δ|", ".1e")
RELATIVE_L2 = Column("relative_l2", "relative L2", _relative_l2, ("finite",))
COSINE = Column("cosine_min", "min cosine", ".6f")

BENCH = (
    VARIANT, BATCH, P50, P90, P99, IMAGES, SPEED, VERDICT, RUN, _text("comparison", "shown"),
    Column("quantiles_ms.0", "fastest ms", FIGURES, wide=True),
    Column("quantiles_ms.100", "slowest ms", FIGURES, wide=True),
    Column("calls", "calls", ",d", wide=True), Column("load_ms", "load ms", FIGURES, wide=True),
    *_data("rounds", "round_medians_ms", "quantiles_ms", "others_share", "mhz_low", "mhz_high"),
)  # fmt: skip
SHARES = (
    VARIANT, BATCH,
    Column("host.preprocess_ms", "preprocess ms", FIGURES), Column("host.queue_ms", "queue ms", FIGURES, wide=True),
    Column("host.run_ms", "run ms", FIGURES), Column("host.postprocess_ms", "postprocess ms", FIGURES),
    Column("cpu_seconds_per_image", "CPU ms/image", FIGURES, scale=1e3), JOULES,
    _text("joules_from", "counter", wide=True), *_data("host"),
)  # fmt: skip
UNDER_ROOF = (VARIANT, RUN, BATCH, Column("tera_ops", "TOP/s", FIGURES), OF_THE_ROOF)
ROOFS = (
    _text("precision", "precision"), _text("library", "library"), Column("threads", "threads", "d"),
    Column("side", "side", ",d"), Column("tera_ops", "TOP/s", FIGURES),
)  # fmt: skip
STARTS = (
    VARIANT, _text("backend", "backend", wide=True),
    Column("size_bytes", "size MB", FIGURES, scale=1e-6, wide=True),
    Column("peak_rss_bytes", "peak memory MB", FIGURES, scale=1e-6), Column("cold_start_ms", "cold start ms", FIGURES),
    Column("load_ms", "of that: load ms", FIGURES), Column("first_ms", "first call ms", FIGURES),
    Column("proof_ms", "proof on a new machine ms", FIGURES),
)  # fmt: skip
SCENARIOS = (
    VARIANT, _text("scenario", "scenario"), BATCH, P50, P90, P99,
    Column("latency_bound_ms", "bound ms", "g", wide=True), Column("samples_per_second", "samples/s", FIGURES),
    Column("target_qps", "target queries/s", FIGURES, wide=True), VERDICT, RUN, QUERIES,
    Column("estimate_ms", "estimate ms", FIGURES), Column("queue_p50_ms", "queue p50 ms", FIGURES),
    Column("queue_p99_ms", "queue p99 ms", FIGURES, wide=True), Column("run_p50_ms", "run p50 ms", FIGURES),
    *_data("run_p99_ms", "unique_over_same", "answers", "search", "seeds"),
)  # fmt: skip
TRIES = (
    VARIANT, Column("qps", "queries/s", FIGURES), P50, P99, Column("bound_ms", "bound ms", "g"), RUN,
    _light("confirms", "to", _mood({True: "confirm", False: "search"}, {})),
    Column("batch", "batches up to", "d"), QUERIES,
)  # fmt: skip
PARITY = (
    VARIANT, NUMERICAL, BOUNDS, ON, _text("output", "output", wide=True), MAX_ABS,
    Column("mean_abs", "mean |Δ|", ".1e", wide=True), RELATIVE_L2, COSINE, Column("snr_db", "SNR dB", ".1f", wide=True),
    Column("tolerance", "smallest tolerance", ".1e", wide=True),
    Column("flips.upper", "top-1 flips (one-sided 95%)", _flips, ("flips.flips", "flips.samples")),
    Column("drop.drop", "accuracy drop (one-sided 95%)", _at_most, ("drop.upper",), wide=True),
    Column("candidate_accuracy", "accuracy", _accuracies, ("reference_accuracy",)),
    Column("batches", "batch sizes", _sizes, wide=True), Column("stress", "stress: relative L2", _worst, wide=True),
    Column("repeats.calls", "repeated calls", _repeats, ("repeats.differing", "repeats.upper"), wide=True), RAN_ON,
    *_data("samples", "cosine_mean", "reference_accuracy", "flips", "top5_flips", "drop", "limits", "products"),
)  # fmt: skip
CHECKS = (
    _text("bundle", "bundle", wide=True), _text("what", "what"), _light("verdict", "verdict", verdict_cell),
    _text("against", "against"), _text("reasons", "what differs", long=True),
)  # fmt: skip
# Behind these stands a column for each variant.
FLEET = (_text("target", "target"), _text("isa", "instruction sets", long=True), _text("tools", "run by", wide=True))
LAYERS = (
    Column("index", "#", "d"), _text("layer", "layer"), Column("isolated", "alone", ".1e"), RELATIVE_L2, MAX_ABS, COSINE,
    Column("largest", "reference's largest", ".3g"),
    _light("first", "culprit", _mood({True: "at fault", False: ""}, {True: Verdict.FAIL})),
)  # fmt: skip
EVALUATIONS = (
    VARIANT, ON, Column("accuracy.rate", "accuracy (95%)", _interval(".2%"), ("accuracy.lower", "accuracy.upper")),
    Column("top5.rate", "top-5 (95%)", _interval(".2%"), ("top5.lower", "top5.upper")),
    Column("loss", "loss (nats)", ".4f"), Column("calibration_error", "calibration error", ".2%"),
    Column("balanced_accuracy", "balanced accuracy", ".2%"), Column("macro_f1", "macro F1", ".2%"), RAN_ON,
    *_data("accuracy", "top5", "seconds"),
)  # fmt: skip
SHADOWS = (
    _text("label", "which"), _text("model", "model"), _text("variant", "variant"), _text("digest", "bundle", wide=True),
    Column("p50_ms", "p50 ms a request", FIGURES), Column("p99_ms", "p99 ms a request", FIGURES),
    *_data("compared", "repeated", "shed", "errors", "sample", "limit", "flips.flips", "flips.lower", "flips.upper"),
)  # fmt: skip
CLASSES = (
    Column("index", "#", "d"), _text("label", "class"), Column("images", "images", ",d"),
    Column("precision", "precision", ".2%"), Column("recall", "recall", ".2%"), Column("f1", "F1", ".2%"),
    _text("taken", "most often taken for", wide=True),
)  # fmt: skip
CONFUSED = (_text("label", "true class"), _text("predicted", "taken for"), Column("images", "images", ",d"))
CANDIDATES = (
    VARIANT, Column("trial", "trial", lambda trial: str(trial + 1)),
    _light("chosen", "choice", _mood({True: "chosen", False: ""}, {True: Verdict.PASS})),
    Column("latency_ms", ONE_IMAGE, FIGURES), SPEED, Column("macs", "million MACs", FIGURES, scale=1e-6, wide=True),
    Column("bytes", "size MB", FIGURES, scale=1e-6), OF_THE_ROOF,
    Column("drop.drop", "accuracy, points", "+z.2f", scale=-100), Column("drop.upper", "at worst", "+z.2f", scale=-100),
    Column("test_drop.drop", "on the test split", _points, ("test_drop.upper",), wide=True),
    _text("misses", "misses", long=True), *_data("threads", "cost", "tera_ops", "drop", "test_drop"),
)  # fmt: skip
COMPARISON = (
    VARIANT, _text("scenario", "scenario"), BATCH, _light("outcome", "verdict", _outcome, "too_slow"),
    Column("old_ms", "old p50 ms", FIGURES), Column("new_ms", "new p50 ms", FIGURES),
    Column("ratio", "speed × old (95%)", _interval(FIGURES), ("ratio_low", "ratio_high")),
    _light("same_bytes", "bytes", _mood({True: "same", False: "others"}, {})),
)  # fmt: skip
SUMMARY = (
    VARIANT, BATCH, P50, P99, IMAGES, SPEED, Column("accuracy", "accuracy", ".2%"), VERDICT, RUN,
    _text("measured_in", "measured in"),
)  # fmt: skip
VARIANTS = (
    _text("name", "variant"), NUMERICAL, BOUNDS,
    Column("proof.layers", "layers by type", _layers, left=True), Column("size", "size MB", FIGURES, scale=1e-6),
    Column("batch", "batch"), RELATIVE_L2, Column("p50_ms", "p50 ms here", _at_batch, ("p50_batch",)),
)  # fmt: skip
STEPS = (
    _text("step", "step"), Column("accuracy.validation", "validation", ".2%"), Column("accuracy.test", "test", ".2%"),
    *(
        Column(f"drop.{split}.drop", f"lost in {split}", _lost, (f"drop.{split}.lower", f"drop.{split}.upper"))
        for split in ("validation", "test")
    ),
    Column("after.macs", "MACs", _share, ("before.macs",)),
    Column("after.parameters", "parameters", _share, ("before.parameters",)),
    Column("after.bytes", "size MB", FIGURES, scale=1e-6),
)  # fmt: skip
MACHINES = (
    _text("path", "result"), _text("created", "taken"), _text("machine", "machine", long=True),
    _text("threads", "threads"), _text("versions", "versions", long=True),
)  # fmt: skip
HISTORY = (
    _text("split", "split"), Column("epoch", "epoch", ".2f"), Column("step", "step", ",d"),
    Column("loss", "loss (nats)", ".4f"), Column("accuracy", "accuracy", ".2%"),
)  # fmt: skip
BACKENDS = (
    _text("backend", "backend"), _text("device", "device"), _light("runs", "here", _here, "builds"),
    _text("version", "version"), _text("reason", "why"),
)  # fmt: skip
PROOFS = (
    _text("what", "proof"), _text("device", "device"),
    _light("outcome", "outcome", _mood({}, {"passed": Verdict.PASS, "failed": Verdict.FAIL, "not here": Verdict.UNPROVEN})),
    Column("seconds", "s", ".1f"), _text("told", "seen, or why not"),
)  # fmt: skip
NETWORK = (
    _text("name", "layer"), _text("key", "key"),
    Column("kind", "kind", lambda kind, rank: kind.replace("_", " ") + (f", rank {rank}" if rank else ""), ("rank",),
           left=True),
    Column("shape", "output", lambda shape: "×".join(map(str, shape))), Column("parameters", "parameters", ",d"),
    Column("macs", "MACs", ",d"),
)  # fmt: skip
