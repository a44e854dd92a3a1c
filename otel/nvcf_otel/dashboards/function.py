"""Dashboard for the author of a function: health, latency, errors, cold starts."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from nvcf_otel import names
from nvcf_otel.dashboards import promql as q
from nvcf_otel.dashboards.panels import chart, dashboard, heat, number, row, variable

MINE = q.matches(names.FUNCTION_VERSION_ID, "version")
# Metrics under the names of NVIDIA's worker have its labels too.
MINE_AS_NVIDIA = 'function_version_id=~"$version"'
INVOCATION = "nvcf.invocation.duration"
FAILED = f'{MINE}, {q.label(names.OUTCOME)}="{names.ERRORED}"'
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def build() -> Dashboard:
    """Return the dashboard."""
    info, name = q.instrument("nvcf.function.info").prometheus_name, q.label(names.FUNCTION_NAME)
    version = q.label(names.FUNCTION_VERSION_ID)
    board = (
        dashboard("nvcf-function", "NVCF: function", "One function, for its author.")
        .with_variable(variable("function", "Function", f"label_values({info}, {name})"))
        .with_variable(
            variable("version", "Version", f'label_values({info}{{{name}=~"$function"}}, {version})')
        )
    )
    for part in (_well, _slow, _errors, _cold_starts, _queue, _streams, _machine):
        board = part(board)
    return board


def _percentiles(of: str, prefix: str = "") -> list[tuple[str, str]]:
    return [(f"{prefix}{name}", q.quantile(share, of, where=MINE)) for name, share in PERCENTILES]


def _well(board: Dashboard) -> Dashboard:
    failures = q.share(q.rate(INVOCATION, where=FAILED), q.rate(INVOCATION, where=MINE))
    return row(
        board,
        "Health",
        number("Calls", "Completed calls per second.", q.rate(INVOCATION, where=MINE), "reqps"),
        number(
            "Failures",
            "Share of calls that failed: an error of the function, or a time-out.",
            failures,
            "percentunit",
            limits=(0.01, 0.05),
        ),
        number("p99", "99 % of the calls are faster.", q.quantile(0.99, INVOCATION, where=MINE), "s"),
        number(
            "In progress",
            "Calls that wait for a response.",
            q.total("nvcf.invocation.active", where=MINE),
            "short",
        ),
        number(
            "Queued",
            "Requests that no worker has pulled yet.",
            q.total("nvcf.queue.depth", where=MINE),
            "short",
        ),
        number(
            "Running",
            "Instances that are ready.",
            q.or_zero(q.total("nvcf.instances", where=f'{MINE}, {q.label(names.INSTANCE_STATE)}="RUNNING"')),
            "short",
        ),
    )


def _slow(board: Dashboard) -> Dashboard:
    whole = q.mean(INVOCATION, where=MINE)
    queue = q.mean("nvcf.request.queue.duration", where=MINE)
    handler = q.mean("nvcf.handler.duration", where=MINE)
    parts = [
        ("queue", queue),
        ("handler", handler),
        ("rest: gateway, broker, delivery", f"clamp_min({whole} - ({queue}) - ({handler}), 0)"),
    ]
    return row(
        board,
        "Latency",
        chart(
            "Latency",
            "From the request to the end of the response, at the gateway. Points link to traces.",
            _percentiles(INVOCATION),
            "s",
            exemplars=True,
        ),
        chart(
            "Parts of the latency",
            "Mean of each part: a long queue calls for more instances, a long handler for faster code.",
            parts,
            "s",
            stacked=True,
        ),
        heat("All calls", "Number of calls by latency.", q.buckets(INVOCATION, MINE), "s"),
        chart(
            "Wait in the queue",
            "From the request to the pull of a worker.",
            _percentiles("nvcf.request.queue.duration"),
            "s",
        ),
        chart(
            "Handler", "The function's own code.", _percentiles("nvcf.handler.duration"), "s", exemplars=True
        ),
        chart(
            "Slots",
            "Slots of the instances, and those in use.",
            [
                ("slots", q.total("nvcf.worker.slots", where=MINE)),
                ("busy", q.total("nvcf.worker.slots.busy", where=MINE)),
            ],
            "short",
        ),
    )


def _errors(board: Dashboard) -> Dashboard:
    codes = q.rate("nvcf_response_total", ["error_code"], MINE_AS_NVIDIA)
    return row(
        board,
        "Errors",
        chart(
            "Outcomes",
            "Calls by outcome, at the gateway.",
            [(f"{{{{{q.label(names.OUTCOME)}}}}}", q.rate(INVOCATION, [names.OUTCOME], MINE))],
            "reqps",
            stacked=True,
        ),
        chart(
            "Responses of the instances",
            "By error code, as NVIDIA's worker counts: 0 for a response of any status, 500 for none.",
            [("{{error_code}}", codes)],
            "reqps",
            stacked=True,
        ),
        chart(
            "Redeliveries",
            "Requests delivered again because a worker died or gave them back.",
            [("redeliveries", q.or_zero(q.rate("nvcf.request.redeliveries", where=MINE)))],
            "reqps",
        ),
    )


def _cold_starts(board: Dashboard) -> Dashboard:
    met_none = q.rate("nvcf.invocation.cold_starts", where=MINE)
    return row(
        board,
        "Cold starts",
        chart(
            "Calls without an instance",
            "Share of all calls.",
            [("share", q.share_of_ended(met_none, q.rate(INVOCATION, where=MINE)))],
            "percentunit",
            maximum=1,
        ),
        chart(
            "Wait of cold starts",
            "From the queue to the head of the response.",
            _percentiles("nvcf.invocation.cold_start.duration"),
            "s",
            exemplars=True,
        ),
        chart(
            "Loading",
            "The function's part of a start: imports, model, warm-up; of the present instances.",
            [
                (name, q.quantile_now(share, "nvcf.instance.load.duration", MINE))
                for name, share in PERCENTILES
            ],
            "s",
        ),
    )


def _queue(board: Dashboard) -> Dashboard:
    state = q.label(names.INSTANCE_STATE)
    return row(
        board,
        "Queue and instances",
        chart(
            "Queue",
            "Requests that wait, and requests in flight.",
            [
                ("waiting", q.total("nvcf.queue.depth", where=MINE)),
                ("in flight", q.total("nvcf.requests.in_flight", where=MINE)),
            ],
            "short",
        ),
        chart(
            "Oldest request",
            "Age of the oldest waiting request.",
            [("age", q.highest("nvcf.queue.age", where=MINE))],
            "s",
        ),
        chart(
            "Instances",
            "By state, and the desired number.",
            [
                (
                    f"{{{{{state}}}}}",
                    q.total("nvcf.instances", [names.INSTANCE_STATE], f"{MINE}, {q.living()}"),
                ),
                ("desired", q.total("nvcf.scaling.desired", where=MINE)),
            ],
            "short",
        ),
    )


def _streams(board: Dashboard) -> Dashboard:
    return row(
        board,
        "Batches, streams and tokens",
        chart(
            "Batch size",
            "Requests in one batch.",
            [
                ("mean", q.mean("nvcf.batch.size", where=MINE)),
                ("p99", q.quantile(0.99, "nvcf.batch.size", where=MINE)),
            ],
            "short",
        ),
        chart(
            "Wait for a batch",
            "Wait of a request for the rest of its batch.",
            _percentiles("nvcf.batch.wait.duration"),
            "s",
        ),
        chart(
            "First item",
            "From the request's arrival at the worker to the first item of its stream.",
            _percentiles("nvcf.stream.first_item.duration"),
            "s",
        ),
        chart("Items", "Items of all streams.", [("items", q.rate("nvcf.stream.items", where=MINE))], "ops"),
        chart(
            "Tokens",
            "By type, as the function reports them.",
            [
                ("{{gen_ai_token_type}}", _tokens()),
            ],
            "ops",
        ),
    )


def _tokens() -> str:
    added = q.series("gen_ai.client.token.usage", MINE, "_sum")
    return f"sum by (gen_ai_token_type) (rate({added}[{q.WINDOW}]))"


def _machine(board: Dashboard) -> Dashboard:
    return row(
        board,
        "Machine",
        chart(
            "GPU",
            "Share of time in which the GPUs are busy.",
            [
                ("mean", f"avg ({q.series('hw.gpu.utilization', MINE)})"),
                ("highest", q.highest("hw.gpu.utilization", where=MINE)),
            ],
            "percentunit",
            maximum=1,
        ),
        chart(
            "GPU memory",
            "In use, and in total.",
            [
                ("used", q.total("hw.gpu.memory.usage", where=MINE)),
                ("total", q.total("hw.gpu.memory.limit", where=MINE)),
            ],
            "bytes",
        ),
        chart(
            "Memory",
            "Resident memory of the instances' processes.",
            [("resident", q.total("process.memory.usage", where=MINE))],
            "bytes",
        ),
    )
