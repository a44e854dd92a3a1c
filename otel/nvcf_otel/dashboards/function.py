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
RUNNING = f'{MINE}, {q.label(names.INSTANCE_STATE)}="RUNNING"'


def build() -> Dashboard:
    """Return the dashboard."""
    info, name = q.instrument("nvcf.function.info").prometheus_name, q.label(names.FUNCTION_NAME)
    version = q.label(names.FUNCTION_VERSION_ID)
    versions = f'label_values({info}{{{name}=~"$function"}}, {version})'
    board = (
        dashboard("nvcf-function", "NVCF: function", "One function, for its author.")
        .with_variable(variable("function", "Function", f"label_values({info}, {name})"))
        .with_variable(variable("version", "Version", versions))
    )
    for part in (_well, _slow, _errors, _cold_starts, _queue, _streams, _triton, _language_model, _machine):
        board = part(board)
    return board


def _percentiles(of: str) -> list[tuple[str, str]]:
    return q.percentiles(of, 0.5, 0.9, 0.99, where=MINE)


def _total(of: str) -> str:
    return q.total(of, where=MINE)


def _well(board: Dashboard) -> Dashboard:
    calls = q.rate(INVOCATION, where=MINE)
    failures = q.share(q.rate(INVOCATION, where=FAILED), calls)
    failed = "Share of calls that failed: an error of the function, or a time-out."
    p99 = q.quantile(0.99, INVOCATION, where=MINE)
    running = q.or_zero(q.total("nvcf.instances", where=RUNNING))
    return row(
        board,
        "Health",
        number("Calls", "Completed calls per second.", calls, "reqps"),
        number("Failures", failed, failures, "percentunit", limits=(0.01, 0.05)),
        number("p99", "99 % of the calls are faster.", p99, "s"),
        number("In progress", "Calls that wait for a response.", _total("nvcf.invocation.active"), "short"),
        number("Queued", "Requests that no worker has pulled yet.", _total("nvcf.queue.depth"), "short"),
        number("Running", "Instances that are ready.", running, "short"),
    )


def _slow(board: Dashboard) -> Dashboard:
    whole = q.mean(INVOCATION, where=MINE)
    queue = q.mean("nvcf.request.queue.duration", where=MINE)
    handler = q.mean("nvcf.handler.duration", where=MINE)
    rest = f"clamp_min({whole} - ({queue}) - ({handler}), 0)"
    parts = [("queue", queue), ("handler", handler), ("rest: gateway, broker, delivery", rest)]
    total = "From the request to the end of the response, at the gateway. Points link to traces."
    advice = "Mean of each part: a long queue calls for more instances, a long handler for faster code."
    waits = _percentiles("nvcf.request.queue.duration")
    handlers = _percentiles("nvcf.handler.duration")
    slots = [("slots", _total("nvcf.worker.slots")), ("busy", _total("nvcf.worker.slots.busy"))]
    return row(
        board,
        "Latency",
        chart("Latency", total, _percentiles(INVOCATION), "s", exemplars=True),
        chart("Parts of the latency", advice, parts, "s", stacked=True),
        heat("All calls", "Number of calls by latency.", q.buckets(INVOCATION, MINE), "s"),
        chart("Wait in the queue", "From the request to the pull of a worker.", waits, "s"),
        chart("Handler", "The function's own code.", handlers, "s", exemplars=True),
        chart("Slots", "Slots of the instances, and those in use.", slots, "short"),
    )


def _errors(board: Dashboard) -> Dashboard:
    outcomes = [(q.legend(names.OUTCOME), q.rate(INVOCATION, [names.OUTCOME], MINE))]
    codes = [("{{error_code}}", q.rate("nvcf_response_total", ["error_code"], MINE_AS_NVIDIA))]
    counted = "By error code, as NVIDIA's worker counts: 0 for a response of any status, 500 for none."
    again = [("redeliveries", q.or_zero(q.rate("nvcf.request.redeliveries", where=MINE)))]
    why = "Requests delivered again because a worker died or gave them back."
    return row(
        board,
        "Errors",
        chart("Outcomes", "Calls by outcome, at the gateway.", outcomes, "reqps", stacked=True),
        chart("Responses of the instances", counted, codes, "reqps", stacked=True),
        chart("Redeliveries", why, again, "reqps"),
    )


