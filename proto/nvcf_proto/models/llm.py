"""What a version says about the language models that it serves."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Record, matching

MAX_PRIORITY = 2**32 - 1
MAX_PRIORITIES = 64
MAX_URIS = 32
ROUTING_METHODS = ("groq-multiregion", "power-of-two", "pulsar", "random", "round-robin")
_TOKEN_RATES = {
    "token_rate_limit": "tokenRateLimit",
    "input_token_rate_limit": "inputTokenRateLimit",
    "output_token_rate_limit": "outputTokenRateLimit",
}

Path = Annotated[str, matching(r"/[\x21-\x7e]*", max_length=2048)]
Priority = Annotated[int, Meta(ge=0, le=MAX_PRIORITY)]
TokenRate = Annotated[
    str,
    matching(
        r"[1-9][0-9]{0,11}-[SMHDW](, *[1-9][0-9]{0,11}-[SMHDW]){0,4}",
        examples=["100000-S", "10-M,5-S"],
        description="N-S, N-M, N-H, N-D or N-W: tokens per second, minute, hour, day, week; each unit once.",
    ),
]
RoutingMethod = Annotated[
    str,
    Meta(max_length=64, description=f"{', '.join(ROUTING_METHODS)}; `_` counts as `-`."),
]


class LlmConfigUpdate(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of a model's LLM settings."""

    token_rate_limit: TokenRate | None = None
    input_token_rate_limit: TokenRate | None = None
    output_token_rate_limit: TokenRate | None = None
    routing_method: RoutingMethod | None = None

    def __post_init__(self) -> None:
        for name, json_name in _TOKEN_RATES.items():
            units = [part[-1] for part in (getattr(self, name) or "-").split(",")]
            if len(set(units)) < len(units):
                raise InvalidRecord(json_name, "names a unit twice")
        if self.routing_method is not None:
            method = self.routing_method.strip().lower().replace("_", "-")
            if method not in ROUTING_METHODS:
                raise InvalidRecord("routingMethod", f"expected one of {', '.join(ROUTING_METHODS)}")
            force_setattr(self, "routing_method", method)


class LlmConfig(LlmConfigUpdate, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How callers reach a model: the OpenAI-compatible paths that it serves, and its token rates."""

    uris: Annotated[tuple[Path, ...], Meta(max_length=MAX_URIS)] = ()
    tokenizer: Annotated[str, Meta(max_length=1024)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "uris", tuple(dict.fromkeys(self.uris)))


class PrioritySettings(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Priority of requests, 0 is the highest; accounts in `per_account` have one of their own."""

    if_given: ClassVar[frozenset[str]] = frozenset(("perAccountPriority",))

    default: Priority | None = field(name="defaultPriority", default=None)
    per_account: Annotated[dict[str, Priority], Meta(max_length=MAX_PRIORITIES)] = field(
        name="perAccountPriority", default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.per_account and self.default is None:
            raise InvalidRecord("defaultPriority", "needed together with perAccountPriority")


class LlmInvocationConfig(Record, frozen=True, forbid_unknown_fields=True):
    """Settings of a function's LLM invocations."""

    priority: PrioritySettings | None = None
