"""Token limits of this gateway's calls: who may call now, and what a call is charged."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.llm.errors import bad_request
from nvcf_gateway.llm.token_limits import Kind, Refused, Room, TokenBuckets, TokenLimit, Tokens, parse_rate
from nvcf_gateway.llm.usage import UsageReader
from nvcf_proto.models import FunctionVersion

BYTES_A_TOKEN = 4
DEFAULT_OUTPUT = 512
"""Output tokens that a call reserves if it names no bound."""
MOST_BUCKETS = 1024
"""Models with limits at which one account may have used tokens that are not refilled yet."""

_Key = tuple[str, str, tuple[TokenLimit, ...]]


@dataclass(slots=True, eq=False)
class Charge:
    """What one call has reserved; settle it once."""

    buckets: TokenBuckets
    reserved: Tokens
    reader: UsageReader
    headers: list[tuple[str, str]]
    answered: bool = False
    """Whether a response has begun that is no error."""

    def settle(self) -> None:
        """Charge what the function says it used.

        A response that does not say it costs the reserved input, and an output token for each event or
        four bytes that have passed. A call without a response, or with an error, costs nothing.
        """
        used = self.reader.usage
        if used is None:
            output = max(self.reader.events, self.reader.size // BYTES_A_TOKEN)
            used = Tokens(self.reserved.input, output) if self.answered else Tokens(0, 0)
        self.buckets.settle(self.reserved, used, time.monotonic())


class TokenBudgets:
    """The buckets of all accounts at all models with limits."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[_Key, TokenBuckets]] = {}

    def charge(
        self,
        version: FunctionVersion,
        model: str,
        account: str,
        *,
        size: int,
        output: int | None,
        hidden: bool,
    ) -> Charge | None:
        """Reserve tokens for a call with a body of `size` bytes that makes at most `output` tokens.

        Returns None for a model without limits. Raises HttpProblem 400 for a call that no limit can ever
        allow, and 429, also for one model more than MOST_BUCKETS.
        """
        limits = limits_of(version, model)
        if not limits:
            return None
        now = time.monotonic()
        buckets = self._of(account, (version.function_id, model, limits), now)
        wanted = buckets.reservation(
            Tokens(math.ceil(size / BYTES_A_TOKEN), _bounded(limits) if output is None else output)
        )
        refused = buckets.reserve(wanted, now)
        headers = room_headers(buckets.room(now))
        if refused is not None:
            raise _refusal(refused, wanted, headers)
        return Charge(buckets, wanted, UsageReader(hidden=hidden), headers)

    def _of(self, account: str, key: _Key, now: float) -> TokenBuckets:
        own = self._buckets.setdefault(account, {})
        if key not in own:
            if len(own) >= MOST_BUCKETS:
                # A full bucket says nothing that a new one does not.
                for name in [name for name, each in own.items() if each.is_full(now)]:
                    del own[name]
            if len(own) >= MOST_BUCKETS:
                text = f"the account has used tokens of {MOST_BUCKETS} models: wait until one is refilled"
                raise HttpProblem(429, text, headers={"Retry-After": "60"})
            own[key] = TokenBuckets(list(key[2]), now)
        return own[key]


def limits_of(version: FunctionVersion, model: str) -> tuple[TokenLimit, ...]:
    """Return the token limits that a version sets for a model."""
    for each in version.models:
        if each.name == model and (config := each.llm_config) is not None:
            return (
                *parse_rate(Kind.TOTAL, config.token_rate_limit),
                *parse_rate(Kind.INPUT, config.input_token_rate_limit),
                *parse_rate(Kind.OUTPUT, config.output_token_rate_limit),
            )
    return ()


def room_headers(room: Room) -> list[tuple[str, str]]:
    """Return OpenAI's headers about the tightest limit."""
    return [
        ("x-ratelimit-limit-tokens", str(room.limit)),
        ("x-ratelimit-remaining-tokens", str(room.remaining)),
        ("x-ratelimit-reset-tokens", f"{math.ceil(room.reset)}s"),
    ]


def _bounded(limits: tuple[TokenLimit, ...]) -> int:
    return min(DEFAULT_OUTPUT, *(limit.tokens for limit in limits))


def _refusal(refused: Refused, wanted: Tokens, headers: list[tuple[str, str]]) -> HttpProblem:
    limit = refused.limit
    said = f"{limit.tokens} {limit.kind.value} in {limit.seconds} s"
    if refused.wait is None:
        text = f"the call may use {wanted.of(limit.kind)} {limit.kind.value}, and the limit is {said}"
        return bad_request(f"{text}: ask for fewer with max_tokens", "max_tokens", "tokens_over_limit")
    seconds = max(1, math.ceil(refused.wait))
    return HttpProblem(
        429,
        f"token limit reached: {said}; again in {seconds} s",
        headers={"Retry-After": str(seconds), **dict(headers)},
    )