def _cold_starts(board: Dashboard) -> Dashboard:
    met_none = q.rate("nvcf.invocation.cold_starts", where=MINE)
    share = [("share", q.share_of_ended(met_none, q.rate(INVOCATION, where=MINE)))]
    waits = _percentiles("nvcf.invocation.cold_start.duration")
    load = "nvcf.instance.load.duration"
    loading = [(f"p{part * 100:g}", q.quantile_now(part, load, MINE)) for part in (0.5, 0.9, 0.99)]
    parts = "The function's part of a start: imports, model, warm-up; of the present instances."
    return row(
        board,
        "Cold starts",
        chart("Calls without an instance", "Share of all calls.", share, "percentunit", maximum=1),
        chart(
            "Wait of cold starts", "From the queue to the head of the response.", waits, "s", exemplars=True
        ),
        chart("Loading", parts, loading, "s"),
    )


def _queue(board: Dashboard) -> Dashboard:
    queue = [("waiting", _total("nvcf.queue.depth")), ("in flight", _total("nvcf.requests.in_flight"))]
    age = [("age", q.highest("nvcf.queue.age", where=MINE))]
    living = q.total("nvcf.instances", [names.INSTANCE_STATE], f"{MINE}, {q.living()}")
    instances = [(q.legend(names.INSTANCE_STATE), living), ("desired", _total("nvcf.scaling.desired"))]
    return row(
        board,
        "Queue and instances",
        chart("Queue", "Requests that wait, and requests in flight.", queue, "short"),
        chart("Oldest request", "Age of the oldest waiting request.", age, "s"),
        chart("Instances", "By state, and the desired number.", instances, "short"),
    )


def _streams(board: Dashboard) -> Dashboard:
    size = "nvcf.batch.size"
    sizes = [("mean", q.mean(size, where=MINE)), *q.percentiles(size, 0.99, where=MINE)]
    waits = _percentiles("nvcf.batch.wait.duration")
    first = _percentiles("nvcf.stream.first_item.duration")
    arrival = "From the request's arrival at the worker to the first item of its stream."
    items = [("items", q.rate("nvcf.stream.items", where=MINE))]
    usage = q.series("gen_ai.client.token.usage", MINE, "_sum")
    tokens = [("{{gen_ai_token_type}}", f"sum by (gen_ai_token_type) (rate({usage}[{q.WINDOW}]))")]
    return row(
        board,
        "Batches, streams and tokens",
        chart("Batch size", "Requests in one batch.", sizes, "short"),
        chart("Wait for a batch", "Wait of a request for the rest of its batch.", waits, "s"),
        chart("First item", arrival, first, "s"),
        chart("Items", "Items of all streams.", items, "ops"),
        chart("Tokens", "By type, as the function reports them.", tokens, "ops"),
    )


def _triton(board: Dashboard) -> Dashboard:
    def rate(name: str) -> str:
        return q.rate(f"nv_inference_{name}", [names.TRITON_MODEL], MINE)

    def mean(part: str) -> str:
        """Seconds of one request; Triton counts microseconds."""
        return f"{q.share(rate(f'{part}_duration_us'), rate('request_success'))} / 1e6"

    model = q.legend(names.TRITON_MODEL)
    parts = [(f"{model}: {part.replace('_', ' ')}", mean(part)) for part in ("queue", "compute_infer")]
    sizes = [(model, q.share(rate("count"), rate("exec_count")))]
    outcomes = [(model, rate("request_success")), (f"{model}: failed", rate("request_failure"))]
    return row(
        board,
        "Triton",
        chart("Requests to Triton", "By model, and those that failed.", outcomes, "reqps"),
        chart("Time in Triton", "Mean of a request: waiting for a batch, and running the model.", parts, "s"),
        chart("Items of an execution", "Mean size of the batches that Triton makes.", sizes, "short"),
    )


def _language_model(board: Dashboard) -> Dashboard:
    first = _percentiles("gen_ai.server.time_to_first_token")
    each = _percentiles("gen_ai.server.time_per_output_token")
    return row(
        board,
        "Language model",
        chart("First token", "From a stream's start at the engine to its first event.", first, "s"),
        chart("Each further token", "Mean time between the output tokens of a stream.", each, "s"),
    )


def _machine(board: Dashboard) -> Dashboard:
    busy = "hw.gpu.utilization"
    gpus = [("mean", f"avg ({q.series(busy, MINE)})"), ("highest", q.highest(busy, where=MINE))]
    memory = [("used", _total("hw.gpu.memory.usage")), ("total", _total("hw.gpu.memory.limit"))]
    resident = [("resident", _total("process.memory.usage"))]
    return row(
        board,
        "Machine",
        chart("GPU", "Share of time in which the GPUs are busy.", gpus, "percentunit", maximum=1),
        chart("GPU memory", "In use, and in total.", memory, "bytes"),
        chart("Memory", "Resident memory of the instances' processes.", resident, "bytes"),
    )
