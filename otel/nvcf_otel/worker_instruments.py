"""Metrics of workers, and of every process about itself and its GPUs."""

from __future__ import annotations

from nvcf_otel import names
from nvcf_otel.instrument import Instrument, histogram, observed_counter, observed_gauge, observed_up_down

WORK_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0,
    3600.0,
)  # fmt: skip
WAIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LOAD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
TOKEN_BUCKETS = (
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
)  # fmt: skip
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
OUTPUT_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Buckets that the semantic conventions ask for; those of first tokens go on to a minute."""

_VERSION = (names.FUNCTION_ID, names.FUNCTION_VERSION_ID)
_GPU = (names.HW_ID, names.HW_NAME)

REQUEST_QUEUE_DURATION = histogram(
    "nvcf.request.queue.duration",
    "s",
    "From the arrival of a request at the gateway to its arrival at a worker.",
    _VERSION,
    WORK_BUCKETS,
)
HANDLER_DURATION = histogram(
    "nvcf.handler.duration",
    "s",
    "Run time of the handler, for streams up to the last item.",
    (*_VERSION, names.OUTCOME),
    WORK_BUCKETS,
)
WORKER_SLOTS = observed_gauge(
    "nvcf.worker.slots", "{slot}", "Requests that the worker can run at the same time.", _VERSION
)
WORKER_SLOTS_BUSY = observed_gauge("nvcf.worker.slots.busy", "{slot}", "Slots in use.", _VERSION)
WORKER_SLOTS_LOST = observed_gauge(
    "nvcf.worker.slots.lost", "{slot}", "Slots of handlers that go on after their time limit.", _VERSION
)
REQUESTS_OVERDUE = observed_counter(
    "nvcf.request.overdue", "{request}", "Requests that did not end within their time limit.", _VERSION
)
BATCH_SIZE = histogram(
    "nvcf.batch.size",
    "{item}",
    "Items in one call of a batch function.",
    (*_VERSION, names.BATCH_FUNCTION),
    SIZE_BUCKETS,
)
BATCH_WAIT_DURATION = histogram(
    "nvcf.batch.wait.duration",
    "s",
    "Wait of the oldest item of a batch.",
    (*_VERSION, names.BATCH_FUNCTION),
    WAIT_BUCKETS,
)
STREAM_ITEMS = observed_counter("nvcf.stream.items", "{item}", "Items of streamed responses.", _VERSION)
STREAM_FIRST_ITEM_DURATION = histogram(
    "nvcf.stream.first_item.duration",
    "s",
    "From the call of the handler to the first item of a streamed response.",
    _VERSION,
    WORK_BUCKETS,
)
REQUEST_REDELIVERIES = observed_counter(
    "nvcf.request.redeliveries", "{request}", "Requests that the queue delivered again.", _VERSION
)
REQUESTS_DROPPED = observed_counter(
    "nvcf.request.dropped",
    "{request}",
    "Requests that were acknowledged although nobody has their response: `not-wanted` (a gateway said so), "
    "`undelivered`, `malformed`.",
    (*_VERSION, names.REASON),
)
INSTANCE_LOAD_DURATION = histogram(
    "nvcf.instance.load.duration", "s", "Time of the function's setup and warm-up.", _VERSION, LOAD_BUCKETS
)
TOKEN_USAGE = histogram(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of requests, as the function reports them.",
    (*_VERSION, names.GEN_AI_OPERATION, names.GEN_AI_PROVIDER, names.GEN_AI_TOKEN_TYPE, names.GEN_AI_MODEL),
    TOKEN_BUCKETS,
)
_MODEL = (names.GEN_AI_OPERATION, names.GEN_AI_PROVIDER, names.GEN_AI_MODEL)
TIME_TO_FIRST_TOKEN = histogram(
    "gen_ai.server.time_to_first_token",
    "s",
    "From a streamed request's start at its LLM engine to the first event of the response.",
    (*_VERSION, *_MODEL),
    FIRST_TOKEN_BUCKETS,
)
TIME_PER_OUTPUT_TOKEN = histogram(
    "gen_ai.server.time_per_output_token",
    "s",
    "Mean time between the output tokens of a stream of an LLM engine that ends with its usage.",
    (*_VERSION, *_MODEL),
    OUTPUT_TOKEN_BUCKETS,
)
GPU_UTILIZATION = observed_gauge("hw.gpu.utilization", "1", "Share of time in which the GPU was busy.", _GPU)
GPU_MEMORY_USAGE = observed_up_down("hw.gpu.memory.usage", "By", "GPU memory in use.", _GPU)
GPU_MEMORY_LIMIT = observed_up_down("hw.gpu.memory.limit", "By", "GPU memory in total.", _GPU)
PROCESS_CPU_TIME = observed_counter("process.cpu.time", "s", "CPU time of the process.", (names.CPU_MODE,))
PROCESS_MEMORY_USAGE = observed_up_down(
    "process.memory.usage", "By", "Physical memory that the process holds."
)
EVENT_LOOP_LAG = observed_gauge(
    "nvcf.event_loop.lag", "s", "Longest delay of the event loop in the last minute."
)


def _triton(name: str, description: str) -> Instrument:
    return observed_counter(f"nv_inference_{name}", "", description, (*_VERSION, names.TRITON_MODEL))


TRITON = (
    _triton("request_success", "Requests that Triton answered, by its statistics."),
    _triton("request_failure", "Requests that Triton refused or that failed."),
    _triton("count", "Items that were inferred: a request with a batch of 8 counts 8 times."),
    _triton("exec_count", "Executions of the model; the quotient of items and executions is the batch size."),
    _triton("request_duration_us", "Microseconds of all requests in Triton."),
    _triton("queue_duration_us", "Microseconds that requests waited in Triton."),
    _triton("compute_input_duration_us", "Microseconds of preparing inputs."),
    _triton("compute_infer_duration_us", "Microseconds of running the model."),
    _triton("compute_output_duration_us", "Microseconds of collecting outputs."),
)
"""What a function's Triton server counts, under the names of its own metrics, from its statistics."""

ALL: tuple[Instrument, ...] = (
    *(each for each in list(globals().values()) if isinstance(each, Instrument)),
    *TRITON,
)
