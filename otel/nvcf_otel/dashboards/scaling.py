"""Dashboard for who pays: GPU hours by function and phase, decisions, spill, cost of cold starts."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, TextBoxVariable

from nvcf_otel import names
from nvcf_otel.dashboards import promql as q
from nvcf_otel.dashboards.panels import chart, dashboard, listing, number, row, variable

GPU_TIME = "nvcf.gpu.time"
COLD = "nvcf.invocation.cold_starts"
CALLS = "nvcf.invocation.duration"
# Slots without a GPU are counted under a name of their own, and are not billed.
CHOSEN = f'{q.matches(names.GPU, "gpu")}, {q.label(names.GPU)}!="CPU"'
IDS = names.FUNCTION_VERSION_ID


def build() -> Dashboard:
    """Return the dashboard."""
    gpu_time, gpu = q.instrument(GPU_TIME).prometheus_name, q.label(names.GPU)
    board = (
        dashboard("nvcf-scaling", "NVCF: scaling and cost", "What was scaled and why, and what it cost.")
        .with_variable(variable("gpu", "GPU", f'label_values({gpu_time}{{{gpu}!="CPU"}}, {gpu})'))
        .with_variable(TextBoxVariable("price").label("Price of a GPU hour").default_value("2"))
    )
    for part in (_totals, _by_function, _decisions, _cold):
        board = part(board)
    return board


def _phase(phase: str) -> str:
    return f'{CHOSEN}, {q.label(names.PHASE)}=~"{phase}"'


def _hours(by: list[str]) -> str:
    return f"{q.increase(GPU_TIME, by, CHOSEN)} / 3600"


def _by_name(query: str, merge: str = "sum") -> list[tuple[str, str]]:
    return [(q.legend(names.FUNCTION_NAME), q.by_name(query, merge))]


def _totals(board: Dashboard) -> Dashboard:
    everything = q.increase(GPU_TIME, where=CHOSEN)
    busy, idle, starting = (
        q.share(q.increase(GPU_TIME, where=_phase(phase)), everything)
        for phase in ("busy", "idle", "starting")
    )
    ready = "Share of GPU time in which an instance was ready without a request."
    cold = q.share_of_ended(q.increase(COLD), q.increase(CALLS))
    without = "Share of calls without a running instance."
    return row(
        board,
        "Totals",
        number("GPU hours", "In the chosen time.", _hours([]), "short", decimals=2),
        number("Cost", "GPU hours at the price above.", f"{_hours([])} * $price", "short", decimals=2),
        number("Busy", "Share of GPU time with a request in flight.", busy, "percentunit"),
        number("Idle", ready, idle, "percentunit"),
        number("Starting", "Share of GPU time in which instances started.", starting, "percentunit"),
        number("Cold starts", without, cold, "percentunit", limits=(0.05, 0.2)),
    )


def _by_function(board: Dashboard) -> Dashboard:
    hours = q.by_name(_hours([IDS]))
    busy = q.by_name(q.increase(GPU_TIME, [IDS], _phase("busy")))
    held = q.by_name(q.increase(GPU_TIME, [IDS], CHOSEN))
    calls = q.by_name(q.increase(CALLS, [IDS]))
    columns = [
        ("GPU hours", hours),
        ("Cost", f"{hours} * $price"),
        ("Busy", q.share(busy, held)),
        ("Calls", calls),
        ("Cost of a call", f"{hours} * $price / ({calls} > 0)"),
    ]
    units = ["short", "short", "percentunit", "short", "short"]
    phases = [(q.legend(names.PHASE), q.rate(GPU_TIME, [names.PHASE], CHOSEN))]
    functions = _by_name(q.rate(GPU_TIME, [IDS], CHOSEN))
    slots = _by_name(q.highest("nvcf.utilisation", [IDS]), "avg")
    used = "Share of the slots of running instances that are in use."
    return row(
        board,
        "GPUs by function",
        listing(
            "Functions",
            "GPU hours, their cost, the busy share, calls, and the cost of one call.",
            columns,
            units,
        ),
        chart(
            "GPUs by phase", "GPUs held at the same time, by phase.", phases, "short", width=12, stacked=True
        ),
        chart("GPUs by function", "GPUs held at the same time.", functions, "short", width=12, stacked=True),
        chart("Slots in use", used, slots, "percentunit", width=12, maximum=1),
    )


def _decisions(board: Dashboard) -> Dashboard:
    decided = q.increase("nvcf.scaling.decisions", [names.DIRECTION], window=q.WINDOW)
    decisions = [(q.legend(names.DIRECTION), decided)]
    spilled = "By direction. `spill` went to a GPU other than the preferred one."
    desired = _by_name(q.total("nvcf.scaling.desired", [IDS]))
    running = _by_name(q.total("nvcf.instances", [IDS], f'{q.label(names.INSTANCE_STATE)}="RUNNING"'))
    spill = [(q.legend(names.SPECIFICATION), q.total("nvcf.scaling.desired", [names.SPECIFICATION]))]
    preferred = "Desired instances by GPU specification; the first one is preferred."
    queues = _by_name(q.total("nvcf.queue.depth", [IDS]))
    free = f'{CHOSEN}, {q.label(names.GPU_STATE)}="free"'
    gpus = [(q.legend(names.GPU), q.total("nvcf.cluster.gpus", [names.GPU], free))]
    return row(
        board,
        "Scaling",
        chart("Decisions", spilled, decisions, "short", stacked=True),
        chart("Desired", "Desired instances by function.", desired, "short"),
        chart("Running", "Ready instances by function.", running, "short"),
        chart("Spill", preferred, spill, "short", stacked=True),
        chart("Queues", "Waiting requests by function.", queues, "short"),
        chart("Free GPUs", "Free GPUs by type.", gpus, "short"),
    )


def _cold(board: Dashboard) -> Dashboard:
    share = q.share_of_ended(q.by_name(q.rate(COLD, [IDS])), q.by_name(q.rate(CALLS, [IDS])))
    shares = [(q.legend(names.FUNCTION_NAME), share)]
    waits = q.percentiles("nvcf.invocation.cold_start.duration", 0.5, 0.99)
    start = q.quantile(0.9, "nvcf.instance.start.duration", [names.GPU], CHOSEN)
    starts = [(q.legend(names.GPU), start)]
    without = "Calls without a running instance."
    return row(
        board,
        "Cold starts",
        chart("Share of calls", without, shares, "percentunit", maximum=1),
        chart("Wait", "From the queue to the response, p50 and p99.", waits, "s"),
        chart("Starts", "From the start of an instance until it is ready, p90 by GPU.", starts, "s"),
    )
