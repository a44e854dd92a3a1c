"""Figures of workers, and of every process about itself and its GPUs."""

from __future__ import annotations

from nvcf_otel import names
from nvcf_otel.instrument import Instrument, Kind

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
"""What the semantic conventions ask for."""

_VERSION = (names.FUNCTION_ID, names.FUNCTION_VERSION_ID)
_GPU = (names.HW_ID, names.HW_NAME)

REQUEST_QUEUE_DURATION = Instrument(
    "nvcf.request.queue.duration",
    Kind.HISTOGRAM,
    "s",
    "From the gateway's taking of a request to its arrival at a worker.",
    _VERSION,
    WORK_BUCKETS,
)
HANDLER_DURATION = Instrument(
    "nvcf.handler.duration",
    Kind.HISTOGRAM,
    "s",
    "The handler's work on a request, streams to their last item.",
    (*_VERSION, names.OUTCOME),
    WORK_BUCKETS,
)
WORKER_SLOTS = Instrument(
    "nvcf.worker.slots",
    Kind.OBSERVED_GAUGE,
    "{slot}",
    "Requests that the worker takes at once.",
    _VERSION,
)
WORKER_SLOTS_BUSY = Instrument(
    "nvcf.worker.slots.busy",
    Kind.OBSERVED_GAUGE,
    "{slot}",
    "Those that hold a request.",
    _VERSION,
)
BATCH_SIZE = Instrument(
    "nvcf.batch.size",
    Kind.HISTOGRAM,
    "{item}",
    "Items that went through a batch function together.",
    (*_VERSION, names.BATCH_FUNCTION),
    SIZE_BUCKETS,
)
BATCH_WAIT_DURATION = Instrument(
    "nvcf.batch.wait.duration",
    Kind.HISTOGRAM,
    "s",
    "How long the oldest item of a batch waited for the others.",
    (*_VERSION, names.BATCH_FUNCTION),
    WAIT_BUCKETS,
)
STREAM_ITEMS = Instrument(
    "nvcf.stream.items", Kind.OBSERVED_COUNTER, "{item}", "Items of streamed answers.", _VERSION
)
STREAM_FIRST_ITEM_DURATION = Instrument(
    "nvcf.stream.first_item.duration",
    Kind.HISTOGRAM,
    "s",
    "From the call of the handler to the first item of a streamed answer.",
    _VERSION,
    WORK_BUCKETS,
)
REQUEST_REDELIVERIES = Instrument(
    "nvcf.request.redeliveries",
    Kind.OBSERVED_COUNTER,
    "{request}",
    "Requests that the queue delivered again.",
    _VERSION,
)
INSTANCE_LOAD_DURATION = Instrument(
    "nvcf.instance.load.duration",
    Kind.HISTOGRAM,
    "s",
    "Setting up the function: setup and warmup.",
    _VERSION,
    LOAD_BUCKETS,
)
TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage",
    Kind.HISTOGRAM,
    "{token}",
    "Tokens of requests, as the function reports them.",
    (*_VERSION, names.GEN_AI_OPERATION, names.GEN_AI_PROVIDER, names.GEN_AI_TOKEN_TYPE, names.GEN_AI_MODEL),
    TOKEN_BUCKETS,
)
GPU_UTILIZATION = Instrument(
    "hw.gpu.utilization", Kind.OBSERVED_GAUGE, "1", "Share of time in which the GPU ran something.", _GPU
)
GPU_MEMORY_USAGE = Instrument(
    "hw.gpu.memory.usage", Kind.OBSERVED_UP_DOWN, "By", "Memory of the GPU that is taken.", _GPU
)
GPU_MEMORY_LIMIT = Instrument(
    "hw.gpu.memory.limit", Kind.OBSERVED_UP_DOWN, "By", "Memory that the GPU has.", _GPU
)
PROCESS_CPU_TIME = Instrument(
    "process.cpu.time", Kind.OBSERVED_COUNTER, "s", "CPU time of the process.", (names.CPU_MODE,)
)
PROCESS_MEMORY_USAGE = Instrument(
    "process.memory.usage", Kind.OBSERVED_UP_DOWN, "By", "Physical memory that the process holds."
)
EVENT_LOOP_LAG = Instrument(
    "nvcf.event_loop.lag",
    Kind.OBSERVED_GAUGE,
    "s",
    "The longest that the event loop came late in the last minute.",
)

ALL: tuple[Instrument, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Instrument))
