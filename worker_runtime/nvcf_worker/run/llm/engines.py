"""What the worker knows about each LLM engine: program, paths, options. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine.

    port: where it listens by default. health: path that answers 200 once it can generate.
    programs: words of a command line that start it. slots: options that say how many requests it runs at
    once. slots_path, slots_member: where it says so itself, as a member of a JSON object.
    default_slots: its own default, where it does not say.
    """

    name: str
    port: int
    programs: tuple[str, ...] = ()
    health: str = "/health"
    slots: tuple[str, ...] = ()
    slots_path: str = ""
    slots_member: str = ""
    default_slots: int = 256
    takes_port: bool = True


VLLM = Engine("vllm", 8000, ("vllm", "vllm.entrypoints.openai.api_server"), slots=("max-num-seqs",))
SGLANG = Engine(
    "sglang",
    30000,
    ("sglang", "sglang.launch_server"),
    slots=("max-running-requests",),
    slots_path="/get_server_info",
    slots_member="max_running_requests",
)
TGI = Engine(
    "tgi",
    3000,
    ("text-generation-launcher", "text-generation-router"),
    slots=("max-concurrent-requests",),
    slots_path="/info",
    slots_member="max_concurrent_requests",
    default_slots=128,
)
TENSORRT_LLM = Engine("tensorrt-llm", 8000, ("trtllm-serve",), slots=("max-batch-size",), default_slots=256)
LLAMA_CPP = Engine(
    "llama.cpp",
    8080,
    ("llama-server",),
    slots=("parallel", "np"),
    slots_path="/props",
    slots_member="total_slots",
    default_slots=4,
)
NIM = Engine("nim", 8000, health="/v1/health/ready", takes_port=False)
OTHER = Engine("other", 8000)
"""Any other server with OpenAI's routes and GET /health."""

ENGINES = {each.name: each for each in (VLLM, SGLANG, TGI, TENSORRT_LLM, LLAMA_CPP, NIM)}


def engine_of(command: Sequence[str]) -> Engine:
    """Return the engine that a command line starts, OTHER if it is none of them."""
    words = {PurePath(word).name for word in command}
    return next((each for each in ENGINES.values() if words.intersection(each.programs)), OTHER)


def options(command: Sequence[str]) -> dict[str, str]:
    """Return the values of `--name=value`, `--name value` and `-n value`; `_` in names counts as `-`."""
    found: dict[str, str] = {}
    for at, word in enumerate(command):
        if word.startswith("-") and len(word) > 1:
            name, equals, value = word.lstrip("-").partition("=")
            follows = command[at + 1] if at + 1 < len(command) else ""
            found[name.replace("_", "-")] = value if equals else follows
    return found


def slots_in(engine: Engine, command: Sequence[str]) -> int | None:
    """Return how many requests an engine runs at once by its command line, None if that does not say."""
    given = options(command)
    return next((int(given[name]) for name in engine.slots if positive(given.get(name))), None)


def positive(text: object) -> bool:
    """Whether a text or number is an integer above 0."""
    return str(text).isascii() and str(text).isdecimal() and int(str(text)) > 0
