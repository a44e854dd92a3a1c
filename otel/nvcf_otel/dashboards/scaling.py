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
NAME = f"{{{{{q.label(names.FUNCTION_NAME)}}}}}"


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


def _phase(*phases: str) -> str:
    return f'{CHOSEN}, {q.label(names.PHASE)}=~"{"|".join(phases)}"'


def _hours(by: list[str], where: str = CHOSEN) -> str:
    return f"{q.increase(GPU_TIME, by, where)} / 3600"


def _totals(board: Dashboard) -> Dashboard:
    everything = q.increase(GPU_TIME, where=CHOSEN)
    cold = q.share_of_ended(q.increase(COLD), q.increase(CALLS))
    return row(
        board,
        "Totals",
        number("GPU hours", "In the chosen time.", _hours([]), "short", decimals=2),
        number("Cost", "GPU hours at the price above.", f"{_hours([])} * $price", "short", decimals=2),
        number(
            "Busy",
            "Share of GPU time with a request in flight.",
            q.share(q.increase(GPU_TIME, where=_phase("busy")), everything),
            "percentunit",
        ),
        number(
            "Idle",
            "Share of GPU time in which an instance was ready without a request.",
            q.share(q.increase(GPU_TIME, where=_phase("idle")), everything),
            "percentunit",
        ),
        number(
            "Starting",
            "Share of GPU time in which instances started.",
            q.share(q.increase(GPU_TIME, where=_phase("starting")), everything),
            "percentunit",
        ),
        number(
            "Cold starts",
            "Share of calls without a running instance.",
            cold,
            "percentunit",
            limits=(0.05, 0.2),
        ),
    )


def _by_function(board: Dashboard) -> Dashboard:
    hours = q.by_name(_hours([IDS]))
    busy = q.by_name(q.increase(GPU_TIME, [IDS], _phase("busy")))
    held = q.by_name(q.increase(GPU_TIME, [IDS], CHOSEN))
    calls = q.by_name(q.increase(CALLS, [IDS]))
    phase = f"{{{{{q.label(names.PHASE)}}}}}"
    return row(
        board,
        "GPUs by function",
        listing(
            "Functions",
            "GPU hours, their cost, the busy share, calls, and the cost of one call.",
            [
                ("GPU hours", hours),
                ("Cost", f"{hours} * $price"),
                ("Busy", q.share(busy, held)),
                ("Calls", calls),
                ("Cost of a call", f"{hours} * $price / ({calls} > 0)"),
            ],
            ["short", "short", "percentunit", "short", "short"],
        ),
        chart(
            "GPUs by phase",
            "GPUs held at the same time, by phase.",
            [
                (phase, q.rate(GPU_TIME, [names.PHASE], CHOSEN)),
            ],
            "short",
            width=12,
            stacked=True,
        ),
        chart(
            "GPUs by function",
            "GPUs held at the same time.",
            [(NAME, q.by_name(q.rate(GPU_TIME, [IDS], CHOSEN)))],
            "short",
            width=12,
            stacked=True,
        ),
        chart(
            "Slots in use",
            "Share of the slots of running instances that are in use.",
            [(NAME, _mean_by_name("nvcf.utilisation"))],
            "percentunit",
            width=12,
            maximum=1,
        ),
    )


def _mean_by_name(of: str) -> str:
    ids, name = q.label(IDS), q.label(names.FUNCTION_NAME)
    info = f"max by ({ids}, {name}) ({q.series('nvcf.function.info')})"
    return f"avg by ({name}) ({q.highest(of, [IDS])} * on ({ids}) group_left ({name}) {info})"


def _decisions(board: Dashboard) -> Dashboard:
    direction = f"{{{{{q.label(names.DIRECTION)}}}}}"
    running = f'{q.label(names.INSTANCE_STATE)}="RUNNING"'
    specification = f"{{{{{q.label(names.SPECIFICATION)}}}}}"
    return row(
        board,
        "Scaling",
        chart(
            "Decisions",
            "By direction. `spill` went to a GPU other than the preferred one.",
            [(direction, q.increase("nvcf.scaling.decisions", [names.DIRECTION], window=q.WINDOW))],
            "short",
            stacked=True,
        ),
        chart(
            "Desired",
            "Desired instances by function.",
            [(NAME, q.by_name(q.total("nvcf.scaling.desired", [IDS])))],
            "short",
        ),
        chart(
            "Running",
            "Ready instances by function.",
            [(NAME, q.by_name(q.total("nvcf.instances", [IDS], running)))],
            "short",
        ),
        chart(
            "Spill",
            "Desired instances by GPU specification; the first one is preferred.",
            [(specification, q.total("nvcf.scaling.desired", [names.SPECIFICATION]))],
            "short",
            stacked=True,
        ),
        chart(
            "Queues",
            "Waiting requests by function.",
            [(NAME, q.by_name(q.total("nvcf.queue.depth", [IDS])))],
            "short",
        ),
        chart(
            "Free GPUs",
            "Free GPUs by type.",
            [
                (
                    f"{{{{{q.label(names.GPU)}}}}}",
                    q.total("nvcf.cluster.gpus", [names.GPU], f'{CHOSEN}, {q.label(names.GPU_STATE)}="free"'),
                ),
            ],
            "short",
        ),
    )


def _cold(board: Dashboard) -> Dashboard:
    duration = "nvcf.invocation.cold_start.duration"
    share = q.share_of_ended(q.by_name(q.rate(COLD, [IDS])), q.by_name(q.rate(CALLS, [IDS])))
    return row(
        board,
        "Cold starts",
        chart(
            "Share of calls", "Calls without a running instance.", [(NAME, share)], "percentunit", maximum=1
        ),
        chart(
            "Wait",
            "From the queue to the response, p50 and p99.",
            [("p50", q.quantile(0.5, duration)), ("p99", q.quantile(0.99, duration))],
            "s",
        ),
        chart(
            "Starts",
            "From the start of an instance until it is ready, p90 by GPU.",
            [
                (
                    f"{{{{{q.label(names.GPU)}}}}}",
                    q.quantile(0.9, "nvcf.instance.start.duration", [names.GPU], CHOSEN),
                ),
            ],
            "s",
        ),
    )
